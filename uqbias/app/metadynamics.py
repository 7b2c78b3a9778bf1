"""Metadynamics with the habits of openmm.app.Metadynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge

from uqbias.app import host, integrator
from uqbias.app.computation import load_model
from uqbias.app.external import is_force
from uqbias.app.sampling import Sampling
from uqbias.bias.base import Array, Bias
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import Kernel, MetaD
from uqbias.errors import UqbiasError
from uqbias.files import check_directory
from uqbias.options import Count, check_value
from uqbias.runs.sharing import SharedHills
from uqbias.variables.names import OF_MODEL

#: Grid points per width of a hill, for `Metadynamics.getFreeEnergy`, as in openmm.app.BiasVariable.
POINTS_PER_WIDTH = 5


class BiasVariable:
    """A variable of `Metadynamics`, as ``openmm.app.BiasVariable``; values are Quantities or numbers in OpenMM's units.

    Parameters
    ----------
    force : what the variable is: a model, or the path of its file (its driver u); a `CollectiveVariable` of the model's
        atoms; or an ``openmm.Force`` on any particles (the energy in kJ/mol), a list of Forces, or a System.
    minValue, maxValue : range of a periodic variable; else the range of `Metadynamics.getFreeEnergy`. The bias itself
        has no bounds: its grid grows where the variable goes. A `CollectiveVariable` knows its period.
    biasWidth : standard deviation of the hills; None for a model's driver: the width that suits its kind.
    periodic : whether minValue and maxValue are the same place.
    gridWidth : number of points of `Metadynamics.getFreeEnergy`; None for five per width of a hill.
    name : in HILLS and COLVAR, not that of another column there; ``cv0``, ``cv1``, ... by place if None. Of a model it
        chooses the output: ``driver``, ``judge`` or ``energy``.

    Raises
    ------
    UqbiasError
        If a value is out of range.
    """

    def __init__(
        self,
        force: Any,
        minValue: Any = None,
        maxValue: Any = None,
        biasWidth: Any = None,
        periodic: bool = False,
        gridWidth: int | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.force, self.name = force, name
        self.minValue, self.maxValue = (
            None if bound is None else float(host.value(bound)) for bound in (minValue, maxValue)
        )
        for bound in (self.minValue, self.maxValue):
            if bound is not None and not math.isfinite(bound):
                raise UqbiasError(
                    f"BiasVariable with minValue {minValue} and maxValue {maxValue}", "give finite numbers, or None"
                )
        of_driver = biasWidth is None and name in (None, "driver") and _may_be_model(force)
        if not of_driver and (biasWidth is None or not 0 < float(host.value(biasWidth)) < math.inf):
            raise UqbiasError(f"BiasVariable with biasWidth {biasWidth}", "give the width of the hills, finite and > 0")
        self.biasWidth = _driver_width(force) if of_driver else float(host.value(biasWidth))
        variable_period = None if isinstance(force, str | Path) else getattr(force, "period", None)
        if variable_period is not None:
            periodic = True
            self.minValue = -variable_period / 2 if self.minValue is None else self.minValue
            self.maxValue = self.minValue + variable_period if self.maxValue is None else self.maxValue
        self.periodic = bool(periodic)
        if self.minValue is not None and self.maxValue is not None and not self.minValue < self.maxValue:
            raise UqbiasError(
                f"BiasVariable with minValue {self.minValue} and maxValue {self.maxValue}",
                "give a maximum above the minimum",
            )
        if self.periodic and (self.minValue is None or self.maxValue is None):
            raise UqbiasError("a periodic BiasVariable without a range", "give minValue and maxValue, one period apart")
        if variable_period is not None and not math.isclose(self.period or 0.0, variable_period, rel_tol=1e-6):
            raise UqbiasError(
                f"BiasVariable from {self.minValue} to {self.maxValue} of a variable with period {variable_period:.6g}",
                "give a range of one period, or none",
            )
        if gridWidth is not None:
            check_value("BiasVariable", "gridWidth", Annotated[int, Ge(2)], gridWidth)
        self.gridWidth = None if gridWidth is None else int(gridWidth)
        if gridWidth is None and self.minValue is not None and self.maxValue is not None:
            self.gridWidth = math.ceil(POINTS_PER_WIDTH * (self.maxValue - self.minValue) / self.biasWidth)

    @property
    def period(self) -> float | None:
        """Range of a periodic variable, else None."""
        if not self.periodic or self.minValue is None or self.maxValue is None:
            return None
        return self.maxValue - self.minValue


class Metadynamics(Sampling):
    """Well-tempered metadynamics in an OpenMM script, with the arguments and methods of ``openmm.app.Metadynamics``.

    ::

        driver = uqbias.BiasVariable("model.uqb")
        bias = uqbias.Metadynamics(system, [driver], temperature=300, biasFactor=10, height=1.0, frequency=50)
        simulation.reporters.append(bias)  # or bias.step(simulation, 1000)

    What differs: a model's energy, uncertainty and bias are evaluated once a step, together; no variable needs a range;
    periodic and other variables may be mixed; a HILLS and a COLVAR file are written; `save` and `load` hold the bias.

    Parameters
    ----------
    system : openmm.System; the force is added to it.
    variables : one to three `BiasVariable` or ``openmm.app.BiasVariable``. At most one model among them.
    temperature : K.
    biasFactor : γ > 1; None for standard metadynamics.
    height : height of the hills, kJ/mol.
    frequency : steps between hills.
    saveFrequency, biasDir : every so many steps (a multiple of ``frequency``) the hills of the other processes that
        have the same folder are taken over; this one's are there at once, and hills that are there already act from the
        beginning. See `SharedHills`. A frozen bias takes none over. No other HILLS file is written then.
    model : the model, where none of the variables is one, but a `CollectiveVariable` counts its atoms or ``drive`` is
        ``model``.
    wall : value of the first variable where an upper wall begins; None for no wall.
    wall_kappa : kJ/mol per squared unit of that variable, see `UpperWall`.
    kernel : see `uqbias.bias.metad.MetaD`.
    atoms, drive, hills, colvar, restart and the rest of ``options`` : as of `Sampling`.

    Attributes
    ----------
    metadynamics : the bias: ``hills``, ``value``, ``free_energy``.

    Raises
    ------
    UqbiasError
        If an argument is out of range.
    """

    def __init__(
        self,
        system: Any,
        variables: Sequence[Any],
        temperature: Any,
        biasFactor: float | None,
        height: Any,
        frequency: int,
        saveFrequency: int | None = None,
        biasDir: str | Path | None = None,
        *,
        model: torch.nn.Module | str | Path | None = None,
        wall: float | None = None,
        wall_kappa: float = 20.0,
        kernel: Kernel = "gaussian",
        hills: str | Path | None = "HILLS",
        **options: Any,
    ) -> None:
        if (saveFrequency is None) != (biasDir is None):
            raise UqbiasError(f"saveFrequency {saveFrequency} with biasDir {biasDir}", "give both or none")
        check_value("metadynamics", "frequency", Count, frequency)
        if saveFrequency is not None:
            check_value("metadynamics", "saveFrequency", Count, saveFrequency)
        if biasDir is not None:
            check_directory(Path(biasDir))
        if saveFrequency is not None and saveFrequency % frequency:
            raise UqbiasError(f"saveFrequency {saveFrequency} with frequency {frequency}", "give a multiple of it")
        if not isinstance(variables, Sequence) or not 1 <= len(variables) <= 3:
            raise UqbiasError(f"metadynamics on {variables!r}", "give a list of one to three BiasVariable")
        self.variables = [one if isinstance(one, BiasVariable) else _taken_over(one) for one in variables]
        names, given, chosen = _named(self.variables, model)
        temperature, height = host.value(temperature), host.value(height)
        self.metadynamics = MetaD(
            variables=names,
            periods=[one.period for one in self.variables],
            height=height,
            sigma=[one.biasWidth for one in self.variables],
            pace=frequency,
            biasfactor=biasFactor,
            temperature=temperature,
            kernel=kernel,
        )
        biases: list[Bias] = [self.metadynamics]
        if wall is not None:
            period = [self.variables[0].period]
            biases.append(UpperWall(at=wall, kappa=wall_kappa, variables=names[:1], periods=period))
        super().__init__(
            system,
            chosen,
            biases,
            variables=given,
            temperature=temperature,
            hills=None if biasDir is not None else hills,
            **options,
        )
        self._folder = None if biasDir is None or saveFrequency is None else (Path(biasDir), int(saveFrequency))
        self._shared: SharedHills | None = None

    def report(self, simulation: Any, state: Any) -> None:
        """Deposit a hill; every ``saveFrequency`` steps take over those of the other processes."""
        super().report(simulation, state)
        if self._shared is None or self._folder is None:
            return
        if simulation.currentStep % self._folder[1] or self.bias.frozen or self.metadynamics.frozen:
            self._shared.write((self._loop.step, self._loop.time_ps))
        else:
            self._shared.sync((self._loop.step, self._loop.time_ps))

    def save(self, simulation: Any, path: str | Path) -> None:
        """As of `Sampling`; with ``biasDir`` the hills are in that folder before the snapshot is."""
        if self._shared is not None:
            self._shared.write((self._loop.step, self._loop.time_ps))
        super().save(simulation, path)

    def load(self, simulation: Any, path: str | Path) -> None:
        """As of `Sampling`; with ``biasDir`` the hills are those in that folder."""
        super().load(simulation, path)
        self._share(simulation)

    def getFreeEnergy(self) -> Any:  # noqa: N802
        """Free energy -γ/(γ-1) V (standard metadynamics: -V) on the grid of `grid_points`, a Quantity in kJ/mol.

        As in ``openmm.app.Metadynamics`` the last variable is the first axis, and nothing is subtracted.
        """
        from openmm import unit

        axes = self.grid_points()
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        gamma = self.metadynamics.biasfactor
        factor = 1.0 if gamma is None else gamma / (gamma - 1)
        energy = -factor * self.metadynamics.value(points.reshape(-1, len(axes))).reshape(points.shape[:-1])
        return energy.T * unit.kilojoules_per_mole

    def grid_points(self) -> list[Array]:
        """Values of each variable, [gridWidth], that `getFreeEnergy` is for.

        From minValue to maxValue, or, where they are not given, over the centres of the hills.
        """
        centres = self.metadynamics.hills["centre"]
        axes = []
        for place, one in enumerate(self.variables):
            low, high = one.minValue, one.maxValue
            if low is None or high is None:
                if not len(centres):
                    raise UqbiasError("no hills, and a variable without a range", "give minValue and maxValue, or run")
                low = centres[:, place].min() if low is None else low
                high = centres[:, place].max() if high is None else high
            count = one.gridWidth or 1 + math.ceil(POINTS_PER_WIDTH * (high - low) / one.biasWidth)
            axes.append(np.linspace(low, high, count))
        return axes

    def getCollectiveVariables(self, simulation: Any) -> tuple[float, ...]:  # noqa: N802
        """Current values of the variables, in their order."""
        return super().getCollectiveVariables(simulation)[: len(self.variables)]

    def _open(self, simulation: Any) -> None:
        super()._open(simulation)
        self._share(simulation)

    def _share(self, simulation: Any) -> None:
        if self._folder is not None:
            self._shared = SharedHills(self._folder[0], self.metadynamics, integrator.timestep_fs(simulation))


def _driver_width(model: Any) -> float:
    """Width of hills that suits a model's driver."""
    width = getattr(getattr(load_model(model, 0), "driver", None), "hill_width", None)
    if width is None:
        raise UqbiasError(
            "no width for hills on the driver of this model",
            "give biasWidth: about half the standard deviation of the driver in a short unbiased run",
        )
    return float(width)


