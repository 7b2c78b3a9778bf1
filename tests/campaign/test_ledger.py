import errno
import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from counting_oracle import CountingOracle, calls

from uqbias.campaign import labelling
from uqbias.campaign.executors.local import Local
from uqbias.campaign.label_requests import LabelRequest, label_key
from uqbias.campaign.labelling import OracleSpec, label_all
from uqbias.campaign.ledger import NAME, open_ledger
from uqbias.errors import UqbiasError
from uqbias.registry import EXECUTORS
from uqbias.runs.ledger_lines import HEAD

NUMBERS = np.array([1, 1])
IDENTITY = {"seed": 0, "md.walkers": 8}


def opened(folder, identity=IDENTITY):
    return open_ledger(folder, identity, NUMBERS, {"seed": 0})


def add(ledger, index, round_index=0):
    positions = np.random.default_rng([round_index, index]).normal(size=(2, 3))
    key = label_key(positions, "oracle")
    values = {"positions": positions, "energy": np.float64(1 / 3 + index), "forces": positions / 7, "info": {}}
    ledger.append("label", round=round_index, index=index, key=key, **values)
    return key, positions


def test_labels_come_back_exactly_and_in_order(tmp_path):
    with opened(tmp_path) as ledger:
        keys = {(r, i): add(ledger, i, r) for r, i in [(1, 0), (0, 2), (0, 0), (0, 1)]}
        ledger.append("phase", round=0, phase="label", wall_s=1.0)
    with opened(tmp_path) as ledger:
        frames = ledger.labels()
        assert [(info["round"], info["index"]) for info in frames.info] == [(0, 0), (0, 1), (0, 2), (1, 0)]
        np.testing.assert_array_equal(frames.positions[3], keys[1, 0][1])
        np.testing.assert_array_equal(frames.forces[3], keys[1, 0][1] / 7)
        assert frames.energies[2] == 1 / 3 + 2
        assert len(ledger.labels(0)) == 3
        assert ledger.has_label(keys[0, 2][0])
        assert ledger.phase_done(0, "label")
        assert not ledger.phase_done(0, "train")


def test_torn_last_line_never_happened_wherever_it_was_cut(tmp_path):
    with opened(tmp_path) as ledger:
        kept, _ = add(ledger, 0)
        before, head = (tmp_path / NAME).stat().st_size, (tmp_path / HEAD).read_bytes()
        add(ledger, 1)
    whole, paid = (tmp_path / NAME).read_bytes(), (tmp_path / HEAD).read_bytes()
    for cut in (before + 1, (before + len(whole)) // 2, len(whole) - 1):
        (tmp_path / NAME).write_bytes(whole[:cut])
        # The head is written when the line is on the disk: with the new one a label was cut off that was paid.
        (tmp_path / HEAD).write_bytes(paid)
        if cut < len(whole) - 1:
            with pytest.raises(UqbiasError, match="it has 2 whole lines of 3 that were written"):
                opened(tmp_path)
        else:
            with opened(tmp_path) as ledger:
                assert len(ledger.labels()) == 2
            assert (tmp_path / NAME).read_bytes() == whole
            (tmp_path / NAME).write_bytes(whole[:cut])
        (tmp_path / HEAD).write_bytes(head)
        with opened(tmp_path) as ledger:
            assert len(ledger.labels()) == 1
            assert ledger.has_label(kept)
            add(ledger, 5)
        with opened(tmp_path) as ledger:
            assert len(ledger.labels()) == 2


@pytest.mark.parametrize("line", ["nonsense", '{"event": "label", "round": 0}', "[1]"])
def test_any_other_damage_is_refused_with_its_line(tmp_path, line):
    with opened(tmp_path) as ledger:
        add(ledger, 0)
    path = tmp_path / NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[1]]) + "\n")
    with pytest.raises(UqbiasError, match="line 2 is not a ledger event"):
        opened(tmp_path)
    path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(UqbiasError, match="line 1 does not begin a campaign"):
        opened(tmp_path)


def test_directory_of_another_campaign_is_refused_and_left_as_it_is(tmp_path):
    opened(tmp_path).close()
    content = (tmp_path / NAME).read_bytes()
    with pytest.raises(UqbiasError, match=r"md\.walkers \(8 there, 4 here\)"):
        opened(tmp_path, {"seed": 0, "md.walkers": 4})
    with pytest.raises(UqbiasError, match="new"):
        opened(tmp_path, {**IDENTITY, "new.key": 1})
    assert (tmp_path / NAME).read_bytes() == content
    # A version before this did not have the key.
    opened(tmp_path, {**IDENTITY, "new.key": None}).close()


