"""Training on several systems: padded frames are those of each system by itself, energies are of one zero."""

import numpy as np
import pytest
import torch

from tests.helpers.periodic_systems import atoms
from uqbias.errors import UqbiasError
from uqbias.model.batches import of_one, of_several
from uqbias.model.padded import pad, reference_energies
from uqbias.model.training import _Objective, train
from uqbias.molecule.frames import Frames
from uqbias.molecule.geometry import virial
from uqbias.molecule.topology import Topology
from uqbias.potentials.coordinates import Coordinates
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.potentials.prediction import predict
from uqbias.registry import UNCERTAINTIES
from uqbias.settings.training_sections import TrainingOptions
from uqbias.testing import molecule

ELEMENTS = (1, 6, 8, 14)
#: kJ/mol of an atom of each element.
ENERGIES = {1: -1300.0, 6: -99_800.0, 8: -197_000.0, 14: -759_000.0}
CELL = np.array([[0.7, 0, 0], [0.2, 0.65, 0], [-0.15, 0.3, 0.75]])


def potential(numbers, **options):
    small = {"n_members": 2, "n_radial": 4, "n_channels": 3, "l_max": 2, "hidden": (8, 5), "cutoff": 0.3, "seed": 3}
    return PowerSpectrum(numbers, elements=ELEMENTS, **(small | options)).double()


def labelled(numbers, positions, cells=None):
    """Labels of another potential, and energies of the elements that drown them."""
    teacher = potential(numbers, n_members=1)
    teacher.energy_scale.fill_(30.0)
    prediction = predict(teacher, positions, cells=cells)
    zero = sum(ENERGIES[number] for number in numbers)
    virials = None if cells is None else prediction.virial.numpy() / np.linalg.det(cells)[:, None, None]
    return Frames(
        np.array(numbers),
        np.asarray(positions),
        prediction.energy[0].numpy() + zero,
        prediction.forces.numpy(),
        cells=cells,
        stresses=virials,
    )


@pytest.fixture(scope="module")
def sets():
    """A molecule, a part of it in another order, a crystal in a triclinic cell."""
    ether = molecule.frames(12).positions
    silica, x = atoms(CELL, (True, True, True), n_walkers=6)
    part = [11, 3, 1, 9, 5, 10, 4]
    return [
        labelled(molecule.NUMBERS, ether),
        labelled([molecule.NUMBERS[i] for i in part], ether[:, part] + 7.0),
        labelled(silica, x.numpy(), np.repeat(CELL[None], 6, axis=0)),
    ]


@pytest.mark.parametrize(("chosen", "most"), [((0, 1, 2), 1), ((0, 1), 1), ((0, 1, 2), 2)])
def test_padded_frames_are_those_of_each_system(sets, chosen, most):
    model, used = potential(molecule.NUMBERS), [sets[index] for index in chosen]
    layouts = pad(model, used, most)
    assert len(layouts) == most
    assert sorted(member for layout in layouts for member in layout.members) == list(range(len(used)))
    for layout in layouts:
        copies = layout.positions.expand(2, -1, -1, -1).clone().requires_grad_()
        roots, geometry = [copies], layout.geometry
        if geometry.box is not None:
            roots.append(geometry.box.expand(2, -1, -1, -1).clone().requires_grad_())
            geometry = geometry.of(torch.arange(len(layout.positions)).expand(2, -1))._replace(box=roots[1])
        energy, latents = layout.potential(copies, geometry)
        gradient, *of_box = torch.autograd.grad(energy.sum(), roots)
        strained = virial(copies, gradient, roots[1], of_box[0]) if of_box else None
        first = 0
        for member, places in zip(layout.members, layout.places, strict=True):
            frames = used[member]
            alone = predict(
                model.with_numbers(frames.numbers.tolist()),
                frames.positions,
                forces="members",
                cells=frames.cells,
                periodic=frames.periodic,
            )
            here = slice(first, first + len(frames))
            first += len(frames)
            exact = {"rtol": 1e-11, "atol": 1e-11}
            torch.testing.assert_close(energy[:, here], alone.energy, **exact)
            torch.testing.assert_close(latents[:, here][:, :, places], alone.latents, **exact)
            scale = alone.member_forces.abs().max()
            torch.testing.assert_close(-gradient[:, here][:, :, places] / scale, alone.member_forces / scale, **exact)
            empty = torch.ones(layout.positions.shape[1], dtype=torch.bool)
            empty[places] = False
            assert not gradient[:, here][:, :, empty].any()
            spread = layout.spread([each.forces for each in used])[here]
            torch.testing.assert_close(spread[:, places], torch.tensor(frames.forces), rtol=0, atol=0)
            assert not spread[:, empty].any()
            if strained is not None and alone.virial is not None:
                torch.testing.assert_close(strained[:, here].mean(0), alone.virial, rtol=1e-10, atol=1e-9)


