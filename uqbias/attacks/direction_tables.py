"""Results of `uqbias.attacks.directions`, as numbers for a table and as CSV files in eV and Å."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.attacks.directions import ADVERSARIAL, RANDOM, DirectionResult
from uqbias.files import write_text
from uqbias.model.metrics import spearman
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
#: kJ/mol per meV, kJ/mol/nm per meV/Å.
MEV, MEV_PER_ANGSTROM = EV / 1e3, EV_PER_ANGSTROM / 1e3


def summary(result: DirectionResult) -> dict[str, Any]:
    """Means over the frames, JSON-able.

    Returns
    -------
    dict
        - ``frames`` that were given, ``frames_used``, ``failed`` geometries, ``failures`` (each with frame, place and
          reason), ``zero_eV``;
        - ``cos_theta``: ``mean``, ``std``, ``positive`` (share), ``std_of_chance`` (of directions that know nothing of
          each other: 1/√(3N − 6)); ``cos_<ascent>``: ``mean``, ``mean_size``, ``mean_size_of_chance``;
        - ``epsilon_A2``, with 0 in front; ``energy_error_meV`` and ``force_error_meV_per_A``: for each direction
          ``mean`` size, ``standard_error`` over the frames and ``median``; ``ratio``, mean size of the energy error
          along each direction over that along random ones;
        - ``relaxation``: ``steps``, ``energy_error_meV`` (as above), ``converged`` (share), ``failed`` (number of
          frames that broke off at forces that are not finite); ``first_step``: ``spearman`` of the change of the
          error's size with cos θ, and ``agreement``, the share of frames where both have one sign.
    """
    errors = {kind: _statistics(result.errors_along(kind) / MEV) for kind in result.kinds}
    n_atoms = result.gradient.shape[1]
    chance = 1 / math.sqrt(3 * n_atoms - (6 if n_atoms > 2 else 0))
    cos = result.cos_theta[np.isfinite(result.cos_theta)]
    facts: dict[str, Any] = {
        "frames": result.n_frames,
        "frames_used": len(result.source),
        "failed": len(result.failures),
        "failures": [failure._asdict() for failure in result.failures],
        "zero_eV": result.zero / EV,
        "cos_theta": {
            "mean": _mean(cos),
            "std": float(cos.std()) if cos.size else math.nan,
            "positive": _mean(cos > 0),
            "std_of_chance": chance,
        },
        "epsilon_A2": [0.0, *result.epsilons.tolist()],
        "energy_error_meV": errors,
        "force_error_meV_per_A": {
            kind: _statistics(result.errors_along(kind, "force") / MEV_PER_ANGSTROM) for kind in result.kinds
        },
        "ratio": {
            kind: [a / b if b > 0 else math.nan for a, b in zip(part["mean"], errors[RANDOM]["mean"], strict=True)]
            for kind, part in errors.items()
            if kind != RANDOM
        },
    }
    for name, values in result.cos_ascent.items():
        known = values[np.isfinite(values)]
        facts[f"cos_{name}"] = {
            "mean": _mean(known),
            "mean_size": _mean(np.abs(known)),
            "mean_size_of_chance": chance * math.sqrt(2 / math.pi),
        }
    if result.relaxation is not None:
        facts["relaxation"] = {
            "steps": result.relaxation.steps.tolist(),
            "energy_error_meV": _statistics(np.abs(result.relaxed_energy_error) / MEV),
            "converged": _mean(result.relaxation.converged),
            "failed": int(result.relaxation.failed.sum()),
        }
        cos, change = first_step(result)
        facts["first_step"] = {
            "spearman": spearman(cos, change) if len(cos) > 1 else math.nan,
            "agreement": _mean(np.sign(cos) == np.sign(change)),
        }
    return facts


def first_step(result: DirectionResult) -> tuple[Array, Array]:
    """The cos θ and the change of the energy error's size in the first step of relaxation, meV, of m frames.

    Frames that do not move, have no cos θ or no label there are left out.
    """
    size = np.abs(result.relaxed_energy_error) / MEV
    change = size[:, 1] - size[:, 0]
    known = np.isfinite(change) & np.isfinite(result.cos_theta) & (result.distance[:, 1] > 0)
    return result.cos_theta[known], change[known]


def write_tables(result: DirectionResult, folder: Path) -> list[Path]:
    """Write directions.csv (a row per frame, direction and ε), frames.csv and, if there is one, relaxation.csv.

    Energies in eV, forces in eV/Å, lengths in Å; empty where there is no label.
    """
    n, D, L = result.displaced_energy_error.shape
    numbers = [result.names[:d].count(name) for d, name in enumerate(result.names)]
    tables: dict[str, dict[str, Any]] = {
        "directions": {
            "frame": np.repeat(result.source, D * L),
            "direction": np.tile(np.repeat(result.names, L), n),
            "number": np.tile(np.repeat(numbers, L), n),
            "epsilon_A2": np.tile(result.epsilons, n * D),
            "displacement_A": np.sqrt(np.tile(result.epsilons, n * D)),
            "energy_error_eV": result.displaced_energy_error / EV,
            "force_rmse_eV_per_A": result.displaced_force_error / EV_PER_ANGSTROM,
            "uncertainty_eV_per_A": result.displaced_uncertainty / EV_PER_ANGSTROM,
        },
        "frames": {
            "frame": result.source,
            "energy_error_eV": result.energy_error / EV,
            "force_rmse_eV_per_A": result.force_error / EV_PER_ANGSTROM,
            "gradient_norm_eV2_per_A": result.norm / (EV * EV_PER_ANGSTROM),
            "cos_theta": result.cos_theta,
            **{f"cos_{name}": values for name, values in result.cos_ascent.items()},
            "uncertainty_eV_per_A": result.judge / EV_PER_ANGSTROM,
        },
    }
    if result.relaxation is not None:
        tables["relaxation"] = {
            "frame": np.repeat(result.source, len(result.relaxation.steps)),
            "step": np.tile(result.relaxation.steps, n),
            "distance_A": result.distance / ANGSTROM,
            "energy_error_eV": result.relaxed_energy_error / EV,
        }
    return [_write(folder / f"{name}.csv", columns) for name, columns in tables.items()]


def _write(path: Path, columns: Mapping[str, NDArray[Any]]) -> Path:
    """Write columns of equal size as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*(values.ravel().tolist() for values in columns.values()), strict=True):
        writer.writerow([_cell(value) for value in row])
    write_text(path, text.getvalue())
    return path


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.7g}" if math.isfinite(value) else ""
    return value


