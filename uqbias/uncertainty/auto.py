"""The driver that suits a molecule, and what is said of a driver."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from uqbias.molecule.rotors import ring_systems, rotors
from uqbias.molecule.topology import Topology
from uqbias.options import KindSection
from uqbias.registry import UNCERTAINTIES
from uqbias.uncertainty.base import Uncertainty
from uqbias.uncertainty.features.local_angles import atom_list, local_parts

#: Parts, or bonds left out of one kind, that are named; of more, the first ones and their number.
NAMED = 8


class Automatic(Uncertainty):
    """The driver that suits the molecule.

    It is `LocalDensities` where a bond turns, a ring puckers or a proton is mobile; else a Gaussian `KernelDensity` of
    the distances between atoms. A model file holds what was chosen.
    """

    kind = "auto"
    hill_width: ClassVar[float | None] = 0.3

    @classmethod
    def build(cls, topology: Topology, n_latents: int) -> Uncertainty:  # type: ignore[override]
        """Make what `chosen` says."""
        part: Uncertainty = UNCERTAINTIES.build(chosen(topology), topology=topology, n_latents=n_latents)
        return part


def chosen(topology: Topology) -> dict[str, Any]:
    """Kind and options of the driver that suits a molecule."""
    if local_parts(topology):
        return {"kind": "local_densities"}
    heavy, apart = np.array(topology.numbers) > 1, topology.bond_separation()
    far = np.triu(apart >= 3, k=1)
    if (far & heavy[:, None] & heavy).any():
        pairs: dict[str, Any] = {}
    elif far.any():
        pairs = {"heavy_only": False}
    else:
        pairs = {"heavy_only": False, "min_separation": 1}
    return {"kind": "kernel_density", "kernel": "gaussian", "features": {"kind": "pair_distances", **pairs}}


def driver_story(driver: KindSection, topology: Topology, systems: int = 1) -> list[str]:
    """What a driver is of, why, and what of the molecule it leaves out, in sentences.

    Parameters
    ----------
    driver : section of a campaign file.
    systems : of how many systems the model is; of several the driver acts on no single parts.
    """
    if systems > 1:
        if driver.kind == "auto":
            why = "densities of torsions or distances are of one molecule"
            return [f"auto chose the judge for {systems} systems: {why}"]
        return [f"{driver.kind}, as the settings have it"]
    kind, parts = driver.kind, local_parts(topology, getattr(driver, "grouping", "bonds"))
    features = getattr(getattr(driver, "features", None), "kind", "")
    lines = []
    if kind == "auto":
        kind = chosen(topology)["kind"]
        lines.append(
            f"auto chose {kind}, one density for each soft bond, ring that puckers and mobile proton"
            if parts
            else f"auto chose {kind} on pair_distances, since no bond turns, no ring puckers and no proton is mobile"
        )
    else:
        lines.append(f"{kind}{f' on {features}' if features else ''}, as the campaign file has it")
    if kind == "local_densities" or features in ("torsions", "local_angles"):
        if features == "torsions":
            parts = [part for part in parts if part.name.startswith("torsion")]
        lines.append(f"it acts on {_listed([part.name for part in parts])}")
        rings = ring_systems(topology)
        stiff: dict[str, list[str]] = {}
        for rotor in rotors(topology):
            if not rotor.soft and not any({*rotor.bond} <= {*ring} for ring in rings):
                stiff.setdefault(rotor.reason, []).append(atom_list(topology, rotor.bond))
        if stiff:
            reasons = [f"{_listed(bonds)} ({reason})" for reason, bonds in stiff.items()]
            lines.append(f"left out are the bonds {', '.join(reasons)}, and tops such as CH3 and OH")
    elif parts:
        lines.append(f"it knows no single parts; `driver: auto` would act on {_listed([part.name for part in parts])}")
    return lines


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
