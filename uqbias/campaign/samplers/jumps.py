"""Jumps: labelled frames moved over barriers and relaxed under the model, for walkers to be placed on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from typing_extensions import TypedDict

from uqbias.attacks.flips import Displacement, proton_moves, ring_flips
from uqbias.attacks.moves import rigid_move
from uqbias.attacks.relaxation import relax
from uqbias.campaign.samplers.base import Array, Exploration
from uqbias.campaign.selection import Candidates, select
from uqbias.files import read_json
from uqbias.md.guards import Guard
from uqbias.model.inference import evaluate_frames, selection_features, stiff_deviations
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.physical import PHYSICAL, PhysicalFilter
from uqbias.molecule.rotors import ring_systems, rotors
from uqbias.molecule.topology import Topology
from uqbias.runs.ledger_lines import CURE
from uqbias.settings.harvest_sections import SelectionOptions
from uqbias.units import kt

#: Frames proposed and relaxed for each that is needed, and frames prepared at most: walkers come back to them.
TRIED, RELAXED, MOST = 8, 2, 200
#: Labelled frames that are relaxed too, to compare with.
COMPARED = 32
#: Energies may lie beyond those of labelled frames by so many thermal widths of the potential energy, and the judge may
#: be so many times its highest value there. Beyond, a model of few labels is wild: of Ace-Ala3-Nme, trained on one
#: basin, 0 of 122 turned frames up to 2 times and 2 of 59 above were garbage.
WIDTHS, JUDGED = 3.0, 2.0
#: fs after a jump in which a walker is no thermal frame yet.
SETTLING = 100.0
#: A bond turns at least so far, rad: less is no other conformer.
LEAST = np.pi / 3


class _Facts(TypedDict):
    walkers: NotRequired[list[int]]
    every: NotRequired[Annotated[int, Gt(0)]]


class _Run(TypedDict):
    jumps: NotRequired[_Facts]


class Jumped(NamedTuple):
    """Frames to place walkers on, and how they came about."""

    #: [m, N, 3] nm, best first.
    frames: Array
    #: Numbers ``proposed``, ``relaxed`` (of the sound ones), ``passed``, ``refused`` by reason; or ``none``, why there
    #: are no jumps.
    facts: dict[str, Any]


def moves_of(topology: Topology, frames: Array) -> list[Displacement]:
    """Turn of the smaller side of each soft bond by a random angle, flip of each ring, transfer of each mobile proton.

    Parameters
    ----------
    frames : [n, N, 3] nm, sound geometries.
    """

    def turn(fixed: int, pivot: int, atoms: list[int]) -> Displacement:
        def moved(positions: Array, random: np.random.Generator) -> Array:
            x, centre = positions.copy(), positions[pivot]
            axis = centre - positions[fixed]
            angle = random.uniform(LEAST, 2 * np.pi - LEAST) / np.linalg.norm(axis)
            x[atoms] = Rotation.from_rotvec(angle * axis).apply(x[atoms] - centre) + centre
            return x

        return moved

    sides = [rigid_move(topology, "turn", *rotor.bond) for rotor in rotors(topology, frames) if rotor.soft]
    moves = [turn(side.fixed, side.pivot, list(side.atoms)) for side in sides if side is not None]
    return [*moves, *ring_flips(topology, ring_systems(topology)), *proton_moves(topology)]


def settled(run: Path, timestep_fs: float, step: NDArray[Any], walker: NDArray[Any]) -> NDArray[np.bool_]:
    """Which observations are not of a walker that has just jumped; all of them where none of its is.

    Parameters
    ----------
    run : run.json of the walkers.
    step, walker : of each observation.
    """
    facts = read_json(run, _Run, "description of a run", CURE).get("jumps", {}) if run.is_file() else {}
    since = step % facts.get("every", 1)
    jumping = np.isin(walker, facts.get("walkers", []))
    fresh = jumping & (since > 0) & (since * timestep_fs < SETTLING)
    return np.ones_like(fresh) if (fresh == jumping).all() else ~fresh


def prepare(
    job: Exploration, model: UncertaintyModel, guard: Guard, frames: Array, weights: Array, needed: int
) -> Jumped:
    """Propose jumped frames, sift them, relax the best, sift these again and choose.

    Parameters
    ----------
    frames : [n, N, 3] nm, labelled frames that the guard accepts.
    weights : [n] how often each is jumped from; their sum is 1.
    needed : frames wanted, if as many pass.
    """
    options, moves = job.md.jumps, moves_of(model.topology, frames)
    if not moves:
        return Jumped(frames[:0], {"none": "no soft bond, flipping ring or mobile proton"})
    random = np.random.default_rng([job.seed, job.md.walkers])
    needed = min(needed, MOST)
    x = frames[random.choice(len(frames), TRIED * needed, p=weights)]
    for place in range(len(x)):
        several = random.integers(1, min(options.turns, len(moves)) + 1)
        for move in random.permutation(len(moves))[:several]:
            x[place] = moves[move](x[place], random)
    sieve, known = _Sieve(job, model, guard, frames), frames[:: -(-len(frames) // COMPARED)]
    facts: dict[str, Any] = {"proposed": len(x)}
    x = sieve.best(sieve.sift(x, known), RELAXED * needed)
    facts["relaxed"] = len(x)
    if len(x):
        steps, both = options.relax, np.concatenate([known, x])
        both = relax(model.potential, both, steps=steps, every=steps).positions[-1]
        x = sieve.sift(both[len(known) :], both[: len(known)])
    facts |= {"passed": len(x), "refused": dict(sieve.refused.most_common())}
    return Jumped(sieve.best(x, needed), facts)


class _Sieve:
    """What keeps garbage out of the frames to place walkers on, and which of the others are the best."""

    def __init__(self, job: Exploration, model: UncertaintyModel, guard: Guard, frames: Array) -> None:
        self.model, self.guard, self.frames, self.seed = model, guard, frames, job.seed
        self.physical = job.physical or PhysicalFilter(model.topology, frames)
        # Thermal width of the potential energy: √(3N/2) kT.
        self.degrees = float(np.sqrt(1.5 * len(model.numbers)))
        self.temperature = job.md.temperature
        self.refused: Counter[str] = Counter()

    def sift(self, x: Array, known: Array) -> Array:
        """Those of frames ``x`` that are sound, would not be stopped, and of which the model knows what it says.

        Parameters
        ----------
        known : [k, N, 3] nm, labelled frames, relaxed if the frames are.
        """
        if not len(x):
            return x
        said, usual = (evaluate_frames(self.model, np.nan_to_num(part)) for part in (x, known))
        beyond = WIDTHS * self.degrees * kt(self.temperature)
        off = np.maximum(said.energy - usual.energy.max(), usual.energy.min() - said.energy)
        reasons = {fault.walker: fault.reason for fault in self.guard.check(x, said.driver, said.judge)}
        verdicts = self.physical.verdicts(x, stiff_deviation=stiff_deviations(self.model, np.nan_to_num(x)))
        for place, verdict in enumerate(verdicts):
            reason = verdict.partition(" ")[0]
            if not reason and not off[place] <= beyond:
                reason = "energy"
            elif not reason and not said.judge[place] <= JUDGED * usual.judge.max():
                reason = "judge"
            if reason:
                reasons.setdefault(place, reason)
        self.refused.update(reasons.values())
        return np.delete(x, [*reasons], axis=0)

    def best(self, x: Array, count: int) -> Array:
        """Up to ``count`` frames far from labelled ones and from each other in the driver's features, low in energy."""
        if not len(x):
            return x
        said, space = evaluate_frames(self.model, x), "driver_features"
        columns = said.driver, said.judge, said.energy, selection_features(self.model, x, space)
        options = SelectionOptions(energy_temperature=self.temperature * self.degrees)
        known = selection_features(self.model, self.frames, space)
        picks, _ = select(Candidates(*columns, [PHYSICAL] * len(x)), known, count, options, self.seed)
        return x[picks]
