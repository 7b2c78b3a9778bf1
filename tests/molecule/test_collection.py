"""Files of several systems: frames are told apart by their atoms, and those of one system are joined."""

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from tests.helpers.molecules import emt_frames
from uqbias.errors import UqbiasError
from uqbias.molecule.collection import formula, read_collection
from uqbias.molecule.frames import Frames, read_frames, read_systems, write_frames

CELL = np.eye(3)[None]


@pytest.fixture
def water(tmp_path):
    frames = emt_frames("H2O", 5)
    write_frames(tmp_path / "water.xyz", frames)
    return frames


@pytest.fixture
def mixed(tmp_path):
    """Methanol and water in turn, and one water of another order of atoms."""
    for name, frames in (("a", emt_frames("CH3OH", 4)), ("b", emt_frames("H2O", 4))):
        write_frames(tmp_path / f"{name}.xyz", frames)
    both = [ase.io.read(tmp_path / f"{name}.xyz", ":") for name in "ab"]
    images = [image for pair in zip(*both, strict=True) for image in pair]
    turned, labels = images[1][[1, 0, 2]], images[1].calc.results
    turned.calc = SinglePointCalculator(turned, energy=labels["energy"], forces=labels["forces"][[1, 0, 2]])
    ase.io.write(tmp_path / "mixed.xyz", [*images, turned])
    return tmp_path / "mixed.xyz"


def test_frames_of_a_file_are_told_apart_by_their_atoms(mixed):
    methanol, water, turned = read_systems(mixed)
    assert [len(one) for one in (methanol, water, turned)] == [4, 4, 1]
    assert turned.numbers.tolist() == [1, 8, 1]
    assert methanol.source == f"{mixed} (CH4O)"
    for one, name in ((methanol, "CH3OH"), (water, "H2O")):
        alone = emt_frames(name, 4)
        np.testing.assert_allclose(one.positions, alone.positions, atol=1e-9)
        np.testing.assert_allclose(one.energies, alone.energies, rtol=1e-6)
        np.testing.assert_allclose(one.forces, alone.forces, atol=1e-4)
    with pytest.raises(UqbiasError, match=r"holds 3 molecules: CH4O \(4, first frame 0\), H2O \(4, first frame 1\)"):
        read_frames(mixed)


def test_frames_of_one_system_are_joined(tmp_path, water, mixed):
    hot = Frames(water.numbers, 1.2 * water.positions, water.energies, water.forces)
    write_frames(tmp_path / "hot.xyz", hot)
    systems = read_collection([tmp_path / "water.xyz", mixed, tmp_path / "hot.xyz"])
    assert {name: len(frames) for name, frames in systems.items()} == {"water+H2O+hot": 14, "CH4O": 4, "H2O": 1}
    np.testing.assert_allclose(systems["water+H2O+hot"].positions[9:], hot.positions, atol=1e-8)
    broken = water.positions.copy()
    broken[:, 2] += 1.0
    write_frames(tmp_path / "apart.xyz", Frames(water.numbers, broken, water.energies, water.forces))
    assert list(read_collection([tmp_path / "water.xyz", tmp_path / "apart.xyz"])) == ["water", "apart"]
    assert list(read_collection([tmp_path / "water.xyz"])) == ["water"]


def test_two_systems_of_one_name_are_numbered(tmp_path, water):
    (tmp_path / "other").mkdir()
    write_frames(tmp_path / "other" / "water.xyz", emt_frames("CH4", 2))
    assert list(read_collection([tmp_path / "water.xyz", tmp_path / "other" / "water.xyz"])) == ["water", "water-2"]


def test_a_system_has_cells_in_all_frames_or_in_none(tmp_path):
    water, methane = emt_frames("H2O", 2), emt_frames("CH4", 2)
    boxed = Frames(methane.numbers, methane.positions, methane.energies, methane.forces, cells=CELL.repeat(2, 0))
    for name, frames in (("a", water), ("b", boxed), ("c", methane)):
        write_frames(tmp_path / f"{name}.xyz", frames)
    texts = {name: (tmp_path / f"{name}.xyz").read_text() for name in "abc"}
    (tmp_path / "good.xyz").write_text(texts["a"] + texts["b"])
    vacuum, crystal = read_systems(tmp_path / "good.xyz", periodic=True)
    assert vacuum.cells is None
    np.testing.assert_allclose(crystal.cells, CELL.repeat(2, 0))
    (tmp_path / "bad.xyz").write_text(texts["a"] + texts["b"] + texts["c"])
    with pytest.raises(UqbiasError, match=r"frame 2 is periodic .*others are not; keep periodic frames and others"):
        read_systems(tmp_path / "bad.xyz", periodic=True)


def test_faults_are_told_by_their_place_in_the_file(tmp_path, mixed):
    images = ase.io.read(mixed, ":")
    images[5].positions[0, 0] = np.inf
    ase.io.write(tmp_path / "infinite.xyz", images)
    with pytest.raises(UqbiasError, match="positions are not finite in frame 5"):
        read_systems(tmp_path / "infinite.xyz")
    images = ase.io.read(mixed, ":")
    del images[6].calc.results["forces"]
    ase.io.write(tmp_path / "unlabelled.xyz", images)
    with pytest.raises(UqbiasError, match="frame 6 has no forces"):
        read_systems(tmp_path / "unlabelled.xyz")


def test_formula():
    assert formula([8, 1, 6, 1, 1, 1]) == "CH4O"
