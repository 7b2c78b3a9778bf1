"""Mean and variance estimation: the network predicts the variance of its own error."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Doc

from uqbias.options import Positive
from uqbias.uncertainty.heads import ErrorHead

#: Least standard deviation, in units of the typical force; errors of a trained potential are far above it.
FLOOR = 1e-3


class MeanVarianceEstimation(ErrorHead):
    r"""A network predicts the variance of its own error (mean-variance estimation), by maximum likelihood.

    .. math:: L = \lfloor\sigma^{2\beta}\rfloor \left(\tfrac12 \ln 2\pi\sigma^2 + \frac{\Delta^2}{2\sigma^2}\right)

    Nix and Weigend, IEEE ICNN 1994; the factor σ^{2β}, not differentiated, keeps the frames with large σ from being
    given up (β-NLL: Seitzer, Tavakoli, Antic and Martius, ICLR 2022, equation 5); β = 0 is the plain likelihood.

    Parameters
    ----------
    options : those of `ErrorHead`, by name.
    """

    kind = "mve"
    n_outputs: ClassVar[int] = 1

    def __init__(
        self,
        *,
        loss_weight: Annotated[Positive, Doc("weight of its likelihood beside the potential's loss")] = 0.02,
        beta: Annotated[float, Ge(0), Le(1), Doc("β of the β-NLL; 0 is the plain likelihood")] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(loss_weight=loss_weight, **options)
        self.beta = beta

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return σ."""
        return softplus(outputs.squeeze(-1) - 1.0) + FLOOR

    def negative_log_likelihood(self, error: Tensor, outputs: Tensor) -> Tensor:
        """Return L without its constant."""
        sigma = self.deviation(outputs)
        likelihood = torch.log(sigma) + 0.5 * (error / sigma).square()
        return sigma.detach() ** (2 * self.beta) * likelihood
