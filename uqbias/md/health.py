"""Health of a run: what is no sampling is said in a line, and ends the program with an exit code that is not 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
#: Share of the looks at walkers that found them stopped, beyond which a run is no sampling. Rounds of a campaign that
#: begin with a poor model stay below 0.1.
MOSTLY = 0.5
#: Looks at walkers, of all together, below which that share is not judged.
LOOKS = 40
#: Mean kinetic temperature, in multiples of that of the thermostat, beyond which the energy drifts. Frames with an
#: energy above the usual, and hills, heat a walker by less.
HOT = 2.0
#: Relaxation times of the thermostat after which a walker's kinetic temperature counts.
SETTLED = 3.0
#: Change of a conserved energy in kT per degree of freedom, beyond which a step is too long: 0.3 at 2 fs, 0.04 at 0.5.
DRIFT = 0.25


class UnhealthyRunError(UqbiasError):
    """A run whose numbers are no sampling; its files are there."""


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
        self._hot: list[float] = []
        self._drift = 0.0

    def note(
        self,
        time_ps: float,
        stopped: NDArray[np.bool_],
        kinetic: Array | None = None,
        conserved: Array | None = None,
    ) -> None:
        """Take note of one look.

        Parameters
        ----------
        stopped : [W], walkers that begin anew after it.
        kinetic : [W] kinetic temperature, K; None where it is not known.
        conserved : [W] energy that a run without thermostat conserves, in kT per degree of freedom; None for none.
        """
        self._looks, self._stopped = self._looks + stopped.size, self._stopped + int(stopped.sum())
        begins = np.isnan(self._since)
        self._since[begins] = time_ps
        if kinetic is not None and self.friction is not None:
            settled = ~stopped & (time_ps - self._since > SETTLED / self.friction)
            self._hot += kinetic[settled].tolist()
        if conserved is not None:
            self._first[begins] = conserved[begins]
            self._drift = max(self._drift, float(np.abs(conserved - self._first)[~stopped].max(initial=0.0)))
        self._since[stopped] = np.nan

    @property
    def fault(self) -> tuple[str, str] | None:
        """What is wrong and its cure; None for a run in good health."""
        share = self._stopped / max(self._looks, 1)
        if self._looks >= LOOKS and share > MOSTLY:
            return (
                f"walkers were stopped at {share:.0%} of {self._looks} observations, more than {MOSTLY:.0%}: this is "
                "no sampling",
                "see events.jsonl for the reasons; train on more frames, or widen the guards",
            )
        hot = float(np.mean(self._hot)) if self._hot else 0.0
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
