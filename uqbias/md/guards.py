"""Guards: when a walker has left the physical region and is to be restarted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.approaches import Fault
from uqbias.molecule.frames import Frames
from uqbias.molecule.limits import CoordinationLimits
from uqbias.molecule.measures import Shape, covalent_contacts
from uqbias.molecule.topology import BOND_TOLERANCE, Topology
from uqbias.runs.observation import GuardEvent
from uqbias.settings.md_sections import Guards

Array = NDArray[np.float64]
#: Largest turn of a stiff torsion per walker: positions [W, N, 3] nm -> [W] degrees.
Turned = Callable[[Array], NDArray[Any]]
#: Limits where none are given: those of a campaign file.
LIMITS = {name: field.default for name, field in Guards.model_fields.items()}
#: A walker stopped at this many observations in a row has no safe frame to live on.
MAX_RESTARTS_IN_A_ROW = 20


@dataclass(frozen=True)
class Violation:
    """Why a walker is stopped.

    Attributes
    ----------
    walker : its index.
    reason : ``"not_finite"``, ``"force"``, ``"bond"``, ``"clash"``, ``"chirality"``, ``"coordination"``, ``"torsion"``,
        ``"driver"`` or ``"judge"``.
    values : the numbers that led to it, such as ``{"ratio": 1.4, "i": 3, "j": 5}``.
    """

    walker: int
    reason: str
    values: dict[str, float]


class Guard:
    """Judges each walker by its geometry and its uncertainty.

    Parameters
    ----------
    topology : bond graph of the molecule.
    reference : [N, 3] nm, geometry that gives bond lengths and chirality.
    bond_range : shortest and longest bond as multiples of its length in the reference.
    clash : atoms three or more bonds apart may not come nearer than this multiple of the sum of their covalent radii
        (default 1.25: where they would count as bonded); None for no such test.
    driver_cap : largest value of the driver; None for no cap.
    judge_cap : largest value of the judge, kJ/mol/nm; None for no cap.
    turned : gives the largest turn of a stiff torsion in degrees, such as `uqbias.molecule.measures.StiffTorsions`.
    max_turn : largest such turn allowed, degrees.
    keep_chirality : stop a walker whose stereocentre flips.
    labelled : frames with cells, of a crystal, glass, surface or molecules in a box.
    closest, coordination : see `uqbias.molecule.approaches.Approaches`, of those frames.
    """

    def __init__(
        self,
        topology: Topology,
        reference: NDArray[Any],
        *,
        bond_range: tuple[float, float] = (LIMITS["bond_low"], LIMITS["bond_high"]),
        clash: float | None = BOND_TOLERANCE,
        driver_cap: float | None = None,
        judge_cap: float | None = None,
        turned: Turned | None = None,
        max_turn: float = LIMITS["stiff_torsion"],
        keep_chirality: bool = LIMITS["chirality"],
        labelled: Frames | None = None,
        closest: float = LIMITS["closest"],
        coordination: Sequence[CoordinationLimits] = (),
    ) -> None:
        x = np.asarray(reference, dtype=np.float64)
        if x.shape != (len(topology), 3):
            raise UqbiasError(f"reference of shape {x.shape} for {len(topology)} atoms", "give [N, 3] in nm")
        if not 0 <= bond_range[0] < 1 < bond_range[1]:
            raise UqbiasError(f"bond range {bond_range}", "give multiples of the reference length, such as (0.7, 1.4)")
        self.max_turn, self.turned = max_turn, turned
        self.driver_cap, self.judge_cap = driver_cap, judge_cap
        contacts = None if clash is None else covalent_contacts(topology.numbers, clash)
        shape = partial(Shape, topology, bonds=bond_range, contacts=contacts, keep_chirality=keep_chirality)
        self._in_cells = labelled is not None and labelled.cells is not None
        self._shape = (
            shape(labelled, closest=closest, coordination=coordination)
            if self._in_cells and labelled is not None
            else shape(x[None], coordination=coordination)
        )

    def check(
        self,
        positions: NDArray[Any],
        driver: NDArray[Any] | None = None,
        judge: NDArray[Any] | None = None,
        broken: NDArray[Any] | None = None,
        boxes: NDArray[Any] | None = None,
    ) -> list[Violation]:
        """Find the walkers to stop, each with the first reason that holds.

        Parameters
        ----------
        positions : [W, N, 3] nm.
        driver, judge : [W]; None leaves these tests out.
        broken : [W] bool, walkers whose energy or forces were not finite or beyond any bound.
        boxes : [W, 3, 3] nm, where the labelled frames have cells.

        Raises
        ------
        UqbiasError
            If the labelled frames have cells and there are no boxes, or the other way round.
        """
        if self._in_cells != (boxes is not None):
            has, lack = ("labelled frames", "walkers") if self._in_cells else ("walkers", "labelled frames")
            raise UqbiasError(f"a guard whose {has} have cells, and {lack} without", "give both cells, or neither")
        x = np.asarray(positions, dtype=np.float64)
        violations: dict[int, Violation] = {}

        def note(reason: str, bad: NDArray[Any], values: Callable[[int], dict[str, float]]) -> None:
            for walker in np.flatnonzero(bad).tolist():
                violations.setdefault(walker, Violation(walker, reason, values(walker)))

        finite = np.asarray(np.isfinite(x).all(axis=(1, 2)))
        scalars = [values for values in (driver, judge) if values is not None]
        note("not_finite", ~finite, lambda w: {"atoms": float((~np.isfinite(x[w])).any(axis=1).sum())})
        if broken is not None:
            note("force", np.asarray(broken, dtype=bool), lambda w: {})
        for values in scalars:
            note("not_finite", ~np.isfinite(values), lambda w: {})
        for walker, fault in zip(
            np.flatnonzero(finite).tolist(),
            self._shape.faults(x[finite], None if boxes is None else boxes[finite]),
            strict=True,
        ):
            if fault is not None:
                violations.setdefault(walker, Violation(walker, fault.kind, _values(fault)))
        if self.turned is not None:
            turn = np.asarray(self.turned(np.where(finite[:, None, None], x, 0.0)))
            note("torsion", (turn > self.max_turn) & finite, lambda w: {"degrees": float(turn[w])})
        if self.driver_cap is not None and driver is not None:
            u, cap = np.asarray(driver), self.driver_cap
            note("driver", u > cap, lambda w: {"driver": float(u[w]), "cap": cap})
        if self.judge_cap is not None and judge is not None:
            judged, most = np.asarray(judge), self.judge_cap
            note("judge", judged > most, lambda w: {"judge": float(judged[w]), "cap": most})
        return [violations[walker] for walker in sorted(violations)]


class LostWalkerError(UqbiasError):
    """A walker that is stopped wherever it begins: the model does not hold the molecule together."""


def refuse_endless(events: Sequence[GuardEvent], in_a_row: NDArray[Any]) -> None:
    """Raise LostWalkerError for a walker stopped again and again; ``in_a_row`` [W] observations, this one too."""
    for event in events:
        if in_a_row[event.walker] >= MAX_RESTARTS_IN_A_ROW:
            raise LostWalkerError(
                f"walker {event.walker} was stopped at {MAX_RESTARTS_IN_A_ROW} observations in a row, last at step "
                f"{event.step} for '{event.reason}' {event.values}",
                "widen the guard, or give safe frames that the model describes",
            )


def _values(fault: Fault) -> dict[str, float]:
    if fault.kind == "chirality":
        return {"centre": fault.atoms[0]}
    if fault.kind == "coordination":
        return {"count": fault.value, "i": fault.atoms[0]}
    i, j = fault.atoms
    return {"ratio" if fault.kind == "bond" else "distance": fault.value, "i": i, "j": j}
