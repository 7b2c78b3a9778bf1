"""The model file: round trip, manifest, refusal of damaged and edited files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from uqbias.errors import UqbiasError
from uqbias.model.manifest import digest, read_file, read_manifest
from uqbias.model.model import UncertaintyModel


@pytest.fixture
def saved(alanine_model, tmp_path):
    path = tmp_path / "model.uqb"
    alanine_model.save(path)
    return path


def test_round_trip_is_bit_identical(alanine_model, alanine_frames, saved):
    positions = torch.tensor(alanine_frames.positions[:5])
    loaded = UncertaintyModel.load(saved)
    for ours, theirs in zip(alanine_model(positions), loaded(positions), strict=True):
        assert torch.equal(ours, theirs)


def test_saving_twice_gives_the_same_content(alanine_model, saved, tmp_path):
    again = tmp_path / "again.uqb"
    alanine_model.save(again)
    assert read_manifest(again)["sha256"] == read_manifest(saved)["sha256"]


def test_manifest_says_what_the_numbers_mean(saved, alanine_frames):
    manifest = read_manifest(saved)
    assert manifest["atomic_numbers"] == alanine_frames.numbers.tolist()
    assert manifest["units"]["energy"] == "kJ/mol"
    assert {"potential", "judge", "driver", "topology", "provenance", "versions"} <= set(manifest)


def test_no_pickle_inside(saved):
    content = saved.read_bytes()
    assert not content.startswith(b"PK")  # a zip archive, which torch.save writes
    assert b"torch._utils" not in content


def test_driver_that_is_the_judge_is_stored_once(alanine_model, alanine_frames, tmp_path):
    single = UncertaintyModel(alanine_model.potential, alanine_model.judge, alanine_model.topology)
    single.save(tmp_path / "single.uqb")
    loaded = UncertaintyModel.load(tmp_path / "single.uqb")
    assert loaded.driver is loaded.judge
    positions = torch.tensor(alanine_frames.positions[:3])
    assert torch.equal(loaded(positions).driver, single(positions).driver)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_file_cut_short_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UqbiasError, match="not a whole model file"):
        UncertaintyModel.load(saved)


def test_an_edited_tensor_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(UqbiasError, match="changed after it was written"):
        UncertaintyModel.load(saved)


def test_an_edited_manifest_is_refused(saved):
    content = saved.read_bytes()
    assert content.count(b'"force": "kJ/mol/nm"') + content.count(b'\\"force\\": \\"kJ/mol/nm\\"') == 1
    saved.write_bytes(content.replace(b"kJ/mol/nm", b"eV/angstr"))
    with pytest.raises(UqbiasError, match="changed after it was written"):
        UncertaintyModel.load(saved)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UqbiasError, match="no such model file"):
        UncertaintyModel.load(tmp_path / "none.uqb")
    foreign = tmp_path / "foreign.uqb"
    foreign.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UqbiasError, match="not a whole model file"):
        UncertaintyModel.load(foreign)


@pytest.mark.parametrize("part", ["potential", "judge"])
def test_a_file_cannot_name_a_function_to_be_called(saved, part, tmp_path):
    manifest, tensors = read_file(saved)
    mark = tmp_path / "executed"
    manifest[part] = {"kind": "subprocess:getoutput", "options": {"cmd": f"touch {mark}"}}
    del manifest["sha256"]
    manifest["sha256"] = digest(manifest, tensors)
    save_file(tensors, saved, metadata={"manifest": json.dumps(manifest)})
    with pytest.raises(UqbiasError, match="'subprocess:getoutput' is an import path"):
        UncertaintyModel.load(saved)
    with pytest.raises(UqbiasError, match="'subprocess:getoutput' is not a"):
        UncertaintyModel.load(saved, trust=True)
    assert not mark.exists()


def test_a_file_of_another_format_is_refused(saved):
    manifest, tensors = read_file(saved)
    del manifest["sha256"]
    for version, cure in ((2, "'cv' and 'uncertainty' is now 'driver' and 'judge'"), (99, "upgrade uqbias")):
        manifest["format_version"] = version
        save_file(tensors, saved, metadata={"manifest": json.dumps(manifest)})
        with pytest.raises(UqbiasError, match=f"format version {version}.*{cure}"):
            UncertaintyModel.load(saved)
