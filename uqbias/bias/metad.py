"""Metadynamics: Gaussian hills of all walkers on one growing grid of one to three variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, MaxLen, MinLen
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.bias.base import (
    ONE_EACH,
    Array,
    Bias,
    Names,
    Periods,
    Probe,
    Reflection,
    Temperature,
    Width,
    nearest_image,
)
from uqbias.bias.grid import GrowingGrid, hermite
from uqbias.bias.grid_bias import KernelBias
from uqbias.errors import UqbiasError
from uqbias.options import Count, Positive
from uqbias.units import kt

#: Grid points per sigma in one, two, three dimensions. The Hermite error of one Gaussian is 3/384 of (spacing/sigma)⁴
#: per dimension: 8e-7, 1e-5 and 5e-4 of its height.
POINTS_PER_SIGMA = (10, 5, 2)
#: A hill ends where it has fallen to exp(-6²/2) = 1.5e-8 of its height.
SUPPORT = 6.0
Kernel = Literal["gaussian", "stretched-gaussian"]
Height = Annotated[Positive, Doc("height of a new hill, kJ/mol")]
HillWidth = Annotated[
    Width,
    Doc(
        "width of a hill, in units of the variable (or a list); wide hills on the driver trap walkers at its lower end"
    ),
]
BiasFactor = Annotated[float | None, Gt(1), Doc("γ; the variable moves as if at γ T; null: hills keep their height")]
HillPace = Annotated[Count, Doc("steps between hills of one walker; a multiple of md.pace")]
HillKernel = Annotated[Kernel, Doc("gaussian, or stretched-gaussian as PLUMED's METAD has them")]
#: PLUMED's kernels end where Σ (x - x_k)²/2σ² is 6.25; they are stretched so that they fall to zero there.
CUTOFF = 6.25
STRETCH = 1.0 / (1.0 - math.exp(-CUTOFF))


def hill_type(dimensions: int) -> np.dtype[Any]:
    """A hill: step, centre and sigma [D] in units of the variables, height in kJ/mol as added, bias factor or 1."""
    vector = ("f8", (dimensions,))
    return np.dtype([("step", "i8"), ("centre", *vector), ("sigma", *vector), ("height", "f8"), ("biasfactor", "f8")])


class MetaD(KernelBias):
    """Well-tempered metadynamics, or standard metadynamics. All walkers share one bias.

    V(x) = Σ_k h_k Π_d exp(-(x_d - x_kd)²/2σ_d²) (Laio and Parrinello, PNAS 99, 12562, 2002). Untempered: h_k = height.
    Well-tempered (Barducci, Bussi, Parrinello, Phys. Rev. Lett. 100, 020603, 2008): h_k = height ·
    exp(-V(x_k)/(k_B T (γ-1))) with V before the deposition.

    Every ``pace`` steps, but not at step 0, each walker adds a hill. The heights of all hills of one step come from
    the bias as it was before that step, as in PLUMED's METAD with WALKERS_MPI, so the order of the walkers does not
    matter. A hill deposited at step k acts from step k+1 on. A hill costs its support on the grid, a step costs the
    same whatever the number of hills.

    Parameters
    ----------
    periods : a hill counts by the nearest image, as in PLUMED.
    temperature : of use only for well-tempered metadynamics.
    reflect_at : each hill near it gets a mirror image beyond it, as a hill of its own: without that V falls off towards
        the bound, and walkers are held there (Crespo, Marinelli, Pietrucci and Laio, Phys. Rev. E 81, 055701, 2010).
    kernel : ``gaussian``, or ``stretched-gaussian``: that of PLUMED's METAD, a Gaussian from Σ (x/σ)²/2 = 6.25 on zero
        and made to fall to zero there, (exp(-x²/2) - e^-6.25)/(1 - e^-6.25).

    Attributes
    ----------
    grid : the bias on its grid, float64.

    Raises
    ------
    UqbiasError
        If a parameter is out of range.
    """

    kind = "metadynamics"
    estimator = "tiwary-parrinello"

    def __init__(
        self,
        *,
        variables: Names = ("driver",),
        height: Height = 1.0,
        sigma: HillWidth = 0.3,
        biasfactor: BiasFactor = 10.0,
        pace: HillPace = 50,
        kernel: HillKernel = "gaussian",
        reflect_at: Reflection = "lowest",
        grid_range: Annotated[
            Sequence[Annotated[Sequence[float], MinLen(2), MaxLen(2)] | None] | None,
            ONE_EACH,
            Doc("[min, max] of each variable that the grid spans at first; it grows; null: no need"),
        ] = None,
        periods: Periods = None,
        temperature: Temperature = 300.0,
    ) -> None:
        super().__init__(variables)
        count = len(self.variables)
        self.kernel = kernel
        self._support = SUPPORT if kernel == "gaussian" else math.sqrt(2 * CUTOFF)
        self.sigma = np.array(self._each(sigma), dtype=np.float64)
        self.height = float(height)
        self.pace: int = int(pace)
        self.biasfactor = None if biasfactor is None else float(biasfactor)
        self.temperature = float(temperature)
        self.reflect_at, self.periods = self._bounds(reflect_at), tuple(self._each(periods))
        self._fineness = POINTS_PER_SIGMA[count - 1]
        self.grid = GrowingGrid(
            (self.sigma / self._fineness).tolist(), self._state, self.periods, grid_range, self.variables
        )
        self._hills = np.empty(256, dtype=hill_type(count))
        self._count = 0

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        for span in () if (spans := options["grid_range"]) is None else spans:
            if span is not None and not span[0] < span[1]:
                raise UqbiasError(f"metadynamics with grid_range {span}", "give a maximum above the minimum")

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return hermite(x, state, self.periods)

    @property
    def hills(self) -> NDArray[Any]:
        """Record array of the hills so far with fields step, centre, sigma, height, biasfactor (see `hill_type`)."""
        return self._hills[: self._count]

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        if len(centres := self._due(step, x, self.pace)):
            self.add(step, centres, np.ones(len(centres)))

    def add(self, step: int, centres: Array, weights: Array) -> None:
        """Add a hill at each of ``centres`` [n, D], its height times ``weights`` [n], as of MD step ``step``."""
        heights = self.height * weights
        if self.biasfactor is not None:
            heights *= np.exp(-self.value(centres) / (kt(self.temperature) * (self.biasfactor - 1)))
        centres, heights = self._with_images(centres, heights)
        hills: NDArray[Any] = np.empty(len(centres), dtype=self._hills.dtype)
        hills["step"], hills["centre"], hills["sigma"] = step, centres, self.sigma
        hills["height"], hills["biasfactor"] = heights, self.biasfactor or 1.0
        self.deposit(hills)

    def _with_images(self, centres: Array, heights: Array) -> tuple[Array, Array]:
        for d, bound in enumerate(self.reflect_at):
            if bound is not None:
                near = np.abs(centres[:, d] - bound) < self._support * self.sigma[d]
                images = centres[near]
                images[:, d] = 2 * bound - images[:, d]
                centres, heights = np.concatenate([centres, images]), np.concatenate([heights, heights[near]])
        return centres, heights

    def deposit(self, hills: NDArray[Any]) -> None:
        """Add hills (of `hill_type`) as they are."""
        stretched = {} if self.kernel == "gaussian" else {"end": 2 * CUTOFF, "scale": STRETCH}
        self.grid.deposit(hills["centre"], hills["sigma"], hills["height"], self._support, **stretched)
        self._append(hills)

    def _append(self, hills: NDArray[Any]) -> None:
        needed = self._count + len(hills)
        if needed > len(self._hills):
            more = np.empty(max(needed, 256), dtype=self._hills.dtype)
            self._hills = np.concatenate([self.hills, more])
        self._hills[self._count : needed] = hills
        self._count = needed

    def _centres(self) -> Array:
        if not self._count:
            raise UqbiasError("no hills, no free energy", "run with the bias first, or load hills")
        return np.asarray(self.hills["centre"], dtype=np.float64)

    def _estimate(self, x: Array) -> Array:
        """F(x) = -γ/(γ-1) V(x), or -V(x) if untempered: V of a well-tempered run converges to -(1 - 1/γ) F."""
        return -self.free_energy_factor * self.value(x)

    def load_hills(self, hills: NDArray[Any]) -> None:
        """Add hills of an earlier run, such as `uqbias.runs.hills.read_hills` gives; their own sigma is kept.

        Raises
        ------
        UqbiasError
            If the hills have another number of variables, or one is narrower than half of this bias's sigma, which
            its grid could not resolve.
        """
        if hills["centre"].shape[1:] != (len(self.variables),):
            raise UqbiasError(
                f"hills of {hills['centre'].shape[-1]} variable(s) for a bias on {list(self.variables)}",
                "give the HILLS file of the same variables",
            )
        if len(hills) and (hills["sigma"].min(axis=0) < 0.5 * self.sigma).any():
            raise UqbiasError(
                f"hills of sigma {hills['sigma'].min(axis=0).tolist()} on a grid made for sigma {self.sigma.tolist()}",
                "give the bias the sigma of those hills",
            )
        for start in range(0, len(hills), 1000):
            self.deposit(hills[start : start + 1000])

    def reset(self) -> None:
        super().reset()
        self._count = 0

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {
            "origin": self.grid.origin.copy(),
            "spacing": self.grid.spacing.copy(),
            "table": self.grid.table.copy(),
            **{f"hill_{name}": self.hills[name].copy() for name in self._hills.dtype.names or ()},
        }

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        # Of a periodic variable the spacing is a little finer than sigma has it.
        saved, present = (self._fineness * np.asarray(one) for one in (arrays["spacing"], self.grid.spacing))
        self._agree({"sigma": saved}, {"sigma": present})
        self.grid.load(arrays["origin"], arrays["table"])
        hills = np.empty(len(arrays["hill_step"]), dtype=self._hills.dtype)
        for name in self._hills.dtype.names or ():
            hills[name] = arrays[f"hill_{name}"]
        self._count = 0
        self._append(hills)


def sum_of_hills(
    at: Array,
    centre: Array,
    sigma: Array,
    height: Array,
    periods: Sequence[float | None],
    kernel: Kernel = "gaussian",
) -> Array:
    """Bias [n] of hills in kJ/mol, summed one by one without a grid; as `MetaD` has it, but with no end of a Gaussian.

    Parameters
    ----------
    at : [n, D] points.
    centre, sigma : [H, D], in units of the variables.
    height : [H] kJ/mol, as added to the bias.
    periods : [D] period of each variable, or None.
    kernel : shape of the hills, see `MetaD`.
    """
    total = np.zeros(len(at))
    for start in range(0, len(height), 2048):
        part = slice(start, start + 2048)
        squared = np.zeros((len(at), len(height[part])))
        for d, period in enumerate(periods):
            apart = nearest_image(at[:, d, None] - centre[None, part, d], period)
            squared += (apart / sigma[None, part, d]) ** 2
        values = np.exp(-0.5 * squared)
        if kernel != "gaussian":
            values = np.where(0.5 * squared < CUTOFF, STRETCH * (values - math.exp(-CUTOFF)), 0.0)
        total += values @ height[part]
    return total


def metadynamics_parts(biases: Sequence[Bias | None]) -> list[MetaD]:
    """Each metadynamics among the biases, that inside a WTM-eABF and those of a parallel bias included."""
    candidates: list[MetaD] = []
    for bias in biases:
        inner = getattr(bias, "metadynamics", bias)
        candidates += [part for part in (inner if isinstance(inner, list) else [inner]) if isinstance(part, MetaD)]
    return candidates
