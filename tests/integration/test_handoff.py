"""Labels handed over and taken back: the data set does not depend on how, and what does not belong is refused."""

import json
import shutil

import ase.io
import numpy as np
import pytest
from label_desk import begin, fails, finish, handoff_system, label, run_here

from uqbias.campaign.verification import verify
from uqbias.errors import UqbiasError


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """Campaign, and a run directory whose first geometries wait, with all of them labelled."""
    campaign, directory = handoff_system(tmp_path_factory.mktemp("handoff"))
    process = begin(campaign, directory)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "round 0: 24 of 24 geometries wait for labels; label" in said
    assert f"uqbias run {campaign} -o {directory}" in said
    assert said.count("\n") == 1
    label(directory)
    return campaign, directory


def test_half_filled_files_give_the_same_data_set(tmp_path):
    campaign, directory = handoff_system(tmp_path, 16, rounds=1)
    assert finish(campaign, directory)[0] == 2
    other = tmp_path / "other"
    waits, twice = finish(campaign, other, np.random.default_rng(3))
    assert waits > 2
    assert twice == 0
    assert (other / "dataset.xyz").read_bytes() == (directory / "dataset.xyz").read_bytes()
    assert not (other / "to_label.xyz").exists()
    assert verify(other).faults == []
    events = [json.loads(line) for line in (other / "ledger.jsonl").read_text().splitlines()]
    failures = [event for event in events if event["event"] == "failure"]
    assert all(event["reason"] == "marked as failed: no convergence" for event in failures)
    labels = [event["key"] for event in events if event["event"] == "label"]
    assert len(labels) == len(set(labels)) == 16 + 5 - len(failures)


def frames_of(directory):
    return ase.io.read(directory / "labelled.xyz", ":")


def without_forces(frames):
    del frames[3].calc.results["forces"]


def not_finite(frames):
    frames[3].calc.results["energy"] = np.nan


def moved(frames):
    frames[3].positions[0, 0] += 2e-4


def unnamed_and_moved(frames):
    del frames[3].info["request"]
    frames[3].positions += 0.1


def stranger(frames):
    frames[3].info["request"] = "r07_0003_0123456789ab"


def swapped(frames):
    frames[3].info["request"], frames[4].info["request"] = (frames[i].info["request"] for i in (4, 3))


def doubled(frames):
    frames.append(frames[3])


def in_hartree(frames):
    for atoms in frames:
        atoms.calc.results["energy"] /= 27.2114


def in_hartree_per_bohr(frames):
    for atoms in frames:
        atoms.calc.results["forces"] /= 51.422


def other_order(frames):
    for index, atoms in enumerate(frames):
        frames[index] = atoms[[1, 0, 2, 3]]
        frames[index].calc = atoms.calc
        frames[index].info = atoms.info


FAULTS = {
    without_forces: "frame 3 has no forces",
    not_finite: "energy is not finite in frame 3",
    moved: r"frame 3 \(r00_\d{4}_[0-9a-f]{12}\) has another geometry .* 0.0002 Å away, allowed are 0.0001",
    unnamed_and_moved: "frame 3 has another geometry",
    stranger: "frame 3 answers 'r07_0003_0123456789ab', which this campaign did not ask for",
    swapped: "frame 3 .* has another geometry",
    doubled: r"frames 3 and \d+ are both r00_",
    in_hartree: "most likely the energies are in Hartree",
    in_hartree_per_bohr: "most likely the forces are in Hartree/bohr",
    other_order: "order",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_does_not_belong_is_refused(tmp_path, waiting, fault):
    campaign, clean = waiting
    directory = tmp_path / "run"
    shutil.copytree(clean, directory)
    frames = [atoms for atoms in frames_of(directory) if not fails(atoms.info["request"])]
    fault(frames)
    ase.io.write(directory / "labelled.xyz", frames, format="extxyz")
    before = (directory / "ledger.jsonl").read_bytes()
    with pytest.raises(UqbiasError, match=FAULTS[fault]):
        run_here(campaign, directory)
    assert (directory / "ledger.jsonl").read_bytes() == before


def test_a_torn_file_is_refused(tmp_path, waiting):
    campaign, clean = waiting
    shutil.copytree(clean, tmp_path / "run")
    path = tmp_path / "run" / "labelled.xyz"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UqbiasError, match="ends within a line"):
        run_here(campaign, tmp_path / "run")
