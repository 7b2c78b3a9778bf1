"""The contract of a distortion space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.molecule.topology import Topology


class DistortionSpace(nn.Module, ABC):
    """Ways to distort a geometry: D coordinates δ, and the geometry that they make of a base.

    ``forward`` consists of tensor operations without a branch on values, so that it is flattened into the graph of an
    attack; δ = 0 gives the base exactly. Tensors are buffers, non-persistent.

    Attributes
    ----------
    kind : name in the registry.
    n_coordinates : number of coordinates, D.
    labels : what each coordinate is, [D] texts such as ``"torsion 6-8"``.
    unit : unit of δ.
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
        """Make the space of one molecule; keyword-only parameters are the user's options.

        A parameter ``collective_variables`` is given the sections of the campaign file's ``variables``, by name.

        Parameters
        ----------
        topology : bond graph of the molecule.
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


def checked_reference(topology: Topology, reference: NDArray[Any]) -> NDArray[np.float64]:
    """A geometry of the molecule, [N, 3] nm in double precision.

    Raises
    ------
    UqbiasError
        If it has another shape.
    """
    x = np.asarray(reference, dtype=np.float64)
    if x.shape != (len(topology), 3):
        raise UqbiasError(f"reference of shape {x.shape} for {len(topology)} atoms", "give [N, 3] in nm")
    return x
