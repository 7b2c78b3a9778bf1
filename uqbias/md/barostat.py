"""Monte Carlo moves of the walkers' cells at constant pressure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.cells import Periodic, volume
from uqbias.units import BAR, kt

Array = NDArray[np.float64]
#: Steps between two moves of a cell.
EVERY = 25
#: Share of the first volume by which a cell may change at first, and at most.
FIRST, LARGEST = 0.01, 0.3
#: Moves after which their size is looked at, the shares of accepted ones between which it stays, and its change.
LOOK_AFTER, FEW, MANY, CHANGE = 10, 0.25, 0.75, 1.1
#: Energies [W] kJ/mol of walkers at positions [W, N, 3] in boxes [W, 3, 3] nm; infinite where one is broken.
Energies = Callable[[Array, Array], Array]
BAROSTATS = ("isotropic", "anisotropic")


class Barostat:
    """Monte Carlo moves of the cells of W walkers, of each by itself, to a constant pressure.

    A move changes the volume by a random amount, all three lattice vectors by one factor or, ``anisotropic``, a random
    one of them, and what is in the cell with it: atoms, or groups that constraints hold rigid. It is accepted with the
    probability min(1, exp(-(ΔU + p ΔV) / kT) (V'/V)^n) for n atoms or groups (Chow, Ferguson, Comput. Phys. Commun. 91,
    283, 1995). U is the energy that drives the walkers, with their bias, whose stress so acts on the cell. The size of
    the moves adapts until a quarter to three quarters of them are accepted.

    Parameters
    ----------
    pressure : bar.
    kind : ``isotropic`` or ``anisotropic``.
    temperature : K.
    boxes : [W, 3, 3] nm, in which the walkers begin.
    n_atoms : N.
    constraints : pairs of atoms at fixed distances, of one walker.
    periodic : along which lattice vectors a walker repeats.

    Raises
    ------
    UqbiasError
        If the pressure is not finite, the kind unknown, or a walker does not repeat along all its lattice vectors.
    """

    def __init__(
        self,
        pressure: float,
        kind: str,
        temperature: float,
        boxes: Array,
        n_atoms: int,
        *,
        constraints: Sequence[tuple[int, int]] = (),
        periodic: Periodic = (True, True, True),
    ) -> None:
        if kind not in BAROSTATS:
            raise UqbiasError(f"unknown barostat '{kind}'", did_you_mean(kind, BAROSTATS))
        if not math.isfinite(pressure):
            raise UqbiasError(f"a pressure of {pressure} bar", "give a finite one, 1 for that of the air")
        if not all(periodic):
            raise UqbiasError(
                f"a pressure on a system that repeats along {list(periodic)} of its lattice vectors",
                "leave the pressure out, or give a cell that repeats along all three",
            )
        self.kind, self._pressure, self._kt = kind, pressure * BAR, kt(temperature)
        graph = np.zeros((n_atoms, n_atoms), dtype=bool)
        for i, j in constraints:
            graph[i, j] = True
        self._n_groups, self._group = connected_components(graph, directed=False)
        ways = 1 if kind == "isotropic" else 3
        self._sizes = np.repeat(FIRST * volume(boxes)[:, None], ways, axis=1)
        # A limit that went with the volume would favour moves one way.
        self._largest = self._sizes * (LARGEST / FIRST)
        self._tried = np.zeros((len(boxes), ways), dtype=int)
        self._accepted = np.zeros((len(boxes), ways), dtype=int)

    def move(
        self, positions: Array, boxes: Array, energies: Energies, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.bool_]:
        """Move the cell of each walker once; ``positions`` [W, N, 3] and ``boxes`` [W, 3, 3] nm change in place.

        Returns
        -------
        [W] whose move was accepted.
        """
        before, ways = volume(boxes), self._sizes.shape[1]
        draws = np.array([generator.random(3) for generator in generators])
        way = np.minimum((draws[:, 0] * ways).astype(int), ways - 1)
        walkers = np.arange(len(boxes))
        after = before + self._sizes[walkers, way] * (2 * draws[:, 1] - 1)
        possible = after > 0
        trial, factor = boxes.copy(), np.where(possible, after / before, 1.0)
        if ways == 1:
            trial *= np.cbrt(factor)[:, None, None]
        else:
            trial[walkers, way] *= factor[:, None]
        moved = self._carried(positions, np.linalg.solve(boxes, trial))
        old, new = energies(positions, boxes), energies(moved, trial)
        with np.errstate(invalid="ignore"):
            gained = self._n_groups * self._kt * np.log(factor)
            cost = new - old + self._pressure * (after - before) - gained
            # What is not a number compares as false.
            likely = draws[:, 2] < np.exp(-np.maximum(cost, 0.0) / self._kt)
        accepted = np.asarray(likely & possible & np.isfinite(old))
        positions[accepted], boxes[accepted] = moved[accepted], trial[accepted]
        self._adapt(walkers, way, accepted)
        return accepted

    def state(self) -> dict[str, Any]:
        """What later moves depend on, JSON-able."""
        return {name: getattr(self, f"_{name}").tolist() for name in ("sizes", "tried", "accepted")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put `state` back."""
        self._sizes, self._tried = np.array(state["sizes"], dtype=np.float64), np.array(state["tried"], dtype=int)
        self._accepted = np.array(state["accepted"], dtype=int)

    def _carried(self, positions: Array, deformed: NDArray[Any]) -> Array:
        """Positions in cells that are ``deformed`` [W, 3, 3]: each group is moved with its centre, and not changed."""
        if self._n_groups == positions.shape[1]:
            return np.asarray(positions @ deformed)
        weights = np.zeros((self._n_groups, positions.shape[1]))
        weights[self._group, np.arange(positions.shape[1])] = 1.0
        centres = (weights / weights.sum(1, keepdims=True)) @ positions
        return np.asarray(positions + (centres @ deformed - centres)[:, self._group])

    def _adapt(self, walkers: NDArray[Any], way: NDArray[Any], accepted: NDArray[np.bool_]) -> None:
        self._tried[walkers, way] += 1
        self._accepted[walkers, way] += accepted
        share = self._accepted / np.maximum(self._tried, 1)
        looked_at = self._tried >= LOOK_AFTER
        few, many = looked_at & (share < FEW), looked_at & (share > MANY)
        self._sizes[few] /= CHANGE
        self._sizes[many] *= CHANGE
        self._sizes = np.minimum(self._sizes, self._largest)
        self._tried[few | many] = self._accepted[few | many] = 0
