"""The wall of a campaign's walkers is their driver's own."""

from pathlib import Path

import numpy as np
import pytest

from uqbias.campaign.samplers.base import Exploration
from uqbias.campaign.samplers.md import with_wall
from uqbias.molecule.topology import Topology
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.file import check_campaign

#: n-hexane: three bonds that turn.
OWNERS = (0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5)
CHAIN = [(i, i + 1) for i in range(5)] + [(i, 6 + k) for k, i in enumerate(OWNERS)]
HEXANE = Topology((6,) * 6 + (1,) * 14, tuple(CHAIN))


def job(**settings):
    campaign = check_campaign({"system": {"structure": "-", "start": "-"}, **settings})
    return Exploration(
        model=Path("m.uqb"),
        folder=Path("md"),
        biases=tuple((section.kind, section.arguments()) for section in campaign.bias),
        md=campaign.md,
        guards=campaign.guards,
        safe_frames=np.zeros((1, 20, 3)),
        safe_weights=np.ones(1),
        reference=np.zeros((20, 3)),
        seed=0,
    )


def walls(job):
    return job.guards.driver_cap, dict(job.biases)["upper_wall"]["at"]


def test_it_grows_with_the_torsions():
    driver = UNCERTAINTIES.build("auto", topology=HEXANE, n_latents=1)
    assert walls(with_wall(job(), driver)) == pytest.approx((21.0, 21.0))
    other = UNCERTAINTIES.build("gmm", topology=HEXANE, n_latents=1)
    assert walls(with_wall(job(), other)) == (14.0, 14.0)


def test_what_the_user_says_stays():
    driver = UNCERTAINTIES.build("auto", topology=HEXANE, n_latents=1)
    given = job(guards={"driver_cap": None}, bias=["metadynamics", {"kind": "upper_wall", "at": 3.0}])
    assert walls(with_wall(given, driver)) == (None, 3.0)
