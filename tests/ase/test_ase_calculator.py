"""The ASE calculator: forces and stress are derivatives of E + V, energy is conserved, hills come at their pace."""

import numpy as np
import periodic_systems
import pytest
import torch
from ase import Atoms, units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from molecules import peroxide_geometries, peroxide_model

from uqbias.ase import UncertaintyCalculator
from uqbias.bias import ExtendedABF, MetaD, UpperWall
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

EXACT = {"runner": "eager", "dtype": torch.float64}


def metad(**options):
    return MetaD(temperature=300.0, height=2.0, sigma=0.5, pace=10, **options)


def with_hills(variables=("driver",)):
    """A bias with a history."""
    bias = metad(variables=list(variables))
    for step, u in enumerate((-1.0, 0.5, 2.0), start=1):
        bias.update(10 * step, np.full((1, len(bias.variables)), u))
    bias.frozen = True
    return bias


def peroxide_atoms(calculator=None):
    return Atoms("O2H2", peroxide_geometries(3)[1] / ANGSTROM, calculator=calculator)


def biased_peroxide(*biases):
    return peroxide_atoms(UncertaintyCalculator(peroxide_model(), [with_hills(), *biases], **EXACT))


def heat(atoms):
    """Momenta of 300 K."""
    widths = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * widths)


CASES = ["wide", "triclinic", "slab"]


def solid(name, bias=None):
    cell, periodic = periodic_systems.CELLS[name]
    numbers, x = periodic_systems.atoms(cell, periodic)
    model = periodic_systems.model(numbers, x, cell, periodic)
    atoms = Atoms(numbers, x[0].numpy() / ANGSTROM, cell=cell / ANGSTROM, pbc=periodic)
    atoms.calc = UncertaintyCalculator(model, bias, **EXACT)
    return atoms


def test_energies_are_those_of_the_evaluator():
    model, bias = peroxide_model(), with_hills()
    atoms = peroxide_atoms(UncertaintyCalculator(model, bias, **EXACT))
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    one = FusedEvaluator(model, bias, 1, **EXACT).evaluate(torch.tensor(atoms.positions[None] * ANGSTROM))
    results = atoms.calc.results
    assert energy == results["free_energy"] == pytest.approx(float(one.energy + one.bias) / EV, rel=1e-12)
    np.testing.assert_allclose(forces, one.forces[0].numpy() / EV_PER_ANGSTROM, rtol=1e-10)
    assert results["model_energy"] + results["bias_energy"] == pytest.approx(energy)
    assert results["bias_energy"] > 0
    assert results["driver"] == pytest.approx(float(one.driver))
    assert results["uncertainty"] == pytest.approx(float(one.judge) / EV_PER_ANGSTROM)
    assert "uncertainties" not in results
    each = atoms.calc.get_property("uncertainties", atoms)
    expected = model.atom_uncertainties(torch.tensor(atoms.positions[None] * ANGSTROM))[0] / EV_PER_ANGSTROM
    np.testing.assert_allclose(each, expected.detach().numpy(), rtol=1e-9)
    alone = peroxide_atoms(UncertaintyCalculator(model, per_atom=True, **EXACT))
    assert alone.get_potential_energy() == pytest.approx(results["model_energy"])
    assert alone.calc.results["bias_energy"] == 0
    np.testing.assert_allclose(alone.calc.results["uncertainties"], each)


def slope(atoms, h, move):
    """Central difference of the energy along ``move``, which displaces the atoms by a number."""
    energies = []
    for side in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        move(moved, side * h)
        energies.append(moved.get_potential_energy())
    return (energies[0] - energies[1]) / (2 * h)


@pytest.mark.parametrize("name", ["peroxide", *CASES])
def test_forces_are_minus_the_gradient(name):
    atoms = biased_peroxide() if name == "peroxide" else solid(name, with_hills())
    forces = atoms.get_forces()
    random = np.random.default_rng(0)
    for _ in range(3):
        direction = random.normal(size=forces.shape)

        def move(moved, h, direction=direction):
            moved.positions += h * direction

        assert slope(atoms, 1e-4, move) == pytest.approx(-(forces * direction).sum(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["wide", "triclinic"])
def test_stress_is_the_derivative_by_strain(name):
    atoms = solid(name, with_hills())
    stress, volume = atoms.get_stress(voigt=False), atoms.get_volume()
    for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)):

        def strain(moved, h, i=i, j=j):
            deformation = np.eye(3)
            deformation[i, j] += h / 2
            deformation[j, i] += h / 2
            moved.set_cell(moved.cell.array @ deformation, scale_atoms=True)

        assert slope(atoms, 1e-5, strain) / volume == pytest.approx(stress[i, j], rel=1e-5, abs=1e-8)


