"""Contract of the values of an uncertainty: outputs, invariance, gradient, smoothness, broken geometries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.testing import molecule
from uqbias.testing.case import Case
from uqbias.testing.measuring import ROTATION, largest, short
from uqbias.testing.report import Report

Array = NDArray[np.float64]
DTYPES = (torch.float64, torch.float32)

#: Change of u with the other walkers of the batch, and between the two precisions, relative to the largest |u|.
ALONE = {torch.float64: 1e-10, torch.float32: 1e-5}
SINGLE = 1e-4
#: Change of u under a symmetry operation, relative to the largest |u| of the frames.
INVARIANCE = 1e-5
#: Error of the gradient, relative in the 2-norm over all coordinates.
GRADIENT = {torch.float64: 1e-6, torch.float32: 1e-3}
#: nm, of the central differences of fourth order.
STEP = 2e-6
#: Factor by which a jump of the gradient may shrink when its interval is halved: ½ where smooth, 1 at a kink.
SHRINKING = 0.75
#: Intervals of a path, intervals that are halved, and how often.
INTERVALS, SUSPECTS, HALVINGS = 300, 8, 18
#: Of these, the last are looked at: a smooth maximum may be as sharp as a millionth of the path.
LAST = 6
#: Smallest jump that is looked at, relative to the largest (u, ∂u/∂x) of the path: less may be rounding.
ROUNDING = 1e-9


def check_outputs(case: Case) -> Report:
    """Shapes and dtypes; a walker's u does not depend on the other walkers.

    The forward pass gives u [W], and `per_atom` gives [W, N] or None, in the dtype of the positions, without exception.
    Relative to the largest |u| of the frames, u of one walker alone equals its u in a batch to 1e-10 in float64 and to
    1e-5 in float32, and u in float32 equals u in float64 to 1e-4.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    x = case.held_out.positions[:5]
    for dtype in DTYPES:
        values = case.evaluate(x, dtype)
        wrong = [tuple(u.shape) for u in values[:2] if u.shape != (5,) or u.dtype != dtype]
        atoms = case.per_atom(x, dtype)
        if atoms is not None and (atoms.shape != x.shape[:2] or atoms.dtype != dtype):
            wrong.append(tuple(atoms.shape))
        report.add(f"outputs of wrong shape, {short(dtype)}", len(wrong), 0, ", ".join(map(str, wrong)))
        if wrong:
            continue
        alone = torch.cat([case.evaluate(frame[None], dtype).raw for frame in x])
        scale = max(float(case.evaluate(_all(case)).raw.abs().max()), 1e-30)
        report.add(f"walkers alone, {short(dtype)}", largest(values.raw - alone) / scale, ALONE[dtype])
        if dtype == torch.float32:
            exact = case.evaluate(_rounded(x)).raw
            report.add("u in float32 against float64", largest(values.raw.double() - exact) / scale, SINGLE)
    return report.verified()


def check_invariance(case: Case) -> Report:
    """Values of structures and atoms under translation, rotation and exchange of like atoms.

    Changes are relative to the largest |u| of the frames and at most 1e-5, in float64 and in float32. In float32 the
    coordinates themselves are rounded when the molecule is moved; the change of u in float64 between the two rounded
    geometries is not counted.

    Kinds that tell like atoms apart by the bond graph (`Uncertainty.labelled`) are tested with exchanges of hydrogens
    on one atom only. Per-atom values, where there are any, go with the atoms.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    x = case.held_out.positions[:3]
    moves = {"rest": x, "translation": x + np.array([3.0, -2.0, 5.0]), "rotation": x @ ROTATION.T}
    orders = dict.fromkeys(moves, np.arange(x.shape[1]))
    for i, j in molecule.swaps(case.judge.labelled):
        name, order = f"exchange of {i} and {j}", np.arange(x.shape[1])
        order[[i, j]] = j, i
        moves[name], orders[name] = x[:, order], order
    for dtype in DTYPES:
        measured = _by_move(case, moves, orders, dtype)
        if dtype == torch.float32:
            exact = _by_move(case, {name: _rounded(y) for name, y in moves.items()}, orders, torch.float64)
            measured = {key: value - exact[key] for key, value in measured.items()}
        scale = {label: float(value.abs().max()) for label, value in _values(case, _all(case), torch.float64).items()}
        worst: dict[str, tuple[float, str]] = {}
        for (label, name), value in measured.items():
            change = largest(value - measured[label, "rest"]) / max(scale[label], 1e-30)
            clause = f"{label}: {name.partition(' ')[0]}, {short(dtype)}"
            worst[clause] = max(worst.get(clause, (-1.0, "")), (change, name if " " in name else ""))
        for clause, (change, note) in worst.items():
            if "rest" not in clause:
                report.add(clause, change, INVARIANCE, note)
    return report.verified()


def _by_move(
    case: Case, moves: dict[str, Array], orders: dict[str, NDArray[np.int64]], dtype: torch.dtype
) -> dict[tuple[str, str], Tensor]:
    """Values by name and move, those of the atoms in the order that the atoms had before."""
    by_move = {}
    for label, values in _values(case, np.concatenate(list(moves.values())), dtype).items():
        for name, part in zip(moves, values.double().chunk(len(moves)), strict=True):
            by_move[label, name] = part if part.ndim == 1 else part[:, np.argsort(orders[name])]
    return by_move


def _values(case: Case, x: Array, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return u before and after calibration [n], and the values of atoms [n, N] where there are any."""
    evaluated, atoms = case.evaluate(x, dtype), case.per_atom(x, dtype)
    values = {"u": evaluated.raw, "calibrated u": evaluated.calibrated}
    return values if atoms is None else values | {"per atom": atoms}