def test_layouts_are_few_and_waste_little():
    model, random = potential((6,)), np.random.default_rng(0)
    systems = [labelled([6] * n + [1] * h, random.random((2, n + h, 3))) for n, h in ((1, 4), (2, 6), (30, 6), (31, 2))]
    assert [layout.members for layout in pad(model, systems)] == [(0, 1), (3, 2)]
    assert [layout.potential.numbers for layout in pad(model, systems)][1] == (1,) * 6 + (6,) * 31
    with pytest.raises(UqbiasError, match="'coordinates' on several systems, whose atoms are padded"):
        pad(Coordinates((6,)), systems)


def test_energies_of_elements_are_of_least_squares():
    systems = []
    for numbers in ((6, 1, 1, 1, 1), (8, 1, 1), (6, 8, 8), (6, 6, 1, 1)):
        zero = sum(ENERGIES[number] for number in numbers)
        positions = np.zeros((2, len(numbers), 3))
        systems.append(Frames(np.array(numbers), positions, zero + np.array([-1.0, 1.0]), positions))
    expected = {number: ENERGIES[number] for number in (1, 6, 8)}
    assert reference_energies(systems) == pytest.approx(expected, abs=1e-6)
    # Of a single system the energy is that of its atoms, so that a larger cell of it has its energy times its size.
    one = reference_energies(systems[1:2])
    assert one[8] + 2 * one[1] == pytest.approx(ENERGIES[8] + 2 * ENERGIES[1])


def test_training_on_several_systems(sets):
    """Energies that differ by 10⁶ kJ/mol are learned in one zero, in which all systems are told."""
    model = potential((6, 8, 1, 14), n_members=1, seed=11)
    options = TrainingOptions(steps=90, batch_size=4, learning_rate=0.03, evaluate_every=30)
    parts = [built(kind, model) for kind in ("mve", "evidential", "shallow_ensemble")]
    before = [weight.detach().clone() for part in parts for weight in part.parameters()]
    result = train(model, sets, sets, options, uncertainties=parts, runner="eager")
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[-1] < 0.8 * losses[0]
    for frames in sets:
        twin = model.with_numbers(frames.numbers.tolist())
        prediction = predict(twin, frames.positions, forces="none", cells=frames.cells)
        energies = prediction.energy[0].numpy() + float(twin.energy_shift)
        # An atom too many would be 10³ kJ/mol at least.
        assert np.abs(energies - frames.energies).max() < 100.0
    weights = [weight for part in parts for weight in part.parameters()]
    assert all(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    squares = [np.square(frames.forces).mean() for frames in sets]
    typical = np.sqrt(np.average(squares, weights=[len(frames) for frames in sets]))
    assert float(parts[0].force_unit) == pytest.approx(typical)
    assert len(model.seen) == sum(len(frames) for frames in sets)


def built(kind, model):
    return UNCERTAINTIES.build(kind, topology=Topology(model.numbers, ()), n_latents=model.n_latents).double()


def test_the_loss_of_padded_frames_is_that_of_each_frame(sets):
    """Each frame counts alike, whatever its size and whatever it is padded to."""
    options = TrainingOptions(steps=1, batch_size=1, stress_weight=0.0)
    model = potential((6, 8, 1, 14), n_members=1, seed=11)
    for kind in ("mve", "shallow_ensemble"):
        part = built(kind, model)
        padded, *_ = of_several(model, sets, options, warm_start=False)
        layout = Topology(padded.potential.numbers, ())
        objective = _Objective([part.with_topology(layout)], padded, options)
        first = 0
        for frames in (sets[index] for index in pad(model, sets)[0].members):
            twin = model.with_numbers(frames.numbers.tolist())
            alone = of_one(twin, frames, options, warm_start=True)
            single = _Objective([part.with_topology(Topology(twin.numbers, ()))], alone, options)
            losses = []
            for batches, target, at in ((padded, objective, first), (alone, single, 0)):
                picked = [
                    tensor[at][None, None].to(kind) for tensor, kind in zip(batches.data, batches.kinds, strict=True)
                ]
                losses.append(target(padded.scale.reshape(1), *picked).item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-9)
            first += len(frames)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["torchscript", "aoti"])
def test_the_compiled_step_is_the_eager_one(sets, runner, tmp_path):
    """Two layouts, with a graph of each, and heads that are trained along: few steps lead to the same weights."""
    trained, options = [], TrainingOptions(steps=6, batch_size=2)
    sizes = [sets[0], sets[1][:4], sets[2][:4]]
    for step in ("eager", runner):
        model = potential((6, 8, 1, 14), n_members=1, l_max=1, seed=11)
        head = built("mve", model)
        assert len(pad(model, sizes)) == 2
        train(model, sizes, None, options, uncertainties=[head], runner=step, cache_dir=tmp_path)
        trained.append([weight.detach().clone() for part in (model, head) for weight in part.parameters()])
    start = potential((6, 8, 1, 14), n_members=1, l_max=1, seed=11)
    assert all(not torch.equal(new, old) for new, old in zip(trained[0], start.parameters(), strict=False))
    for compiled, eager in zip(trained[1], trained[0], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-7, atol=1e-9)
