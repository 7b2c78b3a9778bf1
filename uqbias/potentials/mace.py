"""MACE models, used as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import MinLen
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.potentials.edges import EdgePotential, Neighbours, optional_package
from uqbias.units import ANGSTROM, EV

#: Arguments of the constructor of a MACE that are classes or functions, and the table of mace-torch with their names.
NAMED = {
    "interaction_cls": "interaction_classes",
    "interaction_cls_first": "interaction_classes",
    "readout_cls": "readout_classes",
    "gate": "gate_dict",
}
#: Those that are irreps, which are written as text.
IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
#: Largest relative difference between the energies of a model and of the same made anew.
SAME = 1e-5


class Mace(EdgePotential):
    """One MACE model, a committee of several, or heads of one.

    Batatia, Kovács, Simm, Ortner and Csányi, NeurIPS 2022. It is rebuilt by mace-torch from its architecture, so that
    neither a pickle nor TorchScript is needed once it is here. The latents are the invariant features of the atoms
    after each layer, as of MACE's own descriptors. Energies of isolated atoms are counted apart, in double precision.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    models : arguments of ``mace.modules.ScaleShiftMACE``, of each model; `of` takes them from models.
    members : model and head of each of the M members; each model with its first head if None.

    Raises
    ------
    UqbiasError
        If mace-torch is not installed, cannot make such a model, or the models do not go together.
    """

    kind = "mace"
    has_weights = False
    scalars: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        models: Annotated[Sequence[Mapping[str, Any]], MinLen(1), Doc("architectures, as `uqbias wrap` finds them")],
        members: Annotated[
            Sequence[Sequence[int]] | None, Doc("model and head of each member; null: first heads")
        ] = None,
    ) -> None:
        with mace_modules() as modules:
            made: list[Any] = [_made(modules, config) for config in models]
        members = [[model, 0] for model in range(len(models))] if members is None else [list(pair) for pair in members]
        elements = {tuple(int(number) for number in config["atomic_numbers"]) for config in models}
        slices = [_invariant(model) for model in made]
        if len(elements) > 1 or len({len(each) for each in slices}) > 1:
            raise UqbiasError(
                f"MACE models of the elements {sorted(elements)} with {[len(each) for each in slices]} invariant "
                "features, given as a committee",
                "give models of one architecture for the same elements",
            )
        (order,) = elements
        energies_of = [torch.tensor(each["atomic_energies"], dtype=torch.float64) for each in models]
        tables = [table.view(-1, len(order)) for table in energies_of]
        mean = torch.stack([tables[model][head] for model, head in members]).mean(0)
        energies = {number: float(energy) * EV for number, energy in zip(order, mean, strict=True)}
        cutoff = max(float(config["r_max"]) for config in models) * ANGSTROM
        super().__init__(numbers, order, cutoff, len(members), len(slices[0]), energies)
        self.models, self.members, self.order = [dict(config) for config in models], members, order
        self.mace = torch.nn.ModuleList(made)
        for model, table in zip(made, tables, strict=True):
            # What is left of the energies of atoms is where the members differ.
            own = model.atomic_energies_fn
            own.atomic_energies = (table - mean).view(own.atomic_energies.shape).to(own.atomic_energies)
        self.register_buffer("scalars", torch.tensor(slices), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def of(cls, models: Sequence[torch.nn.Module], numbers: Sequence[int], heads: Sequence[str] = ()) -> Self:
        """Make a potential of MACE models: one, a committee, or several ``heads`` of one.

        Raises
        ------
        UqbiasError
            If a model is of another kind than ScaleShiftMACE, takes more than positions, or is not the same when made
            anew; if a head is unknown, or a model has several and none is named.
        """
        configs = [_description(model) for model in models]
        members = [[at, head] for at, config in enumerate(configs) for head in _heads(config, heads)]
        potential = cls(numbers, models=configs, members=members)
        potential.to(next(models[0].parameters()).dtype)
        twins: Any = potential.mace
        for model, twin in zip(models, twins, strict=True):
            residual = twin.atomic_energies_fn.atomic_energies.clone()
            try:
                twin.load_state_dict(model.state_dict())
            except RuntimeError as error:
                raise _unlike(str(error).splitlines()[-1].strip()) from error
            near = potential._neighbours(_cluster(potential).to(residual.dtype), None)
            expected, got = (
                each(potential.inputs(near, 0), compute_force=False)["node_energy"] for each in (model, twin)
            )
            if not torch.allclose(expected, got, rtol=SAME, atol=SAME):
                raise _unlike("it gives other energies when made anew")
            twin.atomic_energies_fn.atomic_energies = residual
        return potential.eval()

    def inputs(self, near: Neighbours, head: int) -> dict[str, Tensor]:
        """What MACE calls data, of all walkers as graphs of one batch."""
        i, j, vectors = near.edges()
        n = len(self.numbers)
        graphs = near.slots.shape[0] * near.slots.shape[1]
        known, numbers = (torch.tensor(each, device=i.device) for each in (self.order, self.numbers))
        attributes = (numbers.unsqueeze(1) == known).to(vectors).repeat(graphs, 1)
        # The vectors come as shifts of atoms that are all in one place: MACE takes them from neighbour to atom.
        return {
            "positions": torch.zeros_like(attributes[:, :1]).repeat(1, 3),
            "edge_index": torch.stack([j, i]),
            "shifts": -vectors,
            "unit_shifts": torch.zeros_like(vectors),
            "cell": vectors.new_zeros(3 * graphs, 3),
            "node_attrs": attributes,
            "batch": torch.arange(graphs, device=i.device).repeat_interleave(n),
            "ptr": n * torch.arange(graphs + 1, device=i.device),
            "head": torch.full((graphs,), head, device=i.device),
        }

    def atoms(self, near: Neighbours) -> tuple[Tensor, Tensor]:
        energies, latents = [], []
        for place, (model, head) in enumerate(self.members):
            mine = Neighbours(*(part[min(place, len(part) - 1)].unsqueeze(0) for part in near))
            output = self.mace[model](self.inputs(mine, head), compute_force=False)
            shape = mine.slots.shape[1:3]
            energies.append(output["node_energy"].to(near.vectors.dtype).view(shape))
            latents.append(output["node_feats"].index_select(1, self.scalars[model]).view(*shape, -1))
        return torch.stack(energies), torch.stack(latents)


@contextmanager
def mace_modules() -> Iterator[Any]:
    """``mace.modules``; while it is in use, modules are made without TorchScript.

    Importing mace lets every later ``torch.load`` of the process run pickles; that is put back.
    """
    before = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    try:
        with optional_package("mace.modules", "mace") as modules:
            from mace.tools.compile import disable_e3nn_codegen

            with disable_e3nn_codegen():
                yield modules
    finally:
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        if before is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = before


def open_mace(path: str | Path) -> torch.nn.Module:
    """Unpickle a ``.model`` file, which runs the code that is in it.

    Raises
    ------
    UqbiasError
        If mace-torch is not installed, or the file is none of its models.
    """
    from importlib.metadata import version

    with mace_modules():
        try:
            model = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:  # a pickle may fail in any way
            raise UqbiasError(
                f"{path} cannot be opened by mace-torch {version('mace-torch')} ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''})",
                "give the .model file that MACE's training wrote, of this version of mace-torch",
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise UqbiasError(f"{path} holds a {type(model).__name__}, no model", "give the .model file of a training")
    return model


def _unlike(why: str) -> UqbiasError:
    return UqbiasError(f"a MACE model that mace-torch does not rebuild ({why})", "wrap it as a module, docs/models.md")


def _description(model: torch.nn.Module) -> dict[str, Any]:
    """Arguments of the constructor, as JSON has them."""
    with mace_modules() as modules:
        from mace.tools.scripts_utils import extract_config_mace_model

        if type(model).__name__ != "ScaleShiftMACE":
            raise _unlike(f"of the class {type(model).__name__}, not ScaleShiftMACE")
        try:
            config = extract_config_mace_model(model)
        except (AttributeError, IndexError) as error:
            raise _unlike(str(error)) from error
        if config.pop("embedding_specs", None):
            raise _unlike("it takes charge, spin or others beside positions")
        config["cueq_config"] = None
        for name, table in NAMED.items():
            names = [key for key, value in getattr(modules, table).items() if value is config[name]]
            if not names:
                raise _unlike(f"its {name} is {config[name]}")
            config[name] = names[0]
    config |= {name: None if config[name] is None else str(config[name]) for name in IRREPS}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in config.items()}


def _made(modules: Any, config: Mapping[str, Any]) -> torch.nn.Module:
    from e3nn.o3 import Irreps

    try:
        arguments = dict(config) | {name: getattr(modules, table)[config[name]] for name, table in NAMED.items()}
        arguments |= {name: None if config[name] is None else Irreps(config[name]) for name in IRREPS}
        return modules.ScaleShiftMACE(**arguments)  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UqbiasError(
            f"mace-torch makes no model of this architecture ({type(error).__name__}: {error})",
            "install the version of mace-torch that the model was wrapped with",
        ) from error


def _invariant(model: Any) -> list[int]:
    """Places of the scalars among the features of all layers."""
    places: list[int] = []
    first = 0
    for product in model.products:
        irreps = product.linear.irreps_out
        for (_, irrep), part in zip(irreps, irreps.slices(), strict=True):
            if (irrep.l, irrep.p) == (0, 1):
                places += range(first + part.start, first + part.stop)
        first += irreps.dim
    return places


def _heads(config: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    heads = list(config["heads"])
    if not names and len(heads) > 1:
        raise UqbiasError(
            f"a MACE model with the heads {', '.join(heads)}", "name one, or more for a committee (--head)"
        )
    if missing := [name for name in names if name not in heads]:
        raise UqbiasError(f"head '{missing[0]}' of a MACE model", f"its heads are {', '.join(heads)}")
    return [heads.index(name) for name in names] or [0]


def _cluster(potential: Mace) -> Tensor:
    """[1, N, 3] nm: atoms that feel each other."""
    n = len(potential.numbers)
    draws = torch.rand(1, n, 3, generator=torch.Generator().manual_seed(0))
    return 0.15 * float(n ** (1 / 3)) * draws
