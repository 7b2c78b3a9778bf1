"""The MD phase: groups of walkers explore with the last round's model; one group is one picklable task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NotRequired

import numpy as np
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from uqbias.bias.build import BiasParts, build_bias, completed
from uqbias.campaign.samplers.base import Advance, Array, Exploration, Sampler
from uqbias.errors import UqbiasError
from uqbias.files import content_of, read_arrays, read_json, sha256
from uqbias.uncertainty.base import at_wall
from uqbias.variables.base import build_variables, periods_of

if TYPE_CHECKING:
    from uqbias.md.loop import StepLoop
    from uqbias.model.inference import Evaluated
    from uqbias.runs.observation import ExternalBias, Observation
    from uqbias.runs.writer import RunWriter
    from uqbias.settings.md_sections import MD
    from uqbias.uncertainty.base import Uncertainty
    from uqbias.variables.base import CollectiveVariable


def with_wall(job: Exploration, driver: Uncertainty) -> Exploration:
    """The job with the driver's wall in place of the word."""
    biases = [(kind, {name: at_wall(value, driver) for name, value in options.items()}) for kind, options in job.biases]
    cap = at_wall(job.guards.driver_cap, driver)
    return replace(job, biases=tuple(biases), guards=job.guards.model_copy(update={"driver_cap": cap}))


