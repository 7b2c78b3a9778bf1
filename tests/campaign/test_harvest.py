import numpy as np
import pytest
from molecules import ALANINE

from uqbias.campaign.post_label import label_verdicts
from uqbias.campaign.selection import STRATEGIES, Candidates, select
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.physical import PHYSICAL, Limits, PhysicalFilter
from uqbias.molecule.topology import Topology
from uqbias.settings.harvest_sections import SelectionOptions

# CHFClBr: a stereocentre with four different neighbours; positions in nm.
CENTRE = np.array(
    [[0, 0, 0], [0.063, 0.063, 0.063], [-0.08, -0.08, 0.08], [-0.102, 0.102, -0.102], [0.11, -0.11, -0.11]]
)
CHIRAL = Topology(
    numbers=(6, 1, 9, 17, 35), bonds=((0, 1), (0, 2), (0, 3), (0, 4)), names=("",) * 5, residues=("",) * 5
)
# A chain of five carbons, bent so that its ends are far apart.
CHAIN = Topology(numbers=(6,) * 5, bonds=((0, 1), (1, 2), (2, 3), (3, 4)), names=("",) * 5, residues=("",) * 5)
ZIGZAG = np.array([[0.125 * i, 0.09 * (i % 2), 0.0] for i in range(5)])


def test_each_fault_is_named_with_its_value():
    chiral = PhysicalFilter(CHIRAL, CENTRE[None], reference_energy=10.0)
    stretched = CENTRE.copy()
    stretched[3] *= 1.4
    squeezed = CENTRE.copy()
    squeezed[2] *= 0.5
    mirrored = CENTRE * [1, 1, -1]
    infinite = CENTRE.copy()
    infinite[0, 0] = np.inf
    frames = np.stack([CENTRE, stretched, squeezed, mirrored, infinite, CENTRE, CENTRE])
    verdicts = chiral.verdicts(frames, energy=np.array([0.0, 0, 0, 0, 0, 135.0, -400.0]))
    assert verdicts == [
        PHYSICAL,
        "bond 0-3 is 1.40 x reference",
        "bond 0-2 is 0.50 x reference",
        "chirality of atom 0 inverted",
        "not finite",
        "energy 125 kJ/mol above mean",
        "energy 410 kJ/mol below mean",
    ]


def test_angle_clash_and_stiff_torsion():
    chain = PhysicalFilter(CHAIN, ZIGZAG[None], limits=Limits(angle_tolerance=20.0))
    bent = ZIGZAG.copy()
    turn = np.deg2rad(30)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    bent[3:] = (bent[3:] - bent[2]) @ rotation.T + bent[2]
    verdicts = chain.verdicts(np.stack([ZIGZAG, bent, ZIGZAG]), stiff_deviation=np.array([0.0, 0.0, 75.0]))
    assert verdicts[0] == PHYSICAL
    assert verdicts[1] == "angle 1-2-3 is 30 degrees off reference"
    assert verdicts[2] == "stiff torsion turned by 75 degrees"
    # Bonds and angles as they were, the ends folded onto each other: only the distances tell.
    loose = PhysicalFilter(CHAIN, ZIGZAG[None], limits=Limits(angle_tolerance=180.0, bond_low=0.01, bond_high=50.0))
    folded = ZIGZAG.copy()
    folded[4] = folded[0] - [0.1, 0.0, 0.0]
    assert loose.verdicts(folded[None])[0] == "clash of 0 and 4 at 1.00 Å"


def test_start_frames_of_alanine_dipeptide_are_physical():

    from uqbias.molecule.frames import read_frames

    start = read_frames(ALANINE / "start.xyz")
    check = PhysicalFilter(Topology.from_pdb(ALANINE / "structure.pdb"), start.positions, float(start.energies.mean()))
    assert set(check.verdicts(start.positions, start.energies)) == {PHYSICAL}
    assert not set(check.verdicts(start.positions * [1, 1, -1])) & {PHYSICAL}


def candidates(features, **columns):
    n = len(features)
    base = {"driver": np.ones(n), "judge": np.ones(n), "energy": np.zeros(n), "verdicts": [""] * n}
    return Candidates(features=np.asarray(features, dtype=float), **{**base, **columns})


def test_windows_duplicates_and_budget_give_reasons():
    given = candidates(
        [[0.0], [1.0], [2.0], [3.0], [4.0], [4.0], [9.0]],
        driver=np.array([1.0, 0.4, 20.0, 1.0, 1.0, 1.0, np.nan]),
        verdicts=["bond 3-5 is 1.4 x reference", "", "", "", "", "", ""],
    )
    options = {"options": SelectionOptions(kind="farthest_point"), "driver_window": (0.8, 14.0)}
    picks, reasons = select(given, np.array([[3.0]]), 5, **options, seed=0)
    assert picks.tolist() == [4]
    assert reasons == [
        "refused: bond 3-5 is 1.4 x reference",
        "refused: driver 0.4 below window",
        "refused: driver 20 above window",
        "refused: same as a labelled frame",
        "taken: farthest point",
        "not taken: same as a taken frame",
        "refused: driver is not finite",
    ]
    _, reasons = select(given, np.array([[3.0]]), 0, **options, seed=0)
    assert reasons[4] == "not taken: budget of 0"


def test_farthest_points_start_from_the_labelled_set_and_spread():
    line = np.linspace(0, 10, 101)[:, None]
    picks, _ = select(candidates(line), np.array([[0.0]]), 3, SelectionOptions(kind="farthest_point"), seed=0)
    np.testing.assert_allclose(line[picks, 0], [10.0, 5.0, 2.5], atol=0.11)


