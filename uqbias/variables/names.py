"""Names that variables have in a graph, a campaign file, COLVAR and HILLS."""

from __future__ import annotations

#: Variables that every model gives: driver, judge (calibrated), energy.
OF_MODEL = ("driver", "judge", "energy")
#: An extended variable is called this and the name of the one that it follows.
EXTENDED = "extended_"
#: Widths of hills are called this and the name of their variable.
SIGMA = "sigma_"
#: Further columns of COLVAR and HILLS; PLUMED may add a clock to the latter.
COLUMNS = ("time", "bias", "restarted", "height", "biasf", "clock")


def is_taken(name: str) -> bool:
    """Whether a model, COLVAR or HILLS has something else of this name, so that no variable can."""
    return name in (*OF_MODEL, *COLUMNS) or name.startswith((EXTENDED, SIGMA))


def is_of_torch(name: str) -> bool:
    """Whether torch's dictionary of modules has an attribute of this name, so that no module in it can."""
    import torch

    return hasattr(torch.nn.ModuleDict(), name)
