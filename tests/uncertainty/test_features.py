"""Feature spaces: values against independent formulas, invariance, gradients, stiffness rule, bad input."""

import json

import mdtraj
import numpy as np
import pytest
import torch
from ase.build import molecule

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import select_atoms
from uqbias.molecule.topology import Topology
from uqbias.registry import FEATURES
from uqbias.uncertainty.features.torsions import Torsions

N_LATENTS = 3
SPECS = [
    {"kind": "torsions"},
    {"kind": "torsions", "heavy_only": False},
    {"kind": "pair_distances"},
    {"kind": "concatenated", "parts": ["torsions", {"kind": "pair_distances", "scale": 10.0}]},
    {"kind": "latents", "atoms": "heavy"},
]


@pytest.fixture(scope="module")
def butane():
    atoms = molecule("trans-butane")
    return Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1), atoms.positions * 0.1


def frames(positions, n, scale, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(positions + rng.normal(0.0, scale, (n, *positions.shape)))


def latents_of(positions):
    """Invariant stand-in for a network's latents, [1, W, N, 3]."""
    distances = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.stack([torch.exp(-((distances / s) ** 2)).sum(-1) for s in (0.1, 0.2, 0.4)], -1)[None]


@pytest.mark.parametrize("spec", SPECS)
def test_rebuilt_from_json(butane, spec):
    topology, positions = butane
    x = frames(positions, 5, 0.02)
    features = FEATURES.build(spec, topology=topology, n_latents=N_LATENTS).double()
    features.prepare(frames(positions, 50, 0.05))
    twin = FEATURES.restore(json.loads(json.dumps(features.describe()))).double()
    twin.load_state_dict(features.state_dict())
    found = features(x, latents_of(x))
    assert found.shape[-1] == features.dim == twin.dim
    torch.testing.assert_close(twin(x, latents_of(x)), found, rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_against_differences(butane, spec):
    topology, positions = butane
    features = FEATURES.build(spec, topology=topology, n_latents=N_LATENTS).double()
    features.prepare(frames(positions, 50, 0.05))
    x = frames(positions, 2, 0.01, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: features(p, latents_of(p)), (x,), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_torsions_are_those_of_mdtraj(butane):
    topology, positions = butane
    features = FEATURES.build({"kind": "torsions", "heavy_only": False}, topology=topology, n_latents=0).double()
    x = frames(positions, 20, 0.01)
    trajectory = mdtraj.Trajectory(x.numpy(), topology.to_mdtraj())
    expected = mdtraj.compute_dihedrals(trajectory, features.dihedrals).astype(float)
    f = features(x, latents_of(x)).detach().numpy() / np.sqrt(np.tile(features.weights.numpy(), 2))
    cosine, sine = np.split(f, 2, axis=1)
    away = np.arctan2(sine, cosine) - expected
    assert np.abs((away + np.pi) % (2 * np.pi) - np.pi).max() < 1e-4


def test_torsion_products_are_weighted_cosines(butane):
    topology, positions = butane
    features = FEATURES.build({"kind": "torsions", "heavy_only": False}, topology=topology, n_latents=0).double()
    x = frames(positions, 4, 0.02)
    f = features(x, latents_of(x))
    trajectory = mdtraj.Trajectory(x.numpy(), topology.to_mdtraj())
    angles = mdtraj.compute_dihedrals(trajectory, features.dihedrals).astype(float)
    expected = (features.weights.numpy() * np.cos(angles[:, None] - angles[None])).sum(-1)
    np.testing.assert_allclose((f @ f.T).numpy(), expected, atol=1e-3)
    # 3 C-C bonds, each counted once whatever the number of dihedrals on it.
    assert features.weights.sum().item() == pytest.approx(3.0)
    assert len(features.dihedrals) == 27


def test_stiff_torsions_get_no_weight():
    """Ethene's hydrogens are stiff, a freely turned bond is soft."""
    atoms = molecule("C3H6_Cs")  # propene: H-C=C-H stiff, methyl free
    topology = Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1)
    features = FEATURES.build({"kind": "torsions", "heavy_only": False}, topology=topology, n_latents=0).double()
    methyl = next(i for i in range(9) if atoms.numbers[i] == 6 and len(topology.neighbours[i]) == 4)
    hydrogens = [i for i in topology.neighbours[methyl] if atoms.numbers[i] == 1]
    anchor = next(i for i in topology.neighbours[methyl] if atoms.numbers[i] == 6)
    x = frames(atoms.positions * 0.1, 60, 0.002).numpy()
    axis = atoms.positions[methyl] - atoms.positions[anchor]
    for index, angle in enumerate(np.linspace(0, 2 * np.pi, 60)):
        rotated = molecule("C3H6_Cs")[hydrogens]
        rotated.positions -= atoms.positions[methyl]
        rotated.rotate(np.degrees(angle), axis)
        x[index, hydrogens] = (rotated.positions + atoms.positions[methyl]) * 0.1
    features.prepare(torch.tensor(x))
    assert features.is_prepared
    soft = [four for four, weight in zip(features.dihedrals, features.weights, strict=True) if weight > 0]
    assert {frozenset(four[1:3]) for four in soft} == {frozenset((methyl, anchor))}
    assert features.stiff_deviation(torch.tensor(x)).max() < 20
    flipped = x[:1].copy()
    other = next(i for i in topology.neighbours[anchor] if i != methyl and atoms.numbers[i] == 6)
    ends = [i for i in topology.neighbours[other] if atoms.numbers[i] == 1]
    flipped[0, ends[0]], flipped[0, ends[1]] = x[0, ends[1]], x[0, ends[0]]
    assert features.stiff_deviation(torch.tensor(flipped)).item() > 150


def test_narrow_start_frames_make_no_torsion_stiff(butane):
    """A rotor in one well is as narrow as an amide: the bond decides, not the start frames."""
    topology, positions = butane
    features = FEATURES.build("torsions", topology=topology, n_latents=0)
    features.prepare(frames(positions, 30, 0.001))
    assert features.weights.tolist() == [1.0]
    assert features.stiff_deviation(frames(positions, 2, 0.001)).tolist() == [0.0, 0.0]


def test_a_stiff_torsion_that_the_start_frames_have_both_ways_is_not_watched():
    cis, trans = (_butene(sign) for sign in (1, -1))
    topology = Topology.from_positions(*cis)
    features = FEATURES.build({"kind": "torsions", "heavy_only": False}, topology=topology, n_latents=0).double()
    assert len(features.stiff) == 4
    x = torch.tensor(np.stack([cis[1], trans[1]]))
    features.prepare(x[:1])
    assert features.stiff_deviation(x).tolist() == pytest.approx([0.0, 180.0], abs=1.0)
    features.prepare(x)
    assert features.stiff_deviation(x).tolist() == [0.0, 0.0]


def _butene(sign):
    """Flat 2-butene with its methyl groups on one side or on two: numbers and positions in nm."""
    flat = [[0.067, 0.0], [-0.067, 0.0], [0.14, 0.13], [-0.14, 0.13], [0.12, -0.095], [-0.12, -0.095]]
    x = np.concatenate([np.array(flat), np.zeros((6, 1))], axis=1)
    x[[3, 5], 1] *= sign
    numbers = [6, 6, 6, 6, 1, 1] + [1] * 6
    tops = []
    for carbon, other in ((2, 0), (3, 1)):
        away = (x[carbon] - x[other]) / np.linalg.norm(x[carbon] - x[other])
        side = np.cross(away, [0.0, 0.0, 1.0])
        for turn in (0.0, 2.1, 4.2):
            direction = 0.33 * away + 0.94 * (np.cos(turn) * side + np.sin(turn) * np.array([0.0, 0.0, 1.0]))
            tops.append(x[carbon] + 0.109 * direction)
    return numbers, np.concatenate([x, tops])


@pytest.mark.parametrize(("name", "reason"), [("2-butyne", "linear"), ("C6H6", "flat ring"), ("C2H4", "double bond")])
def test_no_torsion_that_turns_is_an_error(name, reason):
    atoms = molecule(name)
    topology = Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1)
    with pytest.raises(UqbiasError, match=f"no torsion turns about a single bond: .*{reason}.*pair_distances"):
        FEATURES.build({"kind": "torsions", "heavy_only": False}, topology=topology, n_latents=0)


def test_collinear_flank_is_finite():
    atoms = molecule("trans-butane")
    features = Torsions([(0, 1, 2, 3)], len(atoms)).double()
    straight = torch.zeros(1, len(atoms), 3, dtype=torch.float64)
    straight[0, :, 0] = torch.arange(len(atoms)) * 0.15
    straight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(features(straight, latents_of(straight)).sum(), straight)
    assert torch.isfinite(gradient).all()


def test_pair_distances(butane):
    topology, positions = butane
    features = FEATURES.build("pair_distances", topology=topology, n_latents=0).double()
    carbons = [i for i, number in enumerate(topology.numbers) if number == 6]
    ends = [i for i in carbons if sum(topology.numbers[j] == 6 for j in topology.neighbours[i]) == 1]
    assert sorted(features.pairs[0]) == sorted(ends)
    assert len(features.pairs) == 1
    expected = np.linalg.norm(positions[ends[0]] - positions[ends[1]])
    x = torch.tensor(positions)[None]
    assert features(x, latents_of(x)).item() == pytest.approx(expected, abs=1e-5)


def third_party(positions, latents):
    return (positions[:, 0] - positions[:, 1]).pow(2).sum(-1, keepdim=True)


def test_function_by_name(butane):
    topology, positions = butane
    features = FEATURES.build(f"{__name__}:third_party", topology=topology, n_latents=N_LATENTS)
    twin = FEATURES.restore(features.describe())
    x = frames(positions, 3, 0.01)
    assert twin.dim == 1
    torch.testing.assert_close(twin(x, latents_of(x)), third_party(x, None))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torsion", "did you mean 'torsions'"),
        ({"kind": "torsions", "stiff": 3}, "unknown option 'stiff'.*valid: heavy_only"),
        ({"kind": "torsions", "stiff_below": 3.0}, "unknown option 'stiff_below'.*valid: heavy_only"),
        ({"kind": "latents", "atoms": [99]}, "99 in a molecule of 14 atoms"),
        ({"kind": "latents", "atoms": ["CA"]}, "no atom is called 'CA'"),
        ({"kind": "pair_distances", "min_separation": 9}, "no such atom pair"),
        ({"kind": "concatenated", "parts": ["latents"]}, "per atom"),
        ("os:system", "'os:system' is not a features; name a subclass"),
        ("nowhere.at.all:f", "cannot be imported"),
    ],
)
def test_bad_input(butane, spec, message):
    topology, _ = butane
    with pytest.raises(UqbiasError, match=message):
        FEATURES.build(spec, topology=topology, n_latents=N_LATENTS)


def test_no_dihedral():
    atoms = molecule("NH3")
    topology = Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1)
    with pytest.raises(UqbiasError, match="no such dihedral"):
        FEATURES.build("torsions", topology=topology, n_latents=0)


def test_select_atoms(butane):
    topology, _ = butane
    assert select_atoms(topology, "heavy") == tuple(i for i, number in enumerate(topology.numbers) if number == 6)
    assert select_atoms(topology, [3, 1]) == (1, 3)
    assert len(select_atoms(topology, None)) == 14
