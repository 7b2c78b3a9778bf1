"""Coordination number: how many atom pairs are closer than a distance, counted smoothly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import Atoms, ordered_atoms
from uqbias.molecule.topology import Topology
from uqbias.options import Count, Positive
from uqbias.variables.base import SOFTENING, CollectiveVariable, take

#: (r/r₀)^m is held below this, so that it does not overflow in single precision.
LARGEST = 1e30


class Coordination(CollectiveVariable):
    r"""Number of pairs closer than r0, counted smoothly.

    A sum of a rational switching function over the pairs of two groups:

    .. math:: C = \sum_{i \in A} \sum_{j \in B} \frac{1 - (r_{ij}/r_0)^n}{1 - (r_{ij}/r_0)^m}

    evaluated without the singularity at r = r₀: with g = gcd(n, m) and y = (r/r₀)^g the fraction is
    (1 + y + … + y^{n/g−1})/(1 + y + … + y^{m/g−1}), for m = 2n just 1/(1 + y). A pair of an atom with itself does not
    count. PLUMED's COORDINATION with NOPBC, R_0, NN and MM, but for the constant by which PLUMED makes its function
    vanish where the fraction s is 1e-5: it sums (s − 1e-5)/(1 − 1e-5).

    Parameters
    ----------
    group_a, group_b : atom indices; None for ``group_b``: pairs within ``group_a``, each once.
    r0 : distance within which a pair counts, nm.
    n, m : exponents, 0 < n < m.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    >>> bonds = VARIABLES.build({"kind": "coordination", "group_a": [0], "group_b": [1, 2], "r0": 0.1}, topology=water)
    >>> bonds(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]))
    tensor([1.0000])
    """

    kind = "coordination"
    hill_width = 0.2
    first: Tensor
    second: Tensor
    counted: Tensor

    def __init__(
        self,
        group_a: Sequence[int],
        group_b: Sequence[int] | None,
        *,
        r0: Annotated[Positive, Doc("nm")],
        n: Annotated[Count, Doc("exponent of the numerator")] = 6,
        m: Annotated[Count | None, Doc("exponent of the denominator; null: 2 n")] = None,
    ) -> None:
        super().__init__()
        self.r0, self.n, self.m = float(r0), int(n), int(2 * n if m is None else m)
        if not self.n < self.m:
            raise UqbiasError(f"coordination with n {n} and m {m}", "give whole numbers with 0 < n < m")
        self.group_a = [int(i) for i in group_a]
        self.group_b = None if group_b is None else [int(i) for i in group_b]
        first = torch.tensor(self.group_a)
        second = first if self.group_b is None else torch.tensor(self.group_b)
        counted = (first.unsqueeze(1) != second).double()
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.register_buffer("counted", counted.triu() if self.group_b is None else counted, persistent=False)
        if not self.counted.any():
            raise UqbiasError("coordination of an atom with itself", "give two different atoms or more")

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        group_a: Annotated[Atoms, Doc("atoms")],
        group_b: Annotated[Atoms | None, Doc("atoms; null: pairs within group_a")] = None,
        **options: Any,
    ) -> Self:
        """Make the variable of the pairs of two groups of a molecule, or within one."""
        a = ordered_atoms(topology, group_a, "group_a of coordination")
        b = None if group_b is None else ordered_atoms(topology, group_b, "group_b of coordination")
        return cls(a, b, **options)

    def forward(self, positions: Tensor) -> Tensor:
        """Coordination number [W]."""
        apart = take(positions, self.first).unsqueeze(2) - take(positions, self.second).unsqueeze(1)
        squared = ((apart * apart).sum(-1) / self.r0**2).clamp(max=LARGEST ** (2 / self.m))
        common = math.gcd(self.n, self.m)
        # An even power needs no root, and so no softening.
        scaled = (squared + (SOFTENING / self.r0) ** 2).sqrt() if common % 2 else squared
        y = scaled ** (common if common % 2 else common // 2)
        switched = _geometric(y, self.n // common) / _geometric(y, self.m // common)
        return (switched * self.counted.to(y.dtype)).sum((1, 2))


def _geometric(y: Tensor, terms: int) -> Tensor:
    """1 + y + … + y^(terms-1)."""
    total = torch.ones_like(y)
    for _ in range(terms - 1):
        total = total * y + 1
    return total
