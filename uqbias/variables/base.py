"""The contract of a collective variable, and making one from a campaign file or a run folder."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology
from uqbias.registry import VARIABLES, check_options, import_attribute, keywords
from uqbias.variables.names import is_of_torch

#: nm; a length is √(x² + SOFTENING²), so that it has a derivative at zero. At 0.1 nm that adds 5e-8 nm.
SOFTENING = 1e-4


class CollectiveVariable(nn.Module, ABC):
    """A smooth scalar of a geometry, differentiable and, unless it says otherwise, invariant under motion as a whole.

    ``forward`` consists of tensor operations without a branch on values, in the dtype of the positions, and its
    gradient is finite for any finite geometry. Positions are taken as they are: there are no periodic images.

    Attributes
    ----------
    kind : name in the registry.
    unit : of the value; ``""`` for a number.
    period : of the value, or None where it has none.
    invariant : whether rotation and translation of all atoms leave it alone.
    """

    kind: str
    unit: str = ""
    period: float | None = None
    invariant: bool = True

    @classmethod
    @abstractmethod
    def build(cls, topology: Topology, *_: Any, **user_options: Any) -> Self:
        """Make the variable for one molecule from the options of a campaign file."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """JSON-able constructor arguments; ``type(self)(**options)`` makes an equal variable."""

    def describe(self) -> dict[str, Any]:
        """What a run folder says of it; inverse of `rebuild_variable`."""
        return {"kind": self.kind, "options": self.options()}

    @abstractmethod
    def forward(self, positions: Tensor) -> Tensor:
        """Value for each of W walkers, [W].

        Parameters
        ----------
        positions : [W, N, 3] nm.
        """


class CallableVariable(CollectiveVariable):
    """A third party's function ``f(positions [W, N, 3] in nm) -> [W]``, named ``"module:function"``.

    It must be differentiable and invariant, and free of branches on values. ``period`` and ``unit`` are options:
    ``{"kind": "mymodule:radius_of_gyration", "unit": "nm"}``.
    """

    def __init__(
        self, kind: str, function: Callable[[Tensor], Tensor], period: float | None = None, unit: str = ""
    ) -> None:
        super().__init__()
        self.kind = kind
        self.period = None if period is None else float(period)
        self.unit = unit
        self._function = function

    @classmethod
    def build(
        cls,
        topology: Topology,
        kind: str,
        function: Callable[[Tensor], Tensor],
        *,
        period: float | None = None,
        unit: str = "",
    ) -> Self:
        """Call the function on two random geometries, to see that it gives [2] and can be traced."""
        geometries = torch.randn(2, len(topology), 3, generator=torch.Generator().manual_seed(0))
        try:
            found = function(geometries)
            make_fx(function)(geometries)
        except Exception as error:
            told = (str(error).splitlines() or [""])[0]
            raise UqbiasError(
                f"variable '{kind}' fails on positions [2, {len(topology)}, 3]: {type(error).__name__}: {told}",
                "make it of torch operations without a branch on values (torch.where chooses)",
            ) from error
        if not isinstance(found, Tensor) or found.shape != (2,):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UqbiasError(f"variable '{kind}' gave {shape} for 2 geometries", "return a tensor [W]")
        return cls(kind, function, period, unit)

    def options(self) -> dict[str, Any]:
        """Constructor arguments without the function, which is found again by its name."""
        return {"period": self.period, "unit": self.unit}

    def forward(self, positions: Tensor) -> Tensor:
        """Value of the function, [W]."""
        return self._function(positions)


def build_variable(
    spec: str | Mapping[str, Any], topology: Topology, start: NDArray[Any] | None = None
) -> CollectiveVariable:
    """Make a variable from a campaign file.

    Parameters
    ----------
    spec : ``kind`` and the options of that kind; a kind alone where it needs no option. A kind ``"module:attribute"``
        names a third party's `CollectiveVariable` class or a function (see `CallableVariable`).
    topology : of the molecule.
    start : [N, 3] nm, start geometry: the ``reference`` of a variable that has one and is given none.

    Raises
    ------
    UqbiasError
        For an unknown kind or option, a missing option, or atoms that the molecule does not have.
    """
    values = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise UqbiasError(f"variable {spec!r} has no kind", did_you_mean("", VARIABLES.names()))
    found = _find(kind)
    owner = f"variable '{kind}'"
    if isinstance(found, FunctionType):
        check_options(owner, values, keywords(CallableVariable.build))
        return CallableVariable.build(topology, kind, found, **values)
    valid = keywords(found.build)
    check_options(owner, values, valid)
    if start is not None and "reference" in valid and values.get("reference") is None:
        values["reference"] = np.asarray(start, dtype=float).tolist()
    parameters = inspect.signature(found.build).parameters
    missing = [name for name in valid if name not in values and parameters[name].default is inspect.Parameter.empty]
    if missing:
        raise UqbiasError(f"{owner} without {missing[0]}", f"give {', '.join(missing)}")
    variable: CollectiveVariable = found.build(topology, **values)
    variable.kind = kind
    return variable


def rebuild_variable(description: Mapping[str, Any]) -> CollectiveVariable:
    """Make a variable from the ``{"kind", "options"}`` of a run folder."""
    kind = description["kind"]
    found = _find(kind)
    if isinstance(found, FunctionType):
        return CallableVariable(kind, found, **description["options"])
    variable: CollectiveVariable = found(**description["options"])
    variable.kind = kind
    return variable


def take(positions: Tensor, index: Tensor) -> Tensor:
    """Positions [W, A, 3] of the atoms ``index`` [A] out of [W, N, 3].

    A product with a matrix of zeros and ones. The derivative of ``index_select`` would be an ``index_add``, which
    AOTInductor of torch 2.9 may put behind the loop that reads its result: that part of the forces is then zero.
    """
    atoms = torch.arange(positions.shape[1], device=positions.device)
    return (index.unsqueeze(1) == atoms).to(positions.dtype) @ positions


def _find(kind: str) -> Any:
    """A class of the registry or of ``module:attribute``, or a plain function; nothing else is ever called."""
    if ":" in kind:
        found = import_attribute(kind)
        if isinstance(found, FunctionType):
            return found
    return VARIABLES.get(kind)


def build_variables(
    specs: Mapping[str, Mapping[str, Any]], topology: Topology, start: NDArray[Any] | None = None
) -> dict[str, CollectiveVariable]:
    """Collective variables of a campaign by name.

    Parameters
    ----------
    specs : ``kind`` and options of each, as in a campaign file.
    start : [N, 3] nm, geometry that variables with a reference refer to where they are given none.

    Raises
    ------
    UqbiasError
        With the name of the variable, if it does not fit the molecule.
    """
    from uqbias.variables.base import build_variable

    found = {}
    for name, spec in specs.items():
        if is_of_torch(name):
            raise UqbiasError(f"variables.{name}: the name is taken by torch", "choose another")
        try:
            found[name] = build_variable(dict(spec), topology, start)
        except UqbiasError as error:
            raise UqbiasError(f"variables.{name}: {error.what}", error.cure) from None
    return found


def periods_of(variables: Mapping[str, CollectiveVariable]) -> dict[str, float]:
    """Periods of the variables that have one."""
    return {name: variable.period for name, variable in variables.items() if variable.period is not None}