def _statistics(sizes: Array) -> dict[str, list[float]]:
    """Mean, its standard error and median of each column of ``sizes`` [n, K]; NaN entries do not count."""
    columns = [column[np.isfinite(column)] for column in sizes.T]
    return {
        "mean": [_mean(column) for column in columns],
        "standard_error": [
            float(column.std(ddof=1) / math.sqrt(column.size)) if column.size > 1 else math.nan for column in columns
        ],
        "median": [float(np.median(column)) if column.size else math.nan for column in columns],
    }


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def table(facts: Mapping[str, Any]) -> list[str]:
    """Lines of a table of `summary`: the energy error along each direction at each ε."""
    parts = facts["energy_error_meV"]
    width = max(16, *(len(kind) + 2 for kind in parts))
    lines = [f"{'ε (Å²)':>8}" + "".join(f"{kind:>{width}}" for kind in parts) + f"{'adversarial/random':>21}"]
    for index, epsilon in enumerate(facts["epsilon_A2"]):
        cells = [
            f"{_number(part['mean'][index])} ± {_number(part['standard_error'][index])}" for part in parts.values()
        ]
        ratio = _number(facts["ratio"][ADVERSARIAL][index])
        lines.append(f"{epsilon:>8g}" + "".join(f"{cell:>{width}}" for cell in cells) + f"{ratio:>21}")
    return lines


def _number(value: float) -> str:
    """Three digits, never with an exponent where it is large."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
