"""Uncertainty-driven dynamics: an inverted Gaussian of the committee's disagreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uqbias.bias.fixed import FixedBias
from uqbias.bias.options import positive
from uqbias.errors import UqbiasError


class UDD(FixedBias):
    r"""Bias of Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023), equation 4.

    .. math:: V = A \left[\exp\left(-\frac{\sigma_E^2}{N_M N_A B^2}\right) - 1\right], \qquad
              \sigma_E^2 = \tfrac12 \sum_{m=1}^{N_M} (E_m - \bar E)^2 = \tfrac12 (N_M - 1)\, u^2

    Note the factor ½ in their σ_E² (equation 2). The variable u is here the committee's standard deviation with N_M - 1
    in the denominator, as the uncertainty ``committee`` has it, so V is -A (1 - exp(-u²/2w²)) with
    w = B √(N_A N_M / (N_M - 1)). V is 0 where the members agree, -A where they do not at all, and steepest at u = w.
    The paper advises an A a few times the barrier of interest, and a B that makes the bias force about a third of the
    model's; its glycine has A = 15.4 and B = 0.12 kcal/mol, which are the defaults.

    Parameters
    ----------
    A : depth, kJ/mol.
    B : width, in units of u per √atom.
    n_members, n_atoms : N_M and N_A. Without both, w is B itself, and u may be any uncertainty.
    variables : name of the one variable.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> bias = UDD(A=60.0, B=0.5, n_members=8, n_atoms=10)
    >>> bias.energy(torch.tensor([[0.0], [1.69], [100.0]]), bias.state())
    tensor([ -0.0000, -23.6015, -60.0000])
    """

    kind = "udd"

    def __init__(
        self,
        *,
        A: float = 64.4,
        B: float = 0.50,
        n_members: int | None = None,
        n_atoms: int | None = None,
        variables: Sequence[str] = ("u",),
    ) -> None:
        for name, value in (("A", A), ("B", B)):
            positive(self.kind, name, value)
        width = float(B)
        if (n_members is None) != (n_atoms is None):
            raise UqbiasError(f"udd with n_members {n_members} and n_atoms {n_atoms}", "give both, or none")
        if n_members is not None and n_atoms is not None:
            if n_members < 2 or n_atoms < 1:
                raise UqbiasError(f"udd with n_members {n_members} and n_atoms {n_atoms}", "a committee has 2 or more")
            width *= math.sqrt(n_atoms * n_members / (n_members - 1))
        super().__init__(variables, A=A, width=width)

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        scaled = x[:, 0] / state["width"]
        return state["A"] * torch.expm1(-0.5 * scaled * scaled)
