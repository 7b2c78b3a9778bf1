"""Models of others as potentials: opened once, tried, and used as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.frames import Frames
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.base import Potential
from uqbias.potentials.module import FactoryModule
from uqbias.potentials.prediction import predict

#: Largest share of the energy that may be of neighbours beyond the cutoff: rounding in single precision.
BEYOND = 1e-4


def open_model(sources: Sequence[str], numbers: Sequence[int], kind: str | None = None) -> Potential:
    """The potential of a model that is not uqbias's.

    Parameters
    ----------
    sources : what the user gives for the model: ``package.module:function`` for kind ``module``.
    numbers : atomic numbers of the N atoms.
    kind : a name in `OPENERS`; guessed from ``sources`` if None.

    Raises
    ------
    UqbiasError
        If the kind is unknown or cannot be guessed, or the model cannot be opened.
    """
    kind = kind or _guess(sources[0])
    if kind not in OPENERS:
        raise UqbiasError(f"unknown kind '{kind}' of a model", did_you_mean(kind, OPENERS))
    return OPENERS[kind](sources, numbers)


def _guess(source: str) -> str:
    if not Path(source).exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        return "module"
    raise UqbiasError(f"'{source}' does not say what kind of model it is", f"give --kind: {', '.join(OPENERS)}")


def _module(sources: Sequence[str], numbers: Sequence[int]) -> Potential:
    return FactoryModule(numbers, factory=_only(sources))


def _only(sources: Sequence[str]) -> str:
    if len(sources) > 1:
        raise UqbiasError(f"{len(sources)} models, {sources[0]} and others", "give one: this kind makes no committee")
    return sources[0]


#: Kind of a model to what opens it.
OPENERS: dict[str, Callable[[Sequence[str], Sequence[int]], Potential]] = {"module": _module}


def check_frozen(potential: Potential, frames: Frames) -> None:
    """Try a potential that is not trained on the first frame.

    Raises
    ------
    UqbiasError
        If it is not frozen, its numbers are not finite, or neighbours beyond its cutoff count: empty slots of a table
        would then be felt.
    """
    name = f"potential '{potential.kind}'"
    if not potential.frozen:
        raise UqbiasError(f"{name}, which is trained, given as one that is used as it is", "train a model")
    surroundings = {"cells": None if frames.cells is None else frames.cells[:1], "periodic": frames.periodic}
    first = predict(potential, frames.positions[:1], **surroundings)  # type: ignore[arg-type]
    numbers = [*first[:2], first.forces]
    if not all(bool(each.isfinite().all()) for each in numbers if each is not None):
        raise UqbiasError(f"{name} gives no finite numbers for the first frame of {frames.source}", "check the model")
    if frames.cells is not None or potential.needs != "either" or potential.cutoff is None:
        return
    x = torch.as_tensor(frames.positions[:1]).to(next(potential.parameters()))
    with torch.no_grad():
        tables = NeighbourList(potential.numbers, potential.elements, potential.cutoff, 0.0).geometry(x)
        tabled, whole = (potential(x, each)[0] for each in (tables, None))
    if not float((tabled - whole).abs().max()) <= BEYOND * (1 + float(whole.abs().max())):
        raise UqbiasError(
            f"{name}: {float(whole[0, 0]):.6g} kJ/mol with all pairs of atoms, {float(tabled[0, 0]):.6g} with those "
            f"within its cutoff of {potential.cutoff:g} nm",
            "let neighbours at the cutoff and beyond add nothing",
        )
