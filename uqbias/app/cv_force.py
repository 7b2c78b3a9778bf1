"""The driver u as an OpenMM Force: a collective variable for OpenMM's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uqbias.app.computation import Computation, Recipe, load_model
from uqbias.bias.base import Bias
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.force import make_force
from uqbias.md.stack import check_torchforce_as_variable, choose_backend
from uqbias.model.reference import CELL, in_a_cell


class Itself(Bias):
    """V = u: the driver as an energy."""

    kind = "itself"

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return x[:, 0].clone()


def uncertainty_cv_force(
    model: torch.nn.Module | str | Path,
    atoms: Sequence[int] | None = None,
    *,
    periodic: bool = False,
    backend: str = "auto",
    runner: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cache_dir: Path | None = None,
) -> Any:
    """A force whose energy, in kJ/mol, is the driver u: a collective variable for OpenMM's own classes.

    It may go into a ``CustomCVForce`` or an ``openmm.app.BiasVariable`` of ``openmm.app.Metadynamics``. Where the model
    gives the energy too, that way costs a second evaluation each step; `uqbias.Metadynamics` does not.

    ``XmlSerializer`` writes it as the path of the model file with these options; another process that reads it needs
    uqbias and that file, and says so at the first evaluation where the file is gone. In the same process the force that
    is read shares the evaluator of this one.

    Parameters
    ----------
    model : the model, or the path of its file.
    atoms : indices of the model's atoms in the System; all particles if None.
    periodic : make a molecule whole that periodic boundaries have split; the System then counts as periodic. Not needed
        where the start positions are those of a whole molecule; a model of atoms in a cell takes the System's.
    backend, runner, dtype, device, cache_dir : see `make_force` and `FusedEvaluator`.

    Returns
    -------
    openmm.Force

    Raises
    ------
    UqbiasError
        For backend ``torchforce`` with ``periodic``, or with OpenMM 8.6 or later, where copying a TorchForce, as
        CustomCVForce does, kills the process: openmmtorch 1.5 is compiled against OpenMM 8.4.
    """
    chosen = choose_backend(backend)
    if chosen == "torchforce":
        check_torchforce_as_variable()
        if periodic:
            raise UqbiasError("backend 'torchforce' with periodic=True", "use backend 'pythonforce'")
    options: dict[str, Any] = {
        "runner": runner,
        "dtype": dtype,
        "device": device,
        "cache_dir": cache_dir,
        "include_energy": False,
    }
    from_file = isinstance(model, str | Path)
    module = load_model(model, 0, periodic=periodic)
    if in_a_cell(module):  # each State tells its own
        cell = module.provenance.get(CELL)  # type: ignore[union-attr, operator]
        if cell is None:
            raise UqbiasError("a model of atoms in a cell that does not know one", "use uqbias.Sampling")
        options["box"] = np.array(cell)
    evaluator = FusedEvaluator(module, Itself(), 1, **options)
    indices = None if atoms is None else tuple(int(atom) for atom in atoms)
    if indices is not None and len(indices) != evaluator.n_atoms:
        raise UqbiasError(f"{len(indices)} atoms for a model of {evaluator.n_atoms}", "give one index per model atom")
    if chosen == "torchforce":
        return make_force(evaluator, chosen, indices)
    fault = None if from_file else ("a force of a model in memory was read in another process", "give the model's file")
    path = Path(str(model)).resolve() if from_file else None
    recipe = Recipe(model=path, atoms=indices, bias=Itself(), periodic=periodic, options=options, fault=fault)
    return Computation(evaluator, module, recipe).force()