def _taken_over(variable: Any) -> BiasVariable:
    """An openmm.app.BiasVariable as one of ours."""
    names = ("force", "minValue", "maxValue", "biasWidth", "periodic", "gridWidth")
    if not all(hasattr(variable, name) for name in names):
        raise UqbiasError(f"a variable {variable!r}", "give uqbias.BiasVariable or openmm.app.BiasVariable")
    return BiasVariable(*(getattr(variable, name) for name in names))


def _named(variables: Sequence[BiasVariable], model: Any) -> tuple[list[str], dict[str, Any], Any]:
    """Name of each variable, those that the model does not give by name, and the model."""
    names: list[str] = []
    given: dict[str, Any] = {}
    for place, one in enumerate(variables):
        if _is_model(one.force):
            if model is not None and model is not one.force:
                raise UqbiasError("metadynamics with two models", "make each a run of its own")
            model = one.force
            names.append(one.name or "driver")
            if names[-1] not in OF_MODEL:
                raise UqbiasError(f"a model's variable called '{names[-1]}'", f"choose among {', '.join(OF_MODEL)}")
        else:
            names.append(one.name or f"cv{place}")
            given[names[-1]] = one.force
    if len(set(names)) < len(names):
        raise UqbiasError(f"variables called {names}", "give each a name of its own")
    return names, given, model


def _is_model(given: Any) -> bool:
    if isinstance(given, str | Path | torch.nn.Module):
        return _may_be_model(given)
    if not is_force(given):
        raise UqbiasError(
            f"BiasVariable of a {type(given).__name__}", "give a model, a CollectiveVariable or an openmm.Force"
        )
    return False


def _may_be_model(given: Any) -> bool:
    return isinstance(given, str | Path) or (isinstance(given, torch.nn.Module) and hasattr(given, "numbers"))
