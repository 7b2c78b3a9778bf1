"""The contract of a distortion space, and making one from a campaign file."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.topology import Topology
from uqbias.registry import SPACES, check_options, keywords

#: Keywords of a ``build`` that the caller gives, not the user.
GIVEN = ("variables",)


class DistortionSpace(nn.Module, ABC):
    """Ways to distort a geometry: D coordinates δ, and the geometry that they make of a base.

    ``forward`` consists of tensor operations without a branch on values, so that it is flattened into the graph of an
    attack; δ = 0 gives the base exactly. Tensors are buffers, non-persistent.

    Attributes
    ----------
    kind : name in the registry.
    n_coordinates : D.
    labels : what each coordinate is, [D] texts such as ``"torsion 6-8"``.
    unit : of δ.
    default_learning_rate, default_noise : step of the ascent and standard deviation of δ at its start where the user
        gives none, in the unit of δ.
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "rad"
    default_learning_rate: ClassVar[float] = 0.02
    default_noise: ClassVar[float] = 0.05
    n_coordinates: int
    labels: tuple[str, ...]

    @classmethod
    @abstractmethod
    def build(cls, topology: Topology, reference: NDArray[Any], *_: Any, **user_options: Any) -> Self:
        """Make the space of one molecule; keyword arguments are the options of a campaign file.

        A keyword ``variables`` is given the collective variables by name, as sections of a campaign file.

        Parameters
        ----------
        reference : [N, 3] nm, a geometry of the molecule.

        Raises
        ------
        UqbiasError
            If the molecule has no such coordinate.
        """

    @abstractmethod
    def forward(self, base: Tensor, delta: Tensor) -> Tensor:
        """Distorted geometries [W, N, 3] nm.

        Parameters
        ----------
        base : [W, N, 3] nm.
        delta : [W, D].
        """

    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each row [W], in `unit`, which a bound limits; homogeneous of degree one."""
        return delta.square().sum(-1).sqrt()


def build_space(
    spec: str | Mapping[str, Any],
    topology: Topology,
    reference: NDArray[Any],
    variables: Mapping[str, Any] | None = None,
) -> DistortionSpace:
    """Make a distortion space from a campaign file.

    Parameters
    ----------
    spec : ``kind`` and the options of that kind: ``{"kind": "cartesian"}``, ``{"kind": "internal", "bonds": False}``,
        ``{"kind": "variables", "names": ["phi", "psi"]}``, or a third party's ``module:attribute``; the kind alone
        where it needs no option.
    topology : bond graph of the molecule.
    reference : [N, 3] nm, a geometry of the molecule.
    variables : collective variables by name, as in the section ``variables`` of a campaign file.

    Raises
    ------
    UqbiasError
        For an unknown kind or option, or a space that the molecule does not have.
    """
    values: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise UqbiasError(f"distortion space {spec!r} has no kind", did_you_mean("", SPACES.names()))
    found = SPACES.get(kind)
    check_options(f"space '{kind}'", values, [name for name in keywords(found.build) if name not in GIVEN])
    parameters = inspect.signature(found.build).parameters
    if "variables" in parameters:
        values["variables"] = variables
    x = np.asarray(reference, dtype=float)
    if x.shape != (len(topology), 3):
        raise UqbiasError(f"reference of shape {x.shape} for {len(topology)} atoms", "give [N, 3] in nm")
    try:
        space: DistortionSpace = found.build(topology, x, **values)
    except TypeError as error:
        raise UqbiasError(f"space '{kind}' with {values}: {error}", "check its options") from None
    return space
