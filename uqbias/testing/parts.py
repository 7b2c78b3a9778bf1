"""Contracts of potentials, biases, collective variables and oracles, each checked on a finished part.

>>> from uqbias.bias.fixed import UpperWall
>>> check_bias(UpperWall(at=1.0)).violations
[]

Every check returns a `Report` of what was measured, or raises a `ContractError` that lists the violated clauses. None
needs pytest. Derivatives are compared with central differences of second order, in float64.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.bias.base import Bias
from uqbias.errors import UqbiasError
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.neighbours import NeighbourList
from uqbias.oracles.base import Oracle, OracleError
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import geometry_for, predict
from uqbias.registry import VARIABLES
from uqbias.testing import molecule
from uqbias.testing.measuring import (
    ROTATION,
    STEP,
    change,
    changed,
    counted,
    differences,
    gradient,
    gradient_error,
    largest,
    through_json,
)
from uqbias.testing.report import Report
from uqbias.variables.base import CollectiveVariable

Array = NDArray[np.float64]
#: Error of a derivative, relative to the largest component.
DERIVATIVE = 1e-5
#: Change with rounding alone, relative to the largest value.
ROUNDING = 1e-9
#: Updates of a bias's history, and walkers.
UPDATES, WALKERS = 30, 4


def check_potential(potential: Potential, positions: NDArray[Any] | None = None) -> Report:
    """Check that forces belong to the energy, and that nothing but the molecule's shape matters.

    Energies are [M, W] and latents [M, W, N, F]. A walker's energy does not depend on the other walkers nor on what was
    evaluated before. Unless ``potential.invariant`` is False, energies stay under translation, rotation and exchange of
    like atoms, and the latents go with their atoms. A twin made from ``options``, with the same weights, gives the
    same bits. A geometry that ``needs`` or ``periodic`` excludes is refused by name. In a box that is wide enough to be
    vacuum for the ``cutoff`` the energy is that in vacuum, and each atom may stand at any of its images.

    Parameters
    ----------
    potential : in float64.
    positions : [W, N, 3] nm, three or more; by default those of `uqbias.testing.molecule`.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = Report(f"potential '{potential.kind}'")
    x = torch.tensor(molecule.frames(3).positions if positions is None else positions, dtype=torch.float64)
    before = copy.deepcopy(potential.state_dict())
    with torch.no_grad():
        energy, latents = potential(x, geometry_for(potential, x))
    sizes = (potential.n_members, len(x)), (potential.n_members, *x.shape[:2], potential.n_latents)
    wrong = [tuple(out.shape) for out, size in zip((energy, latents), sizes, strict=True) if out.shape != size]
    report.add("outputs of wrong shape", len(wrong), 0, ", ".join(map(str, wrong)))

    def mean(geometries: Tensor) -> Tensor:
        return predict(potential, geometries, forces="none").energy.mean(0)

    forces = predict(potential, x[:1]).forces
    assert forces is not None
    report.add("forces", gradient_error(-forces[0], differences(mean, x[0])), DERIVATIVE)
    report.add("walkers alone", change(torch.cat([mean(one[None]) for one in x]), mean(x)), ROUNDING)
    if potential.invariant:
        unchanged, numbers = torch.arange(x.shape[1]), potential.numbers
        moves = [
            ("translation", x + torch.tensor([3.0, -2.0, 5.0], dtype=x.dtype), unchanged, ""),
            ("rotation", x @ torch.tensor(ROTATION).T, unchanged, ""),
        ]
        for i, j in itertools.combinations(range(len(numbers)), 2):
            if numbers[i] == numbers[j]:
                order = unchanged.clone()
                order[[i, j]] = order[[j, i]]
                moves.append(("exchange of like atoms", x[:, order], order, f"{i} and {j}"))
        for name, moved, order, note in moves:
            prediction = predict(potential, moved, forces="none")
            report.add(f"energy: {name}", change(prediction.energy, energy), ROUNDING, note)
            report.add(f"latents: {name}", change(prediction.latents[:, :, order], latents), ROUNDING, note)
    _check_geometries(report, potential, x, energy)
    report.add("evaluated again", change(predict(potential, x, forces="none").energy, energy), 0.0)
    report.add("weights changed by an evaluation", *counted(changed(before, potential.state_dict())))
    twin = type(potential)(**through_json(report, potential.options())).double()
    twin.load_state_dict(potential.state_dict())
    report.add("rebuilt from options", change(predict(twin, x, forces="none").energy, energy), 0.0)
    return report.verified()


