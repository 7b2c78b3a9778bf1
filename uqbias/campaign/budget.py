"""How much MD a round does: more where its labels cost more."""

from __future__ import annotations

from typing import Any

from uqbias.campaign.work import Work

#: Multiples of md.steps.
MULTIPLES = (1, 5, 25)
#: Labels that took less each, s, or were fewer, do not lengthen the MD: a process has to start, too.
CHEAP, FEW = 10.0, 5


def multiple_of_steps(work: Work, round_index: int) -> int:
    """The largest multiple of md.steps that takes no longer than the labels of a round, by what the ledger says so far.

    The last exploration tells the cost of MD, and the last round that bought labels theirs, unless
    ``md.seconds_per_label`` does; so round 1 is as long as md.steps, and the multiple is the same whenever the round is
    done again.
    """
    campaign = work.campaign
    phases = [event for event in work.ledger.events("phase") if event["round"] < round_index]
    explored = [event for event in phases if event["phase"] == "md" and event["wall_s"] > 0]
    if not explored:
        return 1
    each = campaign.md.seconds_per_label
    labels = _last_labels(phases)
    if each is not None:
        options = campaign.executors.label.arguments()
        labels = each * campaign.harvest.labels_per_round / (options.get("jobs", 1) * options.get("tasks", 1))
    once = explored[-1]["wall_s"] / explored[-1].get("multiple", 1)
    return max(multiple for multiple in MULTIPLES if multiple == 1 or multiple * once <= labels)


def _last_labels(phases: list[dict[str, Any]]) -> float:
    """Time in s of the last labels that were bought; 0 where they were few or cheap."""
    for event in reversed(phases):
        if event["phase"] == "label" and event["round"]:
            bought = event["labelled"] + event["failures"]
            seconds: float = event["wall_s"]
            return seconds if bought >= FEW and seconds >= CHEAP * bought else 0.0
    return 0.0
