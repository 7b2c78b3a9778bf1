"""A potential of particles in an external field: one small network on their Cartesian coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry
from uqbias.options import Positive
from uqbias.potentials.base import Hidden, Members, Potential

AXES = "xyz"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
}
#: nm; coordinates that vary less over the training frames are scaled by this.
SHORTEST = 1e-3


class Coordinates(Potential):
    r"""A small network on Cartesian coordinates, for particles in a field that is fixed in space.

    .. math:: E_m(x) = s_E \, \mathrm{MLP}_m\big((x_{ia} - \bar x_{ia}) / s\big), \qquad a \in \text{axes}

    with the mean :math:`\bar x` of each coordinate over the training frames, one length s for all of them, so that no
    axis is stretched, and the energy :math:`s_E` of a move by s against the typical force. As in the double wells of
    Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021).

    Neither translation nor rotation nor exchange of like atoms leaves the energy alone, by design: the field is fixed
    in space. For a molecule take a potential that is invariant. The latents are the last hidden layer, the same for
    all atoms, and no more invariant than the energy. There is no periodic box.

    Parameters
    ----------
    numbers : atomic numbers.
    seed : seed of the initial weights; member m uses seed + 100003 m.
    members_needed : committee size where ``n_members`` is None.
    n_members, hidden, activation, axes, length : stated where they are declared. ``length`` is s; there is no force
        along axes that are left out.

    Raises
    ------
    UqbiasError
        If an axis is named twice.

    Examples
    --------
    >>> potential = Coordinates([1], n_members=3, hidden=[16, 8], axes="x")
    >>> energy, latents = potential(torch.zeros(5, 1, 3))
    >>> energy.shape, latents.shape
    (torch.Size([3, 5]), torch.Size([3, 5, 1, 8]))
    """

    kind = "coordinates"
    invariant: ClassVar[bool] = False

    columns: Tensor
    centre: Tensor
    inverse_length: Tensor
    energy_scale: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        n_members: Members = None,
        hidden: Hidden = (64, 64),
        activation: Annotated[Literal["tanh", "silu", "softplus"], Doc("tanh, silu or softplus")] = "tanh",
        axes: Annotated[
            str, Field(pattern="^[xyz]{1,3}$"), Doc("axes that the energy depends on, such as x or xy")
        ] = AXES,
        length: Annotated[
            Positive | None, Doc("nm, unit of the coordinates; null: their spread over the training frames")
        ] = None,
        seed: int = 0,
        members_needed: int = 1,
    ) -> None:
        super().__init__()
        if len(set(axes)) < len(axes):
            raise UqbiasError(f"axes '{axes}' of a potential", "name each axis once")
        self.elements = tuple(sorted({int(number) for number in numbers}))
        super()._place(numbers)
        self.n_members = n_members = n_members or members_needed
        self.hidden = tuple(hidden)
        self.n_latents = self.hidden[-1]
        self.activation = activation
        self.axes = axes
        self.length = length
        self.seed = seed

        places = [3 * atom + AXES.index(axis) for atom in range(len(self.numbers)) for axis in axes]
        self.register_buffer("columns", torch.tensor(places), persistent=False)
        self.register_buffer("centre", torch.zeros(len(places)))
        self.register_buffer("inverse_length", torch.tensor(1.0 if length is None else 1 / length))
        self.register_buffer("energy_shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("energy_scale", torch.ones(()))

        draws = [torch.Generator().manual_seed(seed + 100_003 * member) for member in range(n_members)]

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.randn(*shape, generator=draw) * scale for draw in draws]))

        widths = (len(places), *self.hidden)
        # Variances that keep the signal's from layer to layer: Glorot and Bengio (2010), He et al. (2015).
        gain = 1.0 if activation == "tanh" else 2.0
        self.weights = nn.ParameterList(
            normal(fan_in, fan_out, scale=math.sqrt(gain / fan_in)) for fan_in, fan_out in itertools.pairwise(widths)
        )
        # Without biases all networks of an odd activation were odd about the centre of the training frames.
        self.biases = nn.ParameterList(normal(1, width, scale=1.0) for width in widths[1:])
        self.readout = normal(self.n_latents, 1, scale=1 / math.sqrt(self.n_latents))
        self.readout_bias = nn.Parameter(torch.zeros(n_members, 1, 1))

    def _place(self, numbers: Sequence[int]) -> None:
        raise UqbiasError(
            f"potential '{self.kind}' for other atoms: its coordinates are those of the atoms that it was made for",
            "train one for these atoms",
        )

    def forward(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        if positions.dim() == 3:
            positions = positions.unsqueeze(0).expand(self.n_members, -1, -1, -1)
        x = (positions.flatten(-2).index_select(-1, self.columns) - self.centre) * self.inverse_length
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = ACTIVATIONS[self.activation](torch.baddbmm(bias, x, weight))
        energy = torch.baddbmm(self.readout_bias, x, self.readout).squeeze(-1) * self.energy_scale
        return energy, x.unsqueeze(2).expand(-1, -1, len(self.numbers), -1)

    @torch.no_grad()
    def standardise(
        self, positions: Tensor, energies: Tensor, forces: Tensor, geometry: Geometry | None = None
    ) -> None:
        coordinates = positions.flatten(-2).index_select(-1, self.columns)
        self.centre.copy_(coordinates.mean(0))
        if self.length is None:
            spread = (coordinates - self.centre).square().mean().sqrt()
            self.inverse_length.copy_(1 / spread.clamp(min=SHORTEST))
        self.energy_shift.copy_(energies.mean())
        along = forces.flatten(-2).index_select(-1, self.columns)
        # Training on energies alone knows no force; the energy's own spread is a scale as well.
        typical = along.square().mean().sqrt() / self.inverse_length
        self.energy_scale.copy_(torch.maximum(typical, energies.std(unbiased=False)).clamp(min=1e-6))
