"""Hyperactive learning: a linear bias whose force is a fixed fraction of the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import Bias, OneName, Probe
from uqbias.errors import UqbiasError
from uqbias.options import Count, Positive


class Linear(Bias):
    r"""V = −τ u: a constant push towards high u (HAL).

    τ is adapted to the forces (van der Oord et al., npj Comput. Mater. 9, 168, 2023):

    .. math:: \tau = \tau_\mathrm{rel} \frac{\langle |F| \rangle}{\langle |\nabla u| \rangle}

    their equation 14, where \|·\| is the norm of an atom's vector and ⟨·⟩ the mean over atoms and walkers and, with
    exponentially falling weights, over updates: mean ← (1 - 1/n) mean + (1/n) new with n = ``averaging``. F are the
    forces without this bias; those of other biases of the run count with the model's. As in the authors' code, τ is 0
    for the first n updates, until the means are worth something. Each update costs two evaluations.

    Parameters
    ----------
    relative : τ_rel, about 0.05 to 0.2; of no account with a fixed ``tau``.
    variables : an adapted tau needs one of the model or a `CollectiveVariable`: an OpenMM
        Force or an extended variable has no gradient on the atoms of the graph.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> bias = Linear(tau=2.0)
    >>> bias.energy(torch.tensor([[0.0], [3.0]]), bias.state())
    tensor([-0., -6.])
    """

    kind = "linear"
    #: Means of |F| and |∇u|.
    _means: NDArray[np.float64]

    def __init__(
        self,
        *,
        variables: OneName = ("driver",),
        relative: Annotated[Positive, Doc("mean bias force over mean model force that τ is set for")] = 0.1,
        pace: Annotated[Count, Doc("steps between updates of τ; a multiple of md.pace")] = 50,
        averaging: Annotated[Count, Doc("updates averaged over; τ is 0 for as many at the start")] = 20,
        tau: Annotated[float | None, Doc("a fixed τ, kJ/mol per unit of u; null: adapted")] = None,
    ) -> None:
        super().__init__(variables)
        self.relative, self.averaging = float(relative), int(averaging)
        self.pace = int(pace) if tau is None else None
        self._start = 0.0 if tau is None else float(tau)
        self.reset()

    @property
    def tau(self) -> float:
        """The present τ, kJ/mol per unit of u."""
        return self._numbers["tau"]

    @classmethod
    def feels_atoms(cls, options: Mapping[str, Any]) -> bool:
        return options["tau"] is None

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return -state["tau"] * x[:, 0]

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        if self.frozen or not self.pace or step <= 0 or step % self.pace:
            return
        if probe is None:
            raise UqbiasError("linear adapts tau to the forces, and this driver gives none", "give it a fixed tau")
        tau = self._state["tau"]
        without = np.asarray(probe({"tau": torch.zeros_like(tau)}), dtype=np.float64)
        unit = np.asarray(probe({"tau": torch.ones_like(tau)}), dtype=np.float64) - without
        sound = np.isfinite(x).all(axis=1) & np.isfinite(without + unit).all(axis=(1, 2))
        if not sound.any():
            return
        means = np.array([np.linalg.norm(forces[sound], axis=-1).mean() for forces in (without, unit)])
        if not means[0] > 0:
            raise UqbiasError("linear: the forces without the bias are zero", "give it a fixed tau")
        mixing = 1.0 / self.averaging if self._count else 1.0
        self._means = (1.0 - mixing) * self._means + mixing * means
        self._count += 1
        if self._count > self.averaging and self._means[1] > 0:
            self._set(tau=self.relative * float(self._means[0] / self._means[1]))

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {"tau": np.array(self.tau), "mean_forces": self._means.copy(), "count": np.array(self._count)}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._set(tau=float(arrays["tau"]))
        self._count, self._means = int(arrays["count"]), np.array(arrays["mean_forces"], dtype=np.float64)

    def equilibrium_from(self) -> int:
        if self.pace is not None and not self.frozen:
            # A slope that follows the forces has no equilibrium to be reweighted.
            raise UqbiasError(f"{self.kind} adapted its tau during the run", "run with a fixed tau, or another bias")
        return -1

    def reset(self) -> None:
        self._set(tau=self._start)
        self._means, self._count = np.zeros(2), 0
