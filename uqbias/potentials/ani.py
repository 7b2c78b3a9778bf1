"""ANI models, used as they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.options import Count
from uqbias.potentials.edges import EdgePotential, Neighbours, optional_package
from uqbias.units import ANGSTROM, EV

#: eV, CODATA 2018.
HARTREE = 27.211386245988
#: Names of the constants of the symmetry functions, as torchani has them; cutoffs in Å.
CONSTANTS = ("Rcr", "Rca", "EtaR", "ShfR", "EtaA", "Zeta", "ShfA", "ShfZ")
#: Files of ANI-1x in the wheel of torchani, and how many members there are.
PARAMETERS, ENERGIES, MEMBERS = "rHCNO-5.2R_16-3.5A_a4-8.params", "sae_linfit.dat", 8


class Ani(EdgePotential):
    """An ensemble of ANI networks.

    Smith, Isayev and Roitberg, Chem. Sci. 8, 3192 (2017). ANI-1x (Smith et al., J. Chem. Phys. 148, 241733 (2018)) has
    eight members for H, C, N and O. The latents are the last hidden layer of each member. All pairs of an atom's
    neighbours are evaluated, those beyond the angular cutoff too: it suits molecules of some tens of atoms. torchani is
    needed to get the model, not to read its file.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    constants : of the symmetry functions, `CONSTANTS`; ``species``, atomic numbers in the order of the networks;
        ``energies``, eV of a lone atom of each.
    hidden : widths of the hidden layers of the network of each of them.
    n_members : networks of each element.
    """

    kind = "ani"
    has_weights = False
    rank: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        constants: Annotated[Mapping[str, Any], Doc("symmetry functions, elements and energies of atoms")],
        hidden: Annotated[Sequence[Sequence[int]], Doc("widths of the hidden layers, by element")],
        n_members: Annotated[Count, Doc("members of the ensemble")] = MEMBERS,
    ) -> None:
        species, sizes = list(constants["species"]), {len(constants[name]) for name in ("EtaR", "EtaA", "Zeta")}
        if sizes != {1} or len({widths[-1] for widths in hidden}) > 1:
            raise UqbiasError("an ANI model of several EtaR, EtaA, Zeta or numbers of latents", "choose another")
        energies = {number: e * EV for number, e in zip(species, constants["energies"], strict=True)}
        super().__init__(numbers, species, constants["Rcr"] * ANGSTROM, n_members, hidden[0][-1], energies)
        self.constants, self.hidden = dict(constants), [list(widths) for widths in hidden]
        self.register_buffer("rank", torch.tensor([species.index(each) for each in self.elements]), persistent=False)
        n = len(species)
        angular = len(constants["ShfA"]) * len(constants["ShfZ"]) * n * (n + 1) // 2
        shapes = [[len(constants["ShfR"]) * n + angular, *widths, 1] for widths in hidden]
        draws = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> nn.Parameter:
            values = torch.randn(n_members, *shape, generator=draws) / math.sqrt(shape[0])
            return nn.Parameter(values, requires_grad=False)

        # Weights and biases of the layers, by species.
        self.layers = nn.ModuleList(
            nn.ParameterList(normal(*shape) for a, b in itertools.pairwise(widths) for shape in ((a, b), (1, b)))
            for widths in shapes
        )

    @classmethod
    def of(cls, model: Any, numbers: Sequence[int]) -> Self:
        """Make a potential of an ensemble of torchani, such as ``torchani.models.BuiltinEnsemble``."""
        from ase.data import atomic_numbers

        aev, shifter = model.aev_computer, model.energy_shifter
        if getattr(shifter, "fit_intercept", False):
            raise UqbiasError("an ANI model whose energies have an intercept", "give one of energies of atoms alone")
        constants: dict[str, Any] = {name: _plain(getattr(aev, name)) for name in CONSTANTS}
        constants["species"] = [atomic_numbers[symbol] for symbol in model.species]
        constants["energies"] = [HARTREE * energy for energy in _plain(shifter.self_energies)]
        members = [[_linear(network) for network in member.values()] for member in model.neural_networks]
        hidden = [[layer.out_features for layer in layers[:-1]] for layers in members[0]]
        potential = cls(numbers, constants=constants, hidden=hidden, n_members=len(members))
        potential.to(members[0][0][0].weight.dtype)
        for kind, parameters in enumerate(potential.layers):
            stacked = [
                torch.stack(tensors)
                for layers in zip(*(member[kind] for member in members), strict=True)
                for tensors in ([layer.weight.T for layer in layers], [layer.bias.unsqueeze(0) for layer in layers])
            ]
            for parameter, values in zip(parameters.parameters(), stacked, strict=True):
                parameter.data.copy_(values.detach())
        return potential.eval()

    def atoms(self, near: Neighbours) -> tuple[Tensor, Tensor]:
        functions = self._symmetry_functions(near)
        energies, latents, order = [], [], []
        for element in self.elements:
            atoms = [index for index, number in enumerate(self.numbers) if number == element]
            if not atoms:
                continue
            order += atoms
            x = functions.index_select(2, torch.tensor(atoms, device=functions.device)).flatten(1, 2)
            *parameters, weight, bias = self.layers[self.constants["species"].index(element)].parameters()
            for factor, offset in zip(parameters[::2], parameters[1::2], strict=True):
                x = nn.functional.celu(x @ factor + offset, alpha=0.1)
            shape = self.n_members, -1, len(atoms)
            energies.append((x @ weight + bias).view(shape))
            latents.append(x.view(*shape, self.n_latents))
        back = torch.argsort(torch.tensor(order, device=functions.device))
        joined = [torch.cat(part, dim=2).index_select(2, back) for part in (energies, latents)]
        return joined[0] * HARTREE, joined[1]

    def _symmetry_functions(self, near: Neighbours) -> Tensor:
        """What torchani calls the AEV, [M', W, N, G]."""
        value = self.constants
        shifts = {name: torch.tensor(value[name]).to(near.vectors) for name in ("ShfR", "ShfA", "ShfZ")}
        n = len(value["species"])
        distance = (near.vectors.square().sum(-1) + 1e-16).sqrt()
        kinds = self.rank[self.kinds][near.slots]
        members = (kinds.unsqueeze(-1) == torch.arange(n, device=kinds.device)).to(distance)  # [..., K, n]
        radial = torch.exp(-value["EtaR"][0] * (distance.unsqueeze(-1) - shifts["ShfR"]).square())
        radial = 0.25 * radial * _smooth(distance, value["Rcr"]).unsqueeze(-1)
        parts = [(members.transpose(-1, -2) @ radial).flatten(-2)]
        a, b = torch.triu_indices(distance.shape[-1], distance.shape[-1], 1, device=kinds.device)
        there, reach = near.vectors, _smooth(distance, value["Rca"])
        along = (there[..., a, :] * there[..., b, :]).sum(-1) / (distance[..., a] * distance[..., b])
        # 0.95 as in torchani, which keeps the sine and its slope finite.
        cosine = (0.95 * along).unsqueeze(-1)
        turned = cosine * shifts["ShfZ"].cos() + (1 - cosine.square()).sqrt() * shifts["ShfZ"].sin()
        angle = ((1 + turned) / 2) ** value["Zeta"][0]
        mean = ((distance[..., a] + distance[..., b]) / 2).unsqueeze(-1)
        length = torch.exp(-value["EtaA"][0] * (mean - shifts["ShfA"]).square())
        length = length * (2 * reach[..., a] * reach[..., b]).unsqueeze(-1)
        terms = (length.unsqueeze(-1) * angle.unsqueeze(-2)).flatten(-2)  # [..., pairs, functions]
        table = torch.zeros(n, n, dtype=torch.long)
        first, second = torch.triu_indices(n, n)
        table[first, second] = table[second, first] = torch.arange(len(first))
        pairs = table.to(kinds.device)[kinds[..., a], kinds[..., b]]
        chosen = (pairs.unsqueeze(-1) == torch.arange(len(first), device=kinds.device)).to(distance)
        return torch.cat([*parts, (chosen.transpose(-1, -2) @ terms).flatten(-2)], dim=-1)


def ani_1x() -> Any:
    """The ensemble ANI-1x from the wheel of torchani 2.2.4.

    Raises
    ------
    UqbiasError
        If torchani is not installed, or is a version without these files.
    """
    with optional_package("torchani", "ani") as torchani:
        folder = Path(torchani.__file__).parent / "resources" / "ani-1x_8x"
        if not (folder / PARAMETERS).is_file() or not (folder / "train0" / "networks").is_dir():
            raise UqbiasError(f"torchani without the weights of ANI-1x in {folder}", "pip install 'uqbias[ani]'")
        from torchani import neurochem
        from torchani.models import BuiltinEnsemble

        constants = neurochem.Constants(str(folder / PARAMETERS))
        shifter, energies = neurochem.load_sae(str(folder / ENERGIES), return_dict=True)
        networks = neurochem.load_model_ensemble(constants.species, str(folder / "train"), MEMBERS)
        converter = torchani.nn.SpeciesConverter(constants.species)
        computer = torchani.AEVComputer(**constants)
        return BuiltinEnsemble(
            converter, computer, networks, shifter, constants.species_to_tensor, constants, energies, True
        )


def _smooth(distance: Tensor, cutoff: float) -> Tensor:
    """Half a cosine, 1 at 0 and exactly 0 from the cutoff on."""
    return 0.5 * torch.cos(distance.clamp(max=cutoff) * (math.pi / cutoff)) + 0.5


def _plain(value: Any) -> Any:
    return value.detach().flatten().tolist() if isinstance(value, Tensor) else float(value)


def _linear(network: nn.Module) -> list[nn.Linear]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    others = [layer for layer in network.children() if not isinstance(layer, nn.Linear)]
    if not all(isinstance(layer, nn.CELU) and layer.alpha == 0.1 for layer in others):
        raise UqbiasError(f"an ANI network with {[type(layer).__name__ for layer in others]}", "give one of CELU(0.1)")
    return layers
