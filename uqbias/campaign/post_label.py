"""Choice of the paid labels for training: only those far outside of any physical region are left out."""

from __future__ import annotations

import numpy as np

from uqbias.molecule.frames import Frames
from uqbias.settings.harvest_sections import Harvest

#: Verdict of an accepted label.
ACCEPTED = ""
#: Energies this many windows below the mean are no deeper minimum any more.
DEEPER = 10.0


def label_verdicts(frames: Frames, reference_energy: float, limits: Harvest | None = None) -> list[str]:
    """Judge labelled frames by the oracle's own numbers.

    A tighter energy window would throw away half of the first round, which is the one that teaches the model what
    a high energy looks like.

    Parameters
    ----------
    frames : n labelled frames.
    reference_energy : mean energy of the start frames, kJ/mol.
    limits : ``label_energy_window`` and ``label_force_limit`` of a campaign file; its defaults if None.

    Returns
    -------
    list of str
        `ACCEPTED` (empty) or the reason of the rejection, one a frame.
    """
    limits = limits or Harvest()
    lowest = -DEEPER * limits.label_energy_window
    energies, forces = frames.labels()
    excess = energies - reference_energy
    largest = np.abs(forces).reshape(len(frames), -1).max(axis=1, initial=0.0)
    result = []
    for above, force in zip(excess, largest, strict=True):
        if not above <= limits.label_energy_window:
            result.append(f"rejected: oracle energy {above:.0f} kJ/mol above mean")
        elif not above >= lowest:
            result.append(f"rejected: oracle energy {-above:.0f} kJ/mol below mean")
        elif not force <= limits.label_force_limit:
            result.append(f"rejected: force component {force:.0f} kJ/mol/nm")
        else:
            result.append(ACCEPTED)
    return result
