"""Metadynamics on the uncertainty: Gaussian hills of all walkers on one growing grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.bias.base import Array, Bias
from uqbias.bias.grid import GrowingGrid, hermite
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.units import kt

#: Grid points per sigma. The Hermite error of one Gaussian is 3/384 of (spacing/sigma)⁴ = 8e-7 of its height.
POINTS_PER_SIGMA = 10
#: A hill ends where it has fallen to exp(-6²/2) = 1.5e-8 of its height.
SUPPORT = 6.0
KERNELS = ("gaussian", "stretched-gaussian")
#: PLUMED's kernels end where (u - u_k)²/2σ² is 6.25; they are stretched so that they fall to zero there.
CUTOFF = 6.25
STRETCH = 1.0 / (1.0 - math.exp(-CUTOFF))

#: A hill: MD step, centre and sigma (units of u), height as added to the bias (kJ/mol), bias factor (1: untempered).
HILL = np.dtype([("step", "i8"), ("centre", "f8"), ("sigma", "f8"), ("height", "f8"), ("biasfactor", "f8")])


class Metadynamics(Bias):
    """Standard or well-tempered metadynamics; several walkers share one bias.

    V(u) = Σ_k h_k exp(-(u - u_k)²/2σ²). Untempered: h_k = height. Well-tempered (Barducci, Bussi, Parrinello,
    Phys. Rev. Lett. 100, 020603, 2008): h_k = height · exp(-V(u_k)/(k_B T (γ-1))) with V before the deposition.

    Every ``pace`` steps, but not at step 0, each walker adds a hill. The heights of all hills of one step come from
    the bias as it was before that step, as in PLUMED's METAD with WALKERS_MPI, so the order of the walkers does not
    matter. A hill deposited at step k acts from step k+1 on. Each hill costs its support (120 grid points).

    Parameters
    ----------
    height : kJ/mol.
    sigma : width of the hills, in units of u.
    pace : steps between depositions.
    biasfactor : γ > 1 for well-tempered, None for standard metadynamics.
    temperature : K; of use only for well-tempered metadynamics.
    reflect_at : lowest value that u can take, or None. Each hill near it gets a mirror image beyond it, as a hill of
        its own: without that V falls off towards the bound, and walkers are held there (Crespo, Marinelli, Pietrucci
        and Laio, Phys. Rev. E 81, 055701, 2010).
    kernel : ``gaussian``, or ``stretched-gaussian``: that of PLUMED's METAD, a Gaussian from 3.54 σ on zero and made to
        fall to zero there, (exp(-x²/2) - e^-6.25)/(1 - e^-6.25).

    Attributes
    ----------
    grid : the bias on its grid, float64.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.
    """

    kind = "metadynamics"

    def __init__(
        self,
        *,
        height: float = 1.0,
        sigma: float = 1.0,
        pace: int = 50,
        biasfactor: float | None = 10.0,
        temperature: float = 300.0,
        reflect_at: float | None = None,
        kernel: str = "gaussian",
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise UqbiasError(f"unknown kernel '{kernel}' of metadynamics", did_you_mean(kernel, KERNELS))
        self.kernel = kernel
        self._support = SUPPORT if kernel == "gaussian" else math.sqrt(2 * CUTOFF)
        for name, value in (("height", height), ("sigma", sigma), ("pace", pace), ("temperature", temperature)):
            if not value > 0:
                raise UqbiasError(f"metadynamics with {name} {value}", f"give a {name} > 0")
        if biasfactor is not None and not biasfactor > 1:
            raise UqbiasError(f"metadynamics with biasfactor {biasfactor}", "give one > 1, or None for untempered")
        self.height, self.sigma, self.pace = float(height), float(sigma), int(pace)
        self.biasfactor = None if biasfactor is None else float(biasfactor)
        self.temperature = float(temperature)
        self.reflect_at = None if reflect_at is None else float(reflect_at)
        self.grid = GrowingGrid(self.sigma / POINTS_PER_SIGMA, self._state)
        self._hills = np.empty(256, dtype=HILL)
        self._count = 0

    def energy(self, u: Tensor, E: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return hermite(u, state)

    @property
    def hills(self) -> NDArray[Any]:
        """Record array of the hills so far with fields step, centre, sigma, height, biasfactor (see `HILL`)."""
        return self._hills[: self._count]

    def update(self, step: int, u: NDArray[Any], E: NDArray[Any]) -> None:
        if self.frozen or step <= 0 or step % int(self.pace or 1):
            return
        centres = np.asarray(u, dtype=np.float64)
        centres = centres[np.isfinite(centres)]
        if not len(centres):
            return
        heights = np.full(len(centres), self.height)
        if self.biasfactor is not None:
            heights *= np.exp(-self.value(centres) / (kt(self.temperature) * (self.biasfactor - 1)))
        if self.reflect_at is not None:
            near = np.abs(centres - self.reflect_at) < self._support * self.sigma
            centres = np.concatenate([centres, 2 * self.reflect_at - centres[near]])
            heights = np.concatenate([heights, heights[near]])
        hills = np.empty(len(centres), dtype=HILL)
        hills["step"], hills["centre"], hills["sigma"] = step, centres, self.sigma
        hills["height"], hills["biasfactor"] = heights, self.biasfactor or 1.0
        self._deposit(hills)

    def _deposit(self, hills: NDArray[Any]) -> None:
        reach = self._support * hills["sigma"]
        low, high = float((hills["centre"] - reach).min()), float((hills["centre"] + reach).max())
        self.grid.cover(low, high)
        first, last = len(self.grid.table), 0
        for _, centre, sigma, height, _ in hills.tolist():
            start = max(0, int(np.ceil((centre - self._support * sigma - self.grid.origin) / self.grid.spacing)))
            stop = int(np.floor((centre + self._support * sigma - self.grid.origin) / self.grid.spacing)) + 1
            scaled = (self.grid.origin + self.grid.spacing * np.arange(start, stop) - centre) / sigma
            values = height * np.exp(-0.5 * scaled * scaled)
            slopes = -values * scaled / sigma
            if self.kernel != "gaussian":
                values, slopes = STRETCH * (values - height * math.exp(-CUTOFF)), STRETCH * slopes
            self.grid.add((values, slopes), start)
            first, last = min(first, start), max(last, stop)
        self.grid.push(first, last)
        self._append(hills)

    def _append(self, hills: NDArray[Any]) -> None:
        needed = self._count + len(hills)
        if needed > len(self._hills):
            self._hills = np.concatenate([self.hills, np.empty(max(needed, 256), dtype=HILL)])
        self._hills[self._count : needed] = hills
        self._count = needed

    def value(self, u: NDArray[Any]) -> Array:
        """Bias V(u) in kJ/mol, float64, at ``u`` [n]."""
        return self.grid.value(np.asarray(u, dtype=np.float64))

    def free_energy(self, u: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Free energy along u that the bias estimates, F(u) = -γ/(γ-1) V(u), or -V(u) if untempered; lowest is 0.

        With hills of a well-tempered run V converges to -(1 - 1/γ) F. The estimate holds for the model's energy, and
        for converged runs only.

        Parameters
        ----------
        u : [n] where to give it; the grid points between the outermost hill centres if None.

        Returns
        -------
        u : [n].
        F : [n] kJ/mol.
        """
        if u is None:
            if not self._count:
                raise UqbiasError("no hills, no free energy", "run with the bias first, or load hills")
            points = self.grid.points
            centres = self.hills["centre"]
            u = points[(points >= centres.min()) & (points <= centres.max())]
        at = np.asarray(u, dtype=np.float64)
        factor = 1.0 if self.biasfactor is None else self.biasfactor / (self.biasfactor - 1)
        energy = -factor * self.value(at)
        return at, energy - (energy.min() if len(energy) else 0.0)

    def load_hills(self, hills: NDArray[Any]) -> None:
        """Add hills of an earlier run, such as `uqbias.md.reporters.read_hills` gives; their own sigma is kept.

        Raises
        ------
        UqbiasError
            If a hill is narrower than half of this bias's sigma, which its grid could not resolve.
        """
        hills = np.asarray(hills, dtype=HILL)
        if len(hills) and hills["sigma"].min() < 0.5 * self.sigma:
            raise UqbiasError(
                f"hills of sigma {hills['sigma'].min():.4g} on a grid made for sigma {self.sigma:.4g}",
                "give the bias the sigma of those hills",
            )
        for start in range(0, len(hills), 1000):
            self._deposit(hills[start : start + 1000])

    def reset(self) -> None:
        self._count = 0
        self.grid.clear()

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Metadynamics:
        self._dtype, self._device = dtype, torch.device(device)
        self.grid.to(dtype, device)
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {
            "origin": np.array(self.grid.origin),
            "spacing": np.array(self.grid.spacing),
            "table": self.grid.table.copy(),
            **{f"hill_{name}": self.hills[name].copy() for name in HILL.names or ()},
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        names = {"origin", "spacing", "table", *(f"hill_{name}" for name in HILL.names or ())}
        if set(arrays) != names:
            raise UqbiasError(f"checkpoint with {sorted(arrays)}", f"one of metadynamics holds {sorted(names)}")
        spacing = float(arrays["spacing"])
        if not np.isclose(spacing, self.grid.spacing, rtol=1e-12):
            raise UqbiasError(
                f"checkpoint of a bias with sigma {spacing * POINTS_PER_SIGMA:.6g}, this one has {self.sigma:.6g}",
                "continue with the same sigma",
            )
        self.grid.load(float(arrays["origin"]), arrays["table"])
        hills = np.empty(len(arrays["hill_step"]), dtype=HILL)
        for name in HILL.names or ():
            hills[name] = arrays[f"hill_{name}"]
        self._count = 0
        self._append(hills)
