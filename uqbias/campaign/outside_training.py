"""Potentials that are not trained here: used as they are, or fine-tuned by a command of the user's between rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uqbias.campaign.child import OUTPUT
from uqbias.campaign.contained import CHILDREN, Died
from uqbias.campaign.work import Work
from uqbias.errors import UqbiasError
from uqbias.files import sha256
from uqbias.model.fit import make_potential
from uqbias.model.model import UncertaintyModel
from uqbias.model.splitting import Split
from uqbias.model.wrapping import check_frozen, open_model
from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.topology import Topology
from uqbias.oracles.shell import filled, last_lines_of, run_command
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import predict
from uqbias.settings.schema import Campaign
from uqbias.uncertainty.base import Uncertainty

#: Folder of a round in which the command of a training runs, and the file that says what it was given.
FOLDER, GIVEN = "training", "given.json"


def given_potential(campaign: Campaign, topology: Topology, seed: int) -> Potential:
    """The potential of ``training.model``, or of the section ``potential``, trained already where nothing trains it.

    Raises
    ------
    UqbiasError
        If it is to be trained and cannot be, or is not trained and nothing would.
    """
    training = campaign.training
    if training.model is not None:
        return read_potential(Path(training.model), topology, training.trust)
    potential = make_potential(campaign, topology, seed)
    if potential.frozen and training.kind == "adam":
        raise UqbiasError(
            f"training.kind = adam with potential = {potential.kind}, which is frozen",
            "set training.kind: none, or command",
        )
    if not potential.frozen and training.kind == "none":
        raise UqbiasError(
            f"training.kind = none with potential = {potential.kind}, which has not learned anything",
            "give training.model, a model that is trained already, or a potential that is",
        )
    return potential


def read_potential(path: Path, topology: Topology, trust: bool) -> Potential:
    """The potential in a model file, or in any file that `uqbias wrap` opens, for a molecule.

    Raises
    ------
    UqbiasError
        If it cannot be read, or has no such elements.
    """
    if path.suffix == ".uqb":
        return UncertaintyModel.load(path, trust=trust).potential.with_numbers(topology.numbers)
    # The campaign file and the command are the user's own, and so is this file.
    return open_model([str(path)], topology.numbers, trust=True)


def check_untrained(parts: Sequence[Uncertainty], kind: str, potential: Potential) -> None:
    """Refuse a driver or judge with weights of its own: they learn from a potential that is frozen throughout alone."""
    for part in parts:
        if any(True for _ in part.parameters()) and not (kind == "none" and potential.frozen):
            raise UqbiasError(
                f"uncertainty '{part.kind}' with training.kind = {kind}: it has weights, which are trained with the "
                "potential",
                "choose one that is fitted: gmm, llpr, distance, kernel_density, committee",
            )


def at_zero_of(potential: Potential, start: Frames) -> float:
    """Move the zero of the energies to that of labelled frames, whatever code they are by; the move, kJ/mol."""
    energies = predict(potential, start.positions, cells=start.cells, periodic=start.periodic).energy.mean(0).double()
    offset = start.labels()[0] - energies.cpu().numpy()
    shift = float(np.mean(offset)) - float(potential.energy_shift)
    potential.energy_shift.add_(shift)
    return shift


def train_by_command(work: Work, round_index: int, split: Split) -> Potential:
    """Run ``training.run`` on the frames of a round, and read back what it leaves.

    A command that came to its end is not run again for the same frames.

    Raises
    ------
    UqbiasError
        If it fails, takes too long, writes nothing, or writes what is no model; with its last lines.
    """
    training = work.campaign.training
    assert training.run is not None
    folder, partial = work.folder(round_index) / FOLDER, work.folder(round_index) / f"{FOLDER}.partial"
    result = folder / training.result
    before = work.folder(round_index - 1) / FOLDER / training.result
    model_in = before if round_index > 0 and training.warm_start else training.model and Path(training.model)
    work.progress.phase(f"round {round_index}: train by training.run", None)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in training.files:
        shutil.copy(file, partial)
    write_frames(partial / "train.xyz", split.training)
    write_frames(partial / "valid.xyz", split.validation if len(split.validation) else split.training)
    names = {
        "train": partial / "train.xyz",
        "valid": partial / "valid.xyz",
        "model_out": partial / training.result,
        "seed": work.seed(round_index, "training"),
        "round": round_index,
        **({} if model_in is None else {"model_in": Path(model_in).absolute()}),
    }
    inputs = [partial / "train.xyz", partial / "valid.xyz", *([] if model_in is None else [Path(model_in)])]
    given = {"run": training.run, "sha256": [sha256(path) for path in [*inputs, *map(Path, training.files)]]}
    if result.is_file() and json.loads((folder / GIVEN).read_text(encoding="utf-8")) == given:
        shutil.rmtree(partial)
    else:
        try:
            CHILDREN.call(
                run_command,
                filled(training.run, names),
                str(partial),
                output=partial / OUTPUT,
                timeout=training.timeout,
                limit="training.timeout",
            )
        except (UqbiasError, Died) as error:
            raise UqbiasError(f"training.run failed in round {round_index}: {error}", f"see {partial}") from None
        if not (partial / training.result).is_file():
            said = last_lines_of(partial / OUTPUT)
            raise UqbiasError(f"training.run wrote no {training.result} in round {round_index}{said}", f"see {partial}")
        _read(partial / training.result, work, split)  # what is no model is not kept for another run
        (partial / GIVEN).write_text(json.dumps(given), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    potential = _read(result, work, split)
    for frames in (split.training, split.validation):
        potential.record_seen(frames)
    return potential


def _read(result: Path, work: Work, split: Split) -> Potential:
    potential = read_potential(result, work.topology, work.campaign.training.trust)
    if potential.frozen:
        check_frozen(potential, split.training)
    return potential
