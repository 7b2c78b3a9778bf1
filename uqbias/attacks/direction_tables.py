"""What `uqbias.attacks.directions` found, as numbers for a table and as CSV files in eV and Å."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
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
    forces = {kind: _statistics(result.errors_along(kind, "force") / MEV_PER_ANGSTROM) for kind in result.kinds}
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
        "force_error_meV_per_A": forces,
        "ratio": {
            kind: [_ratio(a, b) for a, b in zip(errors[kind]["mean"], errors[RANDOM]["mean"], strict=True)]
            for kind in result.kinds
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
            "energy_error_meV": _statistics(np.abs(result.relaxation.energy_error) / MEV),
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

    Raises
    ------
    ValueError
        If there was no relaxation.
    """
    if result.relaxation is None:
        raise ValueError("there was no relaxation")
    size = np.abs(result.relaxation.energy_error) / MEV
    change = size[:, 1] - size[:, 0]
    known = np.isfinite(change) & np.isfinite(result.cos_theta) & (result.relaxation.distance[:, 1] > 0)
    return result.cos_theta[known], change[known]


def write_tables(result: DirectionResult, folder: Path) -> list[Path]:
    """Write directions.csv (a row per frame, direction and ε), frames.csv and, if there is one, relaxation.csv.

    Energies in eV, forces in eV/Å, lengths in Å; empty where there is no label.
    """
    ascents = list(result.cos_ascent)
    columns = ["frame", "energy_error_eV", "force_rmse_eV_per_A", "gradient_norm_eV2_per_A", "cos_theta"]
    columns += [f"cos_{name}" for name in ascents] + ["uncertainty_eV_per_A"]
    values = [result.energy_error / EV, result.force_error / EV_PER_ANGSTROM, result.norm / (EV * EV_PER_ANGSTROM)]
    values += [result.cos_theta, *(result.cos_ascent[name] for name in ascents), result.judge / EV_PER_ANGSTROM]
    rows = ([int(frame), *line] for frame, line in zip(result.source, np.stack(values, axis=1).tolist(), strict=True))
    files = [_write(folder / "frames.csv", columns, rows)]
    columns = ["frame", "direction", "number", "epsilon_A2", "displacement_A"]
    columns += ["energy_error_eV", "force_rmse_eV_per_A", "uncertainty_eV_per_A"]
    files.insert(0, _write(folder / "directions.csv", columns, _displaced_rows(result)))
    if (relaxed := result.relaxation) is not None:
        rows = (
            [int(frame), int(step), relaxed.distance[n, k] / ANGSTROM, relaxed.energy_error[n, k] / EV]
            for n, frame in enumerate(result.source)
            for k, step in enumerate(relaxed.steps)
        )
        files.append(_write(folder / "relaxation.csv", ["frame", "step", "distance_A", "energy_error_eV"], rows))
    return files


def _displaced_rows(result: DirectionResult) -> Iterable[Sequence[Any]]:
    units = (EV, EV_PER_ANGSTROM, EV_PER_ANGSTROM)
    arrays = (result.displaced_energy_error, result.displaced_force_error, result.displaced_uncertainty)
    for n, frame in enumerate(result.source):
        for d, name in enumerate(result.names):
            number = result.names[:d].count(name)
            for index, epsilon in enumerate(result.epsilons):
                found = [array[n, d, index] / factor for array, factor in zip(arrays, units, strict=True)]
                yield [int(frame), name, number, float(epsilon), math.sqrt(epsilon), *found]


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
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


def _ratio(first: float, second: float) -> float:
    return first / second if second > 0 else math.nan


def table(facts: Mapping[str, Any]) -> list[str]:
    """Lines of a table of `summary`: the energy error along each direction at each ε."""
    kinds = list(facts["energy_error_meV"])
    width = max(16, *(len(kind) + 2 for kind in kinds))
    lines = [f"{'ε (Å²)':>8}" + "".join(f"{kind:>{width}}" for kind in kinds) + f"{'adversarial/random':>21}"]
    for index, epsilon in enumerate(facts["epsilon_A2"]):
        cells = [
            f"{_number(part['mean'][index])} ± {_number(part['standard_error'][index])}"
            for part in facts["energy_error_meV"].values()
        ]
        ratio = _number(facts["ratio"][ADVERSARIAL][index])
        lines.append(f"{epsilon:>8g}" + "".join(f"{cell:>{width}}" for cell in cells) + f"{ratio:>21}")
    return lines


def _number(value: float) -> str:
    """Three digits, never with an exponent where it is large."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
