"""The fused evaluator in cells: forces and virial of E + V, lists that are made again and grow, memo, new weights."""

import copy

import numpy as np
import pytest
import torch
from periodic_systems import CELLS, CUTOFF, atoms, model

from uqbias.bias.linear import Linear
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.potentials.prediction import predict

W = 2


@pytest.fixture(scope="module", params=["triclinic", "narrow", "slab"])
def solid(request):
    box, periodic = CELLS[request.param]
    numbers, positions = atoms(box, periodic, n_walkers=W)
    return model(numbers, positions, box, periodic), positions, torch.tensor(box), periodic


def make(solid, bias=None, **options):
    whole, _, box, periodic = solid
    options = {"runner": "eager", "dtype": torch.float64, "box": box, "periodic": periodic, "skin": 0.02} | options
    return FusedEvaluator(whole, bias, W, **options)


def pulled():
    return Linear(tau=3.0)


def total(evaluator, positions, box):
    evaluation = evaluator.evaluate(positions, box=box)
    return evaluation.energy + evaluation.bias


def central(function, x, step):
    """Central differences [W, *] of a function of x [W, *] that gives [W], each walker's by its own."""
    columns = []
    for place in np.ndindex(*x.shape[1:]):
        shift = torch.zeros_like(x)
        shift[(slice(None), *place)] = step
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, dim=1).view(x.shape)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_forces_and_virial_are_central_differences(solid, dtype, allowed):
    _, positions, box, periodic = solid
    # Half the atoms go over the boundary, and the list of before must not be used.
    crossed = positions + torch.where(torch.tensor(periodic), torch.tensor([1, -1, 2.0]).double(), 0.0) @ box * (
        torch.arange(positions.shape[1]) % 2
    ).view(-1, 1)
    exact, tested = make(solid, pulled()), make(solid, pulled(), dtype=dtype)
    tested.evaluate(positions)
    for x in (positions, crossed):
        evaluation = tested.evaluate(x)
        forces = -central(lambda moved: total(exact, moved, box), x, 2e-6)
        assert float((evaluation.forces - forces).abs().max() / forces.abs().max()) < allowed
        strain = torch.zeros(W, 3, 3, dtype=torch.float64)

        def strained(strain, x=x):
            deformation = torch.eye(3) + 0.5 * (strain + strain.transpose(1, 2))
            return total(exact, x @ deformation, box @ deformation)

        virial = central(strained, strain, 1e-5)
        assert float((evaluation.virial - virial).abs().max() / virial.abs().max()) < allowed
        torch.testing.assert_close(evaluation.virial, evaluation.virial.transpose(1, 2))
        assert float(evaluation.bias.abs().min()) > 0.1


def test_the_energy_is_that_of_predict(solid):
    whole, positions, box, periodic = solid
    evaluation = make(solid).evaluate(positions)
    predicted = predict(whole.potential, positions, cells=box.expand(W, 3, 3), periodic=periodic)
    torch.testing.assert_close(evaluation.energy, predicted.energy.mean(0) + whole.potential.energy_shift)
    torch.testing.assert_close(evaluation.forces, predicted.forces)
    torch.testing.assert_close(evaluation.virial, predicted.virial)
    members = predict(whole.potential, positions, 1, forces="members", cells=box.expand(W, 3, 3), periodic=periodic)
    torch.testing.assert_close(members.member_forces.mean(0), predicted.forces)
    torch.testing.assert_close(members.virial, predicted.virial)


def test_only_the_bias_acts(solid):
    _, positions, *_ = solid
    only, both, bare = make(solid, pulled(), include_energy=False), make(solid, pulled()), make(solid)
    virials = [evaluator.evaluate(positions).virial for evaluator in (only, both, bare)]
    torch.testing.assert_close(virials[0], virials[1] - virials[2])
    assert virials[0].abs().max() > 0.1


