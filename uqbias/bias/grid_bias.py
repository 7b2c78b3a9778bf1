"""What metadynamics, OPES and the adaptive biasing force share: a bias on a grid, made of samples of the walkers."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.bias.base import Array, Bias, finite
from uqbias.bias.grid import GrowingGrid


class GridBias(Bias):
    """A bias on a `GrowingGrid`.

    Attributes
    ----------
    grid : what the bias is made of on its grid, float64.
    """

    grid: GrowingGrid

    def _due(self, step: int, x: NDArray[Any], pace: int) -> Array:
        """Rows of ``x`` [W, D] that an update at ``step`` takes: none unless it is due, none of a walker left out."""
        return finite(x if not self.frozen and step > 0 and step % pace == 0 else x[:0])

    def value(self, x: NDArray[Any]) -> Array:
        """Bias V [n] in kJ/mol, float64, at ``x`` [n, D] (or [n] for one variable)."""
        return self.grid.value(x)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        super().to(dtype, device)
        self.grid.to(dtype, device)
        return self

    def reset(self) -> None:
        self.grid.clear()


class KernelBias(GridBias):
    """A bias that is a function of a sum of kernels at places where walkers were.

    Attributes
    ----------
    biasfactor : γ; None for hills that keep their height, inf for a flat target.
    """

    biasfactor: float | None

    @property
    def free_energy_factor(self) -> float:
        """γ/(γ-1); 1 for hills that keep their height or a flat target."""
        return 1.0 if self.biasfactor in (None, math.inf) else self.biasfactor / (self.biasfactor - 1)

    @abstractmethod
    def _centres(self) -> Array:
        """Centres [n, D] of the kernels.

        Raises
        ------
        UqbiasError
            If there are none.
        """

    @abstractmethod
    def _estimate(self, x: Array) -> Array:
        """Free energy [n] that the bias estimates at ``x`` [n, D], kJ/mol, up to a constant."""

    def free_energy(self, x: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Free energy that the bias estimates; lowest is 0. It holds for the model's energy and converged runs only.

        Parameters
        ----------
        x : [n, D] where to give it; the grid points between the outermost kernel centres if None.

        Returns
        -------
        x : [n, D].
        F : [n] kJ/mol, infinite where OPES has no kernel.

        Raises
        ------
        UqbiasError
            If nothing was deposited.
        """
        points = self.grid.points_among(self._centres()) if x is None else x
        at = np.asarray(points, dtype=np.float64).reshape(-1, len(self.variables))
        energy = self._estimate(at)
        lowest = energy[np.isfinite(energy)].min(initial=np.inf)
        return at, energy - (lowest if np.isfinite(lowest) else 0.0)
