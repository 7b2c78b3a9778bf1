"""The barostat against volumes whose distribution is known, and what it refuses."""

import numpy as np
import pytest

from uqbias.errors import UqbiasError
from uqbias.md.barostat import FIRST, LARGEST, Barostat
from uqbias.molecule.cells import volume
from uqbias.units import BAR, kt

KT = kt(300.0)
W = 200


def moved(barostat, energies, boxes, positions, rounds, skip):
    """Volumes [rounds - skip, W] and lengths [.., W, 3] of lattice vectors."""
    generators = [np.random.default_rng([3, walker]) for walker in range(W)]
    volumes, lengths = [], []
    for _ in range(rounds):
        barostat.move(positions, boxes, energies, generators)
        volumes.append(volume(boxes))
        lengths.append(np.linalg.norm(boxes, axis=-1))
    return np.array(volumes[skip:]), np.array(lengths[skip:])


def test_an_ideal_gas_has_the_volume_of_its_pressure():
    """n particles without an energy: V follows a gamma distribution, mean (n + 1) kT/p, variance (n + 1) (kT/p)²."""
    n, pressure = 30, 3e3
    scale = KT / (pressure * BAR)
    boxes = np.tile(np.cbrt((n + 1) * scale) * np.eye(3), (W, 1, 1))
    positions = np.random.default_rng(0).random((W, n, 3)) @ boxes
    before = positions @ np.linalg.inv(boxes)
    barostat = Barostat(pressure, "isotropic", 300.0, boxes, n)
    volumes, _ = moved(barostat, lambda x, cells: np.zeros(W), boxes, positions, 1200, 300)
    assert abs(volumes.mean() / ((n + 1) * scale) - 1) < 0.02
    assert abs(volumes.var() / ((n + 1) * scale**2) - 1) < 0.08
    # Atoms stay where they are in the cell.
    np.testing.assert_allclose(positions @ np.linalg.inv(boxes), before, atol=1e-12)


def test_an_anisotropic_barostat_moves_each_length():
    """Springs on the lengths: each follows L^n exp(-k (L - L0)² / 2kT - pV/kT) at p = 0, angles stay."""
    n, k = 3, 400.0
    rest = np.array([0.8, 1.0, 1.3])
    start = np.array([[0.8, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0.5, 1.2]])
    start *= (rest / np.linalg.norm(start, axis=1))[:, None]
    boxes = np.tile(start, (W, 1, 1))
    barostat = Barostat(0.0, "anisotropic", 300.0, boxes, n)

    def energies(x, cells):
        return 0.5 * k * ((np.linalg.norm(cells, axis=-1) - rest) ** 2).sum(1)

    _, lengths = moved(barostat, energies, boxes, np.zeros((W, n, 3)), 1500, 400)
    grid = np.linspace(0.3, 2.0, 4001)[:, None]
    weights = grid**n * np.exp(-0.5 * k * (grid - rest) ** 2 / KT)
    weights /= weights.sum(0)
    mean = (weights * grid).sum(0)
    np.testing.assert_allclose(lengths.mean((0, 1)), mean, rtol=3e-3)
    np.testing.assert_allclose(lengths.std((0, 1)), np.sqrt((weights * (grid - mean) ** 2).sum(0)), rtol=0.04)
    unit = boxes / np.linalg.norm(boxes, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit, np.tile(start / rest[:, None], (W, 1, 1)), atol=1e-12)


def test_rigid_groups_keep_their_shape():
    boxes = np.tile(np.eye(3), (W, 1, 1))
    positions = np.tile(np.array([[0.1, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0], [0.7, 0.7, 0.7]]), (W, 1, 1))
    barostat = Barostat(0.0, "isotropic", 300.0, boxes, 4, constraints=[(0, 1), (1, 2)])
    moved(barostat, lambda x, cells: 1e3 * (volume(cells) - 1) ** 2, boxes, positions, 20, 0)
    away = positions[:, :3] - positions[:, :1]
    np.testing.assert_allclose(away, np.tile([[0, 0, 0], [0.1, 0, 0], [0.1, 0.1, 0]], (W, 1, 1)), atol=1e-12)
    centre = np.linalg.solve(boxes.transpose(0, 2, 1), positions[:, :3].mean(1)[..., None])[..., 0]
    np.testing.assert_allclose(centre, np.tile([0.5 / 3, 0.1 / 3, 0], (W, 1)), atol=1e-12)
    assert np.std(boxes[:, 0, 0]) > 0


def test_a_move_that_breaks_a_walker_is_refused():
    """A walker without a finite energy does not move, nor does one move to where it has none."""
    boxes, x = np.tile(np.eye(3), (W, 1, 1)), np.zeros((W, 1, 3))

    def energies(positions, cells):
        broken = (volume(cells) < 0.995) | (np.arange(W) == 0)
        return np.where(broken, np.where(np.arange(W) % 2, np.nan, np.inf), 0.0)

    barostat = Barostat(1.0, "isotropic", 300.0, boxes, 1)
    volumes, _ = moved(barostat, energies, boxes, x, 60, 0)
    assert (volumes[:, 0] == 1).all()
    assert volumes.min() >= 0.995
    assert volumes.max() > 1.01


def test_the_size_of_moves_adapts():
    boxes, x = np.tile(np.eye(3), (W, 1, 1)), np.zeros((W, 1, 3))
    barostat = Barostat(0.0, "isotropic", 300.0, boxes, 1)
    moved(barostat, lambda x, cells: 1e9 * (volume(cells) - 1) ** 2, boxes, x, 400, 0)
    assert np.max(barostat.state()["sizes"]) < FIRST / 10
    free = Barostat(KT / BAR, "isotropic", 300.0, boxes, 1)
    moved(free, lambda x, cells: np.zeros(W), boxes, x, 400, 0)
    assert np.median(free.state()["sizes"]) > FIRST
    assert np.max(free.state()["sizes"]) <= LARGEST * 1.001


@pytest.mark.parametrize(
    ("options", "what", "cure"),
    [
        ({"kind": "isotropc"}, "unknown barostat 'isotropc'", "isotropic"),
        ({"pressure": float("nan")}, "a pressure of nan bar", "finite"),
        ({"periodic": (True, True, False)}, "repeats along", "all three"),
    ],
)
def test_what_is_no_barostat(options, what, cure):
    settings = {"pressure": 1.0, "kind": "isotropic", "temperature": 300.0, "boxes": np.eye(3)[None], "n_atoms": 2}
    with pytest.raises(UqbiasError, match=what) as error:
        Barostat(**settings | options)
    assert cure in error.value.cure
