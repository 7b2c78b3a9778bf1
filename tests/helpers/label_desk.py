"""Somebody who labels what a campaign hands over: part of it, in any order, and not every calculation succeeds."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from peroxide_oracle import Peroxide, make_system

from uqbias.campaign.handed_over import AwaitingLabels
from uqbias.campaign.rounds import run_campaign
from uqbias.settings.file import load_campaign

RUN = "import sys; sys.argv[0] = 'uqbias'; from uqbias.cli import main; sys.exit(main())"


def handoff_system(folder, frames=24, rounds=2):
    """A small campaign of hydrogen peroxide whose labels are handed over, and its run directory."""
    campaign = make_system(folder, "local", frames)
    text = campaign.read_text().replace('{kind: ase, calculator: "peroxide_oracle:Peroxide"}', "{kind: handoff}")
    campaign.write_text(text.replace("rounds: 2", f"rounds: {rounds}"))
    return campaign, folder / "run"


def begin(campaign, directory, **options):
    """A process that runs the campaign."""
    command = [sys.executable, "-c", RUN, "run", str(campaign), "-o", str(directory), "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def run_here(campaign, directory):
    """Whether the campaign is done, after a run of it in this process."""
    try:
        run_campaign(load_campaign(campaign), directory)
    except AwaitingLabels:
        return False
    return True


def fails(name):
    """Whether the calculation of a geometry fails: about one in twelve, the same ones in every run."""
    return int(name.rpartition("_")[2], 16) % 12 == 0


def labelled(atoms):
    """A frame as it comes back."""
    if fails(atoms.info["request"]):
        atoms.info["failed"] = "no convergence"
        return atoms
    atoms.calc = Peroxide()
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def label(directory, random=None):
    """Label all of ``to_label.xyz``, or with ``random`` part of it in any order beside what came back before.

    Returns the number of geometries labelled that had been labelled before.
    """
    frames, path = ase.io.read(directory / "to_label.xyz", ":"), directory / "labelled.xyz"
    before = ase.io.read(path, ":") if path.is_file() else []
    if random is not None:
        frames = [frames[i] for i in random.permutation(len(frames))[: random.integers(0, len(frames) + 1)]]
    known = {atoms.info["request"] for atoms in before}
    twice = [atoms for atoms in frames if atoms.info["request"] in known]
    both = [*before, *[labelled(atoms) for atoms in frames if atoms.info["request"] not in known]]
    if random is not None:
        both = [both[i] for i in random.permutation(len(both))]
        for atoms in both:
            if random.random() < 0.3:
                atoms.info.pop("reason", None)
    if both:
        ase.io.write(path, both, format="extxyz")
    return len(twice)


def finish(campaign, directory, random=None):
    """Run and label in turns until the campaign is done; how often it waited, and what was handed over twice."""
    waits = twice = 0
    while not run_here(campaign, directory):
        waits += 1
        twice += label(directory, random)
    return waits, twice


def finish_disturbed(campaign, directory, random, interruptions, longest):
    """The same in processes that are ended at random moments; interruptions, waits, and what was handed over twice."""
    ended = waits = twice = 0
    while True:
        process = begin(campaign, directory)
        if ended < interruptions:
            with suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.5, longest))
            if process.poll() is None:
                process.send_signal(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                ended += 1
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            return ended, waits, twice
        if process.returncode == 3:
            waits += 1
            assert errors.count("\n") == 1, errors
            twice += label(directory, random)
        else:
            assert process.returncode in (-9, -15, -2, 128 + 15, 128 + 2), errors  # of Python, when it is about to end
