"""Inputs that every phase of a campaign needs: settings, files, seeds, the labelled frames so far."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.executors.base import TaskExecutor
from uqbias.campaign.home import Home
from uqbias.campaign.labelling import OracleSpec
from uqbias.campaign.ledger import Record
from uqbias.campaign.phase_files import folder_name
from uqbias.campaign.post_label import ACCEPTED, label_verdicts
from uqbias.campaign.progress import Progress
from uqbias.errors import UqbiasError
from uqbias.files import sha256
from uqbias.model.splitting import Split, split_by_role
from uqbias.molecule.cells import EVERYWHERE, ISOLATED, Periodic
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.protons import with_mobile_protons
from uqbias.molecule.sense import check_molecule, check_sense
from uqbias.molecule.structure import read_structure, whole_frames
from uqbias.molecule.topology import Topology
from uqbias.options import KindSection, accepted
from uqbias.registry import EXECUTORS, ORACLES
from uqbias.settings.file import CampaignFile, with_files
from uqbias.settings.schema import Campaign
from uqbias.uncertainty.conformal import frames_needed

Array = NDArray[np.float64]


@dataclass
class Work:
    """One campaign in one directory.

    Attributes
    ----------
    file : settings and the folder that their paths are relative to.
    directory : run directory.
    ledger : its open ledger, or what is known of one.
    topology : bond graph of the molecule.
    start : the frames of the start file, labelled or not.
    progress : where to tell what is going on.
    all_systems : the works of all systems of the campaign, this one among them; empty where it is the only one.
    """

    file: CampaignFile
    directory: Path
    ledger: Record
    topology: Topology
    start: Frames
    progress: Progress
    all_systems: list[Work] = field(default_factory=list, repr=False)
    _executors: dict[str, TaskExecutor] = field(default_factory=dict, repr=False)

    @property
    def campaign(self) -> Campaign:
        """The settings, with absolute paths."""
        return self.file.resolved

    @cached_property
    def home(self) -> Home:
        """The run directory, in which this program leads."""
        return Home.take(self.directory)

    def executor(self, work: str) -> TaskExecutor:
        """The executor of a kind of work, ``label``, ``train`` or ``explore``, started at first use."""
        if work not in self._executors:
            section, longest = getattr(self.campaign.executors, work), self.campaign.oracle.timeout
            self._executors[work] = EXECUTORS.build(section, work=work, home=self.home, longest=longest)
        return self._executors[work]

    def close(self) -> None:
        """End the executors' workers."""
        while self._executors:
            self._executors.popitem()[1].shutdown(wait=True, cancel_futures=True)

    def folder(self, round_index: int) -> Path:
        """Directory of a round."""
        return self.directory / folder_name(round_index)

    def model_path(self, round_index: int) -> Path:
        """Model file of a round."""
        return self.folder(round_index) / "model.uqb"

    def seed(self, round_index: int, purpose: str) -> int:
        """Seed in [1, 2³¹) of one purpose in one round, the same in every run of the campaign."""
        text = f"{self.campaign.seed}/{round_index}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (2**31 - 1) + 1

    @cached_property
    def oracle(self) -> OracleSpec:
        """The oracle by name, with what it takes from the system section."""
        return oracle_spec(self.campaign, self.topology, self.start.periodic)

    @cached_property
    def oracle_identity(self) -> str:
        """Text that tells this oracle from another, wherever its files lie."""
        section: KindSection = with_files(self.campaign.oracle, lambda _, name: sha256(name))
        given = given_to_oracle(self.campaign, self.topology, self.start.periodic)
        options = {**section.arguments(), **given, "numbers": list(self.topology.numbers)}
        if "structure" in options:
            options["structure"] = sha256(options["structure"])
        return json.dumps([section.kind, options], sort_keys=True)

    @cached_property
    def oracle_facts(self) -> dict[str, Any]:
        """Options of the oracle that each label's info tells."""
        options, names = self.oracle.options, ORACLES.get(self.oracle.kind).noted
        return {name: options[option] for option, name in names.items() if options.get(option) is not None}

    @cached_property
    def reference_energy(self) -> float:
        """Mean oracle energy of the labelled start frames, kJ/mol; known once round 0 is labelled."""
        energies, _ = self.ledger.labels(0).labels()
        if not len(energies):
            reason = next((str(event["reason"]) for event in self.ledger.events("failure")), "")
            raise UqbiasError(
                f"no start frame has a label ({reason})", "check the oracle: `uqbias validate --label` tries one frame"
            )
        return float(energies.mean())

    def labels(self, last_round: int) -> tuple[Frames, list[str]]:
        """Labelled frames up to a round, and the verdict on each (empty: accepted)."""
        frames = self.ledger.labels(last_round)
        verdicts = label_verdicts(frames, self.reference_energy, self.campaign.harvest)
        # The start frames are what the campaign is given: they are the reference, not up for rejection.
        return frames, [
            ACCEPTED if entry["round"] == 0 else verdict for entry, verdict in zip(frames.info, verdicts, strict=True)
        ]

    def accepted(self, last_round: int) -> Frames:
        """The frames that are trained on: labelled up to a round and accepted."""
        frames, verdicts = self.labels(last_round)
        return frames[np.array([verdict == ACCEPTED for verdict in verdicts], dtype=bool)]

    def budget(self, round_index: int) -> int:
        """Most frames that a round may take: of several systems the share of this one."""
        works, budget = self.all_systems or [self], self.campaign.harvest.labels_per_round
        if (labels := self.campaign.stop.labels) is not None:
            known = sum(len(work.ledger.labels(round_index - 1)) for work in works)
            budget = max(0, min(budget, labels - known))
        place = next(place for place, work in enumerate(works) if work is self)
        return budget // len(works) + (place < budget % len(works))

    def deal(self, frames: Frames) -> Split:
        """Training, validation and calibration frames; a frame once held out stays so in every later round.

        Parameters
        ----------
        frames : accepted frames with ``round`` in their info.
        """
        options, training = self.campaign.calibration, self.campaign.training
        rounds = np.array([entry["round"] for entry in frames.info])
        role = np.zeros(len(frames), dtype=np.int64)
        for round_index in np.unique(rounds):
            members = np.flatnonzero(rounds == round_index)
            count = int(np.ceil(options.fraction * len(members)))
            if round_index == 0:
                # The conformal quantile of n frames exists for n of 1/α or more.
                count = max(count, frames_needed(options.alpha))
            count = min(count, len(members) // 2)
            random = np.random.default_rng(self.seed(int(round_index), "deal"))
            order = random.permutation(members)
            role[order[:count]] = 2
            role[order[count : count + int(np.ceil(training.validation_fraction * len(members)))]] = 1
        return split_by_role(frames, role)


def oracle_spec(campaign: Campaign, topology: Topology, periodic: Periodic = ISOLATED) -> OracleSpec:
    """The oracle by name, with what it takes from the system section, and the bounds of a label."""
    section = campaign.oracle
    return OracleSpec(
        section.kind,
        {**section.arguments(), **given_to_oracle(campaign, topology, periodic)},
        timeout=section.timeout,
        memory_gb=section.memory_gb,
        keep_files=section.keep_files == "all",
    )


def given_to_oracle(campaign: Campaign, topology: Topology, periodic: Periodic = ISOLATED) -> dict[str, Any]:
    """What the oracle takes from the system section, and from start frames that repeat in so many directions.

    Raises
    ------
    UqbiasError
        If the oracle cannot take a charge or a multiplicity that is stated there, or cells like those.
    """
    system, kind = campaign.system, campaign.oracle.kind
    stated = {name: value for name in ("charge", "spin") if (value := getattr(system, name)) is not None}
    named = ("energy_key", "forces_key", "stress_key")
    keys = {name: value for name in named if (value := getattr(system, name)) is not None}
    known = {"structure": system.structure, "numbers": list(topology.numbers), **stated, **keys}
    if any(periodic) and not ORACLES.get(kind).periodic:
        raise UqbiasError(
            f"the start frames have cells, and the oracle '{kind}' labels molecules in vacuum",
            'choose ase, openmm or pool, or start frames with pbc="F F F"',
        )
    if periodic not in (ISOLATED, EVERYWHERE):
        known["pbc"] = list(periodic)
    taken = accepted(ORACLES.get(kind), known)
    if "pbc" in known and "pbc" not in taken and not ORACLES.get(kind).only_known:
        raise UqbiasError(
            f"the start frames have pbc {list(periodic)}, and the oracle '{kind}' repeats along all vectors of a cell",
            "choose the oracle ase, or start frames with an empty layer and pbc True along all",
        )
    for name, value in stated.items():
        if name not in taken:
            raise UqbiasError(f"system.{name} = {value}: the oracle '{kind}' takes no {name}", f"remove system.{name}")
    electrons = sum(topology.numbers) - (system.charge or 0)
    if system.spin is not None and (electrons - system.spin) % 2 == 0:
        raise UqbiasError(
            f"system.spin = {system.spin} with {electrons} electrons (charge {system.charge or 0})",
            "an even number of electrons has an odd multiplicity, an odd number an even one",
        )
    return taken


def read_molecule(file: CampaignFile) -> tuple[Topology, Frames]:
    """Read the structure and the start frames, see that they are of one molecule, and note its mobile protons.

    Constraints hold bonds with hydrogen, so that with them no mobile proton is looked for.

    Raises
    ------
    UqbiasError
        If the file cannot be read, holds other atoms than the structure, or frames that make no sense.
    """
    settings, structure = file.campaign, read_structure(file.path("system", "structure"))
    topology = structure.topology
    start = read_frames(file.path("system", "start"), labelled=False, periodic=True, keys=settings.system.keys)
    check_molecule(start, topology.numbers, "system.structure")
    if structure.periodic not in (ISOLATED, start.periodic):
        raise UqbiasError(
            f"{start.source} has pbc {list(start.periodic)}, system.structure {list(structure.periodic)}",
            "give start frames with the cells of the crystal, or a structure without one",
        )
    start = whole_frames(start, topology)
    if (listed := settings.system.mobile_protons) is not None:
        topology = replace(topology, mobile=tuple((d, h, a) for d, h, a in listed))
    elif settings.md.constraints == "none":
        topology = with_mobile_protons(topology, start.positions)
    check_sense(start, topology, "system.structure")
    return topology, start


def read_test_set(file: CampaignFile, topology: Topology) -> Frames | None:
    """Read the frames of ``score.test_set``, None if there is none, and see that they are of the molecule.

    Raises
    ------
    UqbiasError
        As `read_molecule`, and if a frame has no label.
    """
    score, system = file.campaign.score, file.campaign.system
    if score is None or score.test_set is None:
        return None
    test = whole_frames(read_frames(file.path("score", "test_set"), periodic=True, keys=system.keys), topology)
    check_sense(test, topology, "system.structure")
    return test
