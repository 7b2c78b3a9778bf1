"""MACE models against MACE's own calculator: molecules, cells, committees, heads; without a pickle afterwards."""

import os
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from periodic_systems import CELLS, atoms
from tiny_mace import CONFIG, needs_mace, tiny_mace

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.potentials.mace import Mace, mace_modules, open_mace
from uqbias.potentials.prediction import predict
from uqbias.registry import POTENTIALS
from uqbias.testing import check_potential, molecule
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

pytestmark = needs_mace
HEADS = {"heads": ["low", "high"], "atomic_energies": [[-13.6, -1029.5, -2041.8], [-13.7, -1030.0, -2042.0]]}
HEADS |= {"atomic_inter_scale": [1.3, 0.7], "atomic_inter_shift": [0.1, -0.2]}


def calculated(model, structure, **options):
    """What MACE's own calculator says, in eV and Å."""
    with mace_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mace.calculators import MACECalculator

        structure.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64", **options)
        values = structure.get_potential_energy(), structure.get_forces()
        return *values, structure.get_stress(voigt=False) if structure.pbc.any() else None


def assert_same(potential, positions, model, cell=None, periodic=(True, True, True), **options):
    cells = None if cell is None else np.asarray(cell)[None]
    got = predict(potential, positions, cells=cells, periodic=periodic)
    structure = Atoms(potential.numbers, positions[0] / ANGSTROM)
    if cell is not None:
        structure.set_cell(cells[0] / ANGSTROM)
        structure.pbc = periodic
    energy, forces, stress = calculated(model, structure, **options)
    assert float(got.energy.mean() + potential.energy_shift) / EV == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(got.forces[0] / EV_PER_ANGSTROM, forces, atol=1e-7 * np.abs(forces).max())
    assert np.abs(forces).max() > 1e-3
    if all(periodic) and stress is not None:
        volume = abs(np.linalg.det(cells[0])) / ANGSTROM**3
        np.testing.assert_allclose(got.virial[0] / EV / volume, stress, atol=1e-7 * np.abs(stress).max())


def test_the_contract_and_the_numbers_of_its_own_calculator():
    model = tiny_mace()
    potential = Mace.of([model], molecule.NUMBERS)
    assert_same(potential, molecule.frames(1).positions, model)
    check_potential(potential)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("name", CELLS)
def test_in_cells(name):
    box, periodic = CELLS[name]
    numbers, positions = atoms(box, periodic)
    model = tiny_mace(atomic_numbers=sorted({*numbers, 1}))
    assert_same(Mace.of([model], numbers), positions.numpy(), model, box, periodic)


