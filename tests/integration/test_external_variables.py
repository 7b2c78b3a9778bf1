"""OpenMM Forces as variables, periodic boxes, and a model in place of a molecule's own force field."""

import itertools

import numpy as np
import openmm
import pytest
import torch
from molecules import ALANINE_PDB
from openmm import app, unit

import uqbias
from uqbias.app.external import ForceVariables
from uqbias.app.whole import Whole
from uqbias.bias.eabf import ExtendedABF
from uqbias.bias.fixed import Restraint, UpperWall
from uqbias.bias.gamd import GaMD
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.registry import VARIABLES

QUIET = {"runner": "eager", "dtype": torch.float64, "hills": None, "colvar": None, "temperature": 300}
REFERENCE = openmm.Platform.getPlatformByName("Reference")


def check_forces(context, positions, some=None, step=1e-5, tolerance=1e-6):
    """Forces against central differences of the energy, on some particles."""
    context.setPositions(positions)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    some = range(len(positions)) if some is None else some
    errors = []
    for index in itertools.product(some, range(3)):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[index] += sign * step
            context.setPositions(moved)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        errors.append(forces[index] + (energies[0] - energies[1]) / (2 * step))
    context.setPositions(positions)
    scale = np.abs(forces[list(some)]).max()
    assert scale > 1
    assert np.abs(errors).max() < tolerance * scale


def particles(numbers):
    system, topology = openmm.System(), app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in numbers:
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
        system.addParticle(element.mass)
    return system, topology


def charges(n, box=None):
    """A NonbondedForce on n particles; periodic with PME if there is a box."""
    force = openmm.NonbondedForce()
    for index in range(n):
        force.addParticle(0.4 * (-1) ** index, 0.1, 0.2)
    if box is not None:
        force.setNonbondedMethod(openmm.NonbondedForce.PME)
        force.setCutoffDistance(0.45 * box)
        force.setEwaldErrorTolerance(1e-6)
    return force


def context_of(system, positions):
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(positions)
    return context


@pytest.mark.parametrize("box", [None, 2.0])
def test_uncertainty_and_forces_together(tiny_model, tiny_positions, box):
    """u, a non-bonded energy, and a bond across the model's border; derivatives of the sum of biases."""
    system, _ = particles((18, 18, *tiny_model.numbers))
    x = np.concatenate([[[0.5, 0.4, -0.2], [-0.3, 0.4, 0.3]], tiny_positions[0].numpy()])
    bond = openmm.CustomBondForce("r")
    bond.addBond(1, 4)
    if box is not None:
        system.setDefaultPeriodicBoxVectors([box, 0, 0], [0, box, 0], [0, 0, box])
        system.addForce(charges(7, box))
        x[0] += [box, 0, 0]  # an image
    hills = MetaD(variables=["driver", "q"], sigma=[1.0, 20.0], pace=1, height=30.0)
    wall = UpperWall(at=0.1, kappa=300.0, variables=["d"])
    sampling = uqbias.Sampling(
        system, tiny_model, [hills, wall], variables={"q": charges(7, box), "d": bond}, atoms=range(2, 7),
        force_platform="Reference", **QUIET,
    )  # fmt: skip
    context = context_of(system, x)
    context.getState(energy=True)
    found = sampling.evaluator.last.variables.numpy()
    alone = openmm.System()
    for _ in range(7):
        alone.addParticle(1.0)
    alone.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    alone.addForce(charges(7, box))
    expected = context_of(alone, x).getState(energy=True).getPotentialEnergy()._value
    assert sampling.names == ("driver", "q", "d")
    assert found[0, 1:] == pytest.approx([expected, np.linalg.norm(x[4] - x[1])], rel=1e-12)
    for shift in ([0.3, 5.0], [-0.5, -9.0]):
        hills.update(1, found[:, :2] + shift)
    check_forces(context, x, some=[0, 1, 4, 6], tolerance=3e-6)
    assert sampling.evaluator.last.bias.item() > 10


