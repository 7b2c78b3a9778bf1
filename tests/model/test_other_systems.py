"""A model of one system evaluates others of the same elements, and its file knows which it was trained on."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uqbias.errors import UqbiasError
from uqbias.model.manifest import digest, read_manifest
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.topology import Topology
from uqbias.testing import build_case, check_systems, molecule


@pytest.fixture(scope="module")
def case():
    return build_case("llpr", steps=2)


def test_values_of_other_systems(case):
    print(check_systems(case))


def test_other_elements_and_kinds_of_one_molecule_are_refused(case):
    with pytest.raises(UqbiasError, match="elements \\[1, 6, 8\\], atoms of element 7"):
        case.model.with_topology(Topology((7, 1), ((0, 1),)))
    whole = build_case("kernel_density", steps=1).model
    with pytest.raises(UqbiasError, match="'kernel_density' is of one molecule; choose committee, gmm"):
        whole.with_topology(molecule.topology())


def test_energies_of_elements_and_systems_are_in_the_file(case, tmp_path):
    water = Topology((8, 1, 1), ((0, 1), (0, 2)), ("O", "H1", "H2"))
    model = case.model.with_topology(molecule.topology())
    model.potential.element_energies = {1: -1300.25, 6: -1e5, 8: -197_000.0}
    model.systems = {"ether": model.topology, "water": water}
    shift = float(model.potential.energy_shift)
    counts = {z: water.numbers.count(z) - molecule.NUMBERS.count(z) for z in (1, 6, 8)}
    expected = shift - 1300.25 * counts[1] - 1e5 * counts[6] - 197_000.0 * counts[8]
    model.save(tmp_path / "model.uqb")
    loaded = UncertaintyModel.load(tmp_path / "model.uqb")
    assert loaded.systems == model.systems
    for one in (model, loaded):
        assert float(one.with_topology(water).potential.energy_shift) == pytest.approx(expected, abs=1e-9)
    assert read_manifest(tmp_path / "model.uqb")["elements"] == [1, 6, 8]
    again = loaded.with_topology(water).with_topology(molecule.topology())
    assert float(again.potential.energy_shift) == pytest.approx(shift, abs=1e-9)


def test_files_of_before_there_were_systems_are_read(case, tmp_path):
    case.model.save(tmp_path / "new.uqb")
    with safe_open(tmp_path / "new.uqb", framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    manifest = read_manifest(tmp_path / "new.uqb")
    for key in ("elements", "element_energies", "systems"):
        del manifest[key]
    options = manifest["judge"]["options"]
    del options["known"], options["aggregation"]["selection"], options["features"]["options"]["selection"]
    manifest["sha256"] = digest(manifest, tensors)
    save_file(tensors, tmp_path / "old.uqb", metadata={"manifest": json.dumps(manifest)})
    old = UncertaintyModel.load(tmp_path / "old.uqb")
    x = torch.tensor(case.held_out.positions[:3])
    order = torch.arange(len(molecule.NUMBERS) - 1, -1, -1)
    turned = old.with_topology(Topology(molecule.NUMBERS[::-1], ()))
    for name, value in case.model(x)._asdict().items():
        torch.testing.assert_close(getattr(old(x), name), value, rtol=0, atol=0)
        torch.testing.assert_close(getattr(turned(x[:, order]), name), value, rtol=1e-9, atol=1e-9)
