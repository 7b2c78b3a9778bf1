"""Seeing that the parts of a campaign can be built before any work is done."""

from __future__ import annotations

from typing import Any

import numpy as np

from uqbias.bias.base import Bias
from uqbias.bias.build import build_bias, completed
from uqbias.campaign.trial_label import trial_label
from uqbias.campaign.work import given_to_oracle, oracle_spec, read_test_set
from uqbias.errors import UqbiasError
from uqbias.md.constraints import check_constraints
from uqbias.molecule.frames import Frames
from uqbias.molecule.topology import Topology
from uqbias.registry import ORACLES, SAMPLERS
from uqbias.runs.sharing import check_shareable
from uqbias.settings.file import CampaignFile
from uqbias.settings.schema import Campaign
from uqbias.uncertainty.auto import driver_story
from uqbias.variables.base import build_variables, periods_of


def check_parts(file: CampaignFile, topology: Topology, start: Frames) -> None:
    """See that variables and biases, driver and judge, the sampler and its files fit the molecule.

    Raises
    ------
    UqbiasError
        With the key of the fault.
    """
    campaign = file.resolved
    check_exploration(campaign, topology, _driver_parts(campaign, topology, start))
    if campaign.md.pressure is not None and start.cells is None:
        raise UqbiasError(
            f"md.pressure = {campaign.md.pressure:g} on a molecule in vacuum", "leave it out, or give frames with cells"
        )
    sampler = SAMPLERS.build(campaign.sampling)
    sampler.check(campaign, topology, start)
    if sampler.walks:
        try:
            check_constraints(topology, start.positions, campaign.md.constraints)
        except UqbiasError as error:
            raise UqbiasError(f"md.constraints = {campaign.md.constraints}: {error.what}", error.cure) from None
    options = {**campaign.oracle.arguments(), **given_to_oracle(campaign, topology, start.periodic)}
    ORACLES.get(campaign.oracle.kind).check_molecule(options, topology.numbers)


def outlook(file: CampaignFile, topology: Topology, start: Frames, *, label: bool = False) -> dict[str, Any]:
    """What would be run of one system, its parts checked; with a trial ``label`` of the first start frame.

    Raises
    ------
    UqbiasError
        As `check_parts` and `trial_label` do.
    """
    campaign = file.resolved
    sampling = campaign.sampling
    check_parts(file, topology, start)
    facts: dict[str, Any] = {
        "campaign": campaign.name,
        "atoms": len(topology),
        "bonds": len(topology.bonds),
        **({"mobile_protons": [list(three) for three in topology.mobile]} if topology.mobile else {}),
        "start_frames": len(start),
        "start_frames_labelled": start.labelled,
        "oracle": campaign.oracle.kind,
        "potential": campaign.potential.kind,
        "driver": campaign.driver.kind,
        "driver_story": driver_story(campaign.driver, topology),
        "judge": campaign.judge.kind,
        "sampler": sampling.kind,
        "rounds": campaign.stop.rounds,
        "labels_at_most": len(start) + campaign.stop.rounds * campaign.harvest.labels_per_round,
    }
    facts |= SAMPLERS.build(sampling).outlook(campaign)
    if campaign.stop.labels is not None:
        facts["labels_at_most"] = min(facts["labels_at_most"], max(campaign.stop.labels, len(start)))
    if (test := read_test_set(file, topology)) is not None:
        facts["test_frames"] = len(test)
    if label:
        cell = None if start.cells is None else start.cells[0]
        facts |= trial_label(oracle_spec(campaign, topology, start.periodic), start.positions[0], cell)
    return facts


def _driver_parts(campaign: Campaign, topology: Topology, start: Frames) -> int:
    """Build driver and judge, as each training does, and count the driver's parts; a molecule may lack these."""
    from uqbias.campaign.outside_training import check_untrained, given_potential
    from uqbias.model.fit import make_uncertainties

    potential = given_potential(campaign, topology, 0)
    try:
        parts = make_uncertainties(campaign, topology, potential, start, start)
        if campaign.training.kind != "adam":
            check_untrained(parts, campaign.training.kind, potential)
        return len(parts[1].part_names)
    except UqbiasError as error:
        if topology.proper_dihedrals(heavy_only=False) or "the molecule has no such" not in error.what:
            raise
        cure = (
            "give `driver` the content of `judge`, or driver: {kind: kernel_density, kernel: gaussian, features: "
            "{kind: pair_distances, min_separation: 1, heavy_only: false}}"
            if len(topology) > 1
            else "give `driver` the content of `judge`"
        )
        raise UqbiasError(f"driver: {error.what}, of {len(topology)} atoms", cure) from None


def check_exploration(campaign: Campaign, topology: Topology, driver_parts: int = 0) -> None:
    """Build the variables and biases of a campaign once, so that what is wrong with them is said before any work.

    Parameters
    ----------
    driver_parts : number of parts that the driver has.

    Raises
    ------
    UqbiasError
        With the key of the fault.
    """
    variables = build_variables(
        {name: {"kind": section.kind, **section.arguments()} for name, section in campaign.variables.items()},
        topology,
        np.random.default_rng(0).normal(size=(len(topology), 3)),
    )
    biases: list[Bias] = []
    for index, section in enumerate(campaign.bias):
        try:
            part = completed(
                ((section.kind, section.arguments()),),
                campaign.md.temperature,
                periods_of(variables),
                lowest=0.0,
                local=[0.0] * driver_parts,
            )
            biases += build_bias(part, campaign.md.temperature).biases
        except UqbiasError as error:
            raise UqbiasError(f"bias.{index}: {error.what}", error.cure) from None
    if campaign.md.share_hills_every is not None:
        check_shareable(biases)
