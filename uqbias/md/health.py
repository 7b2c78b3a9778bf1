"""Health of a run: what is not meaningful sampling is said in a line, and ends the program with exit code 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
#: Share of the looks at walkers that found them stopped, from which on a user is warned, and beyond which a run is not
#: meaningful sampling. Rounds of a campaign that begin with a poor model stay below 0.1.
OFTEN, MOSTLY = 0.2, 0.5
#: Looks at walkers, of all together, below which that share is not judged.
LOOKS = 40
#: Mean kinetic temperature, in multiples of that of the thermostat, beyond which the energy drifts. Frames with an
#: energy above the usual, and hills, heat a walker by less.
HOT = 2.0
#: Relaxation times of the thermostat after which a walker's kinetic temperature counts.
SETTLED = 3.0
#: Change of a conserved energy in kT per degree of freedom, beyond which a step is too long: 0.3 at 2 fs, 0.04 at 0.5.
DRIFT = 0.25
#: What a run counts: numbers, and numbers of each walker.
COUNTS, PER_WALKER = ("looks", "stopped", "heat", "settled", "drift"), ("since", "first")


class UnhealthyRunError(UqbiasError):
    """A run whose numbers are not meaningful sampling; its files are there."""


class Health:
    """Counts what the looks at W walkers show.

    Parameters
    ----------
    n_walkers : W.
    temperature : K.
    friction_per_ps : 1/ps; None for dynamics without a thermostat.
    """

    def __init__(self, n_walkers: int, temperature: float, friction_per_ps: float | None) -> None:
        self.temperature, self.friction = temperature, friction_per_ps
        self._looks = self._stopped = 0
        self._since = np.full(n_walkers, np.nan)
        self._first = np.full(n_walkers, np.nan)
        self._heat, self._settled = 0.0, 0
        self._drift = 0.0

    def state(self) -> dict[str, Any]:
        """All counts, JSON-able; `restore` puts them back."""
        return {name: getattr(self, f"_{name}") for name in COUNTS} | {
            name: [None if np.isnan(value) else value for value in getattr(self, f"_{name}").tolist()]
            for name in PER_WALKER
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; nothing where a run of an earlier version kept none."""
        for name in (*COUNTS, *PER_WALKER) if state else ():
            value = state[name]
            setattr(self, f"_{name}", np.array(value, dtype=np.float64) if name in PER_WALKER else value)

    def note(
        self,
        time_ps: float,
        stopped: NDArray[np.bool_],
        kinetic: Array | None = None,
        conserved: Array | None = None,
        *,
        leaving: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take note of one look.

        Parameters
        ----------
        stopped : [W], walkers that the guard stops, which begin anew after it.
        kinetic : [W] kinetic temperature, K; None where it is not known.
        conserved : [W] energy that a run without thermostat conserves, in kT per degree of freedom; None for none.
        leaving : [W], all walkers that begin anew after it; the stopped ones if None.
        """
        self._looks, self._stopped = self._looks + stopped.size, self._stopped + int(stopped.sum())
        begins = np.isnan(self._since)
        self._since[begins] = time_ps
        if kinetic is not None and self.friction is not None:
            settled = ~stopped & (time_ps - self._since > SETTLED / self.friction)
            self._heat, self._settled = self._heat + float(kinetic[settled].sum()), self._settled + int(settled.sum())
        if conserved is not None:
            self._first[begins] = conserved[begins]
            self._drift = max(self._drift, float(np.abs(conserved - self._first)[~stopped].max(initial=0.0)))
        self._since[stopped if leaving is None else leaving] = np.nan

    @property
    def fault(self) -> tuple[str, str] | None:
        """What is wrong and its cure; None for a run in good health."""
        share = self._stopped / max(self._looks, 1)
        if self._looks >= LOOKS and share > MOSTLY:
            return (
                f"walkers were stopped at {share:.0%} of {self._looks} observations, more than {MOSTLY:.0%}: this is "
                "not meaningful sampling",
                "see events.jsonl for the reasons; train on more frames, or widen the guards",
            )
        hot = self._heat / max(self._settled, 1)
        if hot > HOT * self.temperature:
            return (
                f"the mean kinetic temperature is {hot:.0f} K under a thermostat of {self.temperature:g} K: the energy "
                "drifts",
                "take a shorter time step, or a bias that grows more slowly",
            )
        if self._drift > DRIFT:
            return (
                f"the total energy of a run without thermostat drifted by {self._drift:.3g} kT per degree of freedom",
                "take a shorter time step",
            )
        return None