def test_only_the_force_that_is_asked_for_is_evaluated(tiny_model, tiny_positions):
    """Once a step, and not again where positions are the same; the System's own forces are not touched."""
    calls = {"variable": 0, "own": 0}

    class Counted:
        def __init__(self, name):
            self.name = name

        def __call__(self, state):
            calls[self.name] += 1
            x = state.getPositions(asNumpy=True)._value
            return float((x**2).sum()), -2 * x

        def __reduce__(self):
            return _counted, (self.name,)

    _counted.make = Counted
    system, topology = particles(tiny_model.numbers)
    system.addForce(openmm.PythonForce(Counted("own")))
    hills = MetaD(variables=["driver", "r2"], sigma=[0.5, 0.1], pace=5)
    variables = {"r2": openmm.PythonForce(Counted("variable"))}
    sampling = uqbias.Sampling(system, tiny_model, [hills], variables=variables, **QUIET)
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.0005), REFERENCE)
    simulation.context.setPositions(tiny_positions[0].numpy())
    before = dict(calls)
    sampling.step(simulation, 20)
    assert calls["own"] - before["own"] == 20
    assert calls["variable"] - before["variable"] == 21
    assert sampling.evaluator.n_evaluations == 21


def _counted(name):
    return _counted.make(name)


def test_forces_take_parameters_from_the_simulation(tiny_model, tiny_positions):
    system, _ = particles(tiny_model.numbers)
    both = []
    for force in (openmm.CustomExternalForce("k*x^2"), openmm.CustomExternalForce("k*y")):
        force.addGlobalParameter("k", 2.0)
        force.addParticle(0)
        both.append(force)
    system.addForce(both[1])
    sampling = uqbias.Sampling(
        system, None, [Restraint(at=0.0, kappa=1.0, variables=["s"])], variables={"s": both[0]}, **QUIET
    )
    context = context_of(system, np.ones((5, 3)))
    for k in (2.0, 5.0):
        context.setParameter("k", k)
        context.getState(energy=True)
        assert sampling.evaluator.last.variables.item() == pytest.approx(k)


def test_gamd_on_the_energy_of_a_force_field():
    """A System as a variable: the boost scales its forces by 1 - k (E_thr - V)."""
    pdb = app.PDBFile(str(ALANINE_PDB))
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(pdb.topology)
    boost = GaMD(
        variables=["V"], conventional_steps=40, preparation_steps=0, equilibration_steps=40, pace=2, sigma0=8.0
    )
    sampling = uqbias.Sampling(
        system, None, [boost], variables={"V": system}, force_platform="Reference", **QUIET
    )  # fmt: skip
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, REFERENCE)
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    sampling.step(simulation, 100)
    assert boost.stage == "production"
    group = sampling.force.getForceGroup()
    own, added = (
        simulation.context.getState(energy=True, forces=True, groups=groups)
        for groups in (set(range(32)) - {group}, {group})
    )
    energy = own.getPotentialEnergy()._value
    parameters = boost.parameters
    below = parameters["threshold"] - energy
    assert below > 0
    assert added.getPotentialEnergy()._value == pytest.approx(0.5 * parameters["k"] * below**2)
    forces = own.getForces(asNumpy=True)._value
    scaled = added.getForces(asNumpy=True)._value / forces
    np.testing.assert_allclose(scaled, -parameters["k"] * below, rtol=1e-6)


def test_something_must_act(tiny_model):
    system, _ = particles(tiny_model.numbers)
    bond = openmm.CustomBondForce("r")
    bond.addBond(0, 1)
    with pytest.raises(UqbiasError, match="drive='model' without a model; give the model"):
        uqbias.Sampling(
            system, None, [UpperWall(at=1.0, variables=["r"])], variables={"r": bond}, drive="model", **QUIET
        )
    with pytest.raises(UqbiasError, match="no biases, and drive='bias': nothing would act"):
        uqbias.Sampling(system, tiny_model, [], **QUIET)
    assert system.getNumForces() == 0


def test_gamd_does_not_boost_an_energy_that_does_not_drive(tiny_model):
    system, _ = particles(tiny_model.numbers)
    with pytest.raises(UqbiasError, match=r"gamd boosts the model's energy, but .* give drive='model', or the energy"):
        uqbias.Sampling(system, tiny_model, [GaMD()], **QUIET)
    assert system.getNumForces() == 0


