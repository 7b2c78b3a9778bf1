"""Seeing that a campaign's biases can be built before any work is done."""

from __future__ import annotations

import numpy as np

from uqbias.campaign.exploration import build_bias, build_variables, completed, periods_of
from uqbias.campaign.schema import Campaign
from uqbias.errors import UqbiasError
from uqbias.topology import Topology


def check_exploration(campaign: Campaign, topology: Topology) -> None:
    """Build the variables and biases of a campaign once, so that what is wrong with them is said before any work.

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
    for index, section in enumerate(campaign.bias):
        try:
            part = completed(
                ((section.kind, section.arguments()),), campaign.md.temperature, periods_of(variables), lowest=0.0
            )
            build_bias(part, campaign.md.temperature)
        except UqbiasError as error:
            raise UqbiasError(f"bias.{index}: {error.what}", error.cure) from None