@pytest.mark.parametrize(
    "changes",
    [
        {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock", "pair_repulsion": True},
        {"interaction_cls_first": "RealAgnosticResidualInteractionBlock", "distance_transform": "Agnesi"},
        {"hidden_irreps": "4x0e", "correlation": 3, "num_interactions": 1},
    ],
)
def test_architectures(changes):
    model = tiny_mace(**changes)
    assert_same(Mace.of([model], molecule.NUMBERS), molecule.frames(1).positions, model)


def test_a_committee_differs_by_the_energies_of_atoms_too():
    models = [tiny_mace(seed, atomic_energies=[-13.6 - seed, -1029.5, -2041.8]) for seed in range(2)]
    positions = molecule.frames(1).positions
    potential = Mace.of(models, molecule.NUMBERS)
    both = predict(potential, positions, forces="members")
    for member, model in enumerate(models):
        energy, forces, _ = calculated(model, Atoms(molecule.NUMBERS, positions[0] / ANGSTROM))
        assert float(both.energy[member] + potential.energy_shift) / EV == pytest.approx(energy, rel=1e-10)
        np.testing.assert_allclose(both.member_forces[member, 0] / EV_PER_ANGSTROM, forces, atol=1e-8)
    with pytest.raises(UqbiasError, match="give models of one architecture"):
        Mace.of([models[0], tiny_mace(hidden_irreps="5x0e+5x1o")], molecule.NUMBERS)


def test_heads():
    model, positions = tiny_mace(**HEADS), molecule.frames(1).positions
    with pytest.raises(UqbiasError, match="with the heads low, high; name one"):
        Mace.of([model], molecule.NUMBERS)
    with pytest.raises(UqbiasError, match="head 'hihg'"):
        Mace.of([model], molecule.NUMBERS, ["hihg"])
    for head in HEADS["heads"]:
        assert_same(Mace.of([model], molecule.NUMBERS, [head]), positions, model, head=head)
    committee = predict(Mace.of([model], molecule.NUMBERS, HEADS["heads"]), positions, forces="none")
    assert committee.energy.shape == (2, 1)


def test_the_gradient_of_u_in_single_precision():
    frames = molecule.frames(60, turn=3.0)
    driver = {"kind": "gmm", "n_components": 2, "features": {"kind": "latents"}}
    settings = {"judge": {"kind": "llpr"}, "driver": driver}
    model, _ = fit_model(frames, None, settings, potential=Mace.of([tiny_mace()], molecule.NUMBERS))

    class OnDriver:
        """V = u."""

        variables = ("driver",)

        def state(self):
            return {}

        def energy(self, x, state):
            return x[:, 0]

        def to(self, *_):
            return self

    x = torch.tensor(molecule.frames(1, seed=4).positions)
    single = FusedEvaluator(model, OnDriver(), 1, runner="eager", include_energy=False)
    gradient = -single.evaluate(x).forces[0].double()
    step, numeric = 1e-5, torch.zeros_like(gradient)
    double = FusedEvaluator(model, None, 1, runner="eager", dtype=torch.float64)
    for atom in range(x.shape[1]):
        for axis in range(3):
            shift = torch.zeros_like(x)
            shift[0, atom, axis] = step
            plus, minus = (double.evaluate(x + sign * shift).driver for sign in (1, -1))
            numeric[atom, axis] = (plus - minus) / (2 * step)
    assert float((gradient - numeric).norm() / numeric.norm()) < 1e-3


def test_files_hold_no_pickle_and_pickles_of_others_are_refused(tmp_path, monkeypatch):
    model = tiny_mace()
    with mace_modules():
        torch.save(model, tmp_path / "tiny.model")
    potential = Mace.of([open_mace(tmp_path / "tiny.model")], molecule.NUMBERS)
    wrapped, _ = fit_model(molecule.frames(40, turn=3.0), None, {"judge": {"kind": "llpr"}}, potential=potential)
    wrapped.save(tmp_path / "m.uqb")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle is opened"))
    again = UncertaintyModel.load(tmp_path / "m.uqb")
    x = torch.tensor(molecule.frames(2).positions)
    for one, other in zip(again(x), wrapped(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    monkeypatch.undo()
    (tmp_path / "no.model").write_bytes(b"nothing")
    with pytest.raises(UqbiasError, match="cannot be opened by mace-torch"):
        open_mace(tmp_path / "no.model")
    with mace_modules():
        torch.save({"a": 1}, tmp_path / "dict.model")
    with pytest.raises(UqbiasError, match="holds a dict, no model"):
        open_mace(tmp_path / "dict.model")


def test_what_cannot_be_rebuilt():
    model = tiny_mace()
    model.__class__ = type("PolarMACE", (type(model),), {})
    with pytest.raises(UqbiasError, match="of the class PolarMACE, not ScaleShiftMACE"):
        Mace.of([model], molecule.NUMBERS)
    changed = tiny_mace()
    changed.radial_embedding.cutoff_fn.forward = torch.ones_like
    with pytest.raises(UqbiasError, match="other energies when made anew"):
        Mace.of([changed], molecule.NUMBERS)
    with pytest.raises(UqbiasError, match=r"does not rebuild .*GaussianBasis"):
        Mace.of([tiny_mace(radial_type="gaussian")], molecule.NUMBERS)
    with pytest.raises(UqbiasError, match="makes no model of this architecture"):
        POTENTIALS.build("mace", {"models": [CONFIG | {"interaction_cls": "os.system"}]}, numbers=(1,))
