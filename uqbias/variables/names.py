"""Names that variables have in a graph, a campaign file, COLVAR and HILLS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: Variables that every model gives: driver, judge (calibrated), energy.
OF_MODEL = ("driver", "judge", "energy")
#: Stands in `variables` of a bias for all parts of the driver, ``driver_1`` ... ``driver_K``, or for the driver itself
#: where it is one number.
LOCAL = "local"
#: An extended variable is called this and the name of the one that it follows.
EXTENDED = "extended_"
#: Widths of hills are called this and the name of their variable.
SIGMA = "sigma_"
#: Further columns of COLVAR and HILLS; PLUMED may add a clock to the latter.
COLUMNS = ("time", "bias", "restarted", "height", "biasf", "clock")


def is_taken(name: str) -> bool:
    """Whether a model, COLVAR or HILLS has something else of this name, so that no variable can."""
    return is_of_model(name) or name in COLUMNS or name.startswith((EXTENDED, SIGMA))


def is_of_model(name: str) -> bool:
    """Whether a model gives it, some at least: driver, judge, energy, parts of the driver, all of these."""
    return name in (*OF_MODEL, LOCAL) or re.fullmatch(r"driver_\d+", name) is not None


def local_names(count: int) -> tuple[str, ...]:
    """Names of the K parts of a driver."""
    return tuple(f"driver_{place + 1}" for place in range(count))


def expanded(names: Sequence[str], count: int) -> list[str]:
    """Names of variables with those of the parts of a driver that has ``count`` in place of ``local``."""
    parts = local_names(count) or OF_MODEL[:1]
    return [one for name in names for one in (parts if name == LOCAL else (name,))]


def missing_part(names: Sequence[str], count: int) -> tuple[str, str] | None:
    """The first of the names that a model does not give whose driver has ``count`` parts, and the cure; or None."""
    for name in names:
        if is_of_model(name) and name not in (*OF_MODEL, *local_names(count)):
            return f"'{name}', the driver has {count} part(s)", f"name {', '.join(expanded([LOCAL], count))}"
    return None


def by_name(prediction: Sequence[Any]) -> dict[str, Any]:
    """What a model gives, [W] each: ``(energy, driver, judge)`` and perhaps parts of the driver [W, K], by name."""
    energy, driver, judge, *local = prediction
    parts = local[0].unbind(dim=-1) if local else ()
    named = dict(zip(local_names(len(parts)), parts, strict=True))
    return {"energy": energy, "driver": driver, "judge": judge, **named}


def is_of_torch(name: str) -> bool:
    """Whether torch's dictionary of modules has an attribute of this name, so that no module in it can."""
    import torch

    return hasattr(torch.nn.ModuleDict(), name)
