"""How much MD a round does by what labels cost."""

import numpy as np
import pytest

from uqbias.campaign.budget import multiple_of_steps
from uqbias.campaign.ledger import Record
from uqbias.settings.file import check_campaign


def work(md_seconds, label_seconds, labels=50, **md):
    """A campaign of one round of exploration that took these times, with two workers."""
    record = Record(np.array([1]), [])
    counts = {"labelled": labels, "failures": 0}
    record.append("phase", round=0, phase="label", wall_s=1e6, **counts)
    for index, (explored, labelled) in enumerate(zip(md_seconds, label_seconds, strict=True), start=1):
        seconds, multiple = explored
        record.append("phase", round=index, phase="md", wall_s=seconds, **({"multiple": multiple} if multiple else {}))
        record.append("phase", round=index, phase="label", wall_s=labelled, **counts)
    campaign = check_campaign({"system": {"structure": "-", "start": "-"}, "md": md})
    return type("Work", (), {"campaign": campaign, "ledger": record})()


@pytest.mark.parametrize(
    ("md", "labels", "count", "multiple"),
    [
        (60.0, 0.5, 50, 1),  # 10 ms each
        (20.0, 450.0, 50, 1),  # below 10 s each
        (110.0, 540.0, 50, 1),
        (60.0, 500.0, 50, 5),
        (60.0, 1499.0, 50, 5),
        (60.0, 1500.0, 50, 25),
        (60.0, 1e6, 50, 25),
        (0.5, 60.0, 4, 1),  # too few to tell from what a process takes to start
        (0.0, 1e6, 50, 1),  # of a ledger that was rebuilt
    ],
)
def test_by_the_last_round(md, labels, count, multiple):
    one = work([(md, None)], [labels], count)
    assert multiple_of_steps(one, 1) == 1
    assert multiple_of_steps(one, 2) == multiple
    # What comes later does not change a round that is done again.
    assert multiple_of_steps(work([(md, None), (1.0, None)], [labels, 1e6], count), 2) == multiple


def test_the_time_of_a_longer_round_is_that_of_its_multiple():
    assert multiple_of_steps(work([(60.0, None), (1500.0, 25)], [1e6, 700.0]), 3) == 5


@pytest.mark.parametrize(("each", "multiple"), [(0.0, 1), (11.9, 1), (12.0, 5), (60.0, 25)])
def test_by_a_price_that_is_stated(each, multiple):
    # 25 labels of each worker.
    assert multiple_of_steps(work([(60.0, None)], [1e6], seconds_per_label=each), 2) == multiple


def test_longer_md_keeps_as_many_frames():
    md = check_campaign({"system": {"structure": "-", "start": "-"}}).md
    long = md.in_campaign(5)
    assert (long.steps, long.observe_every, long.trajectory_every) == (50000, 500, 1000)
    assert (long.pace, long.jumps.every) == (md.pace, md.jumps.every)
    assert md.in_campaign().steps == md.steps