@pytest.mark.parametrize("followed", [False, True])
def test_tau_is_not_adapted_to_forces_that_nobody_sees(tiny_model, followed):
    """The gradient of a Force is not in the graph, so that tau would stay 0 without a word."""
    bond = openmm.CustomBondForce("r")
    bond.addBond(0, 1)
    name = "extended_r" if followed else "r"
    eabf = [ExtendedABF(variables=["r"])] if followed else []
    for model in (None, tiny_model):
        system, _ = particles(tiny_model.numbers)
        with pytest.raises(UqbiasError, match=f"adapted tau on '{name}'.*give it a fixed tau"):
            uqbias.Sampling(system, model, [*eabf, Linear(variables=[name])], variables={"r": bond}, **QUIET)
        assert (system.getNumForces(), system.getNumParticles()) == (0, 5)
        uqbias.Sampling(system, model, [*eabf, Linear(tau=1.0, variables=[name])], variables={"r": bond}, **QUIET)


def test_forces_that_cannot_be_variables(tiny_model):
    system, _ = particles(tiny_model.numbers)
    other = openmm.System()
    other.addParticle(1.0)
    with pytest.raises(UqbiasError, match="System of 1 particles for one of 5"):
        ForceVariables(system, {"s": other})
    wrong = openmm.CustomBondForce("r")
    wrong.addBond(0, 9)
    with pytest.raises(UqbiasError, match="as variables"):
        ForceVariables(system, {"s": wrong})
    with pytest.raises(UqbiasError, match=r"no OpenMM platform 'Referense'.*did you mean"):
        ForceVariables(system, {"s": charges(5)}, "Referense")
    assert ForceVariables(system, {"s": charges(5)}).platform == "CPU"


# Collective variables in the graph


