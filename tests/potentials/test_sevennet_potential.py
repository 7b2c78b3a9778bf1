"""SevenNet-0 against SevenNet's own calculator; without a checkpoint afterwards."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ase import Atoms
from periodic_systems import CELLS, atoms
from tiny_sevennet import SEVENNET, needs_sevenn

from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.model.wrapping import open_model
from uqbias.potentials.prediction import predict
from uqbias.potentials.sevennet import SevenNet, sevenn_module
from uqbias.registry import POTENTIALS
from uqbias.testing import check_potential, molecule
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM


@needs_sevenn
@pytest.mark.parametrize("name", [None, "triclinic"])
def test_the_numbers_of_its_own_calculator(name):
    box, periodic = CELLS[name] if name else (None, (True, True, True))
    numbers, x = atoms(box, periodic) if name else (molecule.NUMBERS, torch.tensor(molecule.frames(1).positions))
    potential = open_model(["7net-0"], numbers).double()
    assert potential.origin == {"wrapped": "7net-0", "licence": "MIT (sevenn)"}
    cells = None if box is None else np.asarray(box)[None]
    got = predict(potential, x, cells=cells, periodic=periodic)
    structure = Atoms(numbers, x[0].numpy() / ANGSTROM, cell=None if box is None else cells[0] / ANGSTROM)
    structure.pbc = box is not None
    with sevenn_module("sevenn.calculator") as sevenn:
        structure.calc = sevenn.SevenNetCalculator("7net-0", device="cpu")
        energy, forces = structure.get_potential_energy(), structure.get_forces()
    assert float(got.energy[0, 0] + potential.energy_shift) / EV == pytest.approx(energy, rel=1e-6)
    np.testing.assert_allclose(got.forces[0] / EV_PER_ANGSTROM, forces, atol=1e-5 * np.abs(forces).max())
    assert np.abs(forces).max() > 0.1
    if box is not None:
        expected, volume = structure.get_stress(voigt=False), structure.get_volume()
        np.testing.assert_allclose(got.virial[0] / EV / volume, expected, atol=1e-5 * np.abs(expected).max())


@needs_sevenn
@pytest.mark.parametrize(
    "changes",
    [
        {"self_connection_type": "linear", "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.0}},
        {"readout_as_fcn": True, "readout_fcn_hidden_neurons": [5], "readout_fcn_activation": "silu", "shift": -3.0},
    ],
)
def test_architectures(changes):
    check_potential(SevenNet(molecule.NUMBERS, config=SEVENNET | changes).double())


@needs_sevenn
def test_files_hold_no_pickle(tmp_path, monkeypatch):
    settings = {"judge": {"kind": "llpr"}, "driver": {"kind": "llpr"}}
    potential = SevenNet(molecule.NUMBERS, config=SEVENNET)
    model, _ = fit_model(molecule.frames(40, turn=3.0), None, settings, potential=potential)
    model.save(tmp_path / "m.uqb")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle is opened"))
    again = UncertaintyModel.load(tmp_path / "m.uqb")
    x = torch.tensor(molecule.frames(1).positions, dtype=torch.float32)
    for one, other in zip(again(x), model(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@needs_sevenn
def test_what_is_refused(tmp_path):
    with pytest.raises(UqbiasError, match="no SevenNet model that comes with sevenn, nor a file; name 7net-0"):
        open_model(["7net-omni"], molecule.NUMBERS)
    (tmp_path / "other.pth").write_bytes(b"nothing")
    with pytest.raises(UqbiasError, match="is a pickle"):
        open_model([str(tmp_path / "other.pth")], molecule.NUMBERS, "sevennet")
    with pytest.raises(UqbiasError, match="cannot be opened by sevenn"):
        open_model([str(tmp_path / "other.pth")], molecule.NUMBERS, "sevennet", trust=True)
    with pytest.raises(UqbiasError, match="atoms of element 85"):
        open_model(["7net-0"], (85, 1))
    with pytest.raises(UqbiasError, match="sevenn makes no model of this architecture"):
        POTENTIALS.build("sevennet", {"config": {"_type_map": {"1": 0}, "cutoff": 4.0}}, numbers=(1,))
    with pytest.raises(UqbiasError, match="of several modalities"):
        SevenNet((1,), config={"use_modality": True})


@pytest.mark.skipif(find_spec("sevenn") is not None, reason="sevenn is installed")
def test_without_sevenn_the_extra_is_named():
    with pytest.raises(UqbiasError, match=r"cannot be imported .*; pip install 'uqbias\[sevennet\]'"):
        open_model(["7net-0"], molecule.NUMBERS)
