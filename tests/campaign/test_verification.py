"""Damaged run directories: each is refused by name, and its ledger can be written anew."""

import json
import re
import shutil

import numpy as np
import pytest
from peroxide_oracle import make_system

from uqbias.campaign import rounds
from uqbias.campaign.progress import SilentProgress
from uqbias.campaign.rebuilding import rebuild
from uqbias.campaign.rounds import run_campaign
from uqbias.campaign.verification import verify
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import read_frames
from uqbias.molecule.topology import Topology
from uqbias.runs.ledger_lines import NAME, to_line
from uqbias.settings.file import load_campaign

LABELS = 24 + 2 * 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished campaign of two rounds: its file, and its directory."""
    folder = tmp_path_factory.mktemp("peroxide")
    campaign = make_system(folder, "local")
    run_campaign(load_campaign(campaign), folder / "run")
    return campaign, folder / "run"


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """The campaign's file, a copy of its run, and a function that counts labels paid from now on."""
    monkeypatch.setenv("PEROXIDE_CALLS", str(tmp_path / "calls"))
    shutil.copytree(finished[1], finished[1].parent / tmp_path.name)
    calls = tmp_path / "calls"
    yield (
        finished[0],
        finished[1].parent / tmp_path.name,
        lambda: len(calls.read_text().split()) if calls.is_file() else 0,
    )
    shutil.rmtree(finished[1].parent / tmp_path.name)


def lines(change):
    """Damage to the lines of the ledger."""

    def damage(run):
        path = run / NAME
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return damage


def in_line(index, old, new):
    def change(content):
        assert old in content[index]
        return [*content[:index], content[index].replace(old, new, 1), *content[index + 1 :]]

    return lines(change)


def text(name, old, new):
    """Damage to a text file."""

    def damage(run):
        content = (run / name).read_text()
        assert old in content
        (run / name).write_text(content.replace(old, new, 1))

    return damage


def content(name, change):
    return lambda run: (run / name).write_bytes(change((run / name).read_bytes()))


def gone(name):
    return lambda run: (run / name).unlink()


def in_place_of(name, other):
    return lambda run: shutil.copyfile(run / other, run / name)


def swapped(name, other):
    def damage(run):
        (run / name).rename(run / "kept")
        (run / other).rename(run / name)
        (run / "kept").rename(run / other)

    return damage


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def of_another_run(run):
    """A ledger that is sound in itself."""
    before, content = "", b""
    for line in (run / NAME).read_text().splitlines():
        event = json.loads(line)
        del event["sum"]
        changed, before = to_line(event | ({"wall_s": 7.0} if "wall_s" in event else {}), before)
        content += changed
    (run / NAME).write_bytes(content)


def a_folder(run):
    (run / NAME).unlink()
    (run / NAME).mkdir()


def digit(line):
    """Change a digit of a number in a line."""
    position = line.rindex(b".") + 2
    return line[:position] + (b"1" if line[position : position + 1] != b"1" else b"2") + line[position + 1 :]


def stripped(line):
    event = json.loads(line)
    del event["sum"]
    return json.dumps(event).encode() + b"\n"


