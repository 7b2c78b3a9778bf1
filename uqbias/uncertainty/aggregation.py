"""Aggregation of values per atom to one value per walker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.atoms import Selection, select_again, select_atoms, word_of
from uqbias.molecule.topology import Topology
from uqbias.options import Positive
from uqbias.registry import Part
from uqbias.uncertainty.base import set_buffers

Kind = Literal["mean", "max", "sum", "local_mean_max"]
#: What a user may write for the option ``aggregation``, and its description for most kinds.
Spec = Kind | dict[str, Any] | None
OverAtoms = Annotated[
    Spec,
    Doc(
        "over values per atom: mean, max, sum, local_mean_max, or {kind, atoms, sharpness}; null: mean, or max of more "
        "than 100 atoms, among which a mean drowns what happens at one"
    ),
]
#: Atoms beyond which a maximum is the default.
MANY = 100


class Aggregation(Part, nn.Module):
    """Mean, sum or smooth maximum over groups of atoms.

    The smooth maximum is ``ln Σ_g exp(β v_g) / β``: at least the maximum, at most ln(groups)/β above it; β is
    ``sharpness`` over the standard deviation of the values over the training atoms, set by `fit`.

    Parameters
    ----------
    kind : ``mean``, ``sum``, ``max``, or ``local_mean_max`` (mean over an atom and its bonded neighbours, then max).
    groups : for each value that is aggregated, the positions along the atom axis that it averages.
    n_inputs : length A of the atom axis.
    sharpness : β, in reciprocal standard deviations of the values.
    selection : the word by which the atoms were chosen, which chooses those of other systems.
    """

    matrix: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        kind: Kind,
        groups: Sequence[Sequence[int]],
        n_inputs: int,
        sharpness: Positive = 1.0,
        selection: Selection = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.groups = tuple(tuple(group) for group in groups)
        self.n_inputs = n_inputs
        self.sharpness = float(sharpness)
        self.selection = selection
        matrix = torch.zeros(n_inputs, len(self.groups))
        for column, group in enumerate(self.groups):
            matrix[list(group), column] = 1.0 / len(group)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("spread", torch.ones(()))

    @classmethod
    def build(cls, topology: Topology, atoms: Sequence[int], spec: str | Mapping[str, Any]) -> Aggregation:
        """Make an aggregation from a campaign file.

        Parameters
        ----------
        topology : bond graph.
        atoms : atoms that have a value, in the order of the atom axis.
        spec : a name, or ``{kind, atoms, sharpness}``; ``atoms`` (``all``, ``heavy``, indices and names) restricts
            what is aggregated, while local means still see all neighbours that have a value.
        """
        values: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
        for name in values:
            if name not in ("kind", "atoms", "sharpness"):
                raise UqbiasError(
                    f"unknown option '{name}' of aggregation", did_you_mean(name, ("kind", "atoms", "sharpness"))
                )
        kind, selection = values.get("kind", "mean"), values.get("atoms")
        column = {atom: at for at, atom in enumerate(atoms)}
        chosen = [atom for atom in select_atoms(topology, selection) if atom in column]
        if not chosen:
            raise UqbiasError(f"aggregation over atoms {selection!r}, none of which has a value")
        groups = [[column[atom]] for atom in chosen]
        if kind == "local_mean_max":
            for group, atom in zip(groups, chosen, strict=True):
                bonded = [j if i == atom else i for i, j in topology.bonds if atom in (i, j)]
                group.extend(column[other] for other in bonded if other in column)
        return cls(
            kind=kind,
            groups=groups,
            n_inputs=len(atoms),
            sharpness=values.get("sharpness", 1.0),
            selection=word_of(selection),
        )

    def placed(self, topology: Topology, atoms: Sequence[int]) -> dict[str, Any]:
        """Constructor arguments of the same aggregation over the ``atoms`` of another system that have a value."""
        every = len(self.groups) == self.n_inputs
        chosen = select_again(topology, self.selection, every, "aggregation")
        spec = {"kind": self.kind, "atoms": chosen, "sharpness": self.sharpness}
        return self.build(topology, atoms, spec).options() | {"selection": self.selection}

    @property
    def labelled(self) -> bool:
        """Whether the result tells like atoms apart: by their neighbours, or since only some of them are chosen."""
        return self.kind == "local_mean_max" or len(self.groups) < self.n_inputs

    @classmethod
    def choose(
        cls,
        topology: Topology,
        atoms: Sequence[int] | None,
        spec: str | Mapping[str, Any] | None,
        what: str,
    ) -> dict[str, Any] | None:
        """Constructor arguments for a kind's option ``aggregation``; None is ``mean``, or ``max`` of `MANY` atoms.

        Parameters
        ----------
        atoms : as in `build`; None for a kind that has no values per atom: then the option must be left out.
        what : such a kind in words, for the message.
        """
        if atoms is not None:
            return cls.build(topology, atoms, spec or ("max" if len(topology) > MANY else "mean")).options()
        if spec is not None:
            raise UqbiasError(f"aggregation {spec!r} of {what} not per atom", "leave it out")
        return None

    def describe(self) -> dict[str, Any]:
        """Constructor arguments; ``kind`` is one of them."""
        return self.options()

    def fit(self, values: NDArray[np.float64]) -> None:
        """Set the scale of the smooth maximum from the values [n, A] of the training atoms."""
        spread = float(np.std(values))
        set_buffers(self, spread=spread if spread > 0 else 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """Aggregate [W, A] to [W]."""
        grouped = values @ self.matrix
        if self.kind == "mean":
            return grouped.mean(-1)
        if self.kind == "sum":
            return grouped.sum(-1)
        beta = self.sharpness / self.spread
        return torch.logsumexp(beta * grouped, -1) / beta
