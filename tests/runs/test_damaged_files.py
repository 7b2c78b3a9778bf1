"""Files of a run that were damaged: one line with the file and what is wrong, whoever reads it."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from file_readers import GONE, READERS, put, write_seeds

from uqbias.errors import UqbiasError
from uqbias.runs.series import last_time


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def refused(reader, folder, file):
    with pytest.raises(UqbiasError) as caught:
        READERS[reader](folder)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert message.isprintable()
    assert len(message) < 1000
    return message


def copied(seeds, reader, tmp_path):
    return shutil.copytree(seeds / reader, tmp_path / reader)


#: Reader, file, dotted key of its JSON (of a ledger: number of the line first), what stands there, part of the message.
JSON = [
    ("ledger", "ledger.jsonl", "0.identity", None, "line 1 is not a ledger event: identity = None"),
    ("ledger", "ledger.jsonl", "0.event", "phase", "line 1 is not a ledger event: round: field required"),
    ("ledger", "ledger.jsonl", "1.event", ["a"], "line 2 is not a ledger event: event = ['a']"),
    ("ledger", "ledger.jsonl", "1.event", GONE, "event: field required"),
    ("ledger", "ledger.jsonl", "1", [], "line 2 is not a ledger event: content = []"),
    ("ledger", "ledger.jsonl", "1", None, "line 2"),
    ("ledger", "ledger.jsonl", "1.info", "a", "info = 'a'"),
    ("ledger", "ledger.jsonl", "1.info", GONE, "info: field required"),
    ("ledger", "ledger.jsonl", "1.round", "0", "round = '0'"),
    ("ledger", "ledger.jsonl", "1.round", -1, "round = -1"),
    ("ledger", "ledger.jsonl", "1.index", 0.5, "index = 0.5"),
    ("ledger", "ledger.jsonl", "1.energy", float("nan"), "energy = nan"),
    ("ledger", "ledger.jsonl", "1.energy", None, "energy = None"),
    ("ledger", "ledger.jsonl", "1.positions", [[0.0, 0.0, 0.0]], "a label of another molecule"),
    ("ledger", "ledger.jsonl", "1.positions.2", [0.0], "positions.2 = [0.0]"),
    ("ledger", "ledger.jsonl", "1.forces.0.0", "x", "forces.0.0 = 'x'"),
    ("ledger", "ledger.jsonl", "1.forces", {}, "forces = {}"),
    ("ledger", "ledger.jsonl", "1.key", 5, "key = 5"),
    ("ledger", "ledger.jsonl", "4.reason", ["\x1b[31m"], "reason = ['\\x1b[31m']"),
    ("ledger", "ledger.jsonl", "5.wall_s", "long", "wall_s = 'long'"),
    ("ledger", "ledger.jsonl", "5.phase", None, "phase = None"),
    ("ledger", "ledger.jsonl", "5.proposed", "many", "proposed = 'many'"),
    ("harvest", "harvest.json", "", [], "content = []"),
    ("harvest", "harvest.json", "candidates", GONE, "candidates: field required"),
    ("harvest", "harvest.json", "candidates", "x", "candidates = 'x'"),
    ("harvest", "harvest.json", "candidates.0", 1, "candidates.0 = 1"),
    ("harvest", "harvest.json", "candidates.0.energy", "low", "candidates.0.energy = 'low'"),
    ("run", "run.json", "", "run", "does not describe a run: content = 'run'"),
    ("run", "run.json", "temperature", "warm", "temperature = 'warm'"),
    ("run", "run.json", "temperature", float("inf"), "temperature = inf"),
    ("run", "run.json", "topology.numbers", [1, 1, 1], "2 names for 3 atoms"),
    ("run", "run.json", "topology.numbers.0", 500, "topology.numbers.0 = 500"),
    ("run", "run.json", "topology.bonds", [[0, 7]], "bond (0, 7)"),
    ("run", "run.json", "biases", {}, "biases = {}"),
    ("run", "run.json", "biases.0.kind", "os:system", "is an import path"),
    ("run", "run.json", "biases.0.sigma", -1.0, "sigma"),
    ("run", "run.json", "biases.0.variables", ["y", "z"], "continue with the same variables"),
    ("run", "run.json", "variables.x", {"kind": "distance"}, "variables.x.options: field required"),
    ("run", "run.json", "variables.x.period", "long", "variables.x.period = 'long'"),
    ("run", "run.json", "version", 9, "is of format uqbias-run 9"),
    ("run", "run.json", "format", None, "is of format None"),
    ("snapshot", "snapshot.npz", "atomic_numbers", "H", "atomic_numbers = 'H'"),
    ("snapshot", "snapshot.npz", "bias", 3, "bias = 3"),
    ("snapshot", "snapshot.npz", "bias_options", [1], "bias_options.0 = 1"),
    ("snapshot", "snapshot.npz", "own", {}, "own.step: field required"),
    ("snapshot", "snapshot.npz", "own.step", -5, "own.step = -5"),
    ("snapshot", "snapshot.npz", "version", "new", "version = 'new'"),
    ("snapshot", "snapshot.npz", "format", "other", "not a snapshot of uqbias"),
]


@pytest.mark.parametrize(("reader", "name", "key", "entry", "fault"), JSON, ids=range(len(JSON)))
def test_json_that_says_other_things(seeds, tmp_path, reader, name, key, entry, fault):
    folder = copied(seeds, reader, tmp_path)
    file = folder / name
    if name.endswith(".jsonl"):
        lines = put([json.loads(line) for line in file.read_text().splitlines()], key, entry)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif name.endswith(".npz"):
        arrays = dict(np.load(file))
        arrays["manifest"] = np.array(json.dumps(put(json.loads(str(arrays["manifest"])), key, entry)))
        np.savez(file, **arrays)
    else:
        file.write_text(json.dumps(put(json.loads(file.read_text()), key, entry)))
    if key == "biases.0.variables":  # which its checkpoint does not fit
        file = folder / "bias.npz"
    assert fault in refused(reader, folder, file)


#: Reader, file, array, what stands in its place, part of the message.
ARRAYS = [
    ("harvest", "harvest.npz", "positions", GONE, "KeyError('positions')"),
    ("harvest", "harvest.npz", "positions", np.zeros((2, 4)), "(2, 4) positions of 2 candidates"),
    ("harvest", "harvest.npz", "positions", np.full((2, 4, 3), np.nan), "positions of 2 candidates"),
    ("harvest", "harvest.npz", "candidate", np.array([0, 7]), "of 2 candidates"),
    ("harvest", "harvest.npz", "candidate", np.array([0, -1]), "of 2 candidates"),
    ("harvest", "harvest.npz", "candidate", np.array(["a", "b"]), "of 2 candidates"),
    ("observations", "md/observations.npz", "step", GONE, "has no step"),
    ("observations", "md/observations.npz", "driver", np.zeros(3), "'driver' is of shape (3,)"),
    ("observations", "md/observations.npz", "energy", np.zeros((3, 5)), "'energy' is of shape (3, 5)"),
    ("observations", "md/observations.npz", "positions", np.zeros((3, 2, 5, 3)), "'positions' is of shape"),
    ("observations", "md/observations.npz", "source", np.zeros(1), "'source' is of shape (1,)"),
    ("run", "observations.npz", "bias", GONE, "has no bias"),
    ("run", "observations.npz", "step", np.array(["x"] * 5), "'step' is of shape (5,)"),
    ("run", "observations.npz", "bias", np.zeros((5, 2), complex), "holds complex128"),
    ("run", "observations.npz", "variable_names", np.array(["x", "y"]), "'variables' is of shape"),
    ("run", "observations.npz", "variable_names", np.array("x"), "'variables' is of shape"),
    ("run", "bias.npz", "5.origin", np.zeros(1), "'5.origin' for 2 bias(es)"),
    ("snapshot", "snapshot.npz", "manifest", GONE, "manifest: not whole JSON"),
    ("snapshot", "snapshot.npz", "manifest", np.array("[" * 1000), "manifest: not whole JSON"),
    ("snapshot", "snapshot.npz", "box", np.zeros(3), "without box"),
    ("snapshot", "snapshot.npz", "velocities", np.array([["a"] * 3] * 4), "without velocities"),
    ("snapshot", "snapshot.npz", "positions", np.zeros((3, 3)), "3 particles"),
    ("snapshot", "snapshot.npz", "positions", np.zeros((4, 3), "M8[s]"), "holds datetime64"),
]


@pytest.mark.parametrize(("reader", "name", "array", "entry", "fault"), ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_of_other_kinds(seeds, tmp_path, reader, name, array, entry, fault):
    folder = copied(seeds, reader, tmp_path)
    file = folder / name
    arrays = {**np.load(file), array: entry}
    np.savez(file, **{name: held for name, held in arrays.items() if held is not GONE})
    assert fault in refused(reader, folder, file)


@pytest.mark.parametrize("reader", ["harvest", "run", "snapshot", "observations"])
@pytest.mark.parametrize("claim", [b"(99999999999,)", b"(2**30, 2**30)", b"(-1,)", b"(7,)"])
def test_headers_that_claim_more_than_there_is(seeds, tmp_path, reader, claim):
    folder = copied(seeds, reader, tmp_path)
    file = next(folder.rglob("*.npz"))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, shape = next((name, str(array.shape).encode()) for name, array in np.load(file).items() if array.ndim)
    grown = len(claim) - len(shape)
    data = members[f"{name}.npy"].replace(shape, claim if grown > 0 else claim.ljust(len(shape)), 1)
    members[f"{name}.npy"] = data.replace(b" " * max(grown, 0) + b"\n", b"\n", 1)
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    refused(reader, folder, file)


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(seeds, tmp_path):
    folder = copied(seeds, "harvest", tmp_path)
    file = folder / "harvest.npz"
    np.savez_compressed(file, positions=np.zeros(200_000_000, np.uint8), candidate=np.zeros(2, int))
    assert file.stat().st_size < 300_000
    assert "it would unpack to 200000" in refused("harvest", folder, file)


@pytest.mark.parametrize(
    ("reader", "text", "fault"),
    [
        ("hills", "", "no '#! FIELDS' line"),
        ("hills", "#! FIELDS time driver\n1 2\n", "fields time driver"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1 2 0.1 1 x\n", "line 2: could not convert"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1 2 0.1 nan 1\n", "line 2: a hill with a number"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1 2 0.1 1e999 1\n", "line 2: a hill with a number"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1 2 -0.1 1 1\n", "line 2: a hill with a number"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1e300 2 0.1 1 1\n", "line 2: a hill with a number"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf\n1 2\n", "2 numbers for 5 fields"),
        ("colvar", "1 2 3\n", "line 1: 3 numbers for 0 fields"),
        ("colvar", "#! FIELDS time\n1\n#! FIELDS x\n", "line 3: other fields than before"),
        ("colvar", "#! FIELDS time driver\n1 \x1b[31m\n", "line 2: could not convert"),
        ("colvar", b"#! FIELDS time\n\xff\xfe\n", "is not a text file"),
    ],
)
def test_tables(seeds, tmp_path, reader, text, fault):
    folder = copied(seeds, reader, tmp_path)
    file = folder / reader.upper()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert fault in refused(reader, folder, file)


@pytest.mark.parametrize("word", ["abc", "nan"])
def test_a_last_row_without_a_time(tmp_path, word):
    path = tmp_path / "COLVAR"
    path.write_text(f"#! FIELDS time d\n1 2\n{word} 1\n\n# end\n3")
    with pytest.raises(UqbiasError, match=f"COLVAR, line 3: b'{word}' is not a time"):
        last_time(path)
