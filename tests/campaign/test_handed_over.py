"""Units of labels that come back, judged by known labels and by the model of the last round."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from molecules import PEROXIDE, peroxide
from peroxide_oracle import Peroxide

from uqbias.campaign import handed_over
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
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
