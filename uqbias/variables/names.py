"""Names that variables have in a graph, a campaign file and COLVAR."""

from __future__ import annotations

#: Variables that every model gives: driver, judge (calibrated), energy.
OF_MODEL = ("u", "uncertainty", "energy")
#: An extended variable is called this and the name of the one that it follows.
EXTENDED = "extended_"