def _check_geometries(report: Report, potential: Potential, x: Tensor, energy: Tensor) -> None:
    """Boxes and tables of neighbours that a potential takes, and those that it must refuse."""
    dense, cutoff = potential.needs == "dense", potential.cutoff or 1.0
    wide = 2 * (float((x.amax(1) - x.amin(1)).max()) + cutoff)
    box = (wide * torch.tensor([[1.0, 0, 0], [0.1, 1, 0], [0, 0.1, 1]]).to(x)).expand(len(x), 3, 3)
    images = x + torch.tensor(np.random.default_rng(6).integers(-2, 3, x.shape)).to(x) @ box

    def table(positions: Tensor, box: Tensor | None = None) -> Geometry:
        return NeighbourList(potential.numbers, potential.elements, cutoff, 0.0).geometry(positions, box)

    refused: dict[str, Geometry | None] = {"a table": table(x)} if dense else {}
    if potential.needs in {"table", "edges"}:
        refused["no table"] = None
    if not potential.periodic:
        refused["a box"] = Geometry(box) if dense else table(x, box)
    for name, geometry in refused.items():
        try:
            potential(x, geometry)
        except UqbiasError as error:
            report.add(f"{name}: refused without its name", potential.kind not in error.what, 0, error.what)
        else:
            report.add(f"{name}: not refused", 1, 0)
    with torch.no_grad():
        if not dense:
            report.add("energy: a table", change(potential(x, table(x))[0], energy), ROUNDING)
        for name, takes in (("", potential.needs in {"dense", "either"}), (" in a table", not dense)):
            if takes and potential.periodic:
                inside = potential(x, table(x, box) if name else Geometry(box))[0]
                moved = potential(images, table(images, box) if name else Geometry(box))[0]
                report.add(f"energy: images{name}", change(moved, inside), ROUNDING)
                if potential.cutoff is not None:
                    report.add(f"energy: a box as wide as vacuum{name}", change(inside, energy), ROUNDING)


