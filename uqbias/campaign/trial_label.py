"""One frame through the oracle before a campaign pays for many: what it gives, and whether it fits together."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.campaign.child import LABEL
from uqbias.campaign.labelling import OracleSpec, label_one
from uqbias.errors import UqbiasError
from uqbias.molecule.labels import likely_units
from uqbias.oracles.base import Label
from uqbias.registry import ORACLES
from uqbias.units import EV

Array = NDArray[np.float64]
#: nm, displacement of each atom in the differences, on average.
STEP = 2e-4
#: Largest error of the slope, relative to it, and what is added for noise of the energies, kJ/mol/nm.
TOLERANCE, NOISE = 0.05, 5.0


def trial_label(spec: OracleSpec, positions: Array, cell: Array | None = None) -> dict[str, Any]:
    """Label one frame, and two beside it to see that the forces are minus the gradient of the energy.

    Parameters
    ----------
    spec : oracle and bounds.
    positions : [N, 3] nm.
    cell : [3, 3] nm, or None.

    Returns
    -------
    dict
        ``label_energy`` in kJ/mol and eV, ``label_largest_force`` in kJ/mol/nm, ``label_slope`` by the forces and by
        central differences along one direction, ``label_seconds``, ``charge`` and ``spin`` that the oracle used.

    Raises
    ------
    UqbiasError
        If the oracle fails, or forces and energy do not belong together.
    """
    if ORACLES.get(spec.kind).elsewhere:
        raise UqbiasError(
            f"oracle.kind = {spec.kind}: its labels are computed elsewhere, none can be tried",
            "run the campaign: it writes the geometries to label",
        )
    with tempfile.TemporaryDirectory(prefix="uqbias-") as folder:
        spec = replace(spec, folder=Path(folder))
        begun = time.monotonic()
        energy, forces, stress = _label(spec, "trial", positions, cell)
        seconds = time.monotonic() - begun
        facts = json.loads(next(Path(folder).glob(f"*/{LABEL}")).read_text(encoding="utf-8"))
        # Half along the forces, so that the slope is no small difference, and half anywhere.
        direction = np.random.default_rng(0).normal(size=positions.shape)
        direction = direction / np.linalg.norm(direction) + forces / (np.linalg.norm(forces) or 1.0)
        direction *= np.sqrt(len(positions)) / np.linalg.norm(direction)
        by_forces = float(-(forces * direction).sum())
        result: dict[str, Any] = {
            "label_energy_kJ_per_mol": energy,
            "label_energy_eV": energy / EV,
            "label_largest_force": float(np.abs(forces).max()),
            "label_seconds": round(seconds, 3),
            "charge": facts["charge"],
            "spin": facts["spin"],
            **({} if cell is None else {"label_stress": stress is not None}),
        }
        if ORACLES.get(spec.kind).only_known:
            return result
        ahead, behind = (
            _label(spec, name, positions + side * STEP * direction, cell).energy
            for name, side in (("up", 1), ("down", -1))
        )
    slope = (ahead - behind) / (2 * STEP)
    result |= {"label_slope_by_forces": by_forces, "label_slope_by_differences": slope}
    if abs(slope - by_forces) > TOLERANCE * max(abs(slope), abs(by_forces)) + NOISE:
        ratio = slope / by_forces if by_forces else float("nan")
        likely = likely_units(ratio, None, len(positions)) if by_forces else None
        raise UqbiasError(
            f"the oracle's forces are not minus the gradient of its energy: slope {by_forces:.6g} by forces, "
            f"{slope:.6g} by differences (kJ/mol/nm, ratio {ratio:.3g}){f'; {likely.what}' if likely else ''}",
            "fix the units, sign or convergence of the calculator",
        )
    return result


def _label(spec: OracleSpec, name: str, positions: Array, cell: Array | None) -> Label:
    result = label_one(replace(spec, name=name), positions, cell)
    if isinstance(result, str):
        raise UqbiasError(f"no label: {result}", "check the oracle")
    return result
