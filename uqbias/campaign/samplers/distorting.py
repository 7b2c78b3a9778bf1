"""Exploration without MD: adversarial attacks, random distortions, and the frames of a pool, as candidates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Doc

from uqbias.attacks.ascent import AttackResult
from uqbias.attacks.attack_options import AttackOptions
from uqbias.attacks.base import DistortionSpace
from uqbias.attacks.random import RandomOptions, distort_at_random
from uqbias.campaign.samplers.base import Advance, Array, Exploration, Sampler
from uqbias.errors import UqbiasError
from uqbias.files import sha256, write_arrays, write_text
from uqbias.model.inference import evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.sense import check_molecule
from uqbias.molecule.structure import whole_frames
from uqbias.molecule.topology import Topology
from uqbias.options import Count, InputFile
from uqbias.oracles.pool import Places, check_pool
from uqbias.registry import SPACES

if TYPE_CHECKING:
    from uqbias.settings.schema import Campaign

FORMAT, VERSION = "uqbias-proposals", 1
#: What an attack's or a distortion's status begins with where there is no geometry to propose.
FAILED = "failed"


#: n proposals by column: positions [n, N, 3] nm, energy [n] kJ/mol, driver [n] and judge [n] kJ/mol/nm as the model has
#: them, then further facts, [n] each: where each comes from (``source``), what became of it (``status``), ...
Proposals = dict[str, NDArray[Any]]
OF_MODEL = ("positions", "energy", "driver", "judge")


@dataclass(frozen=True, kw_only=True)
class _Proposing(Sampler):
    """A sampler that distorts ``count`` labelled frames a round."""

    count: Annotated[Count, Doc("geometries proposed in a round, each made of a frame of md.start_from")] = 200
    space: str | Mapping[str, Any] = "cartesian"
    may_fail: ClassVar[bool] = True

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:
        self._space(campaign, topology, start)

    def _space(self, campaign: Campaign, topology: Topology, start: Frames) -> DistortionSpace:
        variables = {name: section.model_dump() for name, section in campaign.variables.items()}
        try:
            space: DistortionSpace = SPACES.build(
                self.space, topology=topology, reference=start.positions[0], collective_variables=variables
            )
        except UqbiasError as error:
            raise UqbiasError(f"{campaign.sampling.kind}: {error.what}", error.cure) from None
        return space

    def outlook(self, campaign: Campaign) -> dict[str, Any]:
        return {"proposed_per_round": self.count}

    def why_nothing(self, round_index: int, events: str) -> str | None:
        return f"all {self.count} {self.title} of round {round_index} failed: see {events}"


@dataclass(frozen=True, kw_only=True)
class Attack(AttackOptions, _Proposing):
    """Labelled frames distorted uphill in uncertainty, as long as their energy allows it; see `uqbias.attacks`.

    Writes ``run.json``, ``observations.npz`` (the geometries reached, without the failed ones), ``candidates.xyz`` (the
    same), ``events.jsonl`` (the failed attacks) and ``attacks.npz`` (the way of each attack) into the job's folder.
    """

    title: ClassVar[str] = "attacks"

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        from uqbias.attacks import ascent

        model, start, source = _begin(job, self.count)
        result = ascent.attack(
            model,
            start,
            self,
            training_energies=job.energies,
            variables=job.variables,
            seed=job.seed,
            advance=advance,
        )
        # Total energies have their digits before the point; all else is drawn.
        ways = {
            name: values if name == "energy" else values.astype(np.float32)
            for name, values in result.trajectory.items()
        }
        write_arrays(job.folder / "attacks.npz", {**ways, "status": np.array(result.status)}, compressed=True)
        proposed = _sorted_out(job, result, source, start.cells)
        return _finish(job, model, *proposed, options=vars(self), runner=result.runner)

    def units(self, campaign: Campaign) -> int | None:
        return self.count * self.iterations


@dataclass(frozen=True, kw_only=True)
class Random(RandomOptions, _Proposing):
    """Labelled frames distorted at random: what attacks are to be better than.

    Writes the files of `Attack`, without ``attacks.npz``.
    """

    title: ClassVar[str] = "distortions"

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:
        space = self._space(campaign, topology, start)
        if isinstance(self.amplitude, list) and len(self.amplitude) != space.n_coordinates:
            raise UqbiasError(
                f"random.amplitude: {len(self.amplitude)} numbers for {space.n_coordinates} coordinates",
                "give one for all, or one for each",
            )

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        model, start, source = _begin(job, self.count)
        result = distort_at_random(model, start, self, variables=job.variables, seed=job.seed)
        if advance is not None:
            advance(len(start), "")
        return _finish(job, model, *_sorted_out(job, result, source, start.cells), options=vars(self), runner="none")


class PoolOfFrames(Sampler):
    """Every frame of a file that the oracle was not asked for yet.

    Writes ``run.json``, ``observations.npz``, ``candidates.xyz`` and an empty ``events.jsonl``.
    """

    title: ClassVar[str] = "pool"
    invents: ClassVar[bool] = False

    def __init__(
        self,
        *,
        file: Annotated[
            str,
            InputFile(),
            Doc(
                "file that `uqbias train` reads (eV, Å); its frames without a label yet are proposed. Labels in it "
                "are not looked at: for those give the same file to the oracle, {kind: pool, file: frames.xyz}"
            ),
        ],
    ) -> None:
        self.file = file

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:
        check_pool(self.file, topology.numbers, None, start.periodic)

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        model = UncertaintyModel.load(job.model)
        frames = read_frames(self.file, labelled=False, periodic=True)
        check_molecule(frames, model.numbers, "the model")
        frames = whole_frames(frames, model.topology)
        left = np.arange(len(frames))
        if job.known is not None and len(job.known):
            left = np.flatnonzero(Places(job.known).find(frames)[0] < 0)
        proposals = evaluated(model, frames[left], source=left, status=np.full(len(left), "pool"))
        if advance is not None:
            advance(len(frames), f"{len(left)} without a label")
        return _finish(job, model, proposals, [], options=vars(self), runner="none")

    def outlook(self, campaign: Campaign) -> dict[str, Any]:
        return {"pool_frames": len(read_frames(self.file, labelled=False, periodic=True))}

    def why_nothing(self, round_index: int, events: str) -> str | None:
        return f"the pool is used up: the oracle was asked for every frame of {Path(self.file).name}"


def evaluated(model: UncertaintyModel, frames: Frames, **columns: NDArray[Any]) -> Proposals:
    """Proposals with what a model says of them; ``columns`` [n] each."""
    values: Proposals = dict.fromkeys(OF_MODEL[1:], np.empty(0))
    if len(frames):
        result = evaluate_frames(model, frames)
        values = {name: getattr(result, name) for name in values}
    return {"positions": frames.positions, **values, **columns, **_boxes(frames.cells)}


def _boxes(cells: Array | None) -> Proposals:
    return {} if cells is None else {"boxes": cells}


def _begin(job: Exploration, count: int) -> tuple[UncertaintyModel, Frames, NDArray[np.int64]]:
    """The model, the frames to distort, and which of the job's frames they are [n]."""
    weights = job.safe_weights / job.safe_weights.sum()
    random = np.random.default_rng(job.seed)
    # Each frame as often as its weight asks for, to within one: no frame is left out by chance.
    share = count * weights
    times = np.floor(share).astype(np.int64)
    rest = share - times
    missing = count - int(times.sum())
    if missing:
        # The fractions left over add up to the number missing: systematic sampling takes each with its fraction.
        places = np.searchsorted(np.cumsum(rest), random.random() + np.arange(missing))
        np.add.at(times, np.minimum(places, len(rest) - 1), 1)
    source = random.permutation(np.repeat(np.arange(len(weights)), times))
    model = UncertaintyModel.load(job.model)
    boxes = None if job.safe_boxes is None else job.safe_boxes[source]
    numbers = np.array(model.numbers, dtype=np.int64)
    return model, Frames(numbers, job.safe_frames[source], cells=boxes, periodic=job.periodic), source


