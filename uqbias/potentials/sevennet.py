"""SevenNet models, used as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.potentials.edges import EdgePotential, Neighbours, optional_package
from uqbias.units import ANGSTROM, EV

#: Layers in whose place `SevenNet.atoms` stands: edges, elements, and what follows the energies of atoms.
OURS = ("edge_embedding", "onehot_idx_to_onehot", "rescale_atomic_energy", "reduce_total_enegy", "force_output")
#: First layer of the readout, by the two kinds of it.
READOUTS = ("reduce_input_to_hidden", "readout_FCN")
#: Keys of a checkpoint that the model is made of, beside those that sevenn lists with their defaults.
SIZES = ("_number_of_species", "_type_map", "readout_fcn_hidden_neurons", "readout_fcn_activation", "use_modality")
#: Models whose weights are in the wheel of sevenn.
SHIPPED = ("7net-0", "7net-l3i5")
#: Other ways to evaluate the same layers, which a model made here does without.
PLAIN = {"use_flash_tp": False, "cuequivariance_config": {}, "use_oeq": False}


class SevenNet(EdgePotential):
    """A SevenNet model, such as SevenNet-0.

    Park, Kim, Hwang and Han, J. Chem. Theory Comput. 20, 4857 (2024). sevenn makes it from its architecture, so that no
    pickle is opened once it is here. The latents are what the readout sees. Energies of the elements are counted apart,
    in double precision.

    Parameters
    ----------
    numbers : atomic numbers of the N atoms.
    config : settings of ``sevenn.model_build.build_E3_equivariant_model``; `of` takes them from a checkpoint.

    Raises
    ------
    UqbiasError
        If sevenn is not installed, cannot make such a model, or it has several modalities.
    """

    kind = "sevennet"
    has_weights = False
    types: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        config: Annotated[Mapping[str, Any], Doc("architecture, as `uqbias wrap` finds it")],
    ) -> None:
        if config.get("use_modality"):
            raise UqbiasError("a SevenNet model of several modalities", "give one of one modality, such as 7net-0")
        try:
            types = {int(number): int(place) for number, place in config["_type_map"].items()}
            with sevenn_module("sevenn.model_build") as build:
                model = build.build_E3_equivariant_model({**config, "_type_map": types})
            shift = dict(zip(sorted(types, key=types.__getitem__), _listed(config["shift"], len(types)), strict=True))
        except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UqbiasError(
                f"sevenn makes no model of this architecture ({type(error).__name__}: {error})",
                "install the version of sevenn that the model was wrapped with",
            ) from error
        readout = next(layer for name, layer in model.named_children() if name in READOUTS)
        energies = {number: EV * energy for number, energy in shift.items()}
        super().__init__(
            numbers, list(types), float(config["cutoff"]) * ANGSTROM, 1, int(readout.irreps_in.dim), energies
        )
        self.config = dict(config) | {"_type_map": {str(number): place for number, place in types.items()}}
        self.register_buffer("types", torch.tensor([types[each] for each in self.elements]), persistent=False)
        self.model = model.requires_grad_(False)

    @classmethod
    def of(cls, checkpoint: Any, numbers: Sequence[int]) -> Self:
        """Make a potential of a ``sevenn.checkpoint.SevenNetCheckpoint``."""
        with sevenn_module("sevenn._const") as const:
            names = [*const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG, *SIZES]
            model = checkpoint.build_model()
        scales = {name: getattr(model.rescale_atomic_energy, name).tolist() for name in ("shift", "scale")}
        config = {name: checkpoint.config[name] for name in names if name in checkpoint.config}
        potential = cls(numbers, config=config | PLAIN | {k: v if len(v) > 1 else v[0] for k, v in scales.items()})
        potential.model.load_state_dict(model.state_dict())
        return potential.eval()

    def atoms(self, near: Neighbours) -> tuple[Tensor, Tensor]:
        _, j, vectors = near.edges()
        shape, layers = near.slots.shape, dict(self.model.named_children())
        kinds = self.types[self.kinds].repeat(shape[0] * shape[1])
        attributes = torch.nn.functional.one_hot(kinds, len(self.elements)).to(vectors)
        embedding: Any = layers["edge_embedding"]
        length = torch.linalg.vector_norm(vectors, dim=-1)
        radial = embedding.basis_function(length) * embedding.cutoff_function(length).unsqueeze(-1)
        data = {
            "x": attributes,
            "node_attr": attributes,
            "edge_attr": embedding.spherical(vectors),
            # Their layers have no offset: a neighbour whose functions are 0 adds nothing.
            "edge_embedding": torch.where((length < self.cutoff / ANGSTROM).unsqueeze(-1), radial, 0.0),
        }
        latents = attributes
        for name, layer in layers.items():
            if name in READOUTS:
                latents = data["x"]
            if name.endswith("_convolution"):
                weights = layer.weight_nn(data["edge_embedding"])
                messages = layer.convolution(data["x"][j], data["edge_attr"], weights)
                data["x"] = messages.view(len(kinds), shape[3], -1).sum(1) / layer.denominator
            elif name not in OURS:
                data = layer(data)
        scale = layers["rescale_atomic_energy"].scale
        energies = data["scaled_atomic_energy"].squeeze(-1) * (scale[kinds] if len(scale) > 1 else scale)
        return energies.view(shape[:3]), latents.view(*shape[:3], -1)


@contextmanager
def sevenn_module(name: str) -> Iterator[Any]:
    """A module of sevenn; while it is in use, e3nn makes its layers without TorchScript."""
    with optional_package("e3nn", "sevennet") as e3nn, optional_package(name, "sevennet") as module:
        before = e3nn.get_optimization_defaults()["jit_mode"]
        e3nn.set_optimization_defaults(jit_mode="eager")
        try:
            yield module
        finally:
            e3nn.set_optimization_defaults(jit_mode=before)


def open_sevennet(source: str) -> Any:
    """A model that comes with sevenn, such as ``7net-0``, or a checkpoint; opening a file runs the code in it.

    Raises
    ------
    UqbiasError
        If sevenn is not installed, or there is no such model.
    """
    if source.lower() not in SHIPPED and not Path(source).is_file():
        raise UqbiasError(
            f"'{source}' is no SevenNet model that comes with sevenn, nor a file",
            f"name {' or '.join(SHIPPED)}, or the checkpoint of a training",
        )
    with sevenn_module("sevenn.util") as util:
        try:
            checkpoint = util.load_checkpoint(source)
            checkpoint.config  # noqa: B018 - read when asked for
        except Exception as error:  # a pickle may fail in any way
            raise UqbiasError(
                f"{source} cannot be opened by sevenn ({type(error).__name__}: {' '.join(str(error).split())})",
                "give the checkpoint of a training with this version of sevenn",
            ) from error
    return checkpoint


def _listed(values: Any, count: int) -> list[float]:
    return [float(value) for value in values] if isinstance(values, list) else [float(values)] * count