def test_second_process_is_refused_until_the_first_is_killed(tmp_path):
    code = (
        "import sys, numpy as np\nfrom uqbias.campaign.ledger import open_ledger\n"
        f"ledger = open_ledger(sys.argv[1], {IDENTITY!r}, np.array([1, 1]), {{'seed': 0}})\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UqbiasError, match=f"in use by the process with pid {other.pid}"):
            opened(tmp_path)
        other.kill()
        other.wait()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ENOLCK, "lies on a drive that does not support file locks"),
        (errno.EOPNOTSUPP, "lies on a drive that does not support file locks"),
        (errno.ENOSYS, "lies on a drive that does not support file locks"),
        (errno.EAGAIN, "is in use by the process with pid"),
    ],
)
def test_drive_without_locks_is_named_by_what_it_is(tmp_path, monkeypatch, code, fault):
    def no_lock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with pytest.raises(UqbiasError, match=fault):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.lock"]


def test_half_of_a_line_is_taken_back_when_the_disk_is_full(tmp_path, monkeypatch):
    whole = os.pwrite

    def full(descriptor, data, offset):
        if len(data) > 100:
            return whole(descriptor, data[:100], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as ledger:
        add(ledger, 0)
        before = (tmp_path / NAME).read_bytes()
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            add(ledger, 1)
        monkeypatch.undo()
        assert (tmp_path / NAME).read_bytes() == before
        add(ledger, 2)
    with opened(tmp_path) as ledger:
        assert len(ledger.labels()) == 2


@pytest.mark.parametrize("left", ["round_00/model.uqb", "dataset.xyz", "summary.json"])
@pytest.mark.parametrize("content", [None, b"", b'{"event": "camp'])
def test_no_campaign_begins_over_what_another_left(tmp_path, left, content):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    with pytest.raises(UqbiasError, match=rf"ledger\.jsonl is \w+ beside {left.split('/')[0]}"):
        opened(tmp_path)
    assert (tmp_path / NAME).exists() == (content is not None)


def test_nothing_is_paid_once_the_ledger_is_gone(tmp_path, oracle):
    with opened(tmp_path) as ledger, Local() as executor:
        tell = lambda _count, _note: (tmp_path / NAME).unlink(missing_ok=True) if calls() else None  # noqa: E731
        with pytest.raises(UqbiasError, match="was removed while the campaign runs"):
            label_all(executor, oracle, requests([0, 1, 2]), ledger, 0, in_flight=1, progress=tell)
    assert calls() == [0]


def test_an_event_is_on_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with opened(tmp_path) as ledger:
        add(ledger, 0)
        assert synced[-1] == (tmp_path / NAME).stat().st_size
    with pytest.raises(UqbiasError, match="closed"):
        ledger.append("phase", round=0, phase="md", wall_s=0.0)


def test_not_a_number_is_not_written(tmp_path):
    with opened(tmp_path) as ledger, pytest.raises(ValueError, match="not JSON compliant"):
        ledger.append("phase", round=0, phase="md", wall_s=float("nan"))
    with opened(tmp_path) as ledger:
        assert not ledger.phase_done(0, "md")


@pytest.fixture
def oracle(monkeypatch, tmp_path):
    monkeypatch.setenv("COUNTING_CALLS", str(tmp_path / "calls"))
    return OracleSpec(CountingOracle.kind, {"scale": 2.0}, folder=tmp_path / "labels")


def requests(values):
    frames = [np.full((2, 3), float(value)) for value in values]
    return [LabelRequest(i, label_key(x, "counting"), x, {"reason": "test"}) for i, x in enumerate(frames)]


@pytest.mark.parametrize("kind", ["local", "process"])
def test_labels_are_paid_once_and_failures_are_skipped(tmp_path, oracle, kind):
    ticks = []
    with opened(tmp_path) as ledger, EXECUTORS.build(kind) as executor:
        wanted = requests([0, 1, 9, 2, 1])  # one fails, one is there twice
        assert label_all(executor, oracle, wanted[:2], ledger, 1) == 0
        assert label_all(executor, oracle, wanted, ledger, 1, progress=lambda n, note: ticks.append((n, note))) == 1
        assert calls() == [0, 1, 2, 9]
        assert calls("finished") == [0, 1, 2]
        assert sum(n for n, _ in ticks) == 5
        assert any("no convergence" in note for _, note in ticks)
        assert len(ledger.labels()) == 3
        assert ledger.labels().energies[2] == 2.0 * 2 * 6
        assert label_all(executor, oracle, wanted, ledger, 1) == 0
        assert len(calls()) == 4


def test_each_label_is_kept_when_a_later_one_breaks_everything(tmp_path, oracle, monkeypatch):
    original = labelling.label_one

    def broken(spec, positions, cell):
        if positions[0, 0] == 2:
            raise MemoryError("gone")
        return original(spec, positions, cell)

    monkeypatch.setattr(labelling, "label_one", broken)
    with opened(tmp_path) as ledger, pytest.raises(MemoryError), Local() as executor:
        label_all(executor, oracle, requests([0, 1, 2]), ledger, 0, in_flight=1)
    with opened(tmp_path) as ledger:
        assert len(ledger.labels()) == 2


def test_ledger_lines_are_json_objects(tmp_path):
    with opened(tmp_path) as ledger:
        add(ledger, 0)
    events = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [event["event"] for event in events] == ["campaign", "label"]
