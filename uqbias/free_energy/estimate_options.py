"""Methods of a free energy and the options of one, for the function and the command line; light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Len, Lt
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import NotNegative, Positive, check_values

#: Name to equation and source.
METHODS = {
    "tiwary-parrinello": "w = exp((V(t) - c(t))/kT), Tiwary and Parrinello, J. Phys. Chem. B 119, 736 (2015)",
    "quasi-static": "w = exp(V(t)/kT), V as it acted, Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020)",
    "last-bias": "w = exp(V/kT), V as at the end, Branduardi, Bussi, Parrinello, J. Chem. Theory Comput. 8 (2012)",
    "czar": "dF/dξ = -kT d ln ρ/dξ + k(<λ>-ξ), Lesage, Lelièvre, Stoltz and Hénin, J. Phys. Chem. B 121, 3676 (2017)",
    "cumulant": "F - kT ln <exp(ΔV/kT)> by cumulants, Miao et al., J. Chem. Theory Comput. 10, 2677 (2014)",
    "mbar": "w = 1/Σ N_k exp(f_k - V_k/kT), Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008)",
    "bias": "F = -γ/(γ-1) V - W (walls), at the end, Barducci, Bussi, Parrinello, Phys. Rev. Lett. 100, 020603 (2008)",
}
#: Bins along one, and along each of two variables.
BINS = (60, 36)


@dataclass(frozen=True, kw_only=True)
class FreeEnergyOptions:
    """Options of a free energy.

    Attributes
    ----------
    method : ``auto`` takes for one run ``cumulant`` with a boost such as GaMD, on top of the method for the other
        biases; ``czar`` with an extended variable that follows the variable asked for, else ``mbar`` over its windows;
        the `estimator` that a bias names where it alone changed; ``quasi-static`` or ``last-bias`` where several did;
        ``last-bias`` where none did, which is exact. For several runs: ``mbar``. With PLUMED: ``quasi-static``.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    method: Annotated[str, Doc(f"auto (by the biases of the run), {', '.join(METHODS)}")] = "auto"
    discard: Annotated[NotNegative, Lt(1), Doc("fraction of each run's observations left out at its start")] = 0.1
    blocks: Annotated[int, Ge(2), Doc("blocks in time of the jackknife that gives the error bars")] = 10
    bins: Annotated[
        Sequence[Annotated[int, Ge(2)]],
        Doc(f"bins of each variable; left out: {BINS[0]} for one variable, {BINS[1]} each for two"),
    ] = ()
    ranges: Annotated[
        Sequence[Annotated[Sequence[float], Len(2, 2)] | None],
        Doc("LOW:HIGH of each variable; left out: what was visited; not for angles, binned over their whole period"),
    ] = ()
    temperature: Annotated[
        Positive | None, Doc("K; only to make sure that the runs, to which F belongs, are of this temperature")
    ] = None
    order: Annotated[Literal[2, 3], Doc("order of the cumulant expansion for GaMD, 2 or 3")] = 2

    def __post_init__(self) -> None:
        if self.method not in ("auto", *METHODS):
            raise UqbiasError(f"unknown method '{self.method}'", did_you_mean(self.method, ["auto", *METHODS]))
        check_values("free energy", type(self), vars(self))
