"""One model on several systems: of which of them frames are, and how it does on each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.score import score_model
from uqbias.molecule.collection import guessed_topology
from uqbias.molecule.frames import Frames
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.molecule.structure import whole_frames
from uqbias.molecule.topology import Topology


def layout_of(graphs: Sequence[Topology]) -> Topology:
    """The largest of some systems, with a lone atom of each element that it lacks: what parts for all are made for."""
    largest = max(graphs, key=len)
    missing = {number for graph in graphs for number in graph.numbers} - set(largest.numbers)
    if not missing:
        return largest
    return Topology((*largest.numbers, *sorted(missing)), largest.bonds, network=largest.network)


def of_system(model: UncertaintyModel, frames: Frames) -> UncertaintyModel:
    """The model of the system that frames are of, which need not be one that it was trained on.

    Raises
    ------
    UqbiasError
        If there is none: an element is unknown, or the model is of one molecule.
    """
    numbers = tuple(frames.numbers.tolist())
    graphs = [graph for graph in (model.topology, *model.systems.values()) if graph.numbers == numbers]
    if len(set(graphs)) != 1:
        graph = guessed_topology(frames)
        alike = [one for one in graphs if one.bonds == graph.bonds]
        graphs = alike or graphs or [graph]
    return model if graphs[0] == model.topology else carried_over(model, graphs[0], frames)


def carried_over(model: UncertaintyModel, topology: Topology, frames: Frames) -> UncertaintyModel:
    """`UncertaintyModel.with_topology`, with an error about these frames of the system."""
    unknown = sorted(set(topology.numbers) - set(model.potential.elements))
    if unknown:
        from ase.data import chemical_symbols

        lists = unknown, model.potential.elements
        names, known = (", ".join(chemical_symbols[number] for number in numbers) for numbers in lists)
        raise UqbiasError(
            f"{frames.source} has atoms of {names}, the model knows {known}", "train a model of these elements"
        )
    try:
        return model.with_topology(topology)
    except UqbiasError:
        check_molecule(frames, model.numbers, "the model")
        raise


def whole_and_checked(model: UncertaintyModel, twin: UncertaintyModel, frames: Frames) -> Frames:
    """Frames, made whole, that make sense for ``twin``, their `of_system`; of a new one only they know the bonds."""
    frames = whole_frames(frames, twin.topology)
    check_sense(frames, None if is_new(model, frames) else twin.topology, "the model")
    return frames


def is_new(model: UncertaintyModel, frames: Frames) -> bool:
    """Whether frames are of a system that the model was not trained on."""
    numbers = tuple(frames.numbers.tolist())
    return all(graph.numbers != numbers for graph in (model.systems or {"": model.topology}).values())


def zero_is_known(model: UncertaintyModel, frames: Frames) -> bool:
    """Whether the systems trained on fix the energies of the elements of this one, so that energies can be compared."""
    graphs = list(model.systems.values()) or [model.topology]
    rows = np.array([[graph.numbers.count(z) for z in model.potential.elements] for graph in graphs])
    here = Counter(frames.numbers.tolist())
    added = np.vstack([rows, [here[z] for z in model.potential.elements]])
    return bool(np.linalg.matrix_rank(added) == np.linalg.matrix_rank(rows))


def score_systems(model: UncertaintyModel, sets: Mapping[str, Frames], **options: Any) -> dict[str, Any]:
    """`score_model` of the frames of each system, and errors over all.

    Returns
    -------
    dict
        ``systems``, the scores of each by name; over all frames ``frames``, the errors, those of forces over all
        components and those of energies over all frames, ``judge``, ``coverage``, and of how many frames the model was
        made or calibrated.
    """
    scores = {name: score_model(of_system(model, frames), frames, **options) for name, frames in sets.items()}
    overall: dict[str, Any] = {"frames": sum(map(len, sets.values()))}
    each = list(scores.values())
    for key in ("frames_trained_on", "frames_calibrated_on"):
        if all(key in one for one in each):
            overall[key] = sum(one[key] for one in each)
    sizes = [len(frames) for frames in sets.values()]
    components = [frames.positions.size for frames in sets.values()]
    for key, weights in (
        ("force_mae_meV_per_A", components),
        ("force_rmse_meV_per_A", components),
        ("energy_mae_meV_per_atom", sizes),
        ("energy_rmse_meV_per_atom", sizes),
        ("coverage", sizes),
    ):
        if all(key in one for one in each):
            power = 2 if "rmse" in key else 1
            mean = float(np.average([one[key] ** power for one in each], weights=weights))
            overall[key] = math.sqrt(mean) if power == 2 else mean
    return {**overall, "judge": model.judge.kind, "systems": scores}
