"""Attacks on alanine dipeptide: symmetry, chemistry, and compiled code against the graph."""

import numpy as np
import pytest
import torch

from uqbias.attacks import AttackOptions, attack
from uqbias.model.inference import evaluate_frames
from uqbias.molecule.measures import chirality, dihedral_angles
from uqbias.units import kt

PHI, PSI = [4, 6, 8, 14], [6, 8, 14, 16]
VARIABLES = {"phi": {"kind": "dihedral", "atoms": PHI}, "psi": {"kind": "dihedral", "atoms": PSI}}
OPTIONS = {"iterations": 10, "temperature": 3000.0, "runner": "eager", "batch": 4}


def run(model, positions, *, dtype=torch.float64, cache_dir=None, seed=0, **options):
    return attack(
        model,
        positions,
        AttackOptions(**OPTIONS | options),
        variables=VARIABLES,
        dtype=dtype,
        cache_dir=cache_dir,
        seed=seed,
    )


def rotations(n, seed=0):
    """Random proper rotations [n, 3, 3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    return q * np.linalg.det(q)[:, None, None]


@pytest.fixture(scope="module")
def frames(alanine_frames):
    return alanine_frames.positions[::25]


@pytest.mark.parametrize("space", [{"kind": "internal", "bonds": True, "angles": True}, {"kind": "variables"}])
def test_a_turned_base_is_attacked_alike(alanine_model, frames, space):
    turn = rotations(len(frames))
    turned = frames @ turn + np.array([0.3, -0.2, 0.1])
    here, there = run(alanine_model, frames, space=space), run(alanine_model, turned, space=space)
    np.testing.assert_allclose(there.positions, here.positions @ turn + np.array([0.3, -0.2, 0.1]), atol=1e-7)
    np.testing.assert_allclose(there.log_likelihood, here.log_likelihood, atol=1e-5)
    np.testing.assert_allclose(there.delta, here.delta, atol=1e-6)


def test_a_turned_gradient_in_cartesian_space(alanine_model, frames):
    # Adam scales each coordinate of its own, so only the first direction, not the way, turns with the base.
    turn = rotations(1)[0]
    step = {"iterations": 1, "noise": 0.0, "learning_rate": 1e-4}
    here, there = run(alanine_model, frames, **step), run(alanine_model, frames @ turn, **step)
    for name in ("energy", "judge", "log_likelihood"):
        np.testing.assert_allclose(there.trajectory[name][0], here.trajectory[name][0], rtol=1e-6)
    moved = here.trajectory["positions"][1] - frames
    assert np.abs(np.abs(moved) - 1e-4).max() < 1e-6, "the first step of Adam is the learning rate, along each axis"


def test_an_attack_on_the_torsions_keeps_the_chemistry(alanine_model, frames):
    found = run(alanine_model, frames, space={"kind": "internal"}, learning_rate=0.2, noise=0.3)
    topology = alanine_model.topology
    i, j = np.array(topology.bonds).T
    lengths = np.linalg.norm(found.trajectory["positions"][:, :, i] - found.trajectory["positions"][:, :, j], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), atol=1e-9)
    centres = topology.chiral_centres()
    np.testing.assert_array_equal(chirality(found.positions, centres), chirality(frames, centres))
    assert found.norm.min() > 0.3


def test_phi_and_psi_change_by_delta(alanine_model, frames):
    found = run(alanine_model, frames, space={"kind": "variables", "names": ["phi", "psi"]}, learning_rate=0.2)
    change = dihedral_angles(found.positions, [PHI, PSI]) - dihedral_angles(frames, [PHI, PSI]) - found.delta
    np.testing.assert_allclose(np.exp(1j * change), 1.0, atol=1e-7)
    others = [four for four in alanine_model.topology.proper_dihedrals() if four[1:3] not in ((6, 8), (8, 14))]
    change = dihedral_angles(found.positions, others) - dihedral_angles(frames, others)
    np.testing.assert_allclose(np.exp(1j * change), 1.0, atol=1e-9)


def test_attacks_are_more_likely_than_random_distortions_of_the_same_length(alanine_model, frames):
    hot, cold = 1e7, 1500.0
    for temperature in (hot, cold):
        found = run(alanine_model, frames, iterations=25, temperature=temperature, bound=0.05)
        ways = np.random.default_rng(0).normal(size=(20, *frames.shape))
        ways *= found.norm[:, None, None] / np.linalg.norm(ways, axis=(2, 3), keepdims=True)
        others = evaluate_frames(alanine_model, (frames + ways).reshape(-1, *frames.shape[1:]))
        judge, energy = (values.reshape(20, -1) for values in (others.judge, others.energy))
        gain = np.log(found.judge / judge) - (found.energy - energy) / kt(temperature)
        assert (gain > 0.5).all()
        assert (found.judge > judge.max(axis=0)).all() == (temperature == hot)
        assert (found.energy < energy.min(axis=0)).all() == (temperature == cold)


def test_single_precision_and_torchscript_do_the_same(alanine_model, frames):
    exact = run(alanine_model, frames, iterations=5)
    for options in ({}, {"runner": "torchscript"}):
        single = run(alanine_model, frames, dtype=torch.float32, iterations=5, **options)
        np.testing.assert_allclose(single.positions, exact.positions, atol=2e-4)
        np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, atol=0.02)
        again = evaluate_frames(alanine_model, single.positions)
        np.testing.assert_allclose(single.energy, again.energy, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "space",
    [{"kind": "cartesian"}, {"kind": "internal", "bonds": True, "angles": True}, {"kind": "variables", "rigid": False}],
)
def test_machine_code_does_what_the_graph_does(alanine_model, frames, space, graph_cache):
    graph = run(alanine_model, frames, space=space, dtype=torch.float32, iterations=5)
    compiled = run(
        alanine_model, frames, space=space, dtype=torch.float32, iterations=5, runner="aoti", cache_dir=graph_cache
    )
    assert compiled.runner == "aoti"
    np.testing.assert_allclose(compiled.positions, graph.positions, atol=2e-4)
    np.testing.assert_allclose(compiled.log_likelihood, graph.log_likelihood, atol=0.02)


@pytest.mark.slow
def test_a_graph_is_compiled_once_for_all_temperatures_and_models(alanine_model, frames, tmp_path):
    for temperature, shift in ((300.0, 0.0), (5000.0, 10.0)):
        with torch.no_grad():
            alanine_model.potential.energy_shift.add_(shift)
        run(alanine_model, frames, temperature=temperature, runner="aoti", cache_dir=tmp_path, dtype=torch.float32)
        alanine_model.potential.energy_shift.sub_(shift)
    assert len(list(tmp_path.glob("attack-*.pt2"))) == 1