def test_variables_of_the_graph_and_their_period(alanine_model, alanine_frames):
    """(u, φ) together, atoms of the molecule by name; φ's period must be the bias's."""
    topology = Topology.from_pdb(ALANINE_PDB)
    phi = VARIABLES.build({"kind": "dihedral", "atoms": ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C"]}, topology=topology)
    system, _ = particles((8, 1, 1, *alanine_model.numbers))
    x = np.concatenate([3 + np.eye(3), alanine_frames.positions[5]])
    atoms = list(range(3, 25))
    with pytest.raises(UqbiasError, match=r"'phi' with period None; the variable has the period 6\.28319"):
        uqbias.Sampling(system, alanine_model, [MetaD(variables=["phi"])], variables={"phi": phi}, atoms=atoms, **QUIET)
    for one in (
        ExtendedABF(variables=["phi"], sigma=0.1),
        Restraint(at=3.1, kappa=100.0, variables=["phi"]),
        UpperWall(at=3.0, variables=["phi"]),
    ):
        with pytest.raises(UqbiasError, match=rf"{one.kind} on 'phi' with period None; .* give the bias periods"):
            uqbias.Sampling(system, alanine_model, [one], variables={"phi": phi}, atoms=atoms, **QUIET)
    pair = [uqbias.BiasVariable(alanine_model, biasWidth=1.0), uqbias.BiasVariable(phi, biasWidth=0.35, name="phi")]
    bias = uqbias.Metadynamics(system, pair, biasFactor=10, height=5.0, frequency=1, atoms=atoms, **QUIET)
    assert bias.metadynamics.periods == (None, pytest.approx(2 * np.pi))
    context = context_of(system, x)
    context.getState(energy=True)
    found = bias.evaluator.last.variables.numpy()
    assert found[0, 1] == pytest.approx(phi(torch.tensor(x[None, 3:])).item())
    bias.metadynamics.update(1, found + np.array([[0.4, 0.2]]))
    check_forces(context, x, some=[0, 4, 5, *(3 + atom for atom in phi.atoms)])
    # Without a model, atoms are those of the System.
    system, _ = particles(alanine_model.numbers)
    bias = uqbias.Metadynamics(
        system, [uqbias.BiasVariable(phi, biasWidth=0.35)], biasFactor=None, height=5.0, frequency=1, **QUIET
    )
    context = context_of(system, x[3:])
    bias.metadynamics.update(1, found[:, 1:] + 0.2)
    check_forces(context, x[3:], some=phi.atoms)


# Periodic boxes


def test_whole_moves_by_box_vectors_only():
    rng = np.random.default_rng(0)
    box = np.array([[2.0, 0, 0], [0.5, 1.8, 0], [-0.4, 0.7, 2.2]])
    chain = np.cumsum(rng.normal(0, 0.1, (12, 3)), axis=0)
    bonds = [(index, index + 1) for index in range(7)] + [(8, 9), (9, 10), (9, 11)]
    whole = Whole(12, bonds)
    assert whole(chain, box) is not None
    np.testing.assert_array_equal(whole(chain, box), chain)
    split = chain + rng.integers(-3, 4, (12, 3)) @ box
    found = whole(split, box)
    shift = np.linalg.solve(box.T, (found - split).T).T
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-9)
    np.testing.assert_allclose(found - found[0], chain - chain[0], atol=1e-9)
    # A chain longer than half the box is whole along its bonds, though its ends are nearer as images.
    long = np.zeros((30, 3))
    long[:, 0] = 0.1 * np.arange(30)
    split = long - np.floor(long / 2.0) * 2.0
    found = Whole(30, [(index, index + 1) for index in range(29)])(split, np.diag([2.0] * 3))
    np.testing.assert_allclose(found, long, atol=1e-12)


@pytest.mark.parametrize("triclinic", [False, True])
def test_a_molecule_split_by_the_box(alanine_model, alanine_frames, triclinic):
    """Energy and forces are those of the whole one, for the biases and for the force for OpenMM's classes."""
    box = np.array([[2.5, 0, 0], [0.8, 2.4, 0], [-0.6, 0.9, 2.6]]) if triclinic else np.diag([2.5, 2.4, 2.6])
    system, _ = particles((18, *alanine_model.numbers))
    system.setDefaultPeriodicBoxVectors(*box)
    field = charges(23, 2.4)
    for pair in itertools.combinations(range(23), 2):
        field.addException(*pair, 0.0, 0.1, 0.0)
    system.addForce(field)
    options = {"runner": "eager", "dtype": torch.float64}
    driver = uqbias.uncertainty_cv_force(alanine_model, range(1, 23), periodic=True, **options)
    driver.setForceGroup(7)
    system.addForce(driver)
    hills = MetaD(sigma=0.5, pace=1, height=10.0)
    sampling = uqbias.Sampling(system, alanine_model, [hills], atoms=range(1, 23), drive="model", **QUIET)
    x = np.concatenate([[[0.1, 0.2, 0.3]], alanine_frames.positions[2]])
    split = x + np.random.default_rng(1).integers(-2, 3, (23, 3)) @ box
    context = context_of(system, x)
    context.getState(energy=True)
    hills.update(1, sampling.evaluator.last.variables.numpy() + 0.3)
    found = []
    for positions in (x, split):
        context.setPositions(positions)
        for group in (7, sampling.force.getForceGroup()):
            state = context.getState(energy=True, forces=True, groups={group})
            found.append(np.append(state.getForces(asNumpy=True)._value.ravel(), state.getPotentialEnergy()._value))
    for whole, other in zip(found[:2], found[2:], strict=True):
        assert np.abs(whole).max() > 0.1
        np.testing.assert_allclose(other, whole, atol=1e-9 * np.abs(whole).max())


def test_single_precision_far_from_the_origin(alanine_model, alanine_frames):
    """A molecule that has diffused through a hundred boxes has the forces that it had at first."""
    system, _ = particles(alanine_model.numbers)
    system.setDefaultPeriodicBoxVectors([4, 0, 0], [0, 4, 0], [0, 0, 4])
    system.addForce(charges(22, 2.4))
    options = {**QUIET, "dtype": torch.float32}
    sampling = uqbias.Sampling(system, alanine_model, [MetaD()], drive="model", **options)
    context = context_of(system, alanine_frames.positions[2])
    group = {sampling.force.getForceGroup()}
    near, far = [], []
    for found, shift in ((near, 0.0), (far, 400.0)):
        context.setPositions(alanine_frames.positions[2] + shift)
        found.append(context.getState(forces=True, groups=group).getForces(asNumpy=True)._value)
    assert np.abs(near[0] - far[0]).max() < 1e-4 * np.abs(near[0]).max()


# A model in place of the molecule's own force field


def water_box():
    """Alanine dipeptide in a small box of water with PME."""
    field = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
    pdb = app.PDBFile(str(ALANINE_PDB))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, boxSize=openmm.Vec3(2.2, 2.2, 2.2) * unit.nanometer)
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 1.05 * unit.nanometer, "ewaldErrorTolerance": 1e-7}

    def system(**more):
        return field.createSystem(modeller.topology, **options, **more)

    return system, np.array(modeller.positions.value_in_unit(unit.nanometer))