def check_variable(variable: CollectiveVariable, positions: NDArray[Any] | None = None) -> Report:
    """Check that a collective variable is a smooth function of the geometry.

    Values are [W]. A walker's value does not depend on the other walkers. The gradient is that of central differences,
    a turn through the period apart, and finite at broken geometries. All values lie within one period. Unless
    ``variable.invariant`` is False, the value stays under translation and rotation. `Registry.restore` makes an equal
    variable from ``describe``.

    Parameters
    ----------
    variable : variable of a molecule.
    positions : [W, N, 3] nm, three or more; by default those of `uqbias.testing.molecule`, with its broken geometries.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = Report(f"variable '{variable.kind}'")
    variable = variable.double()
    x = torch.tensor(molecule.frames(20, turn=3.0).positions if positions is None else positions, dtype=torch.float64)
    values = variable(x).detach()
    report.add("outputs of wrong shape", values.shape != x.shape[:1], 0, str(tuple(values.shape)))
    if report.violations:
        return report.verified()

    def apart(one: Tensor, other: Tensor) -> Tensor:
        away = one - other
        return away if variable.period is None else away - variable.period * torch.round(away / variable.period)

    def from_rest(geometries: Tensor) -> Tensor:
        return apart(variable(geometries), variable(x[:1])).detach()

    report.add("gradient", gradient_error(gradient(variable, x[:1])[0], differences(from_rest, x[0])), DERIVATIVE)
    alone = torch.cat([variable(one[None]) for one in x]).detach()
    report.add("walkers alone", largest(apart(alone, values)), ROUNDING)
    if variable.period is not None:
        spread = float(values.max() - values.min())
        report.add("spread of the values in periods", spread / variable.period, 1.0)
    if variable.invariant:
        moves = {"translation": x + 3.0, "rotation": x @ torch.tensor(ROTATION).T}
        for name, moved in moves.items():
            report.add(name, largest(apart(variable(moved).detach(), values)), 1e-7)
    if positions is None:
        for name, broken in molecule.exploded().items():
            slope = gradient(variable, torch.tensor(broken))
            report.add(f"{name}: gradient not finite", int((~torch.isfinite(slope)).sum()), 0)
    twin = VARIABLES.restore(through_json(report, variable.describe())).double()
    report.add("rebuilt", largest(twin(x).detach() - values), 0.0)
    report.add("rebuilt: other unit or period", (twin.unit, twin.period) != (variable.unit, variable.period), 0)
    return report.verified()


def check_oracle(oracle: Oracle, positions: NDArray[Any]) -> Report:
    """Check that an oracle's forces belong to its energies, and that a geometry has one label.

    A geometry labelled again, after another one and by a pickled copy, has the same label, so that no calculation
    starts from what the last one left behind. NaN and wrong shapes are refused by an `OracleError` that names the
    oracle.

    Parameters
    ----------
    oracle : costs about a dozen labels; one that knows some geometries only, such as a pool, is spared the differences.
    positions : [2, N, 3] nm, two geometries that it can label.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = Report(f"oracle '{oracle.kind}'")
    x, other = np.asarray(positions, dtype=np.float64)[:2]
    label = oracle.label(x)
    random = np.random.default_rng(0)
    size = float(np.abs(label.forces).max())
    try:
        for _ in range(3):
            direction = random.normal(size=x.shape)
            direction /= np.linalg.norm(direction)
            plus, minus = (oracle.label(x + side * 10 * STEP * direction).energy for side in (1, -1))
            slope = -float((label.forces * direction).sum())
            report.add("forces", abs((plus - minus) / (20 * STEP) - slope) / max(size, 1e-30), 1e-4)
    except OracleError as error:
        report.skipped["forces"] = error.what
    oracle.label(other)
    copied = pickle.loads(pickle.dumps(oracle))
    for clause, twin in (("labelled again", oracle), ("pickled copy", copied)):
        from_twin = twin.label(x)
        report.add(
            f"{clause}: energy, kJ/mol", abs(from_twin.energy - label.energy), 1e-9 * max(1.0, abs(label.energy))
        )
        report.add(f"{clause}: forces", float(np.abs(from_twin.forces - label.forces).max()), 1e-6 * max(size, 1.0))
    for clause, wrong in (("NaN", np.full_like(x, np.nan)), ("a wrong shape", x[:, :2])):
        try:
            oracle.label(wrong)
        except OracleError as error:
            report.add(f"{clause}: refused without its name", oracle.kind not in error.what, 0, error.what)
        else:
            report.add(f"{clause}: not refused", 1, 0)
    through_json(report, oracle.options())
    return report.verified()