LAST_MODEL = gone("round_02/model.uqb")
#: Damage, and what the fault must say.
REFUSED = {
    "ledger removed": (gone(NAME), r"ledger\.jsonl is missing beside round_00, round_01"),
    "ledger emptied": (content(NAME, lambda _: b""), r"ledger\.jsonl is empty beside round_00"),
    "ledger is a folder": (a_folder, r"ledger\.jsonl is missing beside"),
    "ledger of spaces": (content(NAME, lambda data: b" " * len(data)), r"is empty beside"),
    "ledger cut at a line": (lines(lambda all: all[:20]), "20 whole lines of 48 that were written"),
    "first line alone": (lines(lambda all: all[:1]), "1 whole lines of 48"),
    "last line lost": (lines(lambda all: all[:-1]), "47 whole lines of 48"),
    "first line lost": (lines(lambda all: all[1:]), "line 1 does not begin a campaign"),
    "a line lost": (lines(lambda all: all[:7] + all[8:]), "line 8 does not follow the line before it"),
    "lines swapped": (lines(lambda all: [*all[:4], all[5], all[4], *all[6:]]), "line 5 does not follow"),
    "a line twice": (lines(lambda all: all[:6] + all[5:]), "line 7 does not follow"),
    "a line added": (lines(lambda all: [*all, all[5]]), "line 49 does not follow"),
    "a digit of a label": (lines(lambda all: [*all[:5], digit(all[5]), *all[6:]]), "line 6 does not fit"),
    "a digit of a time": (in_line(25, b'"wall_s": ', b'"wall_s": 1'), "line 26 does not fit"),
    "another identity": (in_line(0, b'"seed": 3', b'"seed": 4'), "line 1 does not fit"),
    "a checksum changed": (in_line(3, b'"sum": "', b'"sum": "0'), "line 4 has no checksum"),
    "no checksums": (lines(lambda all: [stripped(line) for line in all]), "no line has a checksum"),
    "another run's ledger": (of_another_run, "its line 48 is not the one that was written"),
    "a line of nonsense": (lines(lambda all: [*all[:3], b"nonsense\n", *all[3:]]), "line 4 is not a ledger event"),
    "a block of zeros": (lines(lambda all: [*all[:3], b"\0" * 512 + b"\n", *all[4:]]), "line 4 is not a ledger event"),
    "a deep line": (lines(lambda all: [*all[:3], b"[" * 9999 + b"\n", *all[3:]]), "line 4 is not a ledger event"),
    "a list": (in_line(2, b'"event": "label"', b'"event": ["label"]'), "line 3 is not a ledger event"),
    "not a number": (in_line(2, b'"energy": ', b'"energy": NaN, "e": '), "line 3 is not a ledger event"),
    "two lines joined": (lines(lambda all: [*all[:3], all[3].rstrip() + all[4], *all[5:]]), "line 4 is not a ledger"),
    "model of another round": (in_place_of("round_01/model.uqb", "round_00/model.uqb"), "it is round_00/model.uqb"),
    "models swapped": (swapped("round_01/model.uqb", "round_00/model.uqb"), r"round_00/model.uqb is not .* round_01"),
    "last model of before": (in_place_of("round_02/model.uqb", "round_01/model.uqb"), "it is round_01/model.uqb"),
    "model flipped": (content("round_02/model.uqb", flipped), "round_02/model.uqb is not what its phase left"),
    "model cut": (content("round_01/model.uqb", lambda data: data[:-9]), "round_01/model.uqb is not what its phase"),
    "model emptied": (content("round_02/model.uqb", lambda _: b""), "round_02/model.uqb is not what"),
    "model removed": (LAST_MODEL, "round_02/model.uqb is gone"),
    "harvest of another round": (
        in_place_of("round_02/harvest.npz", "round_01/harvest.npz"),
        "it is round_01/harvest.npz",
    ),
    "harvest flipped": (content("round_01/harvest.npz", flipped), "round_01/harvest.npz is not what"),
    "harvest removed": (gone("round_02/harvest.npz"), "round_02/harvest.npz is gone"),
    "candidates changed": (text("round_02/harvest.json", "true", "false"), "round_02/harvest.json is not what"),
    "candidates emptied": (content("round_01/harvest.json", lambda _: b""), "round_01/harvest.json is not what"),
    "other observations": (
        in_place_of("round_02/md/observations.npz", "round_01/md/observations.npz"),
        "it is round_01/md/observations.npz",
    ),
    "bias removed": (gone("round_02/md/bias.npz"), "round_02/md/bias.npz is gone"),
    "description changed": (text("round_02/md/run.json", '"pace": 10', '"pace": 11'), "md/run.json is not what"),
    "a digit of the data set": (text("dataset.xyz", "0.1", "0.2"), "dataset.xyz is not what its phase left"),
    "data set cut": (content("dataset.xyz", lambda data: data[: len(data) // 2]), "dataset.xyz is not what"),
    "data set removed": (gone("dataset.xyz"), "dataset.xyz is gone"),
    "training changed": (text("round_01/training.json", '"steps": 12', '"steps": 13'), "training.json is not what"),
    "a round removed": (lambda run: shutil.rmtree(run / "round_01"), "round_01/md/.* is gone"),
}
#: Damage to what a campaign does not read again: `uqbias verify` tells it.
TOLD = {
    "a hill changed": (text("round_01/md/HILLS", "0.3", "0.4"), "round_01/md/HILLS is not what its phase left"),
    "a trajectory removed": (gone("round_02/md/walker_0.xtc"), "walker_0.xtc is gone"),
    "summary changed": (text("summary.json", '"labels": 24', '"labels": 25'), r"summary\.json is not what the ledger"),
    "summary cut": (content("summary.json", lambda data: data[:50]), r"summary\.json is damaged"),
    "another seed": (text("campaign.yaml", "seed: 3", "seed: 4"), r"campaign\.yaml is another campaign .* seed"),
    "a round of elsewhere": (lambda run: shutil.copytree(run / "round_01", run / "round_07"), "round_07 is not in"),
}


def tree(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "ledger.lock"}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_run_is_refused_by_name_and_repaired_without_a_label(copied, name):
    campaign, run, paid = copied
    damage, fault = REFUSED[name]
    damage(run)
    before = tree(run)
    with pytest.raises(UqbiasError, match=fault) as refusal:
        run_campaign(load_campaign(campaign), run)
    assert "uqbias verify RUN --rebuild" in str(refusal.value)
    assert tree(run) == before
    assert any(re.search(fault, line) for line in verify(run).faults)

    if (run / NAME).is_dir():
        (run / NAME).rmdir()
    rebuild(run)
    assert verify(run).faults == []
    assert paid() == 0
    labels = [event for event in map(json.loads, (run / NAME).read_text().splitlines()) if event["event"] == "label"]
    assert len({event["key"] for event in labels}) == LABELS
    for damaged in ("ledger.jsonl", "dataset.xyz"):
        if run / damaged in before:
            assert (run / f"{damaged}.damaged.1").read_bytes() == before[run / damaged]


@pytest.mark.parametrize("name", TOLD)
def test_what_is_not_read_again_is_told(copied, name):
    _, run, _ = copied
    assert verify(run).faults == []
    damage, fault = TOLD[name]
    damage(run)
    faults = verify(run).faults
    assert len(faults) == 1
    assert re.search(fault, faults[0])


@pytest.mark.parametrize(
    "damage",
    [
        [gone(NAME)],
        [LAST_MODEL],
        [gone(NAME), gone("round_02/model.uqb"), gone("summary.json")],
        [lines(lambda all: [*all[:5], digit(all[5]), *all[6:]]), content("round_02/model.uqb", flipped)],
    ],
    ids=["ledger", "last model", "ledger and last model", "a label and last model"],
)
def test_rebuilt_run_goes_on_as_if_nothing_had_been(finished, copied, damage):
    campaign, run, paid = copied
    for one in damage:
        one(run)
    rebuild(run)
    summary = run_campaign(load_campaign(campaign), run)
    assert paid() == 0
    assert summary["stopped"] == "all 2 rounds are done"
    assert verify(run).faults == []
    old, new = (read_frames(folder / "dataset.xyz") for folder in (finished[1], run))
    np.testing.assert_array_equal(old.positions, new.positions)
    np.testing.assert_allclose(old.energies, new.energies, rtol=1e-12)
    np.testing.assert_array_equal(old.forces, new.forces)
    if damage == [LAST_MODEL]:  # every label is known to its last bit
        assert (run / "round_02" / "model.uqb").read_bytes() == (finished[1] / "round_02" / "model.uqb").read_bytes()


def test_labels_in_their_folders_are_kept_to_the_last_bit_and_the_one_lost_is_paid(finished, copied):
    campaign, run, paid = copied
    labels = {(e["round"], e["index"]): e for e in map(json.loads, (run / NAME).read_text().splitlines()) if "key" in e}
    topology, start = Topology.from_pdb(campaign.parent / "structure.pdb"), read_frames(run / "dataset.xyz")
    for name in (NAME, "dataset.xyz", "round_02/model.uqb", "round_02/training.json"):
        (run / name).unlink()
    shutil.rmtree(run / "labels")
    work = rounds.Work(load_campaign(campaign), run, None, topology, start, None)
    oracle = json.dumps([work.oracle.kind, work.oracle.options], sort_keys=True)
    for (index, place), event in labels.items():
        folder = run / "labels" / f"round_{index:02d}" / f"frame_{place:04d}_0"
        folder.mkdir(parents=True)
        facts = {name: event[name] for name in ("positions", "energy", "forces")}
        (folder / "label.json").write_text(json.dumps({"oracle": oracle, **facts}))
    (run / "labels" / "round_00" / "frame_0003_0" / "label.json").write_text('{"oracle": 1}')  # damaged
    rebuild(run)
    run_campaign(load_campaign(campaign), run)
    rebuilt = {
        (e["round"], e["index"]): e for e in map(json.loads, (run / NAME).read_text().splitlines()) if "key" in e
    }
    exact = ("event", "round", "index", "key", "positions", "energy", "forces", "info")
    old, new = ([[one[place][name] for name in exact] for place in sorted(one)] for one in (labels, rebuilt))
    assert old == new
    assert paid() == 1
    assert verify(run).faults == []


def test_of_an_unfinished_round_only_the_damaged_line_is_paid_again(copied):
    campaign, run, paid = copied
    content = (run / NAME).read_bytes().splitlines(keepends=True)
    place = [i for i, line in enumerate(content) if b'"label", "round": 2' in line]
    # Killed after four labels of round 2; then the first lost a line, and the third a digit.
    kept = [*content[: place[0]], content[place[1]], digit(content[place[2]]), content[place[3]]]
    (run / NAME).write_bytes(b"".join(kept))
    for name in ("ledger.head", "dataset.xyz", "summary.json", "round_02/model.uqb", "round_02/training.json"):
        (run / name).unlink()
    assert len(verify(run).faults) == 2
    rebuild(run)
    run_campaign(load_campaign(campaign), run)
    assert paid() == 3  # the one lost, the one changed, and the one that had not been begun
    assert verify(run).faults == []


def test_observations_that_were_harvested_may_be_removed(copied):
    campaign, run, paid = copied
    for index in (1, 2):
        (run / f"round_0{index}" / "md" / "observations.npz").unlink()
    assert run_campaign(load_campaign(campaign), run)["stopped"] == "all 2 rounds are done"
    assert paid() == 0
    content("round_01/md/bias.npz", flipped)(run)
    with pytest.raises(UqbiasError, match=r"md/bias\.npz is not what its phase left"):
        run_campaign(load_campaign(campaign), run)


def test_ledger_of_a_version_without_a_key_that_is_not_stated(copied):
    campaign, run, paid = copied
    events = [json.loads(line) for line in (run / NAME).read_text().splitlines()]
    for key in ("system.charge", "system.energy_key", "system.forces_key", "system.stress_key"):
        del events[0]["identity"][key]
    lines, before = [], ""
    for event in events:
        del event["sum"]
        line, before = to_line(event, before)
        lines.append(line)
    (run / NAME).write_bytes(b"".join(lines))
    (run / "ledger.head").unlink()
    assert run_campaign(load_campaign(campaign), run)["stopped"] == "all 2 rounds are done"
    (run / NAME).write_bytes(b"".join([*lines[:5], digit(lines[5]), *lines[6:]]))
    rebuild(run)
    run_campaign(load_campaign(campaign), run)
    assert paid() == 0
    assert verify(run).faults == []


class Saboteur(SilentProgress):
    """Damages the run when a phase begins, and keeps what is said."""

    def __init__(self, when, damage):
        self.when, self.damage, self.said = when, damage, []

    def phase(self, name, total=None):
        if name == self.when:
            self.damage()

    def message(self, text):
        self.said.append(text)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            in_place_of("round_01/model.uqb", "round_00/model.uqb"),
            "round_01/model.uqb is not what .* round_00/model.uqb",
        ),
        (gone(NAME), "was removed while the campaign runs"),
        (content(NAME, lambda _: b""), "was replaced or changed while the campaign runs"),
        (lambda run: shutil.copy(run / NAME, run / "x") and (run / "x").rename(run / NAME), "was replaced or changed"),
    ],
)
def test_damage_is_seen_while_the_campaign_runs(copied, damage, fault):
    campaign, run, paid = copied
    (run / "round_02" / "model.uqb").unlink()
    rebuild(run)
    with pytest.raises(UqbiasError, match=fault):
        run_campaign(load_campaign(campaign), run, Saboteur("round 2: label", lambda: damage(run)))
    assert paid() == 0
    assert not (run / "round_02" / "model.uqb").exists()


def test_torn_last_line_and_other_versions_are_said_once(copied, monkeypatch):
    campaign, run, paid = copied
    with (run / NAME).open("ab") as stream:
        stream.write(b'{"event": "lab')
    result = verify(run)
    assert result.faults == []
    assert "torn" in result.notes[0]
    monkeypatch.setattr(rounds, "versions", lambda: {"uqbias": "9.0", "torch": "9.1"})
    said = []
    for _ in range(2):
        progress = Saboteur("", None)
        run_campaign(load_campaign(campaign), run, progress)
        said.append(" ".join(progress.said))
    assert "its last line was torn" in said[0]
    assert re.search(r"torch \S+ before, 9\.1 now, uqbias \S+ before, 9\.0 now", said[0])
    assert "torn" not in said[1]
    assert "versions" not in said[1]
    assert paid() == 0
    assert verify(run).faults == []


def test_no_run_is_no_proof(tmp_path):
    with pytest.raises(UqbiasError, match="no such run directory"):
        verify(tmp_path / "none")
    with pytest.raises(UqbiasError, match="holds no run"):
        verify(tmp_path)
    with pytest.raises(UqbiasError, match=r"no such campaign file: .*campaign\.yaml"):
        rebuild(tmp_path)
