"""Labels from elsewhere: a round's geometries go out in a file, and come back labelled, part by part if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.label_requests import LabelRequest, label_in, to_label
from uqbias.campaign.work import Work
from uqbias.errors import UqbiasError
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.labels import FORCE_UNITS
from uqbias.molecule.sense import check_labels, check_molecule
from uqbias.oracles.base import Label
from uqbias.oracles.pool import ROUNDED, Places
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

#: File that is handed over, and what its frames are called in their info.
TO_LABEL, NAME = "to_label.xyz", "request"
#: eV and eV/Å, to which a label that comes back again is the same.
SAME_ENERGY, SAME_FORCE = 1e-4, 1e-3
#: Forces against those of the model, relative to what they are for known labels: beyond this factor they are in other
#: units, if they point alike, which at least so many frames tell.
STRANGE, ALIKE, FEWEST = 4.0, 0.8, 3


class AwaitingLabels(UqbiasError):  # noqa: N818 - an end that is as it should be
    """A campaign that ends until others have labelled its geometries: exit code 3, as where a time is up."""


def take_handed_over(work: Work, round_index: int, asked: Sequence[Sequence[LabelRequest]]) -> None:
    """Take into the ledger what has come back, and write what is still to be labelled.

    Parameters
    ----------
    asked : frames to label of each round up to this one.

    Raises
    ------
    AwaitingLabels
        If geometries of this round have neither a label nor a failure yet.
    UqbiasError
        If the file of the labels holds what was not asked for, or labels that cannot be right; nothing of it is taken.
    """
    path = work.directory / work.oracle.options["labelled"]
    target, ledger = work.directory / TO_LABEL, work.ledger
    if (kind := work.campaign.executors.label.kind) not in ("process", "local"):
        work.progress.message(f"executors.label = {kind} is not used: the oracle {work.oracle.kind} hands labels over")
    if path.is_file():
        _take(work, round_index, asked, path)
    failed = ledger.failed(round_index)
    left = {request.key: request for request in asked[round_index] if not ledger.has_label(request.key)}
    left = {key: request for key, request in left.items() if key not in failed}
    count = len({request.key for request in asked[round_index]})
    work.progress.advance(count - len(left), "")
    if not left:
        target.unlink(missing_ok=True)  # or a loop would pay for them again
        return
    info = [{NAME: request_name(round_index, one), "reason": str(one.info.get("reason", ""))} for one in left.values()]
    write_frames(target, replace(frames_of([*left.values()], ledger.numbers), info=info))
    raise AwaitingLabels(
        f"round {round_index}: {len(left)} of {count} geometries wait for labels",
        f"label {target} (eV, Å), write them, or part of them, to {path} (failed=T marks a failure), and run again",
    )


def request_name(round_index: int, request: LabelRequest) -> str:
    """Name of a geometry in the file that is handed over; always the same, and no number."""
    return f"r{round_index:02d}_{request.index:04d}_{request.key[:12]}"


def frames_of(requests: Sequence[LabelRequest], numbers: NDArray[np.int64]) -> Frames:
    """The geometries of requests."""
    cells = [request.cell for request in requests if request.cell is not None]
    positions = np.stack([request.positions for request in requests])
    return Frames(numbers, positions, cells=np.stack(cells) if cells else None, periodic=requests[0].periodic)


def _take(work: Work, round_index: int, asked: Sequence[Sequence[LabelRequest]], path: Path) -> None:
    """Note the labels and failures of a file, once all of it is in order."""
    ledger = work.ledger
    if path.suffix.lower() in (".xyz", ".extxyz") and path.read_bytes()[-1:] not in (b"\n", b""):
        raise UqbiasError(f"{path} ends within a line: its last number may be cut", "write it to the end of the line")
    frames = read_frames(path, labelled="unless failed", periodic=True, keys=work.campaign.system.keys)
    check_molecule(frames, work.topology.numbers, "system.structure")
    places = _requests(frames, asked, path)
    paid = {event["key"]: event for event in ledger.events("label")}
    good = np.array([not entry.get("failed") for entry in frames.info], dtype=bool)
    new = []
    for index, (number, request) in enumerate(places):
        if request.key in paid:
            if good[index]:
                name = f"{path}: frame {index} ({request_name(number, request)})"
                _compare(to_label(paid[request.key]), label_in(frames, index), name)
        elif number == round_index:
            new.append(index)
        else:
            work.progress.message(f"{path}: frame {index} is not taken, it failed in round {number}, which is over")
    labelled = [index for index in new if good[index]]
    if labelled:
        model = UncertaintyModel.load(work.model_path(round_index - 1)) if round_index > 0 else None
        check_units(frames[labelled], ledger.labels(), model)
    failed = ledger.failed(round_index)
    for index in sorted(new, key=lambda index: places[index][1].index):
        request = places[index][1]
        if good[index]:
            ledger.append_label(round_index, request, label_in(frames, index))
        elif request.key not in failed:
            reason = frames.info[index]["failed"]
            text = "marked as failed" if reason is True or reason == 1 else f"marked as failed: {reason}"
            ledger.append("failure", round=round_index, index=request.index, key=request.key, reason=text)


def _requests(frames: Frames, asked: Sequence[Sequence[LabelRequest]], path: Path) -> list[tuple[int, LabelRequest]]:
    """Round and request of each frame: by its name, else by its geometry, which must be that of the request.

    Raises
    ------
    UqbiasError
        For a frame that no request fits, and two of one.
    """
    all_of = [(number, request) for number, requests in enumerate(asked) for request in requests]
    places = {request_name(*one): place for place, one in reversed([*enumerate(all_of)])}
    first = all_of[0][1]
    if frames.periodic != first.periodic:
        raise UqbiasError(
            f"{path} has pbc {list(frames.periodic)}, the geometries asked for {list(first.periodic)}",
            f"keep the cells of {TO_LABEL}",
        )
    geometries = Places(frames_of([request for _, request in all_of], frames.numbers))
    nearest, apart = geometries.find(frames, ROUNDED)
    result: list[tuple[int, LabelRequest]] = []
    taken: dict[str, int] = {}
    for index, entry in enumerate(frames.info):
        name = entry.get(NAME)
        place = places.get(str(name), -1)
        if name is not None and place < 0:
            raise UqbiasError(
                f"{path}: frame {index} answers '{name}', which this campaign did not ask for",
                f"keep the {NAME} of {TO_LABEL}, and remove frames of other campaigns",
            )
        at, far = int(nearest[index]), float(apart[index])
        if name is not None and (at < 0 or all_of[at][1].key != all_of[place][1].key):
            far = float(Places(frames_of([all_of[place][1]], frames.numbers)).find(frames[[index]])[1][0])
            at = -1
        if at < 0:
            raise UqbiasError(
                f"{path}: frame {index}{'' if name is None else f' ({name})'} has another geometry than was asked for: "
                f"a coordinate is {far / ANGSTROM:.3g} Å away, allowed are {ROUNDED / ANGSTROM:g}",
                f"keep positions, orientation, order of atoms and cell of {TO_LABEL}",
            )
        if (twin := taken.setdefault(all_of[at][1].key, index)) != index:
            twins = f"{path}: frames {twin} and {index} are both {request_name(*all_of[at])}"
            raise UqbiasError(twins, "keep one of them")
        result.append(all_of[at])
    return result


def _compare(old: Label, new: Label, name: str) -> None:
    """See that a label that is paid already is the same."""
    off = float(np.abs(new.forces - old.forces).max(initial=0.0)) / EV_PER_ANGSTROM
    if abs(new.energy - old.energy) > SAME_ENERGY * EV or off > SAME_FORCE:
        raise UqbiasError(
            f"{name} has an energy of {new.energy / EV:.8g} eV, the ledger {old.energy / EV:.8g} eV; the forces are up "
            f"to {off:.3g} eV/Å apart",
            "remove that frame: a label once taken stays",
        )


def check_units(frames: Frames, known: Frames, model: UncertaintyModel | None) -> None:
    """Refuse labels in other units, or of another sign, as far as energies, ``known`` labels and the model can tell.

    Parameters
    ----------
    model : trained on the known labels; None where there is none yet.
    """
    check_labels(frames, known if len(known) else None)
    if model is None:
        return
    (here, count), (usual, enough) = (_against(model, part) for part in (frames, known))
    if min(count, enough) < FEWEST or 1 / STRANGE < here / usual < STRANGE:
        return
    ratio = here / usual
    unit = min(FORCE_UNITS, key=lambda name: abs(np.log(abs(ratio) / FORCE_UNITS[name])))
    likely = "gradients, with the other sign" if 1 / STRANGE < -ratio < STRANGE else f"in {unit}"
    raise UqbiasError(
        f"{frames.source}: the forces are {ratio:.3g} times what the last model says, which is right for the labels so "
        f"far; most likely they are {likely}",
        "write energies in eV and forces, minus the gradient, in eV/Å",
    )


def _against(model: UncertaintyModel, frames: Frames) -> tuple[float, int]:
    """Median slope of forces against those of the model, of frames where they point alike, and how many these are."""
    expected = evaluate_frames(model, frames, forces=True).forces
    assert expected is not None
    x, y = expected.reshape(len(frames), -1), frames.labels()[1].reshape(len(frames), -1)
    both, squares = (x * y).sum(axis=1), (x * x).sum(axis=1)
    alike = np.abs(both) > ALIKE * np.sqrt(squares * (y * y).sum(axis=1))
    return (float(np.median(both[alike] / squares[alike])) if alike.any() else float("nan")), int(alike.sum())