def test_tables_last_and_grow(solid, caplog):
    _, positions, box, _ = solid
    evaluator = make(solid)
    first = evaluator.evaluate(positions)
    assert evaluator.neighbours.builds == W
    moved = positions + 0.009 / 3**0.5
    evaluator.evaluate(moved)
    assert evaluator.neighbours.builds == W
    torch.testing.assert_close(evaluator.last.energy, first.energy)
    assert not caplog.records
    scale = 0.6
    dense = evaluator.evaluate(scale * positions, box=scale * box)
    assert [record.message for record in caplog.records if "compiled once more" in record.message]
    torch.testing.assert_close(dense, make(solid, box=scale * box).evaluate(scale * positions))
    caplog.clear()
    torch.testing.assert_close(evaluator.evaluate(positions, box=box), first)
    assert not caplog.records


def test_the_memo_knows_the_box_and_a_snapshot_the_lists(solid):
    _, positions, box, _ = solid
    evaluator = make(solid, dtype=torch.float32)
    evaluator.evaluate(positions)
    first = evaluator.evaluate(positions + 0.004)
    evaluator.arm_memo()
    assert evaluator.evaluate(positions + 0.004, box=box) is first
    evaluator.arm_memo()
    assert evaluator.evaluate(positions + 0.004, box=1.001 * box) is not first
    evaluator.arm_memo()
    twin = make(solid, dtype=torch.float32)
    twin.restore_memo(evaluator.memo())
    assert torch.equal(twin.evaluate(positions + 0.004, box=1.001 * box).forces, evaluator.last.forces)
    assert twin.n_evaluations == 0
    # The list was made three moves ago: going on, the numbers are the same to the last bit.
    one, other = (each.evaluate(positions + 0.005).forces for each in (evaluator, twin))
    assert torch.equal(one, other)
    assert twin.neighbours.builds == evaluator.neighbours.builds


def test_new_weights_and_a_broken_walker(solid):
    whole, positions, *_ = solid
    other = copy.deepcopy(whole)
    with torch.no_grad():
        other.potential.readout.mul_(1.5)
    evaluator, expected = make(solid), make((other, *solid[1:])).evaluate(positions)
    evaluator.evaluate(positions)
    evaluator.load_model(other)
    torch.testing.assert_close(evaluator.evaluate(positions), expected)
    evaluator.verify(1)
    broken = positions.clone()
    broken[0, 0] = torch.nan
    evaluation = evaluator.evaluate(broken)
    assert evaluator.broken.tolist() == [True, False]
    assert not evaluation.forces[0].any()
    assert not evaluation.virial[0].any()
    torch.testing.assert_close(evaluation.virial[1], expected.virial[1])


def test_torchscript_in_a_cell(solid):
    _, positions, *_ = solid
    expected = make(solid, pulled()).evaluate(positions)
    evaluator = make(solid, pulled(), runner="torchscript")
    torch.testing.assert_close(evaluator.evaluate(positions), expected)
    assert evaluator.runner == "torchscript"
    evaluator.verify(0)


def test_a_large_molecule_in_vacuum_has_tables():
    numbers, positions = atoms(np.diag([1.2, 1.2, 1.2]), (False,) * 3)
    assert len(numbers) > 100
    whole = model(numbers, positions, None, (False,) * 3)
    evaluator = FusedEvaluator(whole, None, 1, runner="eager", dtype=torch.float64)
    evaluation = evaluator.evaluate(positions)
    x = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(x).energy.sum(), x)
    torch.testing.assert_close(evaluation.forces, -gradient)
    assert evaluator.neighbours is not None
    assert not evaluation.virial.any()


def test_boxes_that_nobody_asked_for(solid, tiny_model):
    _, positions, box, periodic = solid
    with pytest.raises(UqbiasError, match="a model whose potential takes no cell"):
        FusedEvaluator(tiny_model, None, 1, box=box)
    with pytest.raises(UqbiasError, match="a box for an evaluator that was made without"):
        FusedEvaluator(tiny_model, None, 1, runner="eager").evaluate(torch.zeros(1, 5, 3), box=box)
    with pytest.raises(UqbiasError, match="nm high, where neighbours are looked for within"):
        make(solid).evaluate(positions, box=box * torch.tensor([[1e-3], [1e-3], [1.0]]))
    assert CUTOFF < 1
    assert periodic
