"""The contract of a collective variable, and making one from a campaign file or a run folder."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.features.base import check_options, keywords
from uqbias.registry import VARIABLES, import_attribute
from uqbias.topology import Topology

#: nm; a length is √(x² + SOFTENING²), so that it has a derivative at zero. At 0.1 nm that adds 5e-8 nm.
SOFTENING = 1e-4

Atoms = str | Sequence[int | str]


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


def ordered_atoms(topology: Topology, spec: Atoms, owner: str) -> tuple[int, ...]:
    """Atom indices in the order given.

    Parameters
    ----------
    spec : ``"all"``, ``"heavy"`` (no hydrogens), or a list of indices (from 0), names (``"CA"``), and names with their
        residue (``"ALA2:CA"``). A name that several atoms have stands for all of them.
    owner : for messages, such as ``"atoms of distance"``.

    Raises
    ------
    UqbiasError
        For a name or an index that the molecule does not have, an atom given twice, or an empty list.
    """
    n = len(topology)
    if spec in ("all", "heavy"):
        chosen = [i for i in range(n) if spec == "all" or topology.numbers[i] > 1]
    elif isinstance(spec, str) or not isinstance(spec, Sequence):
        raise UqbiasError(f"{owner}: {spec!r}", "give 'all', 'heavy', or a list of indices and atom names")
    else:
        chosen = [i for entry in spec for i in _matching(topology, entry, owner)]
    twice = [i for i in chosen if chosen.count(i) > 1]
    if twice:
        raise UqbiasError(f"{owner}: atom {twice[0]} ({_label(topology, twice[0])}) twice", "give each atom once")
    if not chosen:
        raise UqbiasError(f"{owner}: {spec!r} chooses no atom of {n}", "choose at least one")
    return tuple(chosen)


def fixed_atoms(topology: Topology, spec: Atoms, count: int, owner: str) -> tuple[int, ...]:
    """Exactly ``count`` atoms, each entry of ``spec`` naming one; otherwise as `ordered_atoms`.

    Raises
    ------
    UqbiasError
        For another number of entries, or a name that several atoms have.
    """
    if isinstance(spec, str) or not isinstance(spec, Sequence) or len(spec) != count:
        raise UqbiasError(f"{owner}: {spec!r}", f"give a list of {count} indices or atom names")
    for entry in spec:
        found = _matching(topology, entry, owner)
        if len(found) > 1:
            labels = ", ".join(_label(topology, i) for i in found[:4])
            raise UqbiasError(
                f"{owner}: '{entry}' is the name of {len(found)} atoms", f"say which: {labels}, or an index"
            )
    return ordered_atoms(topology, spec, owner)


def take(positions: Tensor, index: Tensor) -> Tensor:
    """Positions [W, A, 3] of the atoms ``index`` [A] out of [W, N, 3].

    A product with a matrix of zeros and ones. The derivative of ``index_select`` would be an ``index_add``, which
    AOTInductor of torch 2.9 may put behind the loop that reads its result: that part of the forces is then zero.
    """
    atoms = torch.arange(positions.shape[1], device=positions.device)
    return (index.unsqueeze(1) == atoms).to(positions.dtype) @ positions


def _matching(topology: Topology, entry: int | str, owner: str) -> list[int]:
    n = len(topology)
    if isinstance(entry, str):
        full = [f"{residue}:{name}" for residue, name in zip(topology.residues, topology.names, strict=True)]
        found = [i for i in range(n) if topology.names[i] and entry in (topology.names[i], full[i])]
        if not found:
            names = {name for i, name in enumerate(full if ":" in entry else topology.names) if topology.names[i]}
            cure = did_you_mean(entry, names) if names else "this molecule has no atom names; give indices"
            raise UqbiasError(f"{owner}: no atom is called '{entry}'", cure)
        return found
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or not 0 <= entry < n:
        raise UqbiasError(f"{owner}: {entry!r} in a molecule of {n} atoms", "atoms are numbered from 0")
    return [int(entry)]


def _label(topology: Topology, index: int) -> str:
    residue, name = topology.residues[index], topology.names[index]
    return f"{residue}:{name}" if residue and name else name or str(index)


def _find(kind: str) -> Any:
    """A class of the registry or of ``module:attribute``, or a plain function; nothing else is ever called."""
    if ":" in kind:
        found = import_attribute(kind)
        if isinstance(found, FunctionType):
            return found
    return VARIABLES.get(kind)
