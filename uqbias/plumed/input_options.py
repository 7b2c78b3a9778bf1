"""Options of an input file for PLUMED; importing them loads no torch, so that the command line can show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import Count, Positive, check_values

BIASES = ("metad", "opes")
OUTPUTS = ("driver", "judge")


@dataclass(frozen=True, kw_only=True)
class PlumedOptions:
    """What goes into plumed.dat; PLUMED's units: nm, ps, kJ/mol.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    bias: Annotated[str, Doc("kind of bias: metad (well-tempered) or opes (OPES_METAD)")] = "metad"
    output: Annotated[str, Doc("what is biased: driver or judge")] = "driver"
    temperature: Annotated[Positive, Doc("K")] = 300.0
    sigma: Annotated[
        Positive | None, Doc("width of a hill in units of the CV; by default that of the driver's kind, if it has one")
    ] = None
    height: Annotated[Positive, Doc("height of a hill, kJ/mol")] = 1.0
    pace: Annotated[Count, Doc("steps between hills")] = 500
    biasfactor: Annotated[float, Gt(1), Doc("bias factor γ of well-tempered metadynamics; > 1")] = 10.0
    barrier: Annotated[Positive, Doc("highest barrier that OPES levels, kJ/mol")] = 50.0
    wall: Annotated[
        float | None, Doc("value of the CV where a wall begins; by default that of the driver's kind, if it has one")
    ] = None
    atoms: Annotated[str | None, Doc("the model's atoms in the engine's numbering, as PLUMED writes them: 1-22")] = None
    float64: Annotated[bool, Doc("evaluate in double precision")] = False

    def __post_init__(self) -> None:
        if self.bias not in BIASES:
            raise UqbiasError(f"unknown bias '{self.bias}'", did_you_mean(self.bias, BIASES))
        if self.output not in OUTPUTS:
            raise UqbiasError(f"unknown output '{self.output}'", did_you_mean(self.output, OUTPUTS))
        check_values("plumed", type(self), vars(self))
