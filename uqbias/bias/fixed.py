"""What the biases that never change have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.bias.options import per_variable, positive
from uqbias.errors import UqbiasError


class FixedBias(Bias):
    """A bias on one variable whose state is a few constants, so that their values are inputs of the graph.

    Parameters
    ----------
    variables : name of the one variable.
    periods : its period, or None where it has none.
    constants : the state by name; kept in double precision on the host.

    Raises
    ------
    UqbiasError
        For more than one variable, or a value that is not finite.
    """

    def __init__(
        self, variables: Sequence[str], periods: Sequence[float | None] | None = None, **constants: float
    ) -> None:
        super().__init__(variables)
        for name, value in constants.items():
            if not math.isfinite(value):
                raise UqbiasError(f"{self.kind} with {name} {value}", "give a finite number")
        if len(self.variables) != 1:
            raise UqbiasError(
                f"{self.kind} on the variables {list(self.variables)}", "give each variable one of its own"
            )
        (self.period,) = per_variable(self.kind, "periods", periods, 1)
        if self.period is not None:
            positive(self.kind, "periods", self.period)
        self._constants = {name: float(value) for name, value in constants.items()}
        self.to(self._dtype, self._device)

    @property
    def periods(self) -> tuple[float | None]:
        """Period of each variable, None where it has none."""
        return (self.period,)

    def displacement(self, x: Tensor, at: Tensor) -> Tensor:
        """Difference x - at, [W], to the nearest image of ``at`` where the variable has a period."""
        away = x[:, 0] - at
        return away if self.period is None else away - self.period * torch.round(away / self.period)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> FixedBias:
        self._dtype, self._device = dtype, torch.device(device)
        for name, value in self._constants.items():
            self._state[name] = torch.tensor([value], dtype=dtype, device=device)
        return self
