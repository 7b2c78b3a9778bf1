"""Local densities: values against direct sums, the tree, rings and protons, what a graph may rely on."""

import ase.build
import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.registry import FEATURES, UNCERTAINTIES
from uqbias.uncertainty.base import rebuild_uncertainty
from uqbias.uncertainty.features.local_angles import local_parts

KAPPA = 5.0


def chain(n_carbons):
    """An alkane: carbons in a row, then the hydrogens of each."""
    bonds, numbers = [(i, i + 1) for i in range(n_carbons - 1)], [6] * n_carbons
    for i in range(n_carbons):
        for _ in range(3 if i in (0, n_carbons - 1) else 2):
            bonds.append((i, len(numbers)))
            numbers.append(1)
    return Topology(tuple(numbers), tuple(bonds))


def folded(topology, angles):
    """Frames of an alkane with the torsions ``angles`` [n, T]; hydrogens sit beside their carbons."""
    n, n_carbons = len(angles), sum(number == 6 for number in topology.numbers)
    x = np.zeros((n, n_carbons, 3))
    bend = np.radians(110.0)
    x[:, 1, 0] = 0.15
    x[:, 2] = x[:, 1] + 0.15 * np.array([-np.cos(bend), np.sin(bend), 0.0])
    for i in range(3, n_carbons):
        axis = x[:, i - 1] - x[:, i - 2]
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        normal = np.cross(x[:, i - 2] - x[:, i - 3], axis)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        theta = angles[:, i - 3, None]
        out = np.cos(theta) * np.cross(normal, axis) + np.sin(theta) * normal
        x[:, i] = x[:, i - 1] + 0.15 * (-np.cos(bend) * axis + np.sin(bend) * out)
    owners = [around[0] for around in topology.neighbours[n_carbons:]]
    return torch.tensor(np.concatenate([x, x[:, owners] + np.array([0.03, 0.07, 0.08])], axis=1))


def nothing(x):
    """Energies and latents of a kind that uses neither."""
    return x.new_zeros(1, len(x)), x.new_zeros(1, len(x), x.shape[1], 1)


def fitted(topology, x, kind="local_densities", **options):
    part = UNCERTAINTIES.build(kind, options, topology=topology, n_latents=1).double()
    part.prepare(x)
    part.fit(x, *nothing(x), seed=0)
    return part


@pytest.fixture(scope="module")
def hexane():
    """Hexane whose first two torsions turn together, and random angles of another 20 frames."""
    random = np.random.default_rng(0)
    angles = random.normal(0.0, 0.6, (60, 3))
    angles[:, 1] = angles[:, 0] + random.normal(0.0, 0.1, 60)
    topology = chain(6)
    return topology, angles, random.uniform(-np.pi, np.pi, (20, 3))


def direct(angles, references, parts):
    """−ln of the density of some torsions, without the median."""
    apart = np.cos(angles[:, None, parts] - references[None][:, :, parts]) - 1.0
    return np.log(len(references)) - logsumexp(KAPPA * apart.sum(-1), axis=1)


def test_values_are_the_direct_sums(hexane):
    topology, angles, others = hexane
    part = fitted(topology, folded(topology, angles))
    assert part.part_names == ("torsion C1-C2", "torsion C2-C3", "torsion C3-C4")
    test = folded(topology, others)
    local = part.local(test, *nothing(test)).numpy()
    for k in range(3):
        expected = direct(others, angles, [k]) - np.median(direct(angles, angles, [k]))
        np.testing.assert_allclose(local[:, k], expected, atol=5e-3)


def test_tree_joins_the_torsions_that_turn_together(hexane):
    topology, angles, others = hexane
    part = fitted(topology, folded(topology, angles))
    edges = [tuple(edge) for edge in torch.nonzero(part.edges).tolist()]
    assert (0, 1) in edges
    assert len(edges) == 2

    def tree(x):
        degree = np.bincount(np.ravel(edges), minlength=3)
        pairs = sum(direct(x, angles, list(edge)) for edge in edges)
        return pairs - sum((degree[k] - 1) * direct(x, angles, [k]) for k in range(3))

    test = folded(topology, others)
    expected = tree(others) - np.median(tree(angles))
    np.testing.assert_allclose(part(test, *nothing(test)).numpy(), expected, atol=2e-2)


def test_the_tree_of_two_torsions_is_their_kernel_density():
    topology = chain(5)
    x = folded(topology, np.random.default_rng(1).normal(0.0, 0.8, (40, 2)))
    test = folded(topology, np.random.default_rng(2).uniform(-np.pi, np.pi, (20, 2)))
    local, joint = fitted(topology, x), fitted(topology, x, "kernel_density")
    torch.testing.assert_close(local(test, *nothing(test)), joint(test, *nothing(test)), rtol=0, atol=1e-9)
    assert local.wall == joint.wall == 14.0


def test_one_torsion_has_one_density_which_is_the_tree():
    topology = chain(4)
    x = folded(topology, np.random.default_rng(1).normal(0.0, 0.8, (40, 1)))
    part = fitted(topology, x)
    u, local = part.with_local(x, *nothing(x))
    torch.testing.assert_close(local[:, 0], u)
    assert part.wall == 14.0


