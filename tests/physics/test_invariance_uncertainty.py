"""Uncertainties as collective variables: invariant, finite, right gradients, one flat graph with all state as input."""

import ase.io
import numpy as np
import pytest
import torch
from molecules import ALANINE_PDB
from scipy.spatial.transform import Rotation
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from uqbias.molecule.topology import Topology
from uqbias.registry import UNCERTAINTIES

N = 22
OPTIONS = {
    "torsions": ("kernel_density", {"features": "torsions", "capacity": 256}),
    "all_torsions": ("kernel_density", {"features": {"kind": "torsions", "heavy_only": False}, "capacity": 256}),
    "gaussian_kernel": ("kernel_density", {"features": "pair_distances", "kernel": "gaussian", "dims": 6}),
    "distances": ("gmm", {"features": "pair_distances", "dims": 12, "squash": "softplus_sqrt", "reg_covar": 1e-2}),
    "both": (
        "gmm",
        {"features": {"kind": "concatenated", "parts": ["torsions", {"kind": "pair_distances", "scale": 5.0}]}},
    ),
    "latents_mean": ("gmm", {"features": "latents"}),
    "elements": ("gmm", {"per_element": True, "samples_per_component": 100}),
    "mahalanobis": ("distance", {}),
    "nearest": ("distance", {"metric": "knn", "capacity": 64}),
    "rigidity": ("llpr", {}),
    "rigidity_structure": ("llpr", {"scope": "structure"}),
    "latents_local": ("gmm", {"features": "latents", "aggregation": {"kind": "local_mean_max", "atoms": "heavy"}}),
}


@pytest.fixture(scope="module")
def molecule():
    topology = Topology.from_pdb(ALANINE_PDB)
    positions = ase.io.read(ALANINE_PDB).positions * 0.1
    return topology, positions


def latents_of(x):
    """Smooth invariant stand-in for a network's latents, [1, W, N, 4]."""
    apart = x[:, :, None] - x[:, None]
    squares = (apart * apart).sum(-1)
    return torch.stack([torch.exp(-squares / s**2).sum(-1) for s in (0.1, 0.15, 0.2, 0.4)], -1)[None]


def walkers(molecule, n, seed):
    """Geometries with turned φ and ψ and thermal noise, [n, N, 3] nm."""
    topology, positions = molecule
    names = topology.names
    rng = np.random.default_rng(seed)
    x = np.repeat(positions[None], n, axis=0)
    for frame in x:
        for start, end in (("N", "CA"), ("CA", "C")):
            j = next(i for i, name in enumerate(names) if name == start and topology.residues[i].startswith("ALA"))
            k = next(i for i, name in enumerate(names) if name == end and topology.residues[i].startswith("ALA"))
            side, front = {k}, [k]
            while front:
                front = [m for i in front for m in topology.neighbours[i] if m != j and m not in side]
                side |= set(front)
            axis = (frame[k] - frame[j]) / np.linalg.norm(frame[k] - frame[j])
            far = sorted(side)
            turn = Rotation.from_rotvec(axis * rng.normal(0, 0.7))
            frame[far] = turn.apply(frame[far] - frame[k]) + frame[k]
    return torch.tensor(x + rng.normal(0, 0.004, x.shape))


@pytest.fixture(scope="module")
def fitted(molecule):
    made = {}
    x = walkers(molecule, 200, seed=0)
    for name, (kind, options) in OPTIONS.items():
        judge = UNCERTAINTIES.build(kind, options, topology=molecule[0], n_latents=4).double()
        judge.prepare(x)
        judge.fit(x, torch.zeros(1, len(x)), latents_of(x), seed=0)
        made[name] = judge
    return made


def evaluate(judge, x):
    """u [W] and −∂u/∂x [W, N, 3]."""
    x = x.detach().requires_grad_(True)
    u = judge(x, x.new_zeros(1, len(x)), latents_of(x))
    (gradient,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), -gradient


def central_differences(judge, x, h=2e-6):
    energy = torch.zeros(1, 6 * N, dtype=x.dtype)
    steps = h * torch.eye(3 * N, dtype=x.dtype).reshape(-1, N, 3)
    found = []
    for frame in x:
        both = torch.cat([frame + steps, frame - steps])
        u = judge(both, energy, latents_of(both))
        found.append(((u[: 3 * N] - u[3 * N :]) / (2 * h)).reshape(N, 3))
    return torch.stack(found)


def exploded():
    """Bad walkers: collapsed, collapsed on one point, blown up, far away, on a line, in a plane grid."""
    rng = np.random.default_rng(0)
    line = np.zeros((N, 3))
    line[:, 0] = 0.15 * np.arange(N)
    return torch.tensor(
        np.stack(
            [
                rng.normal(0, 0.02, (N, 3)),
                np.zeros((N, 3)),
                rng.normal(0, 5.0, (N, 3)),
                rng.normal(0, 1e4, (N, 3)),
                line,
                line[:, [1, 0, 2]] * 0.13,
            ]
        )
    )


