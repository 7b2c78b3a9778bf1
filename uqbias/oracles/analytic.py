"""Double wells of one particle whose free energies are known exactly: a model for MD and an oracle for labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.model.model import Prediction
from uqbias.options import Positive
from uqbias.oracles.base import Answer, Array, Oracle
from uqbias.units import GAS_CONSTANT, kt

#: Coefficients of x⁰ to x⁴, then of y⁰ to y⁴, kJ/mol for lengths in nm: E = 5x⁴ - 10x² + 1.5x in one dimension and
#: 10x⁴ - 10x² + 2x + 4y⁴ in two (Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104, 2021).
COEFFICIENTS = {
    1: ((0.0, 1.5, -10.0, 0.0, 5.0),),
    2: ((0.0, 2.0, -10.0, 0.0, 10.0), (0.0, 0.0, 0.0, 0.0, 4.0)),
}
AXES = "xyz"
#: Gauss-Legendre quadrature of a bin.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
#: Integrals over a well end where the integrand has fallen to exp(-60), and have this many points.
EXPONENT, POINTS = 60.0, 4001


class DoubleWell(torch.nn.Module):
    """One particle in a double well along x, in two dimensions with a quartic well along y.

    E = scale · P(x) + ½ confinement (y² + z²) or scale · (P(x) + Q(y)) + ½ confinement z², P and Q as in
    `COEFFICIENTS`. It stands where `uqbias.compile.fused.FusedEvaluator` takes a model: the driver is x, and there is
    no uncertainty (zero).

    Parameters
    ----------
    dimensions : 1 or 2.
    scale : factor of the published potential; 1 takes its numbers as kJ/mol and nm.
    confinement : force constant of the harmonic wells along the other axes, kJ/mol/nm².

    Attributes
    ----------
    numbers : atomic number of the particle: a hydrogen, 1.008 dalton.
    wells : [2] x of the deeper and of the other minimum of P, nm.
    top : x of the maximum between them, nm.
    barrier : energy of the saddle point above the deeper minimum, kJ/mol.

    Raises
    ------
    UqbiasError
        If there is no such potential, scale or confinement are not above zero.

    Examples
    --------
    >>> well = DoubleWell(1)
    >>> energy, driver, *_ = well(torch.tensor([[[-1.0, 0.0, 0.0]]]))
    >>> energy, driver
    (tensor([-6.5000]), tensor([-1.]))
    """

    numbers: tuple[int, ...] = (1,)

    def __init__(self, dimensions: int = 1, *, scale: float = 1.0, confinement: float = 50.0) -> None:
        super().__init__()
        if dimensions not in COEFFICIENTS:
            raise UqbiasError(f"double well in {dimensions} dimensions", "choose 1 or 2")
        for name, value in (("scale", scale), ("confinement", confinement)):
            if not value > 0:
                raise UqbiasError(f"double well with {name} {value}", f"give a {name} > 0")
        self.dimensions, self.scale, self.confinement = int(dimensions), float(scale), float(confinement)
        free = [[scale * c for c in row] for row in COEFFICIENTS[dimensions]]
        harmonic = [[0.0, 0.0, 0.5 * confinement, 0.0, 0.0]] * (3 - dimensions)
        self.coefficients: Tensor
        self.register_buffer("coefficients", torch.tensor(free + harmonic, dtype=torch.float64))
        places = np.roots(np.polyder(COEFFICIENTS[dimensions][0][::-1])).real
        places = places[np.argsort(self._along(places, 0))]
        self.wells, self.top = places[:2], float(places[2])
        self.barrier = float(np.ptp(self._along(places, 0)))

    def forward(self, positions: Tensor) -> Prediction:
        """Energy, x, and zero as the uncertainty, each [W]; ``positions`` [W, 1, 3] nm."""
        x = positions[:, 0]
        c = self.coefficients.to(x.dtype)
        terms = c[:, 0] + x * (c[:, 1] + x * (c[:, 2] + x * (c[:, 3] + x * c[:, 4])))
        zero = torch.zeros_like(positions[:, 0, 0])
        return Prediction(terms.sum(1), positions[:, 0, 0], zero, positions.new_zeros(len(positions), 0))

    def temperature(self, barrier: float) -> float:
        """Temperature in K at which the barrier is ``barrier`` k_B T high."""
        return self.barrier / (barrier * GAS_CONSTANT)

    def free_energy(
        self, at: NDArray[Any], temperature: float, *, axes: str = "x", widths: float | Sequence[float] = 0.0
    ) -> Array:
        """Free energy along some axes, F = -k_B T ln ∫ exp(-E/k_B T) over the others.

        E is a sum over the axes, so that the others only add a constant.

        Parameters
        ----------
        at : [..., D] nm, the last dimension for the axes; [...] for one.
        temperature : temperature, K.
        axes : the D axes, such as ``"x"`` or ``"xy"``.
        widths : widths of a bin around each point, over which exp(-F/k_B T) is averaged, nm; 0 for F at the point
            itself. One number for all axes, or one each.

        Returns
        -------
        [...] kJ/mol, from the lowest point there is (not: from the lowest bin).

        Raises
        ------
        UqbiasError
            If an axis is not one of the particle's, or the shape does not fit the axes.
        """
        if not axes or any(axis not in AXES for axis in axes) or len(set(axes)) < len(axes):
            raise UqbiasError(f"free energy along '{axes}'", f"name axes out of '{AXES}', each once")
        points = np.asarray(at, dtype=np.float64)
        points = points[..., None] if len(axes) == 1 else points
        if points.shape[-1:] != (len(axes),):
            raise UqbiasError(f"points of shape {points.shape} for the axes '{axes}'", f"give [..., {len(axes)}]")
        kT = kt(temperature)
        total = np.zeros(points.shape[:-1])
        for place, (axis, width) in enumerate(zip(axes, np.broadcast_to(widths, len(axes)), strict=True)):
            d = AXES.index(axis)
            rise = self._along(points[..., place, None] + 0.5 * width * NODES, d) - self._lowest(d)
            total -= kT * logsumexp(-rise / kT, axis=-1, b=0.5 * WEIGHTS)
        return total

    def difference(self, temperature: float) -> float:
        """Free energy of the other well less that of the deeper one, divided at the top of the barrier, kJ/mol."""
        kT = kt(temperature)
        deeper, other = (self._integral(kT, well > self.top) for well in self.wells)
        return other - deeper

    def _along(self, x: NDArray[Any], d: int) -> Array:
        """The term of axis ``d`` at ``x`` [...], kJ/mol."""
        return np.asarray(np.polyval(self._row(d)[::-1], x), dtype=np.float64)

    def _row(self, d: int) -> Array:
        return np.asarray(self.coefficients[d].double().cpu().numpy())

    def _lowest(self, d: int) -> float:
        stationary = np.roots(np.trim_zeros(np.polyder(self._row(d)[::-1]), "f"))
        return float(self._along(stationary.real, d).min())

    def _integral(self, kT: float, right: bool) -> float:
        """-kT ln ∫ exp(-P/kT) along x, on one side of the top."""
        # Above the top the quartic has two real solutions, and all that is lower lies between them.
        highest = float(self._along(np.array(self.top), 0)) + EXPONENT * kT
        ends = np.roots(np.polysub(self._row(0)[::-1], [highest]))
        ends = ends.real[np.abs(ends.imag) < 1e-9 * np.abs(ends.real)]
        x = np.linspace(self.top, ends.max() if right else ends.min(), POINTS)
        return float(-kT * logsumexp(-self._along(x, 0) / kT, b=abs(x[1] - x[0])))


class DoubleWellOracle(Oracle):
    """Particle in E = 5x⁴ - 10x² + 1.5x, or 10x⁴ - 10x² + 2x + 4y⁴ (kJ/mol, nm). Labels of `DoubleWell`.

    Parameters
    ----------
    dimensions, scale, confinement : as of `DoubleWell`.
    """

    kind: ClassVar[str] = "double_well"
    numbers: tuple[int, ...] = DoubleWell.numbers

    def __init__(
        self,
        *,
        dimensions: Annotated[Literal[1, 2], Doc("1 or 2")] = 1,
        scale: Annotated[Positive, Doc("factor of that energy")] = 1.0,
        confinement: Annotated[
            Positive, Doc("kJ/mol/nm², force constant of the harmonic wells along the other axes")
        ] = 50.0,
    ) -> None:
        self.well = DoubleWell(dimensions, scale=scale, confinement=confinement)

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        return {
            "dimensions": self.well.dimensions,
            "scale": self.well.scale,
            "confinement": self.well.confinement,
        }

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        x = torch.tensor(positions[None], requires_grad=True)
        energy = self.well(x).energy.sum()
        (gradient,) = torch.autograd.grad(energy, x)
        return float(energy.detach()), -gradient[0].numpy()
