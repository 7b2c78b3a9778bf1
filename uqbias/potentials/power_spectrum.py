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

from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry, nearest_image
from uqbias.options import Count, Positive
from uqbias.potentials.base import Hidden, Members, Potential

#: nm; distances below it are resolved evenly, above it logarithmically.
STRETCH = 0.1
#: nm between the atoms and the ghost that stands in the empty slots of a table.
AWAY = 100.0


class PowerSpectrum(Potential):
    r"""The embedded potential: the power spectrum of a learned neighbour density, and a network for each element.

    The density of atom i is projected on C learned radial functions times spherical harmonics,

    .. math:: A_{clm}^{(i)} = \sum_{j \ne i} \sum_k w_{ckl}^{z_j} b_k(r_{ij}) Y_{lm}(\hat r_{ij}),

    contracted to :math:`p_{cc'l} = \sum_m A_{clm} A_{c'lm} / \sqrt{2l + 1}` for :math:`c \le c'` (Bartók, Kondor and
    Csányi, Phys. Rev. B 87, 184115 (2013), with the compression of the radial-species channel of Willatt, Musil and
    Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018)), and mapped to an atomic energy by a network per element. The
    latents are the last hidden layer.

    With a table of neighbours the density is projected on basis and harmonics before it is mixed, which takes the sum
    over neighbours out of everything that is learned: the same numbers, in a time that grows as the number of atoms.

    Parameters
    ----------
    numbers : atomic numbers.
    elements : atomic numbers of the elements that it has weights for; those of ``numbers`` if None.
    seed : seed of the initial weights; member m uses seed + 100003 m.
    members_needed : committee size where ``n_members`` is None.
    n_members, cutoff, n_radial, n_channels, l_max, hidden, shared_density : stated where they are declared.
        ``n_channels`` is C above; the basis is `radial_basis`.
    """

    kind = "power_spectrum"
    periodic = True
    needs = "either"

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
        elements: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.elements = tuple(sorted({int(number) for number in (numbers if elements is None else elements)}))
        self.n_members = n_members = n_members or members_needed
        self.cutoff = cutoff
        self.n_radial = n_radial
        self.n_channels = n_channels
        self.l_max = l_max
        self.hidden = tuple(hidden)
        self.n_latents = self.hidden[-1]
        self.seed = seed
        self.shared_density = shared_density

        self._place(numbers)
        n_elements = len(self.elements)
        n_powers = (l_max + 1) * n_channels * (n_channels + 1) // 2 + n_channels
        upper = torch.triu_indices(n_channels, n_channels)
        self.register_buffer("upper", upper[0] * n_channels + upper[1], persistent=False)
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

    def _place(self, numbers: Sequence[int]) -> None:
        super()._place(numbers)
        order = torch.argsort(torch.tensor(self.numbers), stable=True)
        self.counts = [self.numbers.count(element) for element in self.elements]
        species = torch.repeat_interleave(torch.arange(len(self.elements)), torch.tensor(self.counts))
        # An atom is moved out of its own neighbourhood, so that the dense pair table needs no mask.
        shift = torch.zeros(len(self.numbers), len(self.numbers), 3)
        shift[..., 0] = torch.eye(len(self.numbers)) * 2 * self.cutoff
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse_order", torch.argsort(order), persistent=False)
        self.register_buffer("species", species, persistent=False)
        self.register_buffer("self_shift", shift, persistent=False)

    def check_geometry(self, geometry: Geometry | None) -> None:
        super().check_geometry(geometry)
        if geometry is not None and geometry.neighbours is not None:
            blocks, width = geometry.blocks, geometry.neighbours.shape[-1]
            if blocks is None or len(blocks) != len(self.elements) or sum(blocks) != width:
                raise UqbiasError(
                    f"a table of {width} neighbours in blocks {blocks} for the elements {list(self.elements)}",
                    "make it by a NeighbourList of these elements",
                )

    def _projected(self, positions: Tensor, geometry: Geometry | None) -> list[Tensor]:
        """Densities A of each l, [M, W, N, C, 2l + 1], atoms sorted by element, from positions [M or 1, W, N, 3]."""
        if geometry is not None and geometry.neighbours is not None:
            return self._from_table(positions, geometry, geometry.neighbours)
        positions = positions.index_select(2, self.order)
        separation = positions.unsqueeze(-3) - positions.unsqueeze(-2)
        if geometry is not None and geometry.box is not None:
            separation = nearest_image(separation, geometry.box, self.cutoff)
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
        C = self.n_channels
        return [projected[:, :, :, l * C : (l + 1) * C, l * l : (l + 1) ** 2] for l in range(self.l_max + 1)]

    def _from_table(self, positions: Tensor, geometry: Geometry, neighbours: Tensor) -> list[Tensor]:
        """As `_projected`, in which the sum over neighbours comes first."""
        sorted_positions = positions.index_select(2, self.order)
        table = neighbours.index_select(-2, self.order)  # [W, N, K] or [M', W, N, K]
        places = table.flatten(-2).expand(len(positions), -1, -1)
        with_ghost = torch.cat([positions, positions[:, :, :1] + AWAY], dim=2)
        shifts = None if geometry.shifts is None else geometry.shifts.index_select(-3, self.order)
        along = []
        # Each axis by itself: processors work on the slots of a table, which lie together, at once.
        for axis in range(3):
            there = with_ghost[..., axis].gather(2, places).view(*places.shape[:2], *table.shape[-2:])
            apart = there - sorted_positions[..., axis].unsqueeze(-1)
            if shifts is not None and geometry.box is not None:
                apart = apart + (shifts * geometry.box[..., None, None, :, axis]).sum(-1)
            along.append(apart)
        distance = (along[0].square() + along[1].square() + along[2].square() + 1e-16).sqrt()  # [M', W, N, K]
        basis = torch.stack(radial_functions(distance, self.cutoff, self.n_radial), dim=-2)  # [M', W, N, R, K]
        unit = torch.stack(along) / distance
        harmonics = torch.stack(real_harmonics(unit[0], unit[1], unit[2], self.l_max), dim=-2)  # [M', W, N, L, K]
        assert geometry.blocks is not None
        ends = list(itertools.accumulate(geometry.blocks))
        slots = [slice(end - width, end) for end, width in zip(ends, geometry.blocks, strict=True)]
        filled = [index for index, width in enumerate(geometry.blocks) if width]
        # [M', W, N, L, R of each element]
        density = torch.cat(
            [torch.matmul(harmonics[..., slots[e]], basis[..., slots[e]].transpose(-1, -2)) for e in filled], dim=-1
        )
        blocks, C = [], self.n_channels
        for l in range(self.l_max + 1):
            mixing = torch.cat([self.mixing[:, element, :, l * C : (l + 1) * C] for element in filled], dim=1)
            part = density[:, :, :, l * l : (l + 1) ** 2]
            mixed = torch.matmul(part.flatten(1, 3), mixing)  # [M, W N (2l+1), C]
            blocks.append(mixed.view(len(mixed), *part.shape[1:4], C).transpose(-1, -2))
        return blocks

    def _power_spectrum(self, positions: Tensor, geometry: Geometry | None) -> Tensor:
        """[M or 1, W, N, 3] -> [M, W, N, P], sorted by element."""
        powers, chosen = [], None
        if geometry is not None and geometry.neighbours is not None:
            # For many atoms a product with zeros and ones is faster than reading by index, backward above all.
            every = torch.arange(self.n_channels**2, device=positions.device)
            chosen = (every.unsqueeze(1) == self.upper).to(positions)
        for l, block in enumerate(self._projected(positions, geometry)):
            if l == 0:
                powers.append(block.squeeze(-1))
            if chosen is not None:
                product = torch.matmul(block, block.transpose(-1, -2)).flatten(-2) / math.sqrt(2 * l + 1)
                powers.append(product @ chosen)
            else:
                product = (block.unsqueeze(-2) * block.unsqueeze(-3)).sum(-1).flatten(-2) / math.sqrt(2 * l + 1)
                powers.append(product.index_select(-1, self.upper))
        return torch.cat(powers, dim=-1)

    def forward(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        if positions.dim() == 3:
            positions = positions.unsqueeze(0)
        power = self._power_spectrum(positions, geometry)
        present = None if geometry is None else geometry.present
        present = None if present is None else present.index_select(-1, self.order)
        energies, latents, first = [], [], 0
        for element, atoms in enumerate(torch.split(power, self.counts, dim=2)):
            if not (count := self.counts[element]):
                continue
            x = (atoms - self.power_mean[:, element, None, None]) * self.power_scale[:, element, None, None]
            x = x.flatten(1, 2)  # [M, W n, P], M from the scales where the density is shared
            for weight, bias in zip(self.weights, self.biases, strict=True):
                x = torch.nn.functional.silu(torch.baddbmm(bias[:, element], x, weight[:, element]))
            energy = torch.baddbmm(self.readout_bias[:, element], x, self.readout[:, element])
            energy = energy.view(self.n_members, -1, count)
            if present is not None:
                energy = energy * present[..., first : first + count]
            energies.append(energy.sum(-1))
            latents.append(x.view(self.n_members, -1, count, self.n_latents))
            first += count
        total = torch.stack(energies).sum(0) * self.energy_scale
        return total, torch.cat(latents, dim=2).index_select(2, self.inverse_order)

    @torch.no_grad()
    def standardise(
        self, positions: Tensor, energies: Tensor, forces: Tensor, geometry: Geometry | None = None
    ) -> None:
        self.energy_shift.copy_(energies.mean())
        self.energy_scale.copy_(forces.square().mean().sqrt() * 0.1)  # energy of a 0.1 nm move against a typical force
        # Frames with a table may be many and large.
        size = len(positions) if geometry is None else 8
        power = torch.cat(
            [
                self._power_spectrum(
                    positions[start : start + size][None], geometry and geometry.of(slice(start, start + size))
                )
                for start in range(0, len(positions), size)
            ],
            dim=1,
        )
        present = None if geometry is None or geometry.present is None else geometry.present[:, self.order].bool()
        first = 0
        for element, atoms in enumerate(torch.split(power, self.counts, dim=2)):
            if not self.counts[element]:
                continue
            flat = atoms.flatten(1, 2)
            if present is not None:
                flat = flat[:, present[:, first : first + self.counts[element]].flatten()]
                first += self.counts[element]
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
    stretched, envelope = _stretched(distance, cutoff)
    order = torch.arange(1, n_radial + 1, device=distance.device, dtype=distance.dtype) * math.pi
    return torch.sin(stretched.unsqueeze(-1) * order) * envelope.unsqueeze(-1)


def radial_functions(distance: Tensor, cutoff: float, n_radial: int) -> list[Tensor]:
    """`radial_basis` as a list, by the recursion sin((k + 1)t) = 2 cos t sin kt - sin((k - 1)t)."""
    stretched, envelope = _stretched(distance, cutoff)
    angle = math.pi * stretched
    twice, sines = 2 * torch.cos(angle), [torch.zeros_like(distance), torch.sin(angle) * envelope]
    while len(sines) <= n_radial:
        sines.append(twice * sines[-1] - sines[-2])
    return sines[1:]


def _stretched(distance: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """The stretched distance s, from 0 to 1, and the smooth cutoff over r."""
    x = (distance / cutoff).clamp(max=1.0)
    envelope = (0.5 * (torch.cos(math.pi * x) + 1)).square() / (distance / STRETCH).clamp(min=0.05)
    return torch.log1p(x * (cutoff / STRETCH)) / math.log1p(cutoff / STRETCH), envelope


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics up to l = 3, normalised to a mean square of one: [..., 3] -> [..., (l_max + 1)²]."""
    x, y, z = unit.unbind(-1)
    return torch.stack(real_harmonics(x, y, z, l_max), dim=-1)


def real_harmonics(x: Tensor, y: Tensor, z: Tensor, l_max: int) -> list[Tensor]:
    """`spherical_harmonics` as a list, of the three components of unit vectors."""
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
    return columns
