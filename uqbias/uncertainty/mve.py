"""Mean and variance estimation: the network predicts the variance of its own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from uqbias.errors import UqbiasError
from uqbias.uncertainty.heads import ErrorHead

#: Least standard deviation, in units of the typical force; errors of a trained potential are far above it.
FLOOR = 1e-3


class MeanVarianceEstimation(ErrorHead):
    r"""σ of the error by maximum likelihood, as a function of the latents.

    .. math:: L = \lfloor\sigma^{2\beta}\rfloor \left(\tfrac12 \ln 2\pi\sigma^2 + \frac{\Delta^2}{2\sigma^2}\right)

    Nix and Weigend, IEEE ICNN 1994; the factor σ^{2β}, not differentiated, keeps the frames with large σ from being
    given up (β-NLL: Seitzer, Tavakoli, Antic and Martius, ICLR 2022, equation 5); β = 0 is the plain likelihood.

    Parameters
    ----------
    beta : β, in [0, 1].
    numbers, n_latents, quantity, hidden, loss_weight, aggregation : see `ErrorHead`.
    """

    kind = "mve"
    n_outputs: ClassVar[int] = 1

    def __init__(
        self, numbers: Sequence[int], n_latents: int, *, beta: float = 0.0, loss_weight: float = 0.02, **head: Any
    ) -> None:
        if not 0 <= beta <= 1:
            raise UqbiasError(f"beta of 'mve': {beta}", "give a number from 0 (plain likelihood) to 1")
        super().__init__(numbers, n_latents, loss_weight=loss_weight, **head)
        self.beta = beta

    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().options() | {"beta": self.beta}

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return σ."""
        return softplus(outputs.squeeze(-1) - 1.0) + FLOOR

    def negative_log_likelihood(self, error: Tensor, outputs: Tensor) -> Tensor:
        """Return L without its constant."""
        sigma = self.deviation(outputs)
        likelihood = torch.log(sigma) + 0.5 * (error / sigma).square()
        return sigma.detach() ** (2 * self.beta) * likelihood
