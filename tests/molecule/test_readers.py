"""Files as people have them, labels under other names, and what is said of a file that cannot be used."""

import io
import logging

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.labels import LabelKeys
from uqbias.testing import molecule
from uqbias.units import EV, EV_PER_ANGSTROM, KCAL

FRAMES = molecule.frames(4, seed=1)
NUMBERS = FRAMES.numbers
X, E, F = FRAMES.positions * 10, FRAMES.energies / EV, FRAMES.forces / EV_PER_ANGSTROM


def same(frames, energies=True, forces=True):
    np.testing.assert_array_equal(frames.numbers, NUMBERS)
    np.testing.assert_allclose(frames.positions, FRAMES.positions, atol=1e-8)
    for there, values, expected in (
        (energies, frames.energies, FRAMES.energies),
        (forces, frames.forces, FRAMES.forces),
    ):
        if there:
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-4)
        else:
            assert values is None


def images(info=(), arrays=(), calculator=True, **results):
    for i, x in enumerate(X):
        image = Atoms(numbers=NUMBERS, positions=x)
        labels = {name: values[i] for name, values in results.items()}
        if calculator:
            image.calc = SinglePointCalculator(image, energy=E[i], forces=F[i], **labels)
        image.info.update({name: values[i] for name, values in info})
        for name, values in arrays:
            image.arrays[name] = values[i]
        yield image


def extended_xyz(path, **what):
    ase.io.write(path, list(images(**what)), format="extxyz")
    return path


@pytest.mark.parametrize(
    "name",
    ["md@300.xyz", "md@1", "two words.xyz", "größe Å.xyz", "a[1].xyz", "wild*.xyz", "x.traj", "t@2.traj", "b.db"],
)
def test_ase_formats_and_names(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".db"):
        with connect(path) as database:
            for image in images():
                database.write(image)
    else:
        # ASE's writer, too, takes an @ for its own.
        form = "traj" if name.endswith(".traj") else "extxyz"
        ase.io.write(tmp_path / "plain", list(images()), format=form)
        (tmp_path / "plain").rename(path)
        write_frames(tmp_path / "md", FRAMES[:1])
    same(read_frames(path))


@pytest.mark.parametrize("names", [("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F")])
def test_archives_of_md17_are_in_kcal(tmp_path, names):
    kcal = EV / KCAL
    values = NUMBERS, X, (E * kcal)[:, None], F * kcal
    np.savez(tmp_path / "a.npz", **dict(zip(names, values, strict=True)))
    same(read_frames(tmp_path / "a.npz"))
    np.savez(tmp_path / "e.npz", z=NUMBERS, R=X, E=E, F=F, e_unit="eV", r_unit="Ang")
    same(read_frames(tmp_path / "e.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has the arrays x; give those of rMD17 or MD17"),
        ({"z": NUMBERS, "R": X, "E": E[:2], "F": F}, "arrays that do not fit together"),
        ({"z": NUMBERS, "R": X, "E": E, "F": F, "e_unit": "cal"}, "units cal and Ang"),
        ({"z": NUMBERS, "R": X}, "frame 0 has no energy or forces"),
    ],
)
def test_archives_of_another_kind(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UqbiasError, match=message):
        read_frames(tmp_path / "a.npz")


def deepmd(folder, *, periodic=False):
    names, kinds = np.unique(NUMBERS, return_inverse=True)
    symbols = {1: "H", 6: "C", 8: "O"}
    for index, half in enumerate((slice(0, 3), slice(3, 4))):
        part = folder / f"set.00{index}"
        part.mkdir(parents=True)
        for name, values in (("coord", X), ("energy", E), ("force", F)):
            np.save(part / f"{name}.npy", values[half].reshape(len(X[half]), -1))
        np.save(part / "box.npy", np.repeat(20 * np.eye(3).reshape(1, 9), len(X[half]), axis=0))
    np.savetxt(folder / "type.raw", kinds, fmt="%d")
    (folder / "type_map.raw").write_text("\n".join(symbols[name] for name in names))
    if not periodic:
        (folder / "nopbc").touch()