@pytest.mark.parametrize("kind", list(STRATEGIES))
def test_strategies_keep_the_budget_and_the_seed(kind):
    random = np.random.default_rng(0)
    given = candidates(random.normal(size=(60, 3)), judge=random.random(60), energy=random.normal(size=60))
    options = SelectionOptions(kind=kind, energy_temperature=500.0)
    first, reasons = select(given, np.zeros((1, 3)), 20, options, seed=4)
    again, _ = select(given, np.zeros((1, 3)), 20, options, seed=4)
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) == 20
    assert sum(reason.startswith("taken") for reason in reasons) == 20
    few, _ = select(given, np.zeros((0, 3)), 100, options, seed=4)
    assert len(few) == 60


def test_many_far_frames_come_before_one_that_is_farther():
    crowd = np.linspace(3.0, 4.0, 20)
    given = candidates(np.append(crowd, 16.0)[:, None])
    known = np.array([[0.0], [10.0]])
    picks, reasons = select(given, known, 2, SelectionOptions(kind="largest_cluster"), seed=0)
    assert picks.tolist() == [19, 20]
    assert reasons[19] == "taken: largest cluster"
    picks, _ = select(given, known, 2, SelectionOptions(kind="farthest_point"), seed=0)
    assert picks.tolist() == [20, 19]


@pytest.mark.parametrize("kind", ["farthest_point", "largest_cluster"])
def test_distances_are_weighed_by_the_judge(kind):
    given = candidates([[1.0], [-1.5]], judge=np.array([20.0, 10.0]))
    for power, first in ((0.0, 1), (1.0, 0)):
        picks, _ = select(given, np.array([[0.0]]), 1, SelectionOptions(kind=kind, judge_power=power), seed=0)
        assert picks.tolist() == [first]


def test_a_share_of_the_budget_is_thermal():
    given = candidates(np.random.default_rng(1).normal(size=(50, 2)))
    options = SelectionOptions(kind="farthest_point", thermal_share=0.3)
    _, reasons = select(given, np.zeros((1, 2)), 10, options, seed=1)
    assert reasons.count("taken: farthest point") == 7
    assert reasons.count("taken: random") == 3


def torsions(*degrees):
    angles = np.radians(np.array(degrees, dtype=float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def test_no_new_conformer_stays_without_a_label():
    """One basin at low energy, three frames each of two conformers 200 kJ/mol above it."""
    basin = [[-60 + i, -40 - i] for i in range(20)]
    new = [[60, 40], [70, 45], [65, 42], [60, 170], [62, 172], [64, 174]]
    energy = np.array([0.0] * 20 + [203.0, 201.0, 202.0, 205.0, 204.0, 206.0])
    angles = torsions(*basin, *new)
    given = candidates(angles.reshape(len(angles), -1), energy=energy, conformers=angles)
    known = angles[:2]
    args = (given, known.reshape(2, -1), 5, SelectionOptions(energy_temperature=1000.0))
    picks, _ = select(*args, seed=0)
    assert picks.max() < 20
    picks, reasons = select(*args, seed=0, known_conformers=known)
    assert picks[-2:].tolist() == [21, 24]
    assert [reasons[pick] for pick in picks] == ["taken: farthest point"] * 3 + ["taken: new conformer"] * 2
    # With one label the better of the two, and nothing that is the only one of its conformer gives way to the other.
    picks, _ = select(*args[:2], 1, args[3], seed=0, known_conformers=known)
    assert picks.tolist() == [21]
    labelled = torsions([-60, -40], [80, 60], [60, -170])
    picks, _ = select(*args, seed=0, known_conformers=labelled)
    assert picks.max() < 20


@pytest.mark.parametrize(("n_atoms", "factor"), [(4, 1.0), (22, 1.0), (88, 2.0)])
def test_the_scale_of_the_energies_grows_as_their_spread(n_atoms, factor):
    energy = np.repeat([0.0, factor * 8.314462618e-3 * 300 * np.log(3)], 4000)
    given = candidates(np.random.default_rng(5).random(size=(8000, 2)), energy=energy, n_atoms=n_atoms)
    options = SelectionOptions(kind="random", energy_temperature=300.0, minimum_distance=0.0)
    picks, _ = select(given, np.zeros((0, 2)), 400, options, seed=5)
    assert abs((energy[picks] == 0).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)


@pytest.mark.parametrize("kind", ["farthest_point", "random"])
def test_energy_weights_prefer_low_energies(kind):
    random = np.random.default_rng(2)
    energy = np.repeat([0.0, 100.0], 100)
    given = candidates(random.random(size=(200, 2)), energy=energy)
    cold = SelectionOptions(kind=kind, energy_temperature=1000.0)
    picks, _ = select(given, np.zeros((1, 2)), 20, cold, seed=3)
    indifferent = SelectionOptions(kind=kind, energy_temperature=None)
    free, _ = select(given, np.zeros((1, 2)), 20, indifferent, seed=3)
    assert energy[picks].mean() < 10.0
    assert energy[free].mean() > 25.0


def test_unknown_strategy_is_refused():
    unchecked = SelectionOptions.model_construct(kind="farthest_points")
    with pytest.raises(UqbiasError, match="did you mean"):
        select(candidates([[0.0]]), np.zeros((0, 1)), 1, unchecked, seed=0)


def test_labels_are_rejected_only_far_out():
    forces = np.zeros((3, 2, 3))
    forces[1, 1, 2] = -16000.0
    frames = Frames(np.array([1, 1]), np.zeros((3, 2, 3)), np.array([299.0, 0.0, 301.0]), forces)
    assert label_verdicts(frames, 0.0) == [
        "",
        "rejected: force component 16000 kJ/mol/nm",
        "rejected: oracle energy 301 kJ/mol above mean",
    ]
