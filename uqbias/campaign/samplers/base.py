"""The contract of a sampler: what finds the candidates of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from uqbias.bias.build import BiasParts
from uqbias.molecule.cells import ISOLATED, Periodic
from uqbias.registry import named_paths

if TYPE_CHECKING:
    from uqbias.molecule.frames import Frames
    from uqbias.molecule.physical import PhysicalFilter
    from uqbias.molecule.topology import Topology
    from uqbias.settings.md_sections import MD, Guards
    from uqbias.settings.schema import Campaign

Array = NDArray[np.float64]
#: Called with (units of work done since the last call, note).
Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Exploration:
    """What a sampler is given for one round: a model, safe frames, settings, a seed and a folder.

    Attributes
    ----------
    model : model file.
    folder : where its output goes; made by the sampler.
    biases : (kind, options) of each part of the bias; empty for unbiased MD.
    md : the ``md`` section of a campaign file.
    guards : its ``guards`` section.
    safe_frames : [n, N, 3] nm, labelled frames that exploration begins from.
    safe_boxes : [n, 3, 3] nm, their cells; None in vacuum.
    periodic : whether they repeat along each lattice vector.
    safe_weights : [n] probability of each safe frame.
    reference : [N, 3] nm, geometry that gives bond lengths and chirality.
    seed : seed of all random numbers of this exploration.
    earlier_bias : checkpoint of a bias to go on from, or None.
    variables : collective variables by name, as in a campaign file.
    snapshot_every : steps between snapshots, rounded up to a multiple of the pace; None: no snapshots.
    resume : go on with the run in the folder, if there is one.
    energies : [m] kJ/mol, oracle energies of all accepted frames; None where there are none.
    names : names of the safe frames, ``"round/index"`` of their labels; may be empty.
    known : geometries that the oracle was asked for before.
    physical : what refuses jumped frames; None: the default limits, about the safe frames.
    named : import paths that the campaign file names, which its model files may name too.
    hills : folder through which groups of walkers share their hills, see `uqbias.runs.sharing.SharedSum`; None: a bias
        of its own.
    """

    model: Path
    folder: Path
    biases: BiasParts
    md: MD
    guards: Guards
    safe_frames: Array
    safe_weights: Array
    reference: Array
    seed: int
    earlier_bias: Path | None = None
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    snapshot_every: int | None = None
    resume: bool = False
    energies: Array | None = None
    names: tuple[str, ...] = ()
    known: Frames | None = None
    safe_boxes: Array | None = None
    periodic: Periodic = ISOLATED
    physical: PhysicalFilter | None = None
    named: frozenset[str] = field(default_factory=lambda: frozenset(named_paths))
    hills: Path | None = None

    def safe(self, numbers: Sequence[int]) -> Frames:
        """The safe frames, of atoms with these atomic numbers."""
        from uqbias.molecule.frames import Frames

        return Frames(np.array(numbers), self.safe_frames, cells=self.safe_boxes, periodic=self.periodic)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in a process of its own."""
        vars(self).update(state)
        named_paths.update(self.named)


class Sampler(ABC):
    """Finds geometries that may be worth a label, with the model of the last round.

    A sampler is made from its section of the campaign file: the keyword-only parameters of its constructor are the
    keys, see `uqbias.options`. It is pickled when it runs in a process of its own.

    Attributes
    ----------
    title : what the progress display calls its work.
    walks : whether it runs MD: ``md.groups`` explorations a round, whose walkers the guards stop.
    biased : whether the biases of the campaign file act.
    may_fail : whether a proposal can fail; proposals and failures are then among the scores of a round.
    invents : whether it proposes geometries that no file holds, for which the oracle ``pool`` has no label.
    """

    title: ClassVar[str] = "sampling"
    walks: ClassVar[bool] = False
    biased: ClassVar[bool] = False
    invents: ClassVar[bool] = True
    may_fail: ClassVar[bool] = False

    @property
    def resumes(self) -> bool:
        """Whether an exploration goes on from its last snapshot, see `Exploration.resume`."""
        return False

    @abstractmethod
    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        """Explore, and write the candidates into ``observations.npz`` of the job's folder.

        The file has ``step`` [K] and, for K observations of W geometries each, ``positions`` [K, W, N, 3] nm,
        ``energy`` [K, W] kJ/mol, ``driver`` and ``judge`` [K, W]; observations at step 0 are where walkers begin, and
        no candidates. Further columns of `uqbias.campaign.phases.PROPOSED` are kept with the candidates.

        Returns
        -------
        dict
            ``steps`` (MD steps of all walkers), ``stopped`` (walkers stopped, or attempts that failed), ``runner``
            (what evaluated the model); of a sampler without MD ``proposed`` (geometries asked for) too. It may have
            ``fault``, what was wrong with the exploration as a whole, and the cure: the campaign goes on and says so;
            and ``jumps``, the facts of `uqbias.campaign.samplers.jumps.Jumped`.

        Raises
        ------
        UqbiasError
            If the job does not fit the model or the machine.
        """

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:  # noqa: B027
        """Refuse, before anything is paid for, settings that do not fit the molecule; the base class does nothing.

        Raises
        ------
        UqbiasError
            With key, value and cure.
        """

    def units(self, campaign: Campaign) -> int | None:
        """Units of work in one exploration, for the progress display; None where it is not known."""
        return campaign.md.steps if self.walks else None

    def outlook(self, campaign: Campaign) -> dict[str, Any]:
        """What a round will do, for ``uqbias validate``: name and value of each fact."""
        md = campaign.md
        return {"md_ps_per_round": md.walkers * md.groups * md.steps * md.timestep_fs * 1e-3} if self.walks else {}

    def why_nothing(self, round_index: int, events: str) -> str | None:
        """Why a round ended without a candidate, where that ends the campaign; None if it may go on.

        Parameters
        ----------
        events : name of the round's file of failures.
        """
        return None
