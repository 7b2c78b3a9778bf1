"""Models of others as potentials: opened once, tried, and used as they are."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import sha256
from uqbias.molecule.frames import Frames
from uqbias.molecule.neighbours import NeighbourList
from uqbias.potentials.ani import Ani, ani_1x
from uqbias.potentials.base import Potential
from uqbias.potentials.edges import EdgePotential
from uqbias.potentials.mace import Mace, open_mace
from uqbias.potentials.module import FactoryModule
from uqbias.potentials.prediction import Predictions, geometry_for, predict
from uqbias.potentials.sevennet import SevenNet, open_sevennet
from uqbias.registry import are_trusted

LOG = logging.getLogger(__name__)
#: Largest relative change of energies and latents that is rounding in single precision.
SAME = 1e-4
#: nm, way along the forces on which the energy must fall, and by which share it may fall otherwise.
STEP, SLOPE = 1e-3, 0.02
#: A turn about no axis of the coordinates.
TURN = np.array([[2.0, -2.0, 1.0], [1.0, 2.0, 2.0], [-2.0, -1.0, 2.0]]) / 3


def open_model(
    sources: Sequence[str],
    numbers: Sequence[int],
    kind: str | None = None,
    *,
    heads: Sequence[str] = (),
    trust: bool = False,
) -> EdgePotential:
    """The potential of a model that is not uqbias's; its ``origin`` says where it comes from.

    Parameters
    ----------
    sources : what the user gives for the model: ``package.module:function`` for kind ``module``; for ``mace`` files,
        several for a committee; ``ani-1x`` for that model; ``7net-0``, ``7net-l3i5`` or a checkpoint for ``sevennet``.
    numbers : atomic numbers of the N atoms.
    kind : a name in `OPENERS`; guessed from ``sources`` if None.
    heads : of a MACE model with several: one, or more for a committee.
    trust : open pickles, which runs the code in them.

    Raises
    ------
    UqbiasError
        If the kind is unknown or cannot be guessed, or the model cannot be opened.
    """
    kind = kind or _guess(sources[0])
    if kind not in OPENERS:
        raise UqbiasError(f"unknown kind '{kind}' of a model", did_you_mean(kind, OPENERS))
    if heads and kind != "mace":
        raise UqbiasError(f"head '{heads[0]}' of a model of kind '{kind}'", "leave --head out: it is of MACE models")
    potential = OPENERS[kind](sources, numbers, heads, trust or are_trusted())
    potential.origin = {"wrapped": " ".join(sources)} | potential.origin
    return potential


def _guess(source: str) -> str:
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        return "module"
    if source.lower() == "ani-1x":
        return "ani"
    if not path.exists() and re.match("7net|sevennet", source.lower()):
        return "sevennet"
    if path.suffix in {".model", ".pt", ".pth"}:
        return "mace"
    raise UqbiasError(f"'{source}' does not say what kind of model it is", f"give --kind: {', '.join(OPENERS)}")


def _module(sources: Sequence[str], numbers: Sequence[int], *_: object) -> EdgePotential:
    if len(sources) > 1:
        raise UqbiasError(f"{len(sources)} models, {sources[0]} and others", "give one: a module makes no committee")
    return FactoryModule(numbers, factory=sources[0])


def _check_pickle(path: str, trust: bool) -> None:
    if not trust:
        raise UqbiasError(
            f"{path} is a pickle: opening it runs the code that is in it",
            "give --trust (trust=True in Python) if you know where it comes from",
        )
    LOG.warning("opening %s, a pickle, runs the code that is in it", path)


def _mace(sources: Sequence[str], numbers: Sequence[int], heads: Sequence[str], trust: bool) -> EdgePotential:
    for path in sources:
        if not Path(path).is_file():
            raise UqbiasError(f"no such model file: {path}", "give the .model file of a MACE training")
        _check_pickle(path, trust)
    potential = Mace.of([open_mace(path) for path in sources], numbers, heads)
    potential.origin = {"wrapped_sha256": " ".join(sha256(path) for path in sources)}
    if heads:
        potential.origin["wrapped_heads"] = " ".join(heads)
    return potential


def _ani(sources: Sequence[str], numbers: Sequence[int], *_: object) -> EdgePotential:
    if [source.lower() for source in sources] != ["ani-1x"]:
        raise UqbiasError(f"'{sources[0]}' of kind 'ani'", "write ani-1x; in Python: Ani.of(ensemble, numbers)")
    potential = Ani.of(ani_1x(), numbers)
    potential.origin = {"licence": "MIT (torchani)"}
    return potential


def _sevennet(sources: Sequence[str], numbers: Sequence[int], _: object, trust: bool) -> EdgePotential:
    if len(sources) > 1:
        raise UqbiasError(f"{len(sources)} SevenNet models, {sources[0]} and others", "give one")
    comes_along = not Path(sources[0]).exists()
    if not comes_along:
        _check_pickle(sources[0], trust)
    potential = SevenNet.of(open_sevennet(sources[0]), numbers)
    potential.origin = {"licence": "MIT (sevenn)"} if comes_along else {"wrapped_sha256": sha256(sources[0])}
    return potential


#: Kind of a model to what opens it.
OPENERS: dict[str, Callable[[Sequence[str], Sequence[int], Sequence[str], bool], EdgePotential]] = {
    "module": _module,
    "mace": _mace,
    "ani": _ani,
    "sevennet": _sevennet,
}


def prepared(potential: Potential, frames: Frames) -> Potential:
    """A twin for the atoms of frames, tried by `check_frozen`, whose energies are counted from the first frame."""
    twin = potential.with_numbers(frames.numbers.tolist())
    check_frozen(twin, frames)
    if isinstance(twin, EdgePotential):
        x = torch.as_tensor(frames.positions[:1]).to(next(twin.parameters()))
        twin.centre(x, geometry_for(twin, x, None if frames.cells is None else frames.cells[:1], frames.periodic))
    return twin


def check_frozen(potential: Potential, frames: Frames) -> None:
    """Try a potential that is not trained on the first frame.

    Raises
    ------
    UqbiasError
        If it is not frozen, fails, or its numbers are not finite; if the forces are not the slope of the energy; in
        vacuum also if turning the molecule changes energy or latents, or neighbours beyond the cutoff count: empty
        slots of a table would then be felt.
    """
    name = f"potential '{potential.kind}'"
    if not potential.frozen:
        raise UqbiasError(f"{name}, which is trained, given as one that is used as it is", "train a model")
    cells = None if frames.cells is None else frames.cells[:1]

    def at(x: NDArray[np.floating]) -> Predictions:
        return predict(potential, x, cells=cells, periodic=frames.periodic)

    try:
        first = at(frames.positions[:1])
    except UqbiasError:
        raise
    except Exception as error:  # others' code may fail in any way
        raise UqbiasError(
            f"{name} fails on the first frame of {frames.source} ({type(error).__name__}: {error})",
            "see docs/models.md",
        ) from error
    assert first.forces is not None
    if not all(bool(each.isfinite().all()) for each in (*first[:2], first.forces)):
        raise UqbiasError(f"{name} gives no finite numbers for the first frame of {frames.source}", "check the model")
    size = float(first.forces.norm())
    move = STEP * first.forces.double().numpy() / max(size, 1e-30)
    rise = float((at(frames.positions[:1] - move).energy - at(frames.positions[:1] + move).energy).double().mean())
    noise = 1e-5 * float(first.energy.abs().max())
    if abs(rise / (2 * STEP) - size) > SLOPE * size + noise / STEP:
        raise UqbiasError(
            f"{name} has forces of {size:.4g} kJ/mol/nm, along which its energy falls by {rise / (2 * STEP):.4g}",
            "let no detach or no_grad stand between positions and energy",
        )
    if cells is not None or potential.cutoff is None or not potential.invariant:
        return
    turned = predict(potential, frames.positions[:1] @ TURN, forces="none")
    tables = [turned[:2]]
    if potential.needs == "either":
        x = torch.as_tensor(frames.positions[:1]).to(first.energy)
        table = NeighbourList(potential.numbers, potential.elements, potential.cutoff, 0.0).geometry(x)
        with torch.no_grad():
            tables.append(potential(x, table))
    for what, outputs in zip(("when it is turned", "without neighbours beyond its cutoff"), tables, strict=False):
        for quantity, one, other in zip(("energies", "latents"), first[:2], outputs, strict=True):
            if not float((one - other).abs().max()) <= SAME * (1 + float(one.abs().max())):
                raise UqbiasError(
                    f"{name} has other {quantity} {what}, by {float((one - other).abs().max()):.3g}",
                    "let vectors turn into invariants, and neighbours at the cutoff and beyond add nothing",
                )
