"""Extended variables: one more OpenMM particle of each walker, whose x coordinate in nm is the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.bias.base import Extended
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.units import kt

Array = NDArray[np.float64]


class ExtendedVariables:
    """The W*K particles that follow the W*N atoms, walker after walker.

    Parameters
    ----------
    evaluator : its input columns must be extended variables of its bias.
    temperature : K, of their velocities.

    Raises
    ------
    UqbiasError
        If the bias acts on a variable that nobody gives.
    """

    def __init__(self, evaluator: FusedEvaluator, temperature: float) -> None:
        self.evaluator = evaluator
        self.variables = find_extended(evaluator)
        self._sigma = np.sqrt(kt(temperature) / np.array([one.mass for one in self.variables], dtype=np.float64))
        self._first = evaluator.n_walkers * evaluator.n_atoms

    def __len__(self) -> int:
        return len(self.variables)

    def add_particles(self, system: Any) -> list[int]:
        """Add the particles to an openmm.System; returns their indices."""
        return [system.addParticle(one.mass) for _ in range(self.evaluator.n_walkers) for one in self.variables]

    def follow(self, positions: Array, velocities: Array, walkers: Mapping[int, np.random.Generator]) -> None:
        """Put the extended variables of some walkers where the atoms are, with thermal velocities.

        Parameters
        ----------
        positions, velocities : [W*N + W*K, 3], changed in place.
        walkers : generator of each walker to place.
        """
        if not self.variables:
            return
        w, n, k = self.evaluator.n_walkers, self.evaluator.n_atoms, len(self)
        atoms = torch.as_tensor(positions[: w * n].reshape(w, n, 3))
        # Here the extended variables are still at 0, and pull at the atoms as they never will.
        broken = self.evaluator.broken.copy()
        values = self.evaluator.evaluate(atoms).variables.double().cpu().numpy()
        self.evaluator.broken[:] = broken
        for place, one in enumerate(self.variables):
            column = self.evaluator.names.index(one.of)
            for walker, random in walkers.items():
                particle = self._first + walker * k + place
                positions[particle] = (values[walker, column], 0.0, 0.0)
                # Along y and z nothing pulls; at rest there the particle starts where it will be looked at.
                velocities[particle] = (self._sigma[place] * random.normal(), 0.0, 0.0)

    def not_finite(self, positions: Array) -> NDArray[np.int64]:
        """[W] number of extended variables that are not finite."""
        x = positions[self._first :, 0].reshape(self.evaluator.n_walkers, len(self))
        return np.asarray((~np.isfinite(x)).sum(axis=1), dtype=np.int64)


def find_extended(evaluator: FusedEvaluator) -> list[Extended]:
    """Extended variables of the evaluator's bias, in the order of its input columns.

    Raises
    ------
    UqbiasError
        If one of its variables is neither of the model, nor computed in the graph, nor extended.
    """
    known = {one.name: one for one in getattr(evaluator.bias, "extended", ())}
    found = []
    for name in evaluator.input_names:
        if name not in known:
            given = [other for other in evaluator.names if other not in evaluator.input_names]
            raise UqbiasError(
                f"the bias acts on '{name}', a variable that nobody defines",
                did_you_mean(name, ["u", "uncertainty", "energy", *given]) + "; or define it among the variables",
            )
        found.append(known[name])
    return found