def test_internal_forces_are_removed_and_nothing_else():
    """What is gone is the molecule in vacuum: bonded terms, and its non-bonded pairs without their images."""
    make, x = water_box()
    solute = range(22)
    # A distant pair is beyond the cutoff in the box, not in vacuum; all within here.
    assert np.linalg.norm(x[:22, None] - x[None, :22], axis=-1).max() < 1.05
    full, mixed = make(constraints=app.HBonds), make(constraints=app.HBonds)
    for system in (full, mixed):
        for force in system.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.setUseDispersionCorrection(False)
    uqbias.remove_internal_forces(mixed, solute)
    assert full.getNumConstraints() - mixed.getNumConstraints() == 12
    assert mixed.getNumConstraints() > 0
    # Constrained bonds have no term in the box: leave them out of the reference too.
    reference = app.ForceField("amber14/protein.ff14SB.xml").createSystem(
        app.PDBFile(str(ALANINE_PDB)).topology, constraints=app.HBonds
    )
    states = [
        context_of(system, positions).getState(energy=True, forces=True)
        for system, positions in ((full, x), (mixed, x), (reference, x[:22]))
    ]
    energies = [state.getPotentialEnergy()._value for state in states]
    forces = [state.getForces(asNumpy=True)._value for state in states]
    assert energies[0] - energies[1] == pytest.approx(energies[2], abs=2e-3)
    scale = np.abs(forces[2]).max()
    np.testing.assert_allclose((forces[0] - forces[1])[:22], forces[2], atol=1e-5 * scale)
    np.testing.assert_allclose((forces[0] - forces[1])[22:], 0, atol=1e-5 * scale)
    # It is still one molecule, hydrogens included.
    sizes = sorted(len(molecule) for molecule in context_of(mixed, x).getMolecules())
    assert sizes[-1] == 22
    assert set(sizes[:-1]) == {3}


def test_model_in_place_of_the_internal_forces(alanine_model, alanine_frames):
    make, x = water_box()
    plain, system = make(), make()
    uqbias.remove_internal_forces(plain, range(22))
    uqbias.remove_internal_forces(system, range(22))
    sampling = uqbias.Sampling(system, alanine_model, [], atoms=range(22), drive="model", **QUIET)
    contexts = [context_of(one, x) for one in (plain, system)]
    states = [context.getState(energy=True, forces=True) for context in contexts]
    with torch.no_grad():
        energy = alanine_model(torch.tensor(x[None, :22])).energy.item()
    difference = states[1].getPotentialEnergy()._value - states[0].getPotentialEnergy()._value
    assert difference == pytest.approx(energy, rel=1e-6)
    forces = states[1].getForces(asNumpy=True)._value - states[0].getForces(asNumpy=True)._value
    np.testing.assert_allclose(forces[:22], sampling.evaluator.last.forces[0].numpy(), atol=1e-6)
    assert np.abs(forces[22:]).max() < 1e-9


def test_what_cannot_be_removed():
    system, _ = particles((6, 6, 6))
    bonds = openmm.HarmonicBondForce()
    bonds.addBond(0, 1, 0.15, 1000.0)
    bonds.addBond(1, 2, 0.15, 1000.0)
    system.addForce(bonds)
    with pytest.raises(UqbiasError, match="between the molecule and other atoms"):
        uqbias.remove_internal_forces(system, [0, 1])
    assert bonds.getBondParameters(0)[3]._value == 1000.0
    system.addForce(openmm.GBSAOBCForce())
    with pytest.raises(UqbiasError, match="GBSAOBCForce"):
        uqbias.remove_internal_forces(system, [0, 1, 2])
    assert bonds.getBondParameters(0)[3]._value == 1000.0
    with pytest.raises(UqbiasError, match="give its indices"):
        uqbias.remove_internal_forces(system, [5])
