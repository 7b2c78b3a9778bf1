"""Groups of walkers that share their hills, and explorations that go on where they were ended."""

import dataclasses

import numpy as np
import pytest
from molecules import peroxide_geometries, peroxide_model

from uqbias.campaign.exploring import _explored
from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import BiasedDynamics, MolecularDynamics
from uqbias.errors import UqbiasError
from uqbias.files import read_arrays
from uqbias.runs.hills import load_hills
from uqbias.settings.file import check_campaign


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder, frames = tmp_path_factory.mktemp("job"), peroxide_geometries(6)
    peroxide_model().save(folder / "m.uqb")
    md = {"walkers": 2, "steps": 60, "pace": 10, "observe_every": 10, "trajectory_every": 30, "runner": "eager"}
    more = {"backend": "pythonforce", "groups": 2, "share_hills_every": 20}
    bias = [{"kind": "metadynamics", "pace": 10, "height": 3.0}]
    settings = check_campaign({"system": {"structure": "-", "start": "-"}, "md": {**md, **more}, "bias": bias})
    return Exploration(
        model=folder / "m.uqb",
        folder=folder / "group_0",
        biases=tuple((section.kind, section.arguments()) for section in settings.bias),
        md=settings.md,
        guards=settings.guards.model_copy(update={"driver_cap": None}),
        safe_frames=frames,
        safe_weights=np.full(6, 1 / 6),
        reference=frames[0],
        seed=3,
        snapshot_every=20,
        hills=folder / "hills",
    )


def in_folder(job, folder, **changes):
    return dataclasses.replace(job, folder=folder / "group_0", hills=folder / "hills", **changes)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A group that explored at once, without others."""
    first = in_folder(job, tmp_path_factory.mktemp("whole"))
    BiasedDynamics().explore(first)
    return first


def test_an_exploration_that_is_killed_goes_on_and_its_hills_count_once(job, whole, tmp_path):
    broken, steps = in_folder(job, tmp_path), []

    def tell(count, _):
        steps.append(count)
        if len(steps) == 5:
            raise KeyboardInterrupt  # at step 50: the exchange of step 40 is in a snapshot

    with pytest.raises(KeyboardInterrupt):
        _explored(BiasedDynamics(), broken, tell)
    steps.clear()
    _explored(BiasedDynamics(), broken, lambda count, _: steps.append(count))
    assert steps == [40, 10, 10]
    for name in ("HILLS", "COLVAR.0", "../hills/HILLS.group_0"):
        assert (whole.folder / name).read_text() == (broken.folder / name).read_text(), name
    one, other = (read_arrays(job.folder / "observations.npz", "observations", "") for job in (whole, broken))
    for name, values in one.items():
        assert other[name].tobytes() == values.tobytes()


def test_a_second_group_has_the_hills_of_the_first(whole):
    folder = whole.folder.parent
    second = dataclasses.replace(whole, folder=folder / "group_1", seed=4)
    BiasedDynamics().explore(second)
    files = [load_hills(folder / "hills" / f"HILLS.group_{group}", 0.5) for group in (0, 1)]
    assert min(len(hills.height) for hills in files) > 0
    at = np.linspace(0, 8, 50)[:, None]
    for group, known in ((whole, files[:1]), (second, files)):
        hills = load_hills(group.folder / "HILLS", 0.5)
        np.testing.assert_allclose(hills.potential(at), sum(one.potential(at) for one in known), rtol=1e-12)
    step = read_arrays(second.folder / "bias.npz", "bias", "")["0.hill_step"]
    assert (step == 0).sum() == len(files[0].height)  # what was there acts from the beginning


def test_a_job_that_does_not_fit_what_is_there_begins_anew(job, tmp_path):
    class Other(BiasedDynamics):
        resumes = True

        def explore(self, job, advance=None):
            if job.resume:
                raise UqbiasError("the run has another seed", "give the same")
            return {"left": [path.name for path in job.folder.glob("*")]}

    here = in_folder(job, tmp_path)
    here.folder.mkdir()
    (here.folder / "run.json").write_text("{}")
    assert _explored(Other(), here) == {"left": []}


def test_only_explorations_with_snapshots_go_on():
    class Pulled(MolecularDynamics):
        def external(self, job):
            return None

    assert BiasedDynamics().resumes
    assert not Pulled().resumes


@pytest.mark.parametrize(
    ("md", "more", "said"),
    [
        ({"groups": 1}, {}, "share_hills_every = 100 with groups = 1"),
        ({"pace": 40}, {}, "share_hills_every = 100 with pace = 40 and steps = 10000: take a multiple of pace"),
        ({"steps": 10050}, {}, "that divides steps"),
        ({"engine": "plumed", "plumed": "plumed.dat"}, {}, "share_hills_every = 100 with engine = plumed"),
        ({}, {"sampler": "md"}, "sampler = md, which makes no hills, with md.share_hills_every"),
    ],
)
def test_settings_that_share_nothing_are_refused(md, more, said):
    settings = {"groups": 2, "share_hills_every": 100, **md}
    trajectory = {"observe_every": 200, "trajectory_every": 200} if "pace" in md else {}
    with pytest.raises(UqbiasError) as told:
        check_campaign({"system": {"structure": "-", "start": "-"}, "md": {**settings, **trajectory}, **more})
    assert said in str(told.value)
