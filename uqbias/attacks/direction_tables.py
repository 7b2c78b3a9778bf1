"""Results of `uqbias.attacks.directions`, as numbers for a table and as CSV files in eV and Å."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import sem

from uqbias.attacks.directions import ADVERSARIAL, RANDOM, DirectionResult
from uqbias.files import write_text
from uqbias.model.metrics import spearman
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
#: kJ/mol per meV, kJ/mol/nm per meV/Å.
MEV, MEV_PER_ANGSTROM = EV / 1e3, EV_PER_ANGSTROM / 1e3


def summary(result: DirectionResult) -> dict[str, Any]:
    """Means over the frames, JSON-able.

    Errors are given by the direction as ``mean`` size, ``standard_error`` over the frames and ``median``, for ε = 0 and
    each ε; ``ratio`` is the mean size of the energy error along a direction over that along random ones; ``chance`` is
    what directions give that know nothing of each other, 1/√(3N − 6); ``first_step`` says whether the change of the
    error's size in the first step of relaxation has the rank (``spearman``) and the sign (``agreement``, a share) of
    cos θ.
    """
    kinds = list(dict.fromkeys(result.names))
    errors = {kind: _statistics(result.errors_along(kind) / MEV) for kind in kinds}
    n_atoms = result.gradient.shape[1]
    chance = 1 / math.sqrt(3 * n_atoms - (6 if n_atoms > 2 else 0))
    cosines = {name: values[np.isfinite(values)] for name, values in result.cosines.items()}
    cos = cosines.pop("theta")
    facts: dict[str, Any] = {
        "frames": result.n_frames,
        "frames_used": len(result.source),
        "failed": len(result.failures),
        "failures": [failure._asdict() for failure in result.failures],
        "zero_eV": result.zero / EV,
        "cos_theta": {"mean": _of(cos), "std": _of(cos, np.std), "positive": _of(cos > 0), "std_of_chance": chance},
        "epsilon_A2": [0.0, *result.epsilons.tolist()],
        "energy_error_meV": errors,
        "force_error_meV_per_A": {kind: _statistics(result.errors_along(kind, 1) / MEV_PER_ANGSTROM) for kind in kinds},
        "ratio": {
            kind: [a / b if b > 0 else math.nan for a, b in zip(part["mean"], errors[RANDOM]["mean"], strict=True)]
            for kind, part in errors.items()
            if kind != RANDOM
        },
    }
    for name, values in cosines.items():
        facts[f"cos_{name}"] = {
            "mean": _of(values),
            "mean_size": _of(np.abs(values)),
            "mean_size_of_chance": chance * math.sqrt(2 / math.pi),
        }
    if result.relaxation is not None:
        facts["relaxation"] = {
            "steps": result.relaxation.steps.tolist(),
            "energy_error_meV": _statistics(np.abs(result.relaxed) / MEV),
            "converged": _of(result.relaxation.converged),
            "failed": int(result.relaxation.failed.sum()),
        }
        cos, change = first_step(result)
        facts["first_step"] = {
            "spearman": spearman(cos, change) if len(cos) > 1 else math.nan,
            "agreement": _of(np.sign(cos) == np.sign(change)),
        }
    return facts


def first_step(result: DirectionResult) -> tuple[Array, Array]:
    """The cos θ and the change of the energy error's size in the first step of relaxation, meV, of m frames.

    Frames that do not move, have no cos θ or no label there are left out.
    """
    size, theta = np.abs(result.relaxed) / MEV, result.cosines["theta"]
    change = size[:, 1] - size[:, 0]
    known = np.isfinite(change) & np.isfinite(theta) & (_distance(result)[:, 1] > 0)
    return theta[known], change[known]


def _distance(result: DirectionResult) -> Array:
    """Distance of the whole molecule from its start along the relaxation, [n, K] nm."""
    assert result.relaxation is not None
    x = result.relaxation.positions
    return np.asarray(np.linalg.norm(x - x[0], axis=(2, 3)).T)


def write_tables(result: DirectionResult, folder: Path) -> list[Path]:
    """Write directions.csv (a row per frame, direction and ε), frames.csv and, if there is one, relaxation.csv.

    Energies in eV, forces in eV/Å, lengths in Å; empty where there is no label.
    """
    _, n, D, L = result.displaced.shape
    numbers = [result.names[:d].count(name) for d, name in enumerate(result.names)]
    norm = np.linalg.norm(result.gradient, axis=(1, 2))
    tables: dict[str, dict[str, Any]] = {
        "directions": {
            "frame": np.repeat(result.source, D * L),
            "direction": np.tile(np.repeat(result.names, L), n),
            "number": np.tile(np.repeat(numbers, L), n),
            "epsilon_A2": np.tile(result.epsilons, n * D),
            "displacement_A": np.sqrt(np.tile(result.epsilons, n * D)),
            "energy_error_eV": result.displaced[0] / EV,
            "force_rmse_eV_per_A": result.displaced[1] / EV_PER_ANGSTROM,
            "uncertainty_eV_per_A": result.displaced[2] / EV_PER_ANGSTROM,
        },
        "frames": {
            "frame": result.source,
            "energy_error_eV": result.start[0] / EV,
            "force_rmse_eV_per_A": result.start[1] / EV_PER_ANGSTROM,
            "gradient_norm_eV2_per_A": norm / (EV * EV_PER_ANGSTROM),
            **{f"cos_{name}": values for name, values in result.cosines.items()},
            "uncertainty_eV_per_A": result.start[2] / EV_PER_ANGSTROM,
        },
    }
    if result.relaxation is not None:
        tables["relaxation"] = {
            "frame": np.repeat(result.source, len(result.relaxation.steps)),
            "step": np.tile(result.relaxation.steps, n),
            "distance_A": _distance(result) / ANGSTROM,
            "energy_error_eV": result.relaxed / EV,
        }
    for name, columns in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*(values.ravel().tolist() for values in columns.values()), strict=True):
            writer.writerow([_cell(value) for value in row])
        write_text(folder / f"{name}.csv", text.getvalue())
    return [folder / f"{name}.csv" for name in tables]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.7g}" if math.isfinite(value) else ""
    return value


def _of(values: NDArray[Any], measure: Callable[[Any], Any] = np.mean, least: int = 1) -> float:
    return float(measure(values)) if values.size >= least else math.nan


def _statistics(sizes: Array) -> dict[str, list[float]]:
    """Mean, its standard error and median of each column of ``sizes`` [n, K]; NaN entries do not count."""
    columns = [column[np.isfinite(column)] for column in sizes.T]
    return {
        "mean": [_of(column) for column in columns],
        "standard_error": [_of(column, sem, 2) for column in columns],
        "median": [_of(column, np.median) for column in columns],
    }


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """A `summary` for people: cosines, the table of the energy error along each direction at each ε, relaxation."""
    cos, parts = facts["cos_theta"], facts["energy_error_meV"]
    lines = [f"{facts['frames_used']} of {facts['frames']} frames, {facts['failed']} geometries failed"]
    if facts["failures"]:
        lines.append("the first: frame {frame}, {place}: {reason}".format(**facts["failures"][0]))
    if known := facts.get("frames_trained_on"):
        lines.append(f"warning: the model was made from {known} of these frames, on which it looks better than it is")
    lines += [
        "",
        f"cos θ of adversarial direction and model's force: {cos['mean']:+.3f} ± {cos['std']:.3f} (chance: 0 ± "
        f"{cos['std_of_chance']:.3f}), above 0 in {100 * cos['positive']:.0f} % of the frames",
    ]
    lines += [
        f"mean |cos| of adversarial direction and gradient of '{name}': {sizes['mean_size']:.3f} (chance: "
        f"{sizes['mean_size_of_chance']:.3f})"
        for name in ("judge", "driver")
        if (sizes := facts.get(f"cos_{name}"))
    ]
    width = max(16, *(len(kind) + 2 for kind in parts))
    lines += [
        "",
        "mean |energy error| in meV at displacements of length √ε, standard error over the frames; zero of the error "
        f"{facts['zero_eV']:.6g} eV",
        f"{'ε (Å²)':>8}" + "".join(f"{kind:>{width}}" for kind in parts) + f"{'adversarial/random':>21}",
    ]
    for index, epsilon in enumerate(facts["epsilon_A2"]):
        cells = [
            f"{_number(part['mean'][index])} ± {_number(part['standard_error'][index])}" for part in parts.values()
        ]
        ratio = _number(facts["ratio"][ADVERSARIAL][index])
        lines.append(f"{epsilon:>8g}" + "".join(f"{cell:>{width}}" for cell in cells) + f"{ratio:>21}")
    if relaxed := facts.get("relaxation"):
        error, step = relaxed["energy_error_meV"]["mean"], facts["first_step"]
        lines += [
            "",
            f"relaxation on the model: mean |energy error| {error[0]:.3g} meV at the start, {error[-1]:.3g} meV after "
            f"{relaxed['steps'][-1]} steps ({100 * relaxed['converged']:.0f} % converged, {relaxed['failed']} broken "
            "off at forces that are not finite)",
            f"first step: Spearman ρ of cos θ and the change of |energy error| {step['spearman']:.2f}, one sign in "
            f"{100 * step['agreement']:.0f} % of the frames",
        ]
    return lines


def _number(value: float) -> str:
    """Three digits, never with an exponent where it is large."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