def test_bounded_and_wall_grows_with_the_torsions(hexane):
    topology, angles, _ = hexane
    part = fitted(topology, folded(topology, angles))
    assert part.wall == pytest.approx(21.0)
    test = folded(topology, np.random.default_rng(3).uniform(-np.pi, np.pi, (500, 3)))
    u, local = part.with_local(test, *nothing(test))
    assert local.max() < 2 * KAPPA + np.log(len(angles))
    assert u.max() < 6 * KAPPA + np.log(len(angles))
    assert u.max() > 14.0
    broken = torch.tensor(np.random.default_rng(0).normal(0.0, 5.0, test[:20].shape))
    assert all(torch.isfinite(values).all() for values in part.with_local(broken, *nothing(broken)))


def test_gradient_against_differences(hexane):
    topology, angles, others = hexane
    part = fitted(topology, folded(topology, angles))
    x = folded(topology, others[:2]).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: part.with_local(p, *nothing(p)), (x,), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_labels_change_no_shape_until_the_places_are_full(hexane):
    topology, angles, _ = hexane
    part = fitted(topology, folded(topology, angles[:20]), capacity=50)
    shapes = {name: tensor.shape for name, tensor in part.state_dict().items()}
    part.fit(folded(topology, angles), *nothing(folded(topology, angles)), seed=0)
    assert {name: tensor.shape for name, tensor in part.state_dict().items()} == shapes
    assert part.capacity == part.options()["capacity"] == 64
    x = folded(topology, np.random.default_rng(0).normal(size=(70, 3)))
    part.fit(x, *nothing(x), seed=0)
    assert part.capacity == 128
    twin = rebuild_uncertainty(part.describe()).double()
    twin.load_state_dict(part.state_dict())
    torch.testing.assert_close(twin(x, *nothing(x)), part(x, *nothing(x)), rtol=0, atol=0)
    assert twin.part_names == part.part_names


def test_pairs_are_of_neighbouring_bonds():
    names = [part.name for part in local_parts(chain(7), "pairs")]
    assert names == ["torsions C1-C2 C2-C3", "torsions C3-C4 C4-C5"]
    part = UNCERTAINTIES.build("local_densities", {"grouping": "pairs"}, topology=chain(6), n_latents=1)
    assert part.part_names == ("torsions C1-C2 C2-C3", "torsion C3-C4")


def test_cyclohexane_is_one_ring_whose_flip_is_far():
    bonds = [(i, (i + 1) % 6) for i in range(6)] + [(i, 6 + 2 * i + k) for i in range(6) for k in range(2)]
    topology = Topology((6,) * 6 + (1,) * 12, tuple(bonds))
    turn = np.arange(6) * np.pi / 3
    flat = np.stack([0.15 * np.cos(turn), 0.15 * np.sin(turn), 0 * turn], axis=1)
    pucker = 0.025 * np.array([[0, 0, 1], [0, 0, -1]] * 3)
    carbons = np.stack([flat + scale * pucker for scale in (1.0, 0.98, 1.02, 0.0, -1.0)])
    x = torch.tensor(np.concatenate([carbons, np.repeat(carbons, 2, axis=1) * 1.5], axis=1))
    part = fitted(topology, x[:3])
    (name,) = part.part_names
    assert name.startswith("ring C")
    assert part.features.weights.sum() == pytest.approx(2.0)
    chair, _, _, middle, flipped = part.local(x, *nothing(x))[:, 0].tolist()
    assert abs(chair) < 0.1
    assert chair + 2 < middle < flipped - 2
    assert part.features.stiff_deviation(x).max() == 0.0


def test_proton_goes_from_one_side_to_the_other():
    """Malonaldehyde's enol, flat: O-H...O with the proton on a line between both oxygens."""
    numbers = (8, 6, 6, 6, 8, 1, 1, 1, 1)
    bonds = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 6), (2, 7), (3, 8))
    topology = Topology(numbers, bonds, mobile=((4, 5, 0),))
    x = np.zeros((5, 9, 3))
    x[:, :5, :2] = [[-0.12, 0.0], [-0.11, 0.12], [0.0, 0.19], [0.11, 0.12], [0.12, 0.0]]
    x[:, 5, 0] = [0.03, 0.025, 0.0, -0.025, -0.03]
    x[:, 6:, :2] = [[-0.2, 0.17], [0.0, 0.3], [0.2, 0.17]]
    x = torch.tensor(x)
    part = fitted(topology, x[:2])
    assert part.part_names == ("proton O4-H5-O0",)
    cosine, sine = part.features(x, nothing(x)[1]).T
    angles = torch.atan2(sine, cosine)
    assert angles[2].item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(angles, -angles.flip(0))
    u = part.local(x, *nothing(x))[:, 0]
    assert (u[1:] > u[:-1])[1:].all()
    assert u[-1] > 1.0


def test_nothing_to_turn_is_an_error():
    atoms = ase.build.molecule("C6H6")
    topology = Topology.from_positions(atoms.numbers.tolist(), atoms.positions * 0.1)
    with pytest.raises(UqbiasError, match=r"no bond that turns, no ring that puckers and no mobile proton.*auto"):
        FEATURES.build("local_angles", topology=topology, n_latents=0)
