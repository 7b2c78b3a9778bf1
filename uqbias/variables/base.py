"""The contract of a collective variable, and making one from a campaign file or a run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology
from uqbias.options import Positive
from uqbias.registry import VARIABLES, Part
from uqbias.variables.names import is_of_torch

#: nm; a length is √(x² + SOFTENING²), so that it has a derivative at zero. At 0.1 nm that adds 5e-8 nm.
SOFTENING = 1e-4


class CollectiveVariable(Part, nn.Module, ABC):
    """A smooth scalar of a geometry, differentiable and, unless it says otherwise, invariant under motion as a whole.

    ``forward`` consists of tensor operations without a branch on values, in the dtype of the positions, and its
    gradient is finite for any finite geometry. Positions are taken as they are: there are no periodic images.

    Attributes
    ----------
    kind : name in the registry.
    unit : unit of the value; ``""`` for a number.
    period : period of the value, or None where it has none.
    hill_width : width of hills on the variable, in its unit, where the user gives none; None where none is known.
    invariant : whether rotation and translation of all atoms leave the value as it is.
    """

    kind: str
    unit: str = ""
    period: float | None = None
    hill_width: ClassVar[float | None] = None
    invariant: bool = True

    @classmethod
    @abstractmethod
    def build(cls, topology: Topology, *_: Any, **user_options: Any) -> Self:
        """Make the variable for one molecule from the options of a campaign file."""

    @property
    def internal_coordinate(self) -> tuple[int, ...]:
        """Atoms whose distance (two), angle (three) or dihedral (four) the variable is; empty for any other."""
        return ()

    @abstractmethod
    def forward(self, positions: Tensor) -> Tensor:
        """Value for each of W walkers, [W].

        Parameters
        ----------
        positions : [W, N, 3] nm.
        """


class AtomVariable(CollectiveVariable):
    """A variable that is the angle or the dihedral of its atoms.

    Parameters
    ----------
    atoms : indices of the atoms, in order.
    """

    index: Tensor

    def __init__(self, atoms: Sequence[int]) -> None:
        super().__init__()
        self.atoms = [int(i) for i in atoms]
        self.register_buffer("index", torch.tensor(self.atoms), persistent=False)

    @property
    def internal_coordinate(self) -> tuple[int, ...]:
        """The atoms."""
        return tuple(self.atoms)


class CallableVariable(CollectiveVariable):
    """A third party's function ``f(positions [W, N, 3] in nm) -> [W]``, named ``"module:function"``.

    It must be differentiable and invariant, and free of branches on values. ``period`` and ``unit`` are options:
    ``{"kind": "mymodule:radius_of_gyration", "unit": "nm"}``.
    """

    unrecorded: ClassVar[tuple[str, ...]] = ("kind", "function")

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
        period: Annotated[Positive | None, Doc("period of the value; null: none")] = None,
        unit: Annotated[str, Doc("unit of the value")] = "",
    ) -> Self:
        """Make the variable; the function is called on two random geometries, to see that it gives [2] and traces."""
        geometries = torch.randn(2, len(topology), 3, generator=torch.Generator().manual_seed(0))
        try:
            values = function(geometries)
            make_fx(function)(geometries)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UqbiasError(
                f"variable '{kind}' fails on positions [2, {len(topology)}, 3]: {type(error).__name__}: {reason}",
                "make it of torch operations without a branch on values (torch.where chooses)",
            ) from error
        if not isinstance(values, Tensor) or values.shape != (2,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UqbiasError(f"variable '{kind}' gave {shape} for 2 geometries", "return a tensor [W]")
        return cls(kind, function, period, unit)

    def forward(self, positions: Tensor) -> Tensor:
        """Value of the function, [W]."""
        return self._function(positions)


def take(positions: Tensor, index: Tensor) -> Tensor:
    """Positions [W, A, 3] of the atoms ``index`` [A] out of [W, N, 3].

    A product with a matrix of zeros and ones. The derivative of ``index_select`` would be an ``index_add``, which
    AOTInductor of torch 2.9 may put behind the loop that reads its result: that part of the forces is then zero.
    """
    atoms = torch.arange(positions.shape[1], device=positions.device)
    return (index.unsqueeze(1) == atoms).to(positions.dtype) @ positions


def build_variables(
    specs: Mapping[str, Any], topology: Topology, start: NDArray[Any] | None = None
) -> dict[str, CollectiveVariable]:
    """Collective variables of a campaign by name.

    Parameters
    ----------
    specs : name of each variable to its ``kind`` and options, or to its section of a campaign file.
    topology : bond graph of the molecule.
    start : [N, 3] nm, geometry that variables with a reference refer to where they are given none.

    Raises
    ------
    UqbiasError
        With the name of the variable, if it does not fit the molecule.
    """
    variables = {}
    for name, spec in specs.items():
        if is_of_torch(name):
            raise UqbiasError(f"variables.{name}: the name is taken by torch", "choose another")
        try:
            variables[name] = VARIABLES.build(spec, topology=topology, start=start)
        except UqbiasError as error:
            raise UqbiasError(f"variables.{name}: {error.what}", error.cure) from None
    return variables


def periods_of(variables: Mapping[str, CollectiveVariable]) -> dict[str, float]:
    """Periods of the variables that have one."""
    return {name: variable.period for name, variable in variables.items() if variable.period is not None}