def check_gradient(case: Case) -> Report:
    """∂u/∂x by autograd against central differences of fourth order in float64, before and after calibration.

    The 2-norm of the difference over all coordinates, relative to that of the gradient: at most 1e-6 in float64 and
    1e-3 in float32. Geometries: a training frame, a held-out frame and two distorted ones.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    distorted = molecule.frames(2, seed=7, noise=0.01, turn=1.5).positions
    x = _rounded(np.concatenate([case.training.positions[:1], case.held_out.positions[:1], distorted]))
    n, n_atoms = len(x), x.shape[1]
    unit = STEP * np.eye(3 * n_atoms).reshape(-1, n_atoms, 3)
    shifted = np.stack([x[:, None] + steps * unit for steps in (1, -1, 2, -2)])
    evaluated = case.evaluate(shifted.reshape(-1, n_atoms, 3))
    expected = {}
    for name in ("raw", "calibrated"):
        plus, minus, plus2, minus2 = getattr(evaluated, name).reshape(4, n, n_atoms, 3)
        expected[name] = (8 * (plus - minus) - (plus2 - minus2)) / (12 * STEP)
    for dtype in DTYPES:
        gradients = case.evaluate(x, dtype, gradients=True)
        for name, label in (("raw", "u"), ("calibrated", "calibrated u")):
            error = (getattr(gradients, f"{name}_gradient").double() - expected[name]).flatten(1).norm(dim=1)
            size = expected[name].flatten(1).norm(dim=1)
            # Relative to the frame's own gradient, unless that nearly vanishes, as at the minimum of a density.
            relative = float((error / size.clamp(min=1e-2 * float(size.max()))).max())
            note = "u does not depend on the positions" if not float(size.max()) > 0 else ""
            report.add(f"{label}: gradient, {short(dtype)}", relative, GRADIENT[dtype], note)
    return report.verified()


def check_smoothness(case: Case) -> Report:
    """Value and gradient are continuous: along a path their change over an interval halves with the interval.

    Two paths, a half turn of the torsion and a straight line from a compressed to a stretched geometry, are cut into
    300 intervals. Those with the largest fourth difference of (u, ∂u/∂x) are halved 18 times, the half with the larger
    jump kept; over the last 6 the jump must shrink by a factor of 0.75 or less each time. It is ½ for a smooth
    u, and 1 at a step of u or a kink, such as of a hard maximum, a top-k or an absolute value.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    for name, path in _paths(case).items():
        report.add(f"jump at half the step, {name}", _shrinking(case, path), SHRINKING)
    return report.verified()


def _paths(case: Case) -> dict[str, Callable[[Array], Array]]:
    start, other = case.held_out.positions[:2]
    noise = np.random.default_rng(3).normal(0.0, 0.02, start.shape)

    def torsion(t: Array) -> Array:
        return molecule.turned(np.repeat(start[None], len(t), axis=0), molecule.ROTATABLE[0], np.pi * t)

    def line(t: Array) -> Array:
        x: Array = other + (2 * t[:, None, None] - 1) * noise
        return x

    return {"torsion": torsion, "line": line}