def _sorted_out(
    job: Exploration, result: AttackResult, source: NDArray[np.int64], cells: Array | None = None
) -> tuple[Proposals, list[dict[str, Any]]]:
    """The geometries worth proposing, and an event for each that failed."""
    status = np.asarray(result.status, dtype=str)
    finite = np.isfinite(result.positions).all(axis=(1, 2)) & np.isfinite(result.energy)
    failed = np.char.startswith(status, FAILED) | ~finite
    names = np.array(job.names or [str(place) for place in range(len(job.safe_frames))])
    events = [
        {"attack": int(index), "source": str(names[source[index]]), "reason": str(status[index])}
        for index in np.flatnonzero(failed)
    ]
    good = np.flatnonzero(~failed)
    return {
        **{name: getattr(result, name)[good] for name in OF_MODEL},
        "attack": good,
        "source": names[source[good]],
        "status": status[good],
        **{name: getattr(result, name)[good] for name in ("log_likelihood", "norm", "iterations")},
        **_boxes(None if cells is None else cells[good]),
    }, events


def _finish(
    job: Exploration,
    model: UncertaintyModel,
    proposals: Proposals,
    events: list[dict[str, Any]],
    *,
    options: Mapping[str, Any],
    runner: str,
) -> dict[str, Any]:
    """Write what every sampler of this module writes."""
    n = len(proposals["energy"])
    lines = "".join(json.dumps(event) + "\n" for event in events)
    write_text(job.folder / "events.jsonl", lines)
    columns = {**proposals, "bias": np.zeros(n), "restarted": np.zeros(n, dtype=bool)}
    # One observation of n walkers, as the harvest reads what MD has seen.
    seen = {"step": np.array([1]), **{name: values[None] for name, values in columns.items()}}
    write_arrays(job.folder / "observations.npz", seen, compressed=True)
    if n:
        info = [
            {"model_energy_kJ_per_mol": float(proposals["energy"][i]), "judge": float(proposals["judge"][i])}
            | {name: values[i].item() for name, values in proposals.items() if name not in (*OF_MODEL, "boxes")}
            for i in range(n)
        ]
        numbers, cells = np.array(model.numbers, dtype=np.int64), proposals.get("boxes")
        frames = Frames(numbers, proposals["positions"], info=info, cells=cells, periodic=job.periodic)
        write_frames(job.folder / "candidates.xyz", frames)
    counts = Counter(str(entry).partition(":")[0] for entry in proposals["status"])
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "options": dict(options),
        "seed": job.seed,
        "model": {"path": str(job.model), "sha256": sha256(job.model)},
        "topology": model.topology.to_dict(),
        "proposed": n + len(events),
        "failed": len(events),
        "status": dict(counts),
    }
    write_text(job.folder / "run.json", json.dumps(facts, indent=1))
    return {"steps": 0, "stopped": len(events), "runner": runner, "proposed": n + len(events)}
