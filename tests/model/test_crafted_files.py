"""Model files that somebody made by hand, with the right hash: one line each, and no memory, import or call."""

import json
import resource
import struct

import pytest
import torch
from file_readers import GONE, put, write_seeds
from safetensors.torch import load, save

from uqbias.errors import UqbiasError
from uqbias.model.manifest import digest
from uqbias.model.model import UncertaintyModel

LATENTS = "judge.options.features"
#: Dotted key of the manifest, what stands there instead, part of the message.
MANIFESTS = [
    *((key, GONE, f"{key}: field required") for key in ("topology", "potential", "judge", "calibration", "dtype")),
    *((key, GONE, f"{key}: field required") for key in ("units", "provenance", "versions", "atomic_numbers", "driver")),
    *((key, value, f"{key} = ") for key in ("topology", "potential", "calibration") for value in (None, [], "x")),
    *(("judge", value, "judge = ") for value in (None, [], "x")),
    *((key, 3, f"{key} = 3") for key in ("units", "provenance", "versions", "driver", "atomic_numbers")),
    ("format", "other", "without a uqbias manifest"),
    ("format_version", None, "format version None"),
    ("format_version", "3", "format version '3'"),
    ("format_version", 10**40, "upgrade uqbias"),
    ("dtype", "float128", "dtype = 'float128'"),
    ("dtype", "int8", "dtype = 'int8'"),
    ("dtype", ["float32"], "dtype = ['float32']"),
    ("atomic_numbers", [1, 8, 8, 119], "atomic_numbers.3 = 119"),
    ("atomic_numbers", [1, 8, 8, 6], "different molecules"),
    ("topology.numbers", {"a": 1}, "topology.numbers = {'a': 1}"),
    ("topology.numbers", [1, 8, 8, 0], "topology.numbers.3 = 0"),
    ("topology.numbers", [6, 8, 8, 1], "different molecules"),
    ("topology.numbers", [1] * 5, "5 atoms"),
    ("topology.bonds", [["a", 1]], "topology.bonds.0.0 = 'a'"),
    ("topology.bonds", [[0, 99]], "bond (0, 99)"),
    ("topology.bonds", [[0, 1, 2]], "topology.bonds.0 = [0, 1, 2]"),
    ("topology.names", ["H", "O", 2**63, "H"], "topology.names.2 = 9223372036854775808"),
    ("topology.names", ["H"], "1 names for 4 atoms"),
    ("potential.kind", None, "potential.kind = None"),
    ("potential.kind", 7, "potential.kind = 7"),
    ("potential.kind", "power", "unknown potential 'power'"),
    ("potential.kind", "evil_module_of_a_test:X", "is an import path"),
    ("potential.kind", "os:system", "is an import path"),
    ("potential.options", [], "potential.options = []"),
    ("potential.options.zzz", 1, "zzz"),
    ("potential.options.n_members", 10**9, "more members than bytes"),
    ("potential.options.n_members", "many", "n_members"),
    ("potential.options.n_members", 0, "n_members"),
    ("potential.options.n_members", 2, "tensors do not match"),
    ("potential.options.hidden", [8, 10_000_000], "numbers in a file of"),
    ("potential.options.hidden", [], "hidden"),
    ("potential.options.hidden", "wide", "hidden"),
    ("potential.options.hidden", [-1], "hidden"),
    ("potential.options.n_channels", 100_000, "numbers in a file of"),
    ("potential.options.n_channels", 1.5, "n_channels"),
    ("potential.options.n_radial", 10**12, "numbers in a file of"),
    ("potential.options.seed", "x", "seed"),
    ("potential.options.seed", 2**70, "does not describe a model"),
    ("potential.options.cutoff", float("nan"), "cutoff"),
    ("potential.options.l_max", 50, "l_max"),
    ("potential.options.numbers", GONE, "numbers"),
    ("potential.options.numbers", [1] * 20_000, "numbers in a file of"),
    ("judge.kind", "committee", "does not describe a model"),
    ("judge.kind", "os:system", "is an import path"),
    ("judge.options.n_components", 10**9, "numbers in a file of"),
    ("judge.options.whitening", "bleach", "whitening"),
    ("judge.options.elements", ["H"], "does not describe a model"),
    ("judge.options.aggregation.kind", "median", "with kind 'median'"),
    ("judge.options.aggregation.n_inputs", 10**9, "numbers in a file of"),
    ("judge.options.aggregation.n_inputs", 5, "shapes"),
    ("judge.options.aggregation.groups", [[99]], "does not describe a model"),
    ("judge.options.aggregation.groups", [[]], "does not describe a model"),
    (f"{LATENTS}.kind", "evil_module_of_a_test:f", "is an import path"),
    (f"{LATENTS}.options", {"dim": 4}, "does not describe a model"),
    (f"{LATENTS}.options.atoms", [0, 1, 2, 99], "does not describe a model"),
    (f"{LATENTS}.options.n_latents", 10**9, "numbers in a file of"),
    (f"{LATENTS}.options.member", 3, "features of member 3"),
    ("driver.options.capacity", 10**10, "numbers in a file of"),
    ("driver.options.features.options.dihedrals", [[0, 1, 2, 9]], "does not describe a model"),
    ("driver.options.features.options.n_atoms", 10**9, "numbers in a file of"),
    ("calibration.kind", "psychic", "psychic"),
    ("calibration.alpha", "x", "calibration.alpha = 'x'"),
    ("calibration.frames", -1, "calibration.frames = -1"),
    ("calibration.atom_quantiles", {"x": 1.0}, "does not describe a model"),
    ("versions", {"torch": 2}, "versions.torch = 2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder / "model" / "model.uqb"


def parts(path):
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["manifest"]), load(content)


def write(path, manifest, tensors):
    manifest.pop("sha256", None)
    manifest["sha256"] = digest(manifest, tensors)
    path.write_bytes(save(tensors, metadata={"manifest": json.dumps(manifest)}))


def refused(path):
    """What is said of a file, in one line and at the price of a sound one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UqbiasError) as caught:
        UncertaintyModel.load(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable() or "state_dict" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "fault"), MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_manifest_that_somebody_wrote(model, tmp_path, key, value, fault):
    _, manifest, tensors = parts(model)
    put(manifest, key, value)
    write(tmp_path / "model.uqb", manifest, tensors)
    assert fault in refused(tmp_path / "model.uqb")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors: tensors.pop("record.seen"), "record.seen"),
        (lambda tensors: tensors.update({"record.seen": torch.zeros(2, 6)}), "a record of frames"),
        (lambda tensors: tensors.update({"record.calibrated": torch.zeros(6).double()}), "a record of frames"),
        (lambda tensors: tensors.pop("potential.mixing"), "tensors do not match"),
        (lambda tensors: tensors.update({"potential.mixing": torch.zeros(3)}), "tensors do not match"),
        (lambda tensors: tensors.update({"more": torch.zeros(3)}), "tensors do not match"),
    ],
)
def test_other_tensors(model, tmp_path, change, fault):
    _, manifest, tensors = parts(model)
    change(tensors)
    write(tmp_path / "model.uqb", manifest, tensors)
    assert fault in refused(tmp_path / "model.uqb")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda head, rest: b"", "not a whole model file"),
        (lambda head, rest: struct.pack("<Q", 2**62) + head + rest, "not a whole model file"),
        (lambda head, rest: struct.pack("<Q", len(head)) + head + rest[:-1], "not a whole model file"),
        (lambda head, rest: struct.pack("<Q", len(head)) + head + rest + b"x", "not a whole model file"),
        (lambda head, rest: _with(head, rest, b'"shape":[]', b'"shape":[99999999999]'), "not a whole model file"),
        (lambda head, rest: _with(head, rest, b'"dtype":"F32"', b'"dtype":"F99"'), "not a whole model file"),
        (lambda head, rest: save({}, {"manifest": "[" * 100_000}), "not whole JSON"),
        (lambda head, rest: save({}, {"manifest": '{"format": "uqbias", "format_version": 3}'}), "field required"),
        (lambda head, rest: save({}, {"manifest": "[]"}), "without a uqbias manifest"),
        (lambda head, rest: save({}, {"manifest": '"\ud83d"'.encode("utf-8", "replace").decode()}), "without a uqbias"),
        (lambda head, rest: save({}), "without a uqbias manifest"),
    ],
)
def test_other_bytes(model, tmp_path, make, fault):
    content = model.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    path = tmp_path / "model.uqb"
    path.write_bytes(make(content[8 : 8 + size], content[8 + size :]))
    assert fault in refused(path)


def _with(head, rest, old, new):
    head = head.replace(old, new, 1)
    return struct.pack("<Q", len(head)) + head + rest


def test_nothing_is_imported_unless_the_user_answers_for_it(model, tmp_path, monkeypatch):
    (tmp_path / "evil_module_of_a_test.py").write_text(
        "from pathlib import Path\nfrom uqbias.potentials.power_spectrum import PowerSpectrum\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\nclass X(PowerSpectrum):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    _, manifest, tensors = parts(model)
    manifest["potential"]["kind"] = "evil_module_of_a_test:X"
    path = tmp_path / "model.uqb"
    write(path, manifest, tensors)
    assert "give --trust" in refused(path)
    assert not (tmp_path / "ran").exists()
    loaded = UncertaintyModel.load(path, trust=True)
    assert type(loaded.potential).__name__ == "X"
    # Once the user has named it, other files may name it too.
    assert type(UncertaintyModel.load(path).potential).__name__ == "X"
