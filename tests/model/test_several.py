"""One model on several systems: as good as a model of each, calibrated on all, and it says what it does not know."""

import numpy as np
import pytest

from tests.helpers.molecules import emt_frames
from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.model.score import score_model
from uqbias.model.several import is_new, layout_of, of_system, score_systems, zero_is_known
from uqbias.model.splitting import deal
from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology
from uqbias.settings.file import check_campaign

NAMES = {"water": "H2O", "methanol": "CH3OH"}
SETTINGS = {
    "potential": {"n_radial": 6, "n_channels": 4, "hidden": [16, 12]},
    "training": {"steps": 200, "runner": "eager", "batch_size": 8, "learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def sets():
    return {name: emt_frames(formula, 90, seed=1) for name, formula in NAMES.items()}


@pytest.fixture(scope="module")
def tests():
    return {name: emt_frames(formula, 50, seed=2) for name, formula in NAMES.items()}


@pytest.fixture(scope="module")
def fitted(sets):
    return fit_model(sets, None, SETTINGS)


def test_errors_are_near_those_of_a_model_of_each(sets, tests, fitted):
    both = score_systems(fitted[0], tests)
    mae, components = [], []
    for name, frames in tests.items():
        alone = score_model(fit_model(sets[name], None, SETTINGS)[0], frames)["force_mae_meV_per_A"]
        mae.append(both["systems"][name]["force_mae_meV_per_A"])
        components.append(frames.positions.size)
        print(f"{name}: {mae[-1]:.0f} meV/Å, {alone:.0f} of a model of its own")
        assert mae[-1] < 1.2 * alone
        assert mae[-1] < 0.1 * np.abs(frames.forces).mean() / 0.0964853
    assert both["force_mae_meV_per_A"] == pytest.approx(np.average(mae, weights=components))
    assert both["frames"] == 100


def test_the_judge_is_calibrated_on_all_systems(tests, fitted):
    model, facts = fitted
    assert facts["driver_story"] == [
        "auto chose the judge for 2 systems: densities of torsions or distances are of one molecule"
    ]
    assert model.driver is model.judge
    assert model.provenance["frames_of_systems"] == {
        name: {"frames": 72, "validation_frames": 9, "calibration_frames": 9} for name in NAMES
    }
    assert (facts["frames"], model.calibration.frames) == (144, 18)
    assert set(facts["validation"]["systems"]) == set(NAMES)
    scores = score_systems(model, tests)
    assert scores["coverage"] > 0.8
    assert scores["frames_trained_on"] == scores["frames_calibrated_on"] == 0
    # An element has one bound, whichever system its atom is in.
    water, methanol = (of_system(model, tests[name]).calibration.atom_bound.scale for name in NAMES)
    assert water[0] == methanol[1]
    assert water[1] == methanol[2]
    assert methanol[0] != methanol[1]


def test_the_file_knows_all_systems(tests, fitted, tmp_path):
    model, _ = fitted
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    assert list(loaded.systems) == list(NAMES)
    assert [len(graph.bonds) for graph in loaded.systems.values()] == [2, 5]
    assert score_systems(loaded, tests) == score_systems(model, tests)


def test_another_system_is_new_and_uncertain(tests, fitted):
    model, _ = fitted
    methane = emt_frames("CH4", 30, seed=3)
    assert is_new(model, methane)
    assert not any(is_new(model, frames) for frames in tests.values())
    # Of two systems three elements have no energies of their own; twice as much of one has twice its energy.
    assert not zero_is_known(model, methane)
    assert zero_is_known(model, Frames(np.array([8, 8, 1, 1, 1, 1]), np.zeros((1, 6, 3))))
    judged = of_system(model, methane)
    scores = score_model(judged, methane)
    assert scores["sharpness_meV_per_A"] > 10 * score_systems(model, tests)["systems"]["water"]["sharpness_meV_per_A"]
    with pytest.raises(UqbiasError, match=r"NH3\.xyz has atoms of N, the model knows H, C, O; train a model of these"):
        of_system(model, emt_frames("NH3", 2))


def test_systems_of_like_atoms_are_told_by_their_bonds(sets, fitted):
    model = fitted[0].with_topology(fitted[0].topology)
    methanol = model.systems["methanol"]
    other = Topology(methanol.numbers, methanol.bonds[1:])
    model.systems = {"broken": other, "methanol": methanol}
    assert of_system(model, sets["methanol"]).topology.bonds == methanol.bonds


def test_kinds_of_one_molecule_are_refused_before_training(sets):
    for section in ("driver", "judge"):
        settings = SETTINGS | {section: {"kind": "kernel_density", "features": "pair_distances", "kernel": "gaussian"}}
        with pytest.raises(UqbiasError, match="uncertainty 'kernel_density' is of one molecule; choose committee"):
            fit_model(sets, None, settings, begin=lambda: pytest.fail("trained"))


def test_each_system_has_its_share_of_frames_held_out():
    campaign = check_campaign({"system": {"structure": "-", "start": "-"}}, "test")
    sets = [emt_frames("H2O", 120), emt_frames("CH3OH", 40), emt_frames("CH4", 4)]
    splits = deal(sets, campaign)
    assert [[len(part) for part in split] for split in splits] == [[95, 13, 12], [32, 4, 4], [3, 0, 1]]
    many = deal([emt_frames("H2O", 1, seed=seed) for seed in range(60)], campaign)
    assert [sum(len(split[role]) for split in many) for role in range(3)] == [44, 6, 10]
    with pytest.raises(UqbiasError, match="20 frames: 10 are kept for calibration and 2 for validation"):
        deal([emt_frames("H2O", 10), emt_frames("CH3OH", 10)], campaign)


def test_a_mapping_of_one_system_is_that_system(sets):
    settings = SETTINGS | {"training": SETTINGS["training"] | {"steps": 2}}
    (named, facts), (plain, _) = (fit_model(given, None, settings) for given in (sets["water"], {"a": sets["water"]}))
    assert not named.systems
    assert facts["validation"]["frames"] == 9
    assert named.provenance["dataset_sha256"] == plain.provenance["dataset_sha256"]
    assert all(one.equal(other) for one, other in zip(named.parameters(), plain.parameters(), strict=True))


def test_layout_has_every_element():
    water, peroxide = Topology((8, 1, 1), ((0, 1), (0, 2))), Topology((8, 8, 1, 1), ((0, 1), (0, 2), (1, 3)))
    assert layout_of([water, peroxide]) is peroxide
    assert layout_of([peroxide, Topology((6, 7), ())]).numbers == (8, 8, 1, 1, 6, 7)
