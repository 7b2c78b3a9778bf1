"""Telling which frames are the same, and the strategy of clusters."""

import numpy as np
import pytest

from uqbias.campaign.selection import STRATEGIES, Candidates, select
from uqbias.errors import UqbiasError
from uqbias.molecule.sameness import NearGeometry, rmsd
from uqbias.settings.harvest_sections import SelectionOptions
from uqbias.testing import molecule


def moved(positions, seed=0):
    """Frames turned and shifted, each otherwise."""
    from scipy.spatial.transform import Rotation

    random = np.random.default_rng(seed)
    turns = Rotation.random(len(positions), random_state=seed).as_matrix()
    return positions @ turns + random.normal(0, 1, (len(positions), 1, 3))


def candidates(positions, **columns):
    n = len(positions)
    features = np.arange(n, dtype=float)[:, None]
    base = {"driver": np.ones(n), "judge": np.ones(n), "energy": np.zeros(n), "verdicts": [""] * n}
    return Candidates(**{"features": features, "positions": positions, **base, **columns})


def test_rmsd_is_that_of_mdtraj_and_knows_moves_from_mirror_images():
    import mdtraj

    frames = molecule.frames(40, seed=1).positions
    found = rmsd(moved(frames), frames[0])
    expected = mdtraj.rmsd(mdtraj.Trajectory(frames, None), mdtraj.Trajectory(frames[:1], None))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[0] < 1e-12
    assert rmsd(frames[:1] * [1, 1, -1], frames[0])[0] > 0.01
    turned = rmsd(frames[:1, [0, 1, 2, 3]], frames[0, [0, 1, 2, 3]])
    assert turned[0] < 1e-12


@pytest.mark.parametrize("kind", list(STRATEGIES))
def test_moved_copies_are_taken_once(kind):
    frames = molecule.frames(12, seed=2).positions
    noise = np.random.default_rng(3).normal(0, 1e-4, (24, *frames.shape[1:]))
    given = np.concatenate([frames, moved(frames)]) + noise
    options = SelectionOptions(kind=kind, duplicates="rmsd", minimum_rmsd=0.003)
    known = moved(frames[:2], seed=4)
    picks, reasons = select(candidates(given), np.zeros((2, 1)) - 100, 24, options, seed=0, known_positions=known)
    assert len(picks) == 10
    assert sorted(picks % 12) == list(range(2, 12))
    assert [i for i, reason in enumerate(reasons) if reason == "refused: same as a labelled frame"] == [0, 1, 12, 13]
    assert reasons.count("not taken: same as a taken frame") == 10
    # Their features differ: by those every frame is one of its own.
    all_of_them, _ = select(
        candidates(given), np.zeros((2, 1)) - 100, 24, SelectionOptions(kind=kind), seed=0, known_positions=known
    )
    assert len(all_of_them) == 24


def test_without_duplicates_equal_frames_are_taken():
    frames = np.repeat(molecule.frames(1).positions, 4, axis=0)
    given = candidates(frames, features=np.zeros((4, 1)))
    assert len(select(given, np.zeros((1, 1)), 4, SelectionOptions(kind="random"), seed=0)[0]) == 0
    assert len(select(given, np.zeros((1, 1)), 4, SelectionOptions(kind="random", duplicates="none"), seed=0)[0]) == 4


def test_in_a_field_fixed_in_space_a_moved_frame_is_another_frame():
    points = np.linspace(-1, 1, 5)[:, None, None] * np.ones((1, 1, 3))
    assert NearGeometry(points, points[:1], 0.01).as_known().all()
    there = NearGeometry(points, points[:1], 0.01, superpose=False)
    assert there.as_known().tolist() == [True, False, False, False, False]
    assert there.as_candidate(2).tolist() == [False, False, True, False, False]


def test_rmsd_needs_positions():
    given = candidates(molecule.frames(2).positions)
    with pytest.raises(UqbiasError, match="without positions"):
        select(given, np.zeros((0, 1)), 1, SelectionOptions(duplicates="rmsd"), seed=0)


def test_clusters_give_their_most_uncertain_frame():
    random = np.random.default_rng(6)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    sizes = [50, 5, 20, 1]
    features = np.concatenate(
        [centre + random.normal(0, 0.3, (size, 2)) for centre, size in zip(centres, sizes, strict=True)]
    )
    group = np.repeat(np.arange(4), sizes)
    judge = random.random(len(group)) + 10 * (group == 0)
    given = candidates(np.zeros((len(group), 1, 3)), features=features, judge=judge)
    options = SelectionOptions(kind="cluster")
    picks, reasons = select(given, np.full((1, 2), 99.0), 4, options, seed=1)
    assert sorted(group[picks]) == [0, 1, 2, 3]
    for pick in picks:
        assert judge[pick] == judge[group == group[pick]].max()
    assert reasons[picks[0]] == "taken: best of its cluster"
    greedy, _ = select(given, np.full((1, 2), 99.0), 4, SelectionOptions(kind="highest_uncertainty"), seed=1)
    assert set(group[greedy]) == {0}
    # Energies weigh: the cold half of each cluster wins.
    energy = np.where(np.arange(len(group)) % 2, 0.0, 200.0)
    cold = SelectionOptions(kind="cluster", energy_temperature=300.0)
    given = candidates(np.zeros((len(group), 1, 3)), features=features, judge=judge, energy=energy)
    picks, _ = select(given, np.full((1, 2), 99.0), 3, cold, seed=1)
    assert (energy[picks] == 0).all()


def test_clusters_fill_the_budget_although_points_coincide():
    features = np.repeat([[0.0], [1.0], [2.0]], 4, axis=0)
    given = candidates(np.zeros((12, 1, 3)), features=features)
    picks, _ = select(given, np.full((1, 1), 9.0), 7, SelectionOptions(kind="cluster", duplicates="none"), seed=0)
    assert len(set(picks.tolist())) == 7
    picks, _ = select(given, np.full((1, 1), 9.0), 7, SelectionOptions(kind="cluster"), seed=0)
    assert len(picks) == 3