def begin(job: Exploration, model: Any) -> tuple[Array, dict[str, Any], dict[str, Any] | None]:
    """Where each walker begins, [W, N, 3] nm, the settings of the step loop that moves them, and facts of jumps.

    Parameters
    ----------
    model : the job's `UncertaintyModel`.

    Raises
    ------
    UqbiasError
        If the guard accepts none of the safe frames.
    """
    from uqbias.md.guards import Guard
    from uqbias.md.loop import Placements
    from uqbias.model.inference import evaluate_frames, stiff_deviations

    md, limits = job.md, job.guards
    guard = Guard(
        model.topology,
        job.reference,
        bond_range=(limits.bond_low, limits.bond_high),
        driver_cap=at_wall(limits.driver_cap, model.driver),
        judge_cap=limits.judge_cap,
        turned=lambda positions: stiff_deviations(model, positions),
        max_turn=limits.stiff_torsion,
        keep_chirality=limits.chirality,
        labelled=job.safe(model.numbers),
        closest=limits.closest,
        coordination=limits.coordination,
    )
    stopped = {violation.walker for violation in guard.check(job.safe_frames, boxes=job.safe_boxes)}
    safe = np.array([index for index in range(len(job.safe_frames)) if index not in stopped], dtype=np.int64)
    if not len(safe):
        raise UqbiasError("every labelled frame violates the guards", "widen guards.bond_low, guards.bond_high")
    kept, weights = job.safe(model.numbers)[safe], job.safe_weights[safe]
    frames, weights = kept.positions, weights / weights.sum()
    said = evaluate_frames(model, kept)
    if not np.isfinite([said.energy, said.driver, said.judge]).all(axis=0).any():
        raise UqbiasError(
            f"the model gives no number in any of {len(frames)} start frames: energy {said.energy[0]:.6g} kJ/mol, "
            f"driver {said.driver[0]:.6g}, judge {said.judge[0]:.6g}",
            "train it again",
        )
    first = np.random.default_rng(job.seed).choice(len(frames), md.walkers, p=weights, replace=len(frames) < md.walkers)
    positions, placements = frames[first], None
    facts: dict[str, Any] | None = None
    settings: dict[str, Any] = {}
    if kept.cells is not None:
        settings = {"box": kept.cells[first], "safe_boxes": kept.cells}
    if (jumping := md.jumps.of(md.walkers)) and kept.cells is not None:
        facts = {"none": "walkers in cells do not jump"}
    elif jumping:
        from uqbias.campaign.samplers.jumps import prepare

        every = -(-md.jumps.every // md.pace) * md.pace
        jumped, facts = prepare(job, model, guard, frames, weights, jumping * -(-md.steps // every))
        if len(jumped):
            walkers = tuple(range(md.walkers - jumping, md.walkers))
            placements = Placements(walkers, every, len(frames), len(jumped))
            facts |= {"walkers": walkers, "every": every}
            settings |= {"placements": placements, "constraint_geometry": frames}
            frames = np.concatenate([frames, jumped])
            positions[list(walkers)] = frames[[*placements.at(0).values()]]

    def restart(walker: int, _: Array, rng: np.random.Generator) -> int:
        if placements is not None and walker in placements.walkers:
            return placements.first + int(rng.integers(placements.number))
        return int(rng.choice(len(weights), p=weights))

    return (
        positions,
        {
            **settings,
            "temperature": md.temperature,
            "timestep_fs": md.timestep_fs,
            "friction_per_ps": md.friction_per_ps,
            "platform": md.platform,
            "guard": guard,
            "safe_frames": frames,
            "choose_restart": restart,
            "seed": job.seed,
        },
        facts,
    )


class MolecularDynamics(Sampler):
    """MD at md.temperature, without a bias."""

    title: ClassVar[str] = "MD"
    walks: ClassVar[bool] = True

    def external(self, job: Exploration) -> ExternalBias | None:
        """Further OpenMM forces on the walkers, for a sampler of one's own; None for none. No snapshot has them."""
        return None

    @property
    def resumes(self) -> bool:
        known = MolecularDynamics.explore, MolecularDynamics.external
        return (type(self).explore, type(self).external) == known

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        """Run one group of walkers and write its folder.

        Writes ``run.json`` (what was run), ``observations.npz``, ``events.jsonl`` (walkers stopped), ``HILLS`` and
        ``COLVAR``, a trajectory a walker with ``topology.pdb``, ``bias.npz``; see `uqbias.runs.writer.RunWriter`.

        Returns
        -------
        dict
            ``steps`` (of all walkers), ``stopped`` (how many times a walker was), ``runner``, ``evaluations``,
            ``fault``: what makes the run no sampling and the cure (see `uqbias.md.health`), None if nothing does; and,
            where walkers jump, ``jumps`` (see `uqbias.campaign.samplers.jumps.Jumped`, and which walkers jump).

        Raises
        ------
        UqbiasError
            If the job does not fit the model, the machine, or, to be resumed, the run in its folder; or if all walkers
            would be stopped where they begin.
        """
        import torch

        from uqbias.compile.fused import FusedEvaluator
        from uqbias.md.walkers import Walkers
        from uqbias.model.inference import evaluate_frames
        from uqbias.model.model import UncertaintyModel
        from uqbias.runs.sharing import EXCHANGED, SharedSum
        from uqbias.runs.writer import RunWriter

        torch.set_num_threads(1)
        md, external = job.md, self.external(job)
        if external is not None and (job.resume or job.snapshot_every):
            raise UqbiasError("snapshots of a run with external forces", "leave snapshot_every and resume out")
        model = UncertaintyModel.load(job.model)
        job = with_wall(job, model.driver)
        variables = build_variables(job.variables, model.topology, job.reference)
        safe = job.safe(model.numbers)
        at_start = evaluate_frames(model, safe)
        lowest, local = _lowest(job, at_start)
        parts = completed(job.biases, md.temperature, periods_of(variables), lowest, local)
        # What can be refused is, before a run.json says that there is a run.
        _check(job, at_start, variables)
        bias = build_bias(parts, md.temperature) if parts else None
        positions, settings, jumps = begin(job, model)
        facts = {**describe_run(job, model, parts, variables), "lowest_u": lowest, "lowest_local": local}
        with RunWriter(job.folder, facts | ({"jumps": jumps} if jumps else {}), resume=job.resume) as writer:
            if writer.finished is None:
                if bias is not None and job.hills is not None and md.share_hills_every is not None:
                    bias = SharedSum(bias.biases, job.hills, job.folder.name, md.timestep_fs, md.share_hills_every)
                if bias is not None and job.earlier_bias is not None:
                    cure = "put it back from a copy"
                    with content_of(job.earlier_bias, cure, "does not fit the bias"):
                        arrays = read_arrays(job.earlier_bias, "bias of the round before", cure)
                        bias.restore({name: array for name, array in arrays.items() if name != EXCHANGED})
                    for part in bias.biases:
                        part.on_new_model()
                evaluator = FusedEvaluator(
                    model,
                    bias,
                    md.walkers,
                    variables=variables,
                    runner=md.runner,
                    device=_device(md),
                    box=None if safe.cells is None else safe.cells[0],
                    periodic=safe.periodic,
                )
                settings |= {"backend": md.backend, "constraints": md.constraints, "external": external}
                settings |= {"engine": md.engine}
                settings |= {"pressure": md.pressure, "barostat": md.barostat}
                walkers = Walkers(model.topology, evaluator, positions, **settings)
                writer.start(walkers, md.observe_every, md.trajectory_every)
                run_to_end(job, walkers, writer, advance)
                done = {**writer.totals, "fault": walkers.health.fault}
            else:
                done = {name: writer.finished[name] for name in ("stopped", "runner", "evaluations")}
                done["fault"] = writer.finished.get("fault")
        done |= {"jumps": jumps} if jumps else {}
        return {"steps": md.steps * md.walkers, **done, "was_finished": writer.finished is not None}


class BiasedDynamics(MolecularDynamics):
    """MD with the biases of `bias:`."""

    biased: ClassVar[bool] = True


def _check(job: Exploration, at_start: Evaluated, variables: Mapping[str, CollectiveVariable]) -> None:
    """Raise UqbiasError for a platform that is not there, or if every walker would be stopped wherever it begins."""
    import torch

    from uqbias.compile.graph_inputs import check_device
    from uqbias.md.stack import check_platform, choose_backend

    if job.md.engine == "openmm":
        backend, platform = choose_backend(job.md.backend), job.md.platform
        if platform != "auto":
            check_platform(platform, backend)
    check_device(_device(job.md))
    cap, lowest = job.guards.driver_cap, at_start.driver.min()
    if isinstance(cap, int | float) and lowest > cap:
        raise UqbiasError(
            f"guards.driver_cap = {cap:g} is below the driver in all start frames, {lowest:.4g} at least",
            "raise it, or null for none (of uqbias md: --cap, or --wall, which it follows)",
        )
    positions = torch.as_tensor(job.safe_frames)
    for name, variable in variables.items():
        with torch.no_grad():
            if not torch.isfinite(variable(positions)).any():
                raise UqbiasError(
                    f"variables.{name} is not a finite number in any start frame", "give start frames that have one"
                )


def _device(md: MD) -> str:
    return "cuda" if md.platform == "CUDA" else "cpu"


class _Earlier(TypedDict):
    lowest_u: FiniteFloat
    lowest_local: NotRequired[list[FiniteFloat]]


def _lowest(job: Exploration, at_start: Evaluated) -> tuple[float, list[float]]:
    """Lowest value of driver and its parts over the labelled frames; of a bias carried on, those it began with."""
    if job.earlier_bias is not None:
        file = job.earlier_bias.parent / "run.json"
        earlier = read_json(file, _Earlier, "description of a run", "put it back from a copy")
        return float(earlier["lowest_u"]), list(earlier.get("lowest_local", []))
    return float(at_start.driver.min()), at_start.local.min(axis=0).tolist()


def describe_run(
    job: Exploration, model: Any, parts: BiasParts, variables: Mapping[str, CollectiveVariable]
) -> dict[str, Any]:
    """Content of ``run.json``; see `uqbias.runs.writer.RunWriter`."""
    from uqbias.settings.file import flatten

    md = job.md
    facts = {
        "temperature": md.temperature,
        "timestep_fs": md.timestep_fs,
        "pace": md.pace,
        "steps": md.steps,
        "walkers": md.walkers,
        "biases": [{"kind": kind, **options} for kind, options in parts],
        "variables": {
            name: {**variable.describe(), "period": variable.period, "unit": variable.unit}
            for name, variable in variables.items()
        },
        "topology": model.topology.to_dict(),
        "model": {"path": str(job.model), "sha256": sha256(job.model)},
    }
    geometry = hashlib.sha256()
    in_cells = () if job.safe_boxes is None else (job.safe_boxes,)
    for array in (job.safe_frames, job.safe_weights, job.reference, *in_cells):
        geometry.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    unused = {"steps"} | (set() if md.jumps.of(md.walkers) else {"jumps"})
    unused |= {"barostat", "pressure"} if md.pressure is None else set()
    settings = {
        "md": md.model_dump(exclude=unused),
        "guards": job.guards.model_dump(),
        "kinds of bias": [kind for kind, _ in parts],
        "names of variables": [*variables],
        "bias": facts["biases"],
        "variables": facts["variables"],
        "seed": job.seed,
        "model": facts["model"]["sha256"],
        "start frames": geometry.hexdigest(),
        "earlier bias": None if job.earlier_bias is None else sha256(job.earlier_bias),
    }
    return {**facts, "settings": flatten(settings)}


def run_to_end(job: Exploration, walkers: StepLoop, writer: RunWriter, advance: Advance | None) -> None:
    """Run up to the job's number of steps, with a snapshot every so often; ``writer`` has been started."""
    pace, steps = job.md.pace, job.md.steps
    if advance is not None and walkers.step:
        advance(walkers.step, "")

    def tell(observation: Observation) -> None:
        if advance is not None and observation.step:
            highest = np.nanmax(np.where(np.isfinite(observation.driver), observation.driver, np.nan), initial=-np.inf)
            advance(pace, f"u up to {highest:.1f}, {writer.totals['stopped']} stopped")

    # Snapshots are at observations.
    every = steps if job.snapshot_every is None else -(-job.snapshot_every // pace) * pace
    while walkers.step < steps and not walkers.ended:
        walkers.run(min(every - walkers.step % every, steps - walkers.step), pace=pace, observers=[writer, tell])
        if job.snapshot_every is not None:
            writer.snapshot()
    writer.finish(walkers.health.fault)
