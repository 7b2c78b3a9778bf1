"""The contract of a bias, and the sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from pydantic import BeforeValidator
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.options import Positive, options_of, parameters_of
from uqbias.registry import Part
from uqbias.variables.names import LOCAL

Array = NDArray[np.float64]
_Values = TypeVar("_Values", Array, Tensor)
#: Marks an option that is one value for all variables, or a list with one for each.
ONE_EACH = "one value, or a list with one for each variable"
_Listed = BeforeValidator(lambda names: [names] if isinstance(names, str) else names)
_NAMES = Doc(
    "names of the variables: driver, judge, energy, driver_1, driver_2, ... (parts of a driver that has them), local "
    "(all of these, or the driver), or any of `variables`"
)
Names = Annotated[Sequence[str], MinLen(1), MaxLen(3), _Listed, _NAMES]
ManyNames = Annotated[Sequence[str], MinLen(1), _Listed, _NAMES]
OneName = Annotated[Sequence[str], MinLen(1), MaxLen(1), _Listed, Doc("name of the one variable")]
Width = Annotated[Positive | Sequence[Positive], ONE_EACH]
Periods = Annotated[
    Positive | Sequence[Positive | None] | None, ONE_EACH, Doc("periods of the variables, None where there is none")
]
Temperature = Annotated[Positive, Doc("K")]
Bound = float | Literal["lowest"] | None
Reflection = Annotated[
    Bound | Sequence[Bound],
    ONE_EACH,
    Doc(
        "lowest value of the variable, where the bias is mirrored, so that walkers are not held there: a number, "
        "lowest (of the driver over the labelled frames; other variables: none), null, or a list with one each"
    ),
]
#: State tensors to replace -> forces [W, N, 3] of E + V at the walkers' positions, kJ/mol/nm.
Probe = Callable[[Mapping[str, Tensor]], Array]


@dataclass(frozen=True)
class Extended:
    """An extended variable λ of every walker: one more particle that OpenMM integrates.

    Attributes
    ----------
    name : name of the variable.
    of : name of the variable that λ follows; λ begins at its value.
    mass : dalton · nm² per squared unit of the variable, so that ½ m (dλ/dt)² is in kJ/mol with t in ps.
    """

    name: str
    of: str
    mass: float


class Bias(Part, ABC):
    """A bias potential V(x) on D variables x of W walkers.

    ``energy`` is part of the compiled graph and takes everything that changes during a run from ``state``, whose
    tensors are graph inputs. ``update`` runs on the host between steps and changes these tensors in place.

    Attributes
    ----------
    kind : name in the registry.
    variables : names of the D variables: ``driver`` (the driver), ``judge`` (the judge), ``energy`` (of the model),
        a collective variable, or an extended variable.
    extended : extended variables that the bias brings along.
    frozen : if True, ``update`` does nothing: the bias is a fixed potential and the energy is conserved.
    pace : number of steps between updates, or None for a bias that never changes.
    boosts : whether it acts on the energy that drives the atoms, rather than on a variable beside it.
    estimator : method of `uqbias.free_energy.estimate_options.METHODS` for a run in which this bias alone changed.
        ``quasi-static`` takes the bias as it acted; ``tiwary-parrinello`` needs ``hills`` and ``biasfactor``,
        ``cumulant`` a boost that stays as it is from `equilibrium_from` on, ``czar`` an extended variable with
        ``sigma``, ``period`` and ``coupling``.
    free_energy_factor : f of a bias that converges to -F/f, so that F = -f V; None for any other.
    follows : whether it brings along an extended variable, which follows its one variable.
    """

    kind: str
    estimator: ClassVar[str] = "quasi-static"
    follows: ClassVar[bool] = False
    frozen: bool = False
    pace: int | None = None
    boosts: bool = False
    extended: tuple[Extended, ...] = ()

    def __new__(cls, *positional: Any, **options: Any) -> Self:
        names = options.get("variables")
        bias = super().__new__(cls, *positional, **options | ({"variables": [names]} if isinstance(names, str) else {}))
        bias._given |= options
        return bias

    def __init__(self, variables: Sequence[str] = ("driver",)) -> None:
        names = (variables,) if isinstance(variables, str) else tuple(str(name) for name in variables)
        if not names or len(set(names)) < len(names):
            raise UqbiasError(f"{self.kind} on the variables {list(names)}", "name at least one, and each once")
        self.variables: tuple[str, ...] = names
        self._state: dict[str, Tensor] = {}
        self._numbers: dict[str, float] = {}
        self._dtype = torch.float32
        self._device = torch.device("cpu")

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """See that options, each of them in its range, fit each other.

        Raises
        ------
        UqbiasError
            If they do not: a list marked `ONE_EACH` has another length than that of the variables.
        """
        count = len(names := options.get("variables", ()))
        if LOCAL in names:  # how many these are is known with the model
            return
        for name, option in options_of(cls).items():
            value = options.get(name)
            if ONE_EACH in option.marks() and isinstance(value, list | tuple | np.ndarray) and len(value) != count:
                raise UqbiasError(
                    f"{cls.kind} with {len(value)} values of {name} for {count} variable(s)", "give one each"
                )

    @classmethod
    def check_run(cls, options: Mapping[str, Any], steps: int) -> None:
        """Refuse options with which a run of ``steps`` steps is never biased, by a `UqbiasError`."""

    @classmethod
    def options_for(cls, widths: Sequence[float]) -> dict[str, Any]:
        """Options in units of the variables that suit hills of these widths [D], the width first; may be empty."""
        sigma = options_of(cls).get("sigma")
        if sigma is None or ONE_EACH not in sigma.marks():
            return {}
        return {"sigma": widths[0] if len(widths) == 1 else list(widths)}

    @classmethod
    def adapts_for(cls, options: Mapping[str, Any]) -> int:
        """Steps after which a bias that is to stay as it is does so; none of them can be reweighted."""
        return 0

    @classmethod
    def feels_atoms(cls, options: Mapping[str, Any]) -> bool:
        """Whether the bias adapts to forces on atoms, which an extended variable does not have."""
        return False

    def _each(self, value: Any) -> list[Any]:
        """[D] an option of every variable, from one value for all or a list."""
        value = value.tolist() if isinstance(value, np.ndarray) else value
        return list(value) if isinstance(value, list | tuple) else [value] * len(self.variables)

    def _bounds(self, reflect_at: Any) -> tuple[float | None, ...]:
        """[D] bounds to mirror at; ``lowest`` where no campaign has put a number in its place is none."""
        return tuple(None if bound in (None, "lowest") else float(bound) for bound in self._each(reflect_at))

    def options(self) -> dict[str, Any]:
        """Options of the bias, defaults included: the arguments that are numbers, words or lists of these.

        One number for all variables and the same number for each are the same option. A run that goes on from a
        snapshot must have those of the run that wrote it.
        """
        values = {name: parameter.default for name, (parameter, _) in parameters_of(type(self)).items()} | self._given
        plain = {name: _plain(value) for name, value in values.items()}
        if "variables" in plain:
            brought = {extended.name for extended in self.extended}
            plain["variables"] = [name for name in self.variables if name not in brought]
        return {name: value for name, value in plain.items() if value is not _OTHER}

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``energy`` needs; always the same dict, whose entries may be re-bound by ``update``."""
        return self._state

    @abstractmethod
    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Bias potential, differentiable in ``x``; reads nothing that changes except ``state``.

        Parameters
        ----------
        x : [W, D], columns in the order of ``variables``.
        state : tensors as of `state`.

        Returns
        -------
        [W] kJ/mol.
        """

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        """Take note of the walkers at ``step``; the base class does nothing.

        Parameters
        ----------
        step : number of the MD step that ``x`` was observed at.
        x : [W, D]; a row with NaN is a walker that is to be left out.
        probe : gives the walkers' forces under another state of this bias, at the cost of one evaluation.
        """

    @property
    def free_energy_factor(self) -> float | None:
        """F of a bias that converges to -F/f, such as γ/(γ-1) of a well-tempered one; None for any other."""
        return None

    def equilibrium_from(self) -> int:
        """Step after which the frames of a run can be reweighted, -1 for all of them.

        Raises
        ------
        UqbiasError
            If the bias changes in a way that leaves no such frames.
        """
        return -1

    def _set(self, **numbers: float) -> None:
        """Put numbers into the state, in tensors [1] of these names; `to` makes these of the numbers in float64."""
        for name, number in numbers.items():
            self._numbers[name] = float(number)
            if name not in self._state:
                self._state[name] = torch.empty(1, dtype=self._dtype, device=self._device)
            self._state[name].fill_(number)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        """Move the state tensors; returns the bias itself."""
        self._dtype, self._device = dtype, torch.device(device)
        for name, tensor in self._state.items():
            self._state[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        self._set(**self._numbers)
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        """All that a later `restore` needs to continue exactly; arrays, fit for ``numpy.savez``."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a `checkpoint`.

        Raises
        ------
        UqbiasError
            If the arrays are those of another kind of bias.
        """
        if set(arrays) != (names := set(self.checkpoint())):
            raise UqbiasError(f"checkpoint with {sorted(arrays)}", f"one of {self.kind} holds {sorted(names)}")
        self._take(arrays)

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the arrays of a checkpoint, all of which are there."""

    def _agree(self, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was made with other numbers; NaN stands for None."""
        for name, value in present.items():
            one, other = np.asarray(saved[name], dtype=np.float64), np.asarray(value, dtype=np.float64)
            if one.shape != other.shape or not np.allclose(one, other, rtol=1e-9, atol=0.0, equal_nan=True):
                raise UqbiasError(
                    f"checkpoint of {self.kind} with {name} {one.round(6).tolist()}, this one has "
                    f"{other.round(6).tolist()}",
                    f"continue with the same variables and {name}",
                )

    def on_new_model(self) -> None:
        """Take note that a run with another model goes on with this bias; the base class keeps all that it has."""

    def reset(self) -> None:
        """Forget the history; the base class has none."""


class CompositeBias(Bias):
    """A bias made of others, of a list that it keeps; the state keys of term ``i`` carry the prefix ``"i."``."""

    def __init__(self, terms: list[Any], variables: Sequence[str]) -> None:
        super().__init__(variables)
        self._terms: list[Bias] = terms
        self._collect()

    def state(self) -> dict[str, Tensor]:
        self._collect()
        return self._state

    def _collect(self) -> None:
        for index, term in enumerate(self._terms):
            self._state |= prefixed(f"{index}.", term.state())

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        for term in self._terms:
            term.to(dtype, device)
        self._collect()
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for index, term in enumerate(self._terms):
            arrays |= prefixed(f"{index}.", term.checkpoint())
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for index, term in enumerate(self._terms):
            term.restore(within(f"{index}.", arrays))
        self._collect()

    def reset(self) -> None:
        for term in self._terms:
            term.reset()
        self._collect()


class BiasSum(CompositeBias):
    """Sum of biases; the state keys of bias ``i`` carry the prefix ``"i."``.

    Its variables are those of all terms, in the order in which they first appear.

    Parameters
    ----------
    biases : the terms; may be empty, V is then zero.
    """

    kind = "sum"

    def __init__(self, biases: Sequence[Bias] = ()) -> None:
        self.biases = list(biases)
        names = tuple(dict.fromkeys(name for bias in self.biases for name in bias.variables))
        super().__init__(self.biases, names or ("driver",))
        self.extended = tuple(dict.fromkeys(one for bias in self.biases for one in bias.extended))
        self._columns = [[self.variables.index(name) for name in bias.variables] for bias in self.biases]

    @property
    def pace(self) -> int | None:  # type: ignore[override]
        """Greatest common divisor of the paces of the terms that are not frozen."""
        paces = [bias.pace for bias in self.biases if bias.pace and not bias.frozen]
        return int(np.gcd.reduce(paces)) if paces else None

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for index, bias in enumerate(self.biases):
            part = torch.stack([x[:, column] for column in self._columns[index]], dim=1)
            total = total + bias.energy(part, within(f"{index}.", state))
        return total

    def update(self, step: int, x: NDArray[Any], probe: Probe | None = None) -> None:
        if self.frozen:
            return
        for index, bias in enumerate(self.biases):
            bias.update(step, x[:, self._columns[index]], None if probe is None else _of_term(probe, index))


def parts_of(bias: Bias | None) -> list[Bias]:
    """The biases that add up to this one; none for None."""
    return [] if bias is None else list(getattr(bias, "biases", [bias]))


def finite(x: NDArray[Any]) -> Array:
    """Rows of ``x`` [W, D] without NaN or infinity, float64."""
    rows = np.asarray(x, dtype=np.float64)
    return rows[np.isfinite(rows).all(axis=1)]


def nearest_image(difference: _Values, period: float | None) -> _Values:
    """Differences of values of a variable, brought to the nearest image where it has a period."""
    return difference if period is None else difference - period * (difference / period).round()


_OTHER = object()


def _plain(value: Any) -> Any:
    """An option as JSON has it; `_OTHER` for an object."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if not isinstance(value, Sequence):
        return _OTHER
    entries = [_plain(entry) for entry in value]
    if any(entry is _OTHER for entry in entries):
        return _OTHER
    return entries[0] if entries and all(entry == entries[0] for entry in entries) else entries


def prefixed(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries under longer names; `within` gives them back."""
    return {prefix + name: entry for name, entry in entries.items()}


def within(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def _of_term(probe: Probe, index: int) -> Probe:
    return lambda state: probe(prefixed(f"{index}.", state))