def test_deepmd_sets(tmp_path):
    deepmd(tmp_path / "open")
    same(read_frames(tmp_path / "open"))
    deepmd(tmp_path / "boxed", periodic=True)
    with pytest.raises(UqbiasError, match="frame 0 is periodic"):
        read_frames(tmp_path / "boxed")
    boxed = read_frames(tmp_path / "boxed", periodic=True)
    np.testing.assert_allclose(boxed.cells, np.broadcast_to(2.0 * np.eye(3), (4, 3, 3)))
    (tmp_path / "boxed" / "type_map.raw").unlink()
    with pytest.raises(UqbiasError, match="boxed is not a DeePMD folder"):
        read_frames(tmp_path / "boxed")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UqbiasError, match="empty is not a DeePMD folder"):
        read_frames(tmp_path / "empty")


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <atominfo><atoms>2</atoms><types>1</types>
  <array name="atoms"><set><rc><c>H</c><c>1</c></rc><rc><c>H</c><c>1</c></rc></set></array>
  <array name="atomtypes"><set><rc><c>2</c><c>H</c><c>1.0</c><c>1.0</c><c>PAW_PBE</c></rc></set></array>
 </atominfo>
 <structure name="initialpos"><crystal><varray name="basis">{cell}</varray></crystal>
  <varray name="positions">{positions}</varray></structure>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>
 <calculation>
  <scstep><energy><i name="e_fr_energy">-6.7</i><i name="e_0_energy">-6.6</i></energy></scstep>
  <structure><crystal><varray name="basis">{cell}</varray></crystal>
   <varray name="positions">{positions}</varray></structure>
  <varray name="forces"><v>0 0 0.5</v><v>0 0 -0.5</v></varray>
  <energy><i name="e_fr_energy">-6.7</i><i name="e_0_energy">-6.6</i></energy>
 </calculation>
