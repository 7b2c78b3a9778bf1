"""Units of labels that come back, judged by known labels and by the model of the last round."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from molecules import PEROXIDE, peroxide
from peroxide_oracle import Peroxide

from uqbias.campaign import handed_over
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM


def peroxides(random, n):
    positions = [peroxide(torsion) + random.normal(0, 0.005, (4, 3)) for torsion in random.uniform(0, 6, n)]
    energies, forces = [], []
    for x in positions:
        atoms = Atoms(PEROXIDE.numbers, x / ANGSTROM, calculator=Peroxide())
        energies.append(atoms.get_potential_energy() * EV)
        forces.append(atoms.get_forces() * EV_PER_ANGSTROM)
    return Frames(np.array(PEROXIDE.numbers), np.array(positions), np.array(energies), np.array(forces))


@pytest.fixture
def case(monkeypatch):
    """Four new frames and known ones, and a model that is as wrong as one is."""
    random = np.random.default_rng(1)
    new, known = peroxides(random, 4), peroxides(random, 20)
    truth = {x.tobytes(): f for frames in (new, known) for x, f in zip(frames.positions, frames.forces, strict=True)}

    def evaluate(model, frames, *, forces):
        x = np.array([truth[x.tobytes()] for x in frames.positions])
        return SimpleNamespace(forces=x * random.uniform(0.6, 1.3) + random.normal(0, 0.3 * x.std(), x.shape))

    monkeypatch.setattr(handed_over, "evaluate_frames", evaluate)
    return new, known


def test_labels_in_order_pass(case):
    handed_over.check_units(*case, object())
    handed_over.check_units(*case, None)


@pytest.mark.parametrize(
    ("factor", "likely"),
    [(1 / 51.42, "in Hartree/bohr"), (23.06, "in kcal/mol/Å"), (964.9, "in kJ/mol/nm"), (-1.0, "with the other sign")],
)
def test_few_forces_in_other_units_are_known_by_the_model(case, factor, likely):
    new, known = case
    with pytest.raises(UqbiasError, match=rf"most likely they are .*{likely}"):
        handed_over.check_units(replace(new, forces=factor * new.forces), known, object())


def test_energies_of_another_method_are_known_by_those_before(case):
    new, known = case
    with pytest.raises(UqbiasError, match=r"of most frames and of those before are .* eV apart"):
        handed_over.check_units(replace(new, energies=new.energies - 27.2 * 150 * EV), known, None)


def test_atoms_of_a_crystal_may_come_back_at_other_images(tmp_path):
    random = np.random.default_rng(2)
    cells = [np.diag([0.5, 0.6, 0.7]) + 0.01 * random.normal(size=(3, 3)) for _ in range(3)]
    asked = [
        LabelRequest(i, label_key(x, "oracle", cell), x, {}, cell)
        for i, (x, cell) in enumerate((random.uniform(0, 0.5, (4, 3)), cell) for cell in cells)
    ]
    frames = handed_over.frames_of(asked, np.array([14, 8, 8, 14]))
    write_frames(tmp_path / "back.xyz", replace(frames, positions=frames.positions + np.array(cells)[:, :1])[[2, 0]])
    back = read_frames(tmp_path / "back.xyz", labelled=False, periodic=True)
    places = handed_over._requests(back, [[], asked], tmp_path / "back.xyz")
    assert [(number, request.index) for number, request in places] == [(1, 2), (1, 0)]
    swapped = replace(back, cells=back.cells[[1, 0]])
    with pytest.raises(UqbiasError, match=r"frame 0 has another geometry .*: a coordinate is .* Å away"):
        handed_over._requests(swapped, [[], asked], tmp_path / "back.xyz")
    with pytest.raises(UqbiasError, match=r"has pbc \[False, False, False\], the geometries asked for \[True"):
        handed_over._requests(replace(back, cells=None), [[], asked], tmp_path / "back.xyz")