def test_images_of_a_molecule_in_a_cell_do_not_matter():
    model = peroxide_model()
    atoms = peroxide_atoms(UncertaintyCalculator(model, with_hills(), **EXACT))
    energy, driver = atoms.get_potential_energy(), atoms.calc.results["driver"]
    box = atoms.copy()
    box.set_cell(np.diag([14.0, 15.0, 16.0]))
    box.pbc = True
    box.positions -= box.positions.min(axis=0) + 0.4
    box.wrap()
    assert np.ptp(box.positions, axis=0).max() > 10
    box.calc = UncertaintyCalculator(model, with_hills(), **EXACT)
    assert box.get_potential_energy() == pytest.approx(energy, rel=1e-9)
    assert box.calc.results["driver"] == pytest.approx(driver, rel=1e-9)
    box.calc = atoms.calc  # which was made for a molecule in vacuum
    assert box.get_potential_energy() == pytest.approx(energy, rel=1e-9)


def test_energy_is_conserved():
    atoms = biased_peroxide(UpperWall(at=3.0, kappa=5.0))
    BFGS(atoms, logfile=None).run(steps=5)
    heat(atoms)
    totals = []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(200)
    assert np.ptp(totals) < 2e-3 * np.ptp([atoms.get_kinetic_energy(), 0.0])


def test_hills_come_at_their_pace_and_act_at_once():
    bias = metad()
    atoms = peroxide_atoms(UncertaintyCalculator(peroxide_model(), bias, **EXACT))
    heat(atoms)
    bath = {"temperature_K": 300, "friction": 0.01 / units.fs, "rng": np.random.default_rng(1), "fixcm": False}
    dynamics = Langevin(atoms, 0.25 * units.fs, **bath)
    atoms.calc.attach(dynamics)
    seen = []
    dynamics.attach(lambda: seen.append(atoms.calc.results["driver"]), interval=10)
    dynamics.run(19)
    assert len(bias.hills) == 1
    dynamics.run(21)
    assert len(bias.hills) == 4
    np.testing.assert_allclose(bias.hills["centre"].reshape(-1), seen[1:], rtol=1e-6)
    before = atoms.get_potential_energy()
    assert atoms.calc.results["bias_energy"] > 0
    atoms.calc.update()
    assert atoms.calc.results["energy"] == before
    assert atoms.get_potential_energy() > before
    bias.frozen = True
    atoms.calc.update()
    assert len(bias.hills) == 5


def test_trajectories_of_ase_hold_the_results(tmp_path):
    atoms = peroxide_atoms(UncertaintyCalculator(peroxide_model(), **EXACT))
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs, trajectory=str(tmp_path / "md.traj"))
    dynamics.run(3)
    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == 4
    assert frames[-1].get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    assert "energy" in atoms.get_properties(["energy", "forces"])


def test_what_does_not_fit_is_refused():
    model = peroxide_model()
    with pytest.raises(UqbiasError, match=r"extended variable '.*', which ASE does not integrate"):
        UncertaintyCalculator(model, ExtendedABF(temperature=300.0), **EXACT)
    with pytest.raises(UqbiasError, match="acts on 'phi', which is no variable here"):
        UncertaintyCalculator(model, metad(variables=["phi"]), **EXACT)
    calculator = UncertaintyCalculator(model, metad(), **EXACT)
    with pytest.raises(UqbiasError, match="before any calculation"):
        calculator.update()
    with pytest.raises(UqbiasError, match=r"the atoms are OH, the model's OOHH"):
        Atoms("OH", [[0, 0, 0], [0, 0, 1]], calculator=calculator).get_potential_energy()
    atoms = biased_peroxide(UpperWall(at=-50.0, kappa=1e12))
    with pytest.raises(UqbiasError, match="no finite energy and forces below"):
        atoms.get_forces()
    atoms.positions[1] = np.nan
    with pytest.raises(UqbiasError, match="not finite"):
        atoms.get_forces()