def _shrinking(case: Case, path: Callable[[Array], Array]) -> float:
    """Largest factor by which the suspected jumps of (u, ∂u/∂x) shrink per halving, over the last half of them."""
    t = np.linspace(0.0, 1.0, INTERVALS + 1)
    scale: list[float] = []

    def follow(parameter: Array) -> Array:
        evaluated = case.evaluate(path(parameter), gradients=True)
        value, gradient = evaluated.raw.numpy()[:, None], evaluated.raw_gradient.flatten(1).numpy()
        if not scale:
            scale.extend([float(np.ptp(value)) or 1.0, float(np.abs(gradient).max()) or 1.0])
        return np.concatenate([value / scale[0], gradient / scale[1]], axis=1)

    values = follow(t)
    # In a fourth difference, what is smooth all but cancels and a jump does not.
    rough = np.linalg.norm(np.diff(values, 4, axis=0), axis=1)
    middle = np.argsort(rough)[::-1][:SUSPECTS] + 2
    index = np.concatenate([middle - 1, middle])
    low, high, at_low, at_high = t[index], t[index + 1], values[index], values[index + 1]
    # The change next to the interval, on both sides: more than that is a jump, and says in which half it is.
    trend = 0.5 * (values[index] - values[index - 1] + values[index + 2] - values[index + 1])
    jumps = []
    for _ in range(HALVINGS):
        trend = 0.5 * trend
        half = 0.5 * (low + high)
        at_half = follow(half)
        lower, upper = (np.linalg.norm(part - trend, axis=1) for part in (at_half - at_low, at_high - at_half))
        first = lower >= upper
        low, high = np.where(first, low, half), np.where(first, half, high)
        at_low = np.where(first[:, None], at_low, at_half)
        at_high = np.where(first[:, None], at_half, at_high)
        jumps.append(np.linalg.norm(at_high - at_low, axis=1))
    shrinking = (jumps[-1] / np.maximum(jumps[-1 - LAST], ROUNDING)) ** (1 / LAST)
    if not np.isfinite(shrinking).all():
        return float("nan")
    return float(np.where(jumps[-1] > ROUNDING, shrinking, 0.0).max())


def check_exploded(case: Case, expects_large: bool | None = None) -> Report:
    """Value and gradient at broken geometries: finite always, and large where the kind can promise it.

    Two atoms 0.02 nm apart, fragments 5 nm apart and all atoms on a line, in float64 and float32: no value or
    gradient is infinite or NaN, before and after calibration.

    "Large" means that u is not below the largest u of the training frames, in float64. It is reported for every kind,
    as the number of geometries below, and limited to 0 for kinds that can promise it. These cannot:

    - a density of some coordinates (`Uncertainty.labelled`): blind to all others by design, so that stiff modes cannot
      drive it;
    - a network that predicts its own error: it was trained on the training set, and may say anything elsewhere;
    - a committee, of members or of readouts, at 5 nm only: beyond the cutoff all members agree that there is no force,
      and their energies stop moving apart.

    Parameters
    ----------
    expects_large : whether u must be large; if None, the class attribute ``expects_large`` if there is one, else true
        for kinds that are neither labelled nor have weights of their own.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report = case.report()
    part = case.judge
    if expects_large is None:
        expects_large = getattr(part, "expects_large", not part.labelled and not any(True for _ in part.parameters()))
    promised = {"clash": expects_large, "apart": expects_large and part.fewest_members == 1 and part.readouts is None}
    ceiling = float(case.evaluate(case.training.positions).raw.max())
    for name, x in molecule.exploded().items():
        for dtype in DTYPES:
            evaluated = case.evaluate(x, dtype, gradients=True)
            bad = sum(int((~torch.isfinite(tensor)).sum()) for tensor in evaluated)
            report.add(f"{name}: not finite, {short(dtype)}", bad, 0)
            if dtype == torch.float64 and name in promised:
                lowest = f"lowest u {float(evaluated.raw.min()):.3g}, training maximum {ceiling:.3g}"
                below = int((~(evaluated.raw >= ceiling)).sum())
                report.add(f"{name}: u not large", below, 0 if promised[name] else np.inf, f"of {len(x)}; {lowest}")
    return report.verified()


def _rounded(positions: Array) -> Array:
    """Positions that float32 represents."""
    return positions.astype(np.float32).astype(np.float64)


def _all(case: Case) -> Array:
    return np.concatenate([case.training.positions, case.held_out.positions])