</modeling>
"""


def test_vasp_gives_the_energy_whose_gradient_the_forces_are(tmp_path, caplog):
    cell = "<v>8 0 0</v><v>0 8 0</v><v>0 0 8</v>"
    positions = "<v>0.5 0.5 0.5</v><v>0.5 0.5 0.6</v>"
    (tmp_path / "vasprun.xml").write_text(VASPRUN.format(cell=cell, positions=positions))
    with caplog.at_level(logging.WARNING, "uqbias"):
        frames = read_frames(tmp_path / "vasprun.xml", periodic=True)
    np.testing.assert_allclose(frames.energies / EV, [-6.7])
    np.testing.assert_allclose(frames.forces[0, :, 2] / EV_PER_ANGSTROM, [0.5, -0.5])
    assert "'free_energy' is used, not energy; --energy-key chooses" in caplog.text
    other = read_frames(tmp_path / "vasprun.xml", periodic=True, keys=LabelKeys(energy="energy"))
    np.testing.assert_allclose(other.energies / EV, [-6.6])
    (tmp_path / "OUTCAR").write_text("not one\n")
    with pytest.raises(UqbiasError, match="is not a VASP OUTCAR"):
        read_frames(tmp_path / "OUTCAR")


@pytest.mark.parametrize(
    ("energy", "forces", "options"),
    [
        ("REF_energy", "REF_forces", "--energy-key REF_energy --forces-key REF_forces"),
        ("dft_energy", "dft_forces", "--energy-key dft_energy --forces-key dft_forces"),
        ("TotEnergy", "force", "--energy-key TotEnergy --forces-key force"),
    ],
)
def test_labels_under_other_names(tmp_path, caplog, energy, forces, options):
    path = extended_xyz(tmp_path / "d.xyz", info=[(energy, E)], arrays=[(forces, F)], calculator=False)
    with pytest.raises(UqbiasError) as caught:
        read_frames(path)
    assert f"frame 0 has no energy or forces; it has {energy}, {forces}; give {options}" in str(caught.value)
    same(read_frames(path, labelled=False), energies=False, forces=False)
    assert not caplog.records
    same(read_frames(path, keys=LabelKeys(energy, forces)))
    with pytest.raises(UqbiasError, match=f"frame 0 has no ref_energy; it has {energy}; give --energy-key {energy}"):
        read_frames(path, labelled=False, keys=LabelKeys("ref_energy"))


def test_gradients_are_not_offered_as_forces(tmp_path):
    path = extended_xyz(tmp_path / "d.xyz", info=[("energ", E)], arrays=[("gradient", -F)], calculator=False)
    with pytest.raises(UqbiasError, match="--forces-key gradient; a gradient is minus the forces"):
        read_frames(path)


def test_two_sets_of_labels_in_one_file(tmp_path, caplog):
    path = extended_xyz(tmp_path / "two.xyz", info=[("dft_energy", E + 5)], arrays=[("dft_forces", F * 2)])
    same(read_frames(path))
    assert "'energy' is used, not dft_energy; --energy-key chooses" in caplog.text
    assert "'forces' is used, not dft_forces; --forces-key chooses" in caplog.text
    caplog.clear()
    other = read_frames(path, keys=LabelKeys("dft_energy", "dft_forces"))
    np.testing.assert_allclose(other.energies, FRAMES.energies + 5 * EV, rtol=1e-6)
    np.testing.assert_allclose(other.forces, FRAMES.forces * 2, rtol=1e-4, atol=1e-3)
    assert not caplog.records
    same(read_frames(extended_xyz(tmp_path / "equal.xyz", free_energy=E)))
    write_frames(
        tmp_path / "ours.xyz", Frames(NUMBERS, FRAMES.positions, *FRAMES.labels(), [{"model_energy": 1.0}] * 4)
    )
    same(read_frames(tmp_path / "ours.xyz"))
    assert not caplog.records


def test_energies_without_forces(tmp_path, caplog):
    bare = Frames(NUMBERS, FRAMES.positions, FRAMES.energies)
    write_frames(tmp_path / "e.xyz", bare)
    same(read_frames(tmp_path / "e.xyz", labelled="energies"), forces=False)
    assert not read_frames(tmp_path / "e.xyz", labelled=False).labelled
    with pytest.raises(UqbiasError, match=r"frame 0 has no forces; label every frame; energies alone: uqbias evaluate"):
        read_frames(tmp_path / "e.xyz")
    write_frames(tmp_path / "f.xyz", FRAMES)
    both = tmp_path / "both.xyz"
    both.write_text((tmp_path / "f.xyz").read_text() + (tmp_path / "e.xyz").read_text())
    for labelled in (True, "energies"):
        with pytest.raises(UqbiasError, match="frame 4 has no forces"):
            read_frames(both, labelled=labelled)
    assert read_frames(both, labelled=False).forces is None
    assert "4 of 8 frames have no forces" in caplog.text


def test_stress_is_read_and_written(tmp_path):
    stress = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]]) * np.ones((4, 1, 1))
    frames = Frames(NUMBERS, FRAMES.positions, *FRAMES.labels(), [], np.eye(3) * np.ones((4, 1, 1)), stress)
    write_frames(tmp_path / "s.xyz", frames)
    again = read_frames(tmp_path / "s.xyz", periodic=True, keys=LabelKeys(stress="stress"))
    np.testing.assert_allclose(again.stresses, stress, rtol=1e-6)
    np.testing.assert_allclose(Frames.concatenate([again[:1], again[[2]]]).stresses, stress[:2], rtol=1e-6)
    with pytest.raises(UqbiasError, match="frame 0 has no virial; it has stress; give --stress-key stress"):
        read_frames(tmp_path / "s.xyz", periodic=True, keys=LabelKeys(stress="virial"))


def test_several_molecules_are_counted_by_name(tmp_path):
    water = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ase.io.write(tmp_path / "two.xyz", [*images(), water, water], format="extxyz")
    with pytest.raises(UqbiasError, match=r"holds 2 molecules: C3H8O \(4, first frame 0\), H2O \(2, first frame 4\)"):
        read_frames(tmp_path / "two.xyz")
    ase.io.write(tmp_path / "order.xyz", [water, water[[1, 0, 2]]], format="extxyz")
    with pytest.raises(UqbiasError, match=r"holds 2 orders of atoms of one molecule: H2O \(1, first frame 0\), H2O"):
        read_frames(tmp_path / "order.xyz", labelled=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy=", "energy=low old=", "'energy' of frame 0 is 'low'; give one number"),
        ("energy=", 'energy="1 2 3" old=', r"'energy' of frame 0 is an array \(3,\)"),
        ("forces:R:3", "forces:R:1:more:R:2", r"'forces' of frame 0 is an array \(12,\) of float64"),
        ("energy=", "energy=inf old=", "energy is not finite in frame 0"),
        ("energy=", "energy=-1e300 old=", r"energy is absurdly large \(1e\+300\) in frame 0"),
    ],
)
def test_labels_of_another_type_or_shape(tmp_path, old, new, message):
    text = extended_xyz(tmp_path / "d.xyz").read_text()
    (tmp_path / "bad.xyz").write_text(text.replace(old, new))
    with pytest.raises(UqbiasError, match=message):
        read_frames(tmp_path / "bad.xyz")


def test_missing_files_and_other_content(tmp_path):
    with pytest.raises(UqbiasError, match=r"no such file: .*; give extended XYZ, ASE \.traj"):
        read_frames(tmp_path / "absent.xyz")
    for name, words in (("a.xyz", "an extended-XYZ file"), ("a.traj", "an ASE trajectory"), ("a.npz", "NumPy archive")):
        (tmp_path / name).write_text("nothing of the sort\n")
        with pytest.raises(UqbiasError, match=f"{name} is not a.* {words.split(' ', 1)[1]}"):
            read_frames(tmp_path / name)


def test_two_kinds_of_energy_are_not_mixed(tmp_path, caplog):
    def write(name, *results):
        one = [Atoms(numbers=NUMBERS, positions=x) for x in X]
        for image, values in zip(one, results, strict=False):
            image.calc = SinglePointCalculator(image, **values, forces=F[0])
        ase.io.write(tmp_path / name, one[: len(results)], format="extxyz")
        return tmp_path / name

    mixed = write("mixed.xyz", {"energy": -1.0}, {"energy": -1.5, "free_energy": -2.0})
    with pytest.raises(UqbiasError, match="a 'free_energy' and frame 0 only an 'energy'; --energy-key energy "):
        read_frames(mixed)
    np.testing.assert_allclose(read_frames(mixed, keys=LabelKeys("energy")).energies, [-1 * EV, -1.5 * EV])
    assert read_frames(mixed, labelled=False).energies is None
    assert "only an 'energy'; energies are not used" in caplog.text
    caplog.clear()
    equal = write("equal.xyz", {"energy": -1.0}, {"energy": -2.0, "free_energy": -2.0})
    np.testing.assert_allclose(read_frames(equal).energies, [-1 * EV, -2 * EV])
    assert not caplog.records
    free = write("free.xyz", {"energy": -1.0, "free_energy": -1.0}, {"energy": -1.5, "free_energy": -2.0})
    np.testing.assert_allclose(read_frames(free).energies, [-1 * EV, -2 * EV])
    assert "'free_energy' is used, not energy; --energy-key chooses (in a campaign file: system.energy" in caplog.text


def test_a_stress_that_nobody_asked_for_is_not_looked_at(tmp_path):
    text = extended_xyz(tmp_path / "d.xyz").read_text()
    for stress in ("nan 0 0 0 0 0 0 0 0", "1 0 0 0 1 0 0 0 1"):
        (tmp_path / "s.xyz").write_text(text.replace("energy=", f'stress="{stress}" energy=', 1))
        same(read_frames(tmp_path / "s.xyz"))
        with pytest.raises(UqbiasError, match="stress"):
            read_frames(tmp_path / "s.xyz", keys=LabelKeys(stress="stress"))


def test_words_and_names_of_ordinary_files(tmp_path):
    text = extended_xyz(tmp_path / "outcar_frames.xyz").read_text()
    same(read_frames(tmp_path / "outcar_frames.xyz"))
    (tmp_path / "OUTCAR.extxyz").write_text(text.replace("energy=", "data=3 energy="))
    same(read_frames(tmp_path / "OUTCAR.extxyz"))
    for name in ("OUTCAR", "OUTCAR_1", "run.outcar"):
        (tmp_path / name).write_text("not one\n")
        with pytest.raises(UqbiasError, match="is not a VASP OUTCAR"):
            read_frames(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"z": np.tile(NUMBERS, (4, 1))},
        {"name": np.array(b"propanol"), "type": np.array(b"d"), "theory": np.array([None], dtype=object)},
        {"e_unit": np.array(b"eV"), "r_unit": np.array(b"Ang")},
        {"R": X.reshape(4, -1), "F": F.reshape(4, -1)},
    ],
)
def test_archives_with_more_than_numbers_and_other_shapes(tmp_path, change):
    np.savez(tmp_path / "a.npz", **{"z": NUMBERS, "R": X, "E": E, "F": F, "e_unit": "eV"} | change)
    same(read_frames(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.array([[1, 1], [1, 8]])}, r"\[\[1 1\] \[1 8\]\] are no atomic numbers"),
        ({"z": np.full(len(NUMBERS), 200)}, "200 200 200. are no atomic numbers"),
        ({"z": NUMBERS - 1}, "atomic numbers"),
        ({"z": NUMBERS + 0.5}, "atomic numbers"),
        ({"z": NUMBERS[:6], "R": X.reshape(8, 6, 3)[:4]}, r"forces \(4, 12, 3\) of 6 atoms"),
        ({"z": NUMBERS[:6]}, r"positions \(4, 12, 3\) of 6 atoms"),
        ({"e_unit": np.array([b"eV", b"eV"])}, "does not name its units"),
        ({"e_unit": np.array(b"\xff")}, "does not name its units"),
    ],
)
def test_archives_whose_arrays_make_no_frames(tmp_path, change, message):
    np.savez(tmp_path / "a.npz", **{"z": NUMBERS, "R": X, "E": E, "F": F} | change)
    with pytest.raises(UqbiasError, match=message):
        read_frames(tmp_path / "a.npz")


def header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.000/coord.npy", b"", r"coord\.npy is not a whole NumPy array"),
        ("set.000/coord.npy", b"PK", "not a whole NumPy array"),
        ("set.000/energy.npy", header((10**13,)), "is shorter or longer than its header says"),
        ("set.000/real_atom_types.npy", b"", "set.000 is of DeePMD's mixed type"),
        ("type.raw", "\n".join(["0"] * 11 + ["-1"]).encode(), "type.raw has -1 to 0, type_map.raw 3 elements"),
        ("type.raw", "\n".join(["0"] * 11 + ["3"]).encode(), "type.raw has 0 to 3, type_map.raw 3 elements"),
        ("type_map.raw", b"X C O", "atomic numbers"),
        ("set.000/box.npy", header((4, 9)) + bytes(8 * 36), "arrays that do not fit together"),
    ],
)
def test_damaged_deepmd_folders(tmp_path, name, content, message):
    deepmd(tmp_path / "d", periodic="box" in name)
    (tmp_path / "d" / name).write_bytes(content)
    with pytest.raises(UqbiasError, match=message):
        read_frames(tmp_path / "d", periodic=True)