def check_bias(bias: Bias, periods: Sequence[float | None] | None = None, scale: float = 1.0) -> Report:
    """Check that a bias is a function of its variables and its state, and that a run can go on from a checkpoint.

    After a history of random walkers, V [W] has the gradient of central differences; it is the same when it is asked
    again, in a batch or alone, and one period on. With the state of an earlier moment V is that of the moment. The
    energy changes no state. A twin made from ``options`` goes on from a checkpoint exactly as the bias itself does.
    A frozen bias stays as it is, and ``reset`` leaves a bias as it was made.

    Parameters
    ----------
    bias : newly made.
    periods : periods of the columns of ``x``, extended variables included; None where it has none.
    scale : spread of the walkers, in the unit of the variables.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = Report(f"bias '{bias.kind}' on {', '.join(bias.variables)}")
    bias = bias.to(torch.float64)
    options = through_json(report, bias.options())

    def twin() -> Bias:
        return type(bias)(**options).to(torch.float64)

    history = _History(len(bias.variables), bias.pace or 10, scale)
    x = history.visit(20)
    fresh = bias.energy(x, bias.state()).detach()
    report.add("outputs of wrong shape", fresh.shape != x.shape[:1], 0, str(tuple(fresh.shape)))
    if report.violations:
        return report.verified()
    report.add("made from options", change(twin().energy(x, twin().state()).detach(), fresh), 0.0)
    history.lead(bias)
    state = bias.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    values = bias.energy(x, state).detach()
    report.add("evaluated again", change(bias.energy(x, state).detach(), values), 0.0)
    report.add("state changed by the energy", *counted(changed(kept, state)))
    report.add("walkers alone", change(torch.cat([bias.energy(one[None], state) for one in x]).detach(), values), 1e-9)
    slope = gradient(lambda y: bias.energy(y, state), x)
    expected = torch.cat([differences(lambda y: bias.energy(y, state).detach(), one)[None] for one in x])
    # A wall begins with a kink of its second derivative, a bin ends with one: there the differences are off by a step.
    report.add("gradient", gradient_error(slope, expected), 1e-4)
    if periods is not None and any(periods):
        shift = torch.tensor([period or 0.0 for period in periods], dtype=x.dtype)
        report.add("one period on", change(bias.energy(x + shift, state).detach(), values), 1e-6)

    saved = _through_file(bias.checkpoint())
    again = twin()
    again.restore(saved)
    report.add("restored", change(again.energy(x, again.state()).detach(), values), 0.0)
    later = copy.deepcopy(history)
    history.lead(bias)
    later.lead(again)
    report.add("V of the earlier state", change(bias.energy(x, kept).detach(), values), 0.0)
    values = bias.energy(x, bias.state()).detach()
    report.add("restored and led on", change(again.energy(x, again.state()).detach(), values), 0.0)

    again.frozen = True
    kept = {name: tensor.clone() for name, tensor in again.state().items()}
    arrays = {name: np.copy(array) for name, array in again.checkpoint().items()}
    later.lead(again)
    report.add("frozen: state changed", *counted(changed(kept, again.state())))
    others = [name for name, array in again.checkpoint().items() if array.tobytes() != arrays[name].tobytes()]
    report.add("frozen: checkpoint changed", *counted(others))
    again.frozen = False
    again.reset()
    report.add("reset", change(again.energy(x, again.state()).detach(), fresh), 0.0)
    return report.verified()


class _History:
    """Random walkers, the same for every bias that is led by a copy."""

    def __init__(self, n_variables: int, pace: int, scale: float) -> None:
        self.shape, self.pace, self.scale, self.step = (WALKERS, n_variables), pace, scale, 0
        self.random = np.random.default_rng(0)

    def visit(self, n: int) -> Tensor:
        """Points [n, D] where the walkers go."""
        return torch.tensor(self.scale * np.random.default_rng(9).normal(size=(n, self.shape[1])))

    def lead(self, bias: Bias) -> None:
        """Update a bias at its pace."""
        for _ in range(UPDATES):
            self.step += self.pace
            bias.update(self.step, self.scale * self.random.normal(size=self.shape), self._probe)

    def _probe(self, _: Any) -> Array:
        return self.random.normal(size=(WALKERS, 3, 3))


def _through_file(arrays: Any) -> dict[str, NDArray[Any]]:
    """Arrays as they come back from a file without pickles."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)