def test_soft_torsions_are_phi_and_psi(fitted, molecule):
    features = fitted["torsions"].features
    names = molecule[0].names
    soft = [four for four, weight in zip(features.dihedrals, features.weights.tolist(), strict=True) if weight > 0]
    central = {frozenset(names[i] for i in four[1:3]) for four in soft}
    assert central == {frozenset(("N", "CA")), frozenset(("CA", "C"))}
    assert features.weights.sum().item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_in_double_precision(fitted, molecule, name):
    x = walkers(molecule, 4, seed=1)
    expected = -central_differences(fitted[name], x)
    _, found = evaluate(fitted[name], x)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert expected.norm() > 1e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_in_single_precision(fitted, molecule, name):
    x = walkers(molecule, 4, seed=1)
    expected = -central_differences(fitted[name], x)
    try:
        _, found = evaluate(fitted[name].float(), x.float())
    finally:
        fitted[name].double()
    # Buffers went through float32, so compare with the double-precision differences at its precision.
    assert (found.double() - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_invariance(fitted, molecule, name, dtype):
    x = walkers(molecule, 8, seed=2)
    turn = torch.tensor(Rotation.random(random_state=0).as_matrix())
    moved = x @ turn.T + torch.tensor([0.7, -0.4, 1.1])
    try:
        made = fitted[name].to(dtype)
        u, force = evaluate(made, x.to(dtype))
        u_moved, force_moved = evaluate(made, moved.to(dtype))
    finally:
        fitted[name].double()
    scale = max(1.0, u.abs().max().item())
    # Coordinates of 1 nm are rounded to eps/2 before u sees them: du = F·dx of independent roundings.
    rounding = torch.finfo(dtype).eps * force.norm(dim=(1, 2)).max().item()
    assert (u - u_moved).abs().max() <= (1e-10 if dtype == torch.float64 else 1e-5) * scale + rounding
    turned = force.double() @ turn.T
    assert (turned - force_moved.double()).abs().max() <= 1e-3 * turned.abs().max()
    assert force.sum(1).abs().max() <= 1e-4 * force.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_finite_for_broken_geometries(fitted, name, dtype):
    try:
        u, force = evaluate(fitted[name].to(dtype), exploded().to(dtype))
    finally:
        fitted[name].double()
    assert torch.isfinite(u).all()
    assert torch.isfinite(force).all()


def test_bounded_by_its_kernel(fitted):
    """The von Mises density cannot be driven by stiff modes: u has a ceiling, whatever the geometry."""
    made = fitted["torsions"]
    u, _ = evaluate(made, exploded())
    assert u.max() <= np.log(200) + 2 * 5.0 * 2.0 - made.median.item() + 1e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_flat_graph_with_state_as_input(fitted, molecule, name):
    """One trace serves every refit: all that `fit` changes is an input of the graph."""
    made = fitted[name]
    x = walkers(molecule, 8, seed=3)
    energy = torch.zeros(1, 8, dtype=x.dtype)

    def function(buffers, positions):
        positions = positions.detach().requires_grad_(True)
        u = functional_call(made, buffers, (positions, energy, latents_of(positions)))
        return u, -torch.autograd.grad(u.sum(), positions)[0]

    state = {key: value.clone() for key, value in made.state_dict().items()}
    graph = make_fx(function)(state, x)
    other = walkers(molecule, 8, seed=4)
    frames = walkers(molecule, 120, seed=5)
    try:
        made.fit(frames, torch.zeros(1, 120), latents_of(frames), seed=1)
        new_state = {key: value.clone() for key, value in made.state_dict().items()}
        expected_new = evaluate(made, other)
    finally:
        made.load_state_dict(state)
    expected = evaluate(made, other)
    assert not torch.allclose(expected[0], expected_new[0])
    for given, wanted in ((state, expected), (new_state, expected_new)):
        found = graph(given, other)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", OPTIONS)
def test_size_of_the_graph(fitted, molecule, name):
    """A fixed, small number of operations: no loop over atoms, torsions, components or references; but elements."""
    made = fitted[name]
    x = walkers(molecule, 8, seed=3)
    latents, energy = latents_of(x), torch.zeros(1, 8, dtype=x.dtype)
    graph = make_fx(lambda positions, lat: made(positions, energy, lat))(x, latents)
    count = sum(node.op == "call_function" for node in graph.graph.nodes)
    groups = len(made.groups) if hasattr(made, "groups") else 1
    assert count <= 75 + 30 * (groups - 1), count


@pytest.mark.parametrize("name", OPTIONS)
def test_torchscript(fitted, molecule, name):
    made = fitted[name]
    inputs = [
        (x, torch.zeros(1, 8, dtype=x.dtype), latents_of(x)) for x in (walkers(molecule, 8, seed=s) for s in (6, 7))
    ]
    traced = torch.jit.trace(made, inputs[0])
    torch.testing.assert_close(traced(*inputs[1]), made(*inputs[1]), rtol=1e-12, atol=1e-12)
