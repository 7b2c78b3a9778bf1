"""The embedded potential: power spectrum of learned density projections, one small network per element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.molecule.geometry import Geometry
from uqbias.options import Count, Positive
from uqbias.potentials.base import Hidden, Members, Potential

#: nm; distances below it are resolved evenly, above it logarithmically.
STRETCH = 0.1


class PowerSpectrum(Potential):
    r"""The embedded potential: the power spectrum of a learned neighbour density, and a network for each element.

    The density of atom i is projected on C learned radial functions times spherical harmonics,

    .. math:: A_{clm}^{(i)} = \sum_{j \ne i} \sum_k w_{ckl}^{z_j} b_k(r_{ij}) Y_{lm}(\hat r_{ij}),

    contracted to :math:`p_{cc'l} = \sum_m A_{clm} A_{c'lm} / \sqrt{2l + 1}` for :math:`c \le c'` (Bartók, Kondor and
    Csányi, Phys. Rev. B 87, 184115 (2013), with the compression of the radial-species channel of Willatt, Musil and
    Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018)), and mapped to an atomic energy by a network per element. The
    latents are the last hidden layer.

    Parameters
    ----------
    numbers : atomic numbers.
    seed : seed of the initial weights; member m uses seed + 100003 m.
    members_needed : committee size where ``n_members`` is None.
    n_members, cutoff, n_radial, n_channels, l_max, hidden, shared_density : stated where they are declared.
        ``n_channels`` is C above; the basis is `radial_basis`.
    """

    kind = "power_spectrum"
    periodic = True

    cutoff: float
    order: Tensor
    inverse_order: Tensor
    species: Tensor
    upper: Tensor
    self_shift: Tensor
    power_mean: Tensor
    power_scale: Tensor
    energy_scale: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        n_members: Members = None,
        shared_density: Annotated[
            bool,
            Doc("the members of a committee differ by their networks only: much cheaper, a little less diverse"),
        ] = False,
        cutoff: Annotated[Positive, Doc("nm")] = 0.8,
        n_radial: Annotated[Count, Doc("radial basis functions")] = 10,
        n_channels: Annotated[Count, Doc("learned radial-species channels")] = 10,
        l_max: Annotated[int, Ge(0), Le(3), Doc("highest angular momentum")] = 3,
        hidden: Hidden = (64, 32),
        seed: int = 0,
        members_needed: int = 1,
    ) -> None:
        super().__init__()
        self.numbers = tuple(int(number) for number in numbers)
        self.n_members = n_members = n_members or members_needed
        self.cutoff = cutoff
        self.n_radial = n_radial
        self.n_channels = n_channels
        self.l_max = l_max
        self.hidden = tuple(hidden)
        self.n_latents = self.hidden[-1]
        self.seed = seed
        self.shared_density = shared_density

        order = torch.argsort(torch.tensor(self.numbers), stable=True)
        elements, counts = torch.unique(torch.tensor(self.numbers), return_counts=True)
        self.counts: list[int] = counts.tolist()
        n_elements = len(elements)
        n_powers = (l_max + 1) * n_channels * (n_channels + 1) // 2 + n_channels
        species = torch.repeat_interleave(torch.arange(n_elements), counts)
        upper = torch.triu_indices(n_channels, n_channels)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse_order", torch.argsort(order), persistent=False)
        self.register_buffer("species", species, persistent=False)
        self.register_buffer("upper", upper[0] * n_channels + upper[1], persistent=False)
        self.register_buffer("self_shift", self._self_shift(), persistent=False)
        self.register_buffer("power_mean", torch.zeros(n_members, n_elements, n_powers))
        self.register_buffer("power_scale", torch.ones(n_members, n_elements, n_powers))
        self.register_buffer("energy_shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("energy_scale", torch.ones(()))

        draws = [torch.Generator().manual_seed(seed + 100_003 * member) for member in range(n_members)]

        def normal(*shape: int, scale: float, members: int = n_members) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.randn(*shape, generator=draw) * scale for draw in draws[:members]]))

        self.mixing = normal(
            n_elements,
            n_radial,
            (l_max + 1) * n_channels,
            scale=1 / math.sqrt(n_radial),
            members=1 if shared_density else n_members,
        )
        widths = (n_powers, *self.hidden)
        self.weights = nn.ParameterList(
            normal(n_elements, fan_in, fan_out, scale=math.sqrt(2 / fan_in))
            for fan_in, fan_out in itertools.pairwise(widths)
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(n_members, n_elements, 1, width)) for width in widths[1:]
        )
        self.readout = normal(n_elements, self.n_latents, 1, scale=1 / math.sqrt(self.n_latents))
        self.readout_bias = nn.Parameter(torch.zeros(n_members, n_elements, 1, 1))

    def _self_shift(self) -> Tensor:
        # An atom is moved out of its own neighbourhood, so that the dense pair table needs no mask.
        shift = torch.zeros(len(self.numbers), len(self.numbers), 3)
        shift[..., 0] = torch.eye(len(self.numbers)) * 2 * self.cutoff
        return shift

    def _power_spectrum(self, positions: Tensor, box: Tensor | None) -> Tensor:
        """[M or 1, W, N, 3] sorted by element, and a box [W, 3, 3] -> [M, W, N, P]."""
        separation = positions.unsqueeze(-3) - positions.unsqueeze(-2)
        if box is not None:
            # Of each pair the nearest image alone: exact while every height of the cell is over twice the cutoff.
            box = box.unsqueeze(1)
            fractional = torch.linalg.solve_ex(box, separation, left=False)[0]
            separation = separation - torch.round(fractional) @ box
        separation = separation + self.self_shift
        distance = (separation.square().sum(-1) + 1e-16).sqrt()
        basis = radial_basis(distance, self.cutoff, self.n_radial)  # [M', W, N, N, K]
        harmonics = spherical_harmonics(separation / distance.unsqueeze(-1), self.l_max)  # [M', W, N, N, L]
        mixing = self.mixing.index_select(1, self.species).unsqueeze(1)  # [M, 1, N, K, lC]
        # Neighbours j lead, so that each multiplies by the weights of its own element.
        radial = torch.matmul(basis.transpose(2, 3), mixing)  # [M, W, Nj, Ni, lC]
        radial = radial.permute(0, 1, 3, 4, 2)  # [M, W, Ni, lC, Nj]
        # One product with all harmonics wastes three quarters of its terms and is still faster than one for each l.
        projected = torch.matmul(radial, harmonics)  # [M, W, Ni, lC, L]
        powers, C = [], self.n_channels
        for l in range(self.l_max + 1):
            block = projected[:, :, :, l * C : (l + 1) * C, l * l : (l + 1) ** 2]  # [M, W, N, C, 2l+1]
            if l == 0:
                powers.append(block.squeeze(-1))
            product = (block.unsqueeze(-2) * block.unsqueeze(-3)).sum(-1).flatten(-2) / math.sqrt(2 * l + 1)
            powers.append(product.index_select(-1, self.upper))
        return torch.cat(powers, dim=-1)

    def forward(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        if positions.dim() == 3:
            positions = positions.unsqueeze(0)
        power = self._power_spectrum(positions.index_select(2, self.order), None if geometry is None else geometry.box)
        energies, latents = [], []
        for element, atoms in enumerate(torch.split(power, self.counts, dim=2)):
            x = (atoms - self.power_mean[:, element, None, None]) * self.power_scale[:, element, None, None]
            x = x.flatten(1, 2)  # [M, W n, P], M from the scales where the density is shared
            for weight, bias in zip(self.weights, self.biases, strict=True):
                x = torch.nn.functional.silu(torch.baddbmm(bias[:, element], x, weight[:, element]))
            energy = torch.baddbmm(self.readout_bias[:, element], x, self.readout[:, element])
            energies.append(energy.view(self.n_members, -1, self.counts[element]).sum(-1))
            latents.append(x.view(self.n_members, -1, self.counts[element], self.n_latents))
        total = torch.stack(energies).sum(0) * self.energy_scale
        return total, torch.cat(latents, dim=2).index_select(2, self.inverse_order)

    @torch.no_grad()
    def standardise(self, positions: Tensor, energies: Tensor, forces: Tensor) -> None:
        self.energy_shift.copy_(energies.mean())
        self.energy_scale.copy_(forces.square().mean().sqrt() * 0.1)  # energy of a 0.1 nm move against a typical force
        power = self._power_spectrum(positions.unsqueeze(0).index_select(2, self.order), None)
        for element, atoms in enumerate(torch.split(power, self.counts, dim=2)):
            flat = atoms.flatten(1, 2)
            self.power_mean[:, element] = flat.mean(1)
            # A feature that hardly varies on the training set must not explode off it.
            spread = flat.std(1)
            floor = 0.05 * spread.square().mean(1, keepdim=True).sqrt() + 1e-6
            self.power_scale[:, element] = 1 / torch.maximum(spread, floor)


def radial_basis(distance: Tensor, cutoff: float, n_radial: int) -> Tensor:
    """Sines of a logarithmically stretched distance, times a smooth cutoff over r: [...] nm -> [..., K].

    The form of the Bessel basis (equation 7 of Klicpera, Groß and Günnemann, ICLR 2020, arXiv:2003.03123), with
    sin(kπs), s = ln(1 + r/r0)/ln(1 + rc/r0), in place of sin(kπr/rc): bonds, which vary by picometres, are resolved
    about five times finer than the distances near the cutoff. The squared cosine cutoff has three vanishing
    derivatives.
    """
    x = (distance / cutoff).clamp(max=1.0)
    stretched = torch.log1p(x * (cutoff / STRETCH)) / math.log1p(cutoff / STRETCH)
    order = torch.arange(1, n_radial + 1, device=distance.device, dtype=distance.dtype) * math.pi
    envelope = (0.5 * (torch.cos(math.pi * x) + 1)).square() / (distance / STRETCH).clamp(min=0.05)
    return torch.sin(stretched.unsqueeze(-1) * order) * envelope.unsqueeze(-1)


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics up to l = 3, normalised to a mean square of one: [..., 3] -> [..., (l_max + 1)²]."""
    x, y, z = unit.unbind(-1)
    columns = [torch.ones_like(x)]
    if l_max >= 1:
        columns += [math.sqrt(3) * y, math.sqrt(3) * z, math.sqrt(3) * x]
    if l_max >= 2:
        columns += [
            math.sqrt(15) * x * y,
            math.sqrt(15) * y * z,
            math.sqrt(5) / 2 * (3 * z * z - 1),
            math.sqrt(15) * x * z,
            math.sqrt(15) / 2 * (x * x - y * y),
        ]
    if l_max >= 3:
        columns += [
            math.sqrt(35 / 8) * y * (3 * x * x - y * y),
            math.sqrt(105) * x * y * z,
            math.sqrt(21 / 8) * y * (5 * z * z - 1),
            math.sqrt(7) / 2 * z * (5 * z * z - 3),
            math.sqrt(21 / 8) * x * (5 * z * z - 1),
            math.sqrt(105) / 2 * z * (x * x - y * y),
            math.sqrt(35 / 8) * x * (x * x - 3 * y * y),
        ]
    return torch.stack(columns, dim=-1)
