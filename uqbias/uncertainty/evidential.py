"""Evidential regression: the network predicts a distribution over Gaussians."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Doc

from uqbias.options import NotNegative
from uqbias.uncertainty.heads import ErrorHead

#: Keeps ν, α − 1 and β above zero.
FLOOR = 1e-3


class Evidential(ErrorHead):
    r"""A network predicts a normal-inverse-gamma distribution of its own error.

    Its evidence (ν, α, β) for the error Δ is a function of the latents, trained on

    .. math:: L = \tfrac12 \ln\frac{\pi}{\nu} - \alpha \ln\Omega
              + (\alpha + \tfrac12) \ln(\nu\Delta^2 + \Omega) + \ln\frac{\Gamma(\alpha)}{\Gamma(\alpha + \tfrac12)}
              + \lambda |\Delta| (2\nu + \alpha), \qquad \Omega = 2\beta(1 + \nu)

    Amini, Schwarting, Soleimany and Rus, NeurIPS 2020, equations 8 and 9. Epistemic variance β/(ν(α − 1)), aleatoric
    β/(α − 1).

    Parameters
    ----------
    part : ``total`` is the sum of both variances.
    options : those of `ErrorHead`, by name.
    """

    kind = "evidential"
    n_outputs: ClassVar[int] = 3

    def __init__(
        self,
        *,
        part: Annotated[Literal["epistemic", "aleatoric", "total"], Doc("which variance is meant")] = "epistemic",
        regularisation: Annotated[NotNegative, Doc("λ: price of evidence where the error is large")] = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.part = part
        self.regularisation = regularisation

    def evidence(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ν, α − 1 and β of outputs [..., 3]; β starts small, as errors are small in units of the forces."""
        nu, above_one, beta = (softplus(outputs) + FLOOR).unbind(-1)
        return nu, above_one, 0.1 * beta

    def deviation(self, outputs: Tensor) -> Tensor:
        """Root of the variance of the chosen part."""
        nu, above_one, beta = self.evidence(outputs)
        aleatoric = beta / above_one
        if self.part == "epistemic":
            return (aleatoric / nu).sqrt()
        return aleatoric.sqrt() if self.part == "aleatoric" else (aleatoric + aleatoric / nu).sqrt()

    def negative_log_likelihood(self, error: Tensor, outputs: Tensor) -> Tensor:
        """Return L."""
        nu, above_one, beta = self.evidence(outputs)
        alpha = above_one + 1.0
        omega = 2 * beta * (1 + nu)
        likelihood = (
            0.5 * (math.log(math.pi) - torch.log(nu))
            - alpha * torch.log(omega)
            + (alpha + 0.5) * torch.log(nu * error.square() + omega)
            + torch.lgamma(alpha)
            - torch.lgamma(alpha + 0.5)
        )
        return likelihood + self.regularisation * (error.square() + 1e-8).sqrt() * (2 * nu + alpha)
