"""A torch module of the user's own as a potential."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.files import sha256 as file_hash
from uqbias.potentials.edges import EdgePotential, Neighbours
from uqbias.registry import import_path
from uqbias.units import ANGSTROM, EV


class FactoryModule(EdgePotential):
    """A torch module that a function of the user's makes, used as it is.

    The module has the attributes ``cutoff`` (Å), ``elements`` (atomic numbers), ``n_latents`` (F) and, if its energies
    have a large offset, ``atomic_energies`` (eV by atomic number, which its energies leave out). It has weights, and

    ``forward(numbers [n], i [E], j [E], vectors [E, 3]) -> energies [n], latents [n, F]``

    with energies of the atoms in eV and vectors from atom i to its neighbour j in Å. All E neighbours of all n atoms
    are there, each pair both ways, some beyond the cutoff: those must add exactly nothing. Latents stay when all atoms
    are turned. There is no ``item``, no ``detach`` and no branch on values, so that the module can be compiled.

    A model file holds the weights, the name of the function and the SHA-256 of the file that it is in; it is read only
    with ``--trust``, and refused if that file has changed.

    Parameters
    ----------
    numbers : atomic numbers.
    factory, keywords, sha256 : stated where they are declared.

    Raises
    ------
    UqbiasError
        If the function cannot be imported or fails, its file has another hash, or the module lacks an attribute.
    """

    kind = "module"
    atomic_numbers: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        *,
        factory: Annotated[str, Doc("function that makes the module, package.module:function")],
        keywords: Annotated[Mapping[str, Any], Doc("keyword arguments of the function")] = {},
        sha256: Annotated[str | None, Doc("hash of the file of the function; null: whatever it is")] = None,
    ) -> None:
        function = import_path("potential", factory)
        try:
            content = file_hash(inspect.getfile(function))
        except (TypeError, OSError) as error:
            raise UqbiasError(f"'{factory}' is no function in a file ({error})", "name one: module:function") from error
        if sha256 not in (None, content):
            raise UqbiasError(
                f"the file of '{factory}' has changed since its model was wrapped "
                f"(SHA-256 {str(sha256)[:12]}..., now {content[:12]}...)",
                "wrap the model again, or restore the file",
            )
        try:
            module = function(**keywords)
            cutoff, elements, n_latents = float(module.cutoff), list(module.elements), int(module.n_latents)
        except Exception as error:  # the user's code may fail in any way
            raise UqbiasError(
                f"'{factory}' does not make a module with cutoff, elements and n_latents "
                f"({type(error).__name__}: {error})",
                "see docs/models.md",
            ) from error
        if not isinstance(module, torch.nn.Module) or not any(p.is_floating_point() for p in module.parameters()):
            raise UqbiasError(
                f"'{factory}' does not make a torch module with parameters",
                "make its constants torch.nn.Parameter, which take the precision of the model",
            )
        energies = {int(number): float(e) * EV for number, e in getattr(module, "atomic_energies", {}).items()}
        super().__init__(numbers, elements, cutoff * ANGSTROM, 1, n_latents, energies)
        self.factory, self.keywords, self.sha256 = factory, dict(keywords), content
        self.module = module.requires_grad_(False)

    def _place(self, numbers: Sequence[int]) -> None:
        super()._place(numbers)
        self.register_buffer("atomic_numbers", torch.tensor(self.numbers), persistent=False)

    def atoms(self, near: Neighbours) -> tuple[Tensor, Tensor]:
        members, walkers, n = near.slots.shape[:3]
        energies, latents = self.module(self.atomic_numbers.repeat(members * walkers), *near.edges())
        size = members * walkers * n
        if energies.shape != (size,) or latents.shape != (size, self.n_latents):
            raise UqbiasError(
                f"the module of '{self.factory}' gives {tuple(energies.shape)} and {tuple(latents.shape)} for "
                f"{size} atoms",
                f"give energies [{size}] and latents [{size}, {self.n_latents}]",
            )
        return energies.view(members, walkers, n), latents.view(members, walkers, n, -1)
