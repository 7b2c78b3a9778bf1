"""PLUMED's clock, which counts steps of one length, beside that of the Context and that of the files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from uqbias.errors import UqbiasError
from uqbias.plumed.session import Action
from uqbias.runs.series import last_time


class StepClock:
    """Checks that PLUMED's times, the step times ``timestep``, are those of the run.

    Parameters
    ----------
    timestep : ps.
    path, last : file and time (ps) of the last hill that PLUMED begins with, see `last_hill`.
    """

    def __init__(self, timestep: float, path: Path, last: float) -> None:
        self.timestep, self._path, self._last = timestep, path, last
        self._before: tuple[int, float] | None = None

    def check(self, step: int, time: float) -> None:
        """Compare each step with ``timestep``, and a state that the run begins at, or jumps to, with HILLS.

        Raises
        ------
        UqbiasError
            If the step is another, or there are hills of later steps.
        """
        if self._before is not None and step == self._before[0] + 1:
            taken = time - self._before[1]
            if abs(taken - self.timestep) > 1e-4 * self.timestep:
                raise UqbiasError(
                    f"the integrator's step is {taken:.6g} ps, the bridge was made for {self.timestep:.6g} ps",
                    f"PlumedBridge(..., timestep={taken:.6g}), and steps of one length",
                )
        elif step > 0 and (step + 0.5) * self.timestep < self._last:
            raise UqbiasError(
                f"{self._path} has hills until {self._last:.6g} ps, later than this state "
                f"({step * self.timestep:.6g} ps), that of an older checkpoint: they would count twice",
                "take their lines out of it, or begin a new trajectory at step 0",
            )
        self._before = (step, time)


def files_written(actions: Sequence[Action]) -> list[str]:
    """Names of the files that hills, rows and frames go to."""
    writers = [action for action in actions if _deposits(action) or action.name.startswith(("PRINT", "DUMP"))]
    return [name for action in writers for name in _files_of(action)]


def last_hill(actions: Sequence[Action], folder: Path, *, restart: bool) -> tuple[Path, float]:
    """File and time (ps) of the last of the hills that this PLUMED begins with; -inf if with none.

    Hills that other walkers leave in files of their own do not count.
    """
    last = (folder, -math.inf)
    if not (restart or any(action.name == "RESTART" for action in actions)):
        return last
    unit = next((action.options.get("TIME", "ps") for action in actions if action.name == "UNITS"), "ps")
    ps = {"ps": 1.0, "fs": 1e-3, "ns": 1e3}.get(unit) or float(unit)
    for action in filter(_deposits, actions):
        alone = not {"WALKERS_DIR", "STATE_RFILE"} & set(action.options) and action.options.get("RESTART") != "NO"
        for path in [folder / name for name in _files_of(action)] if alone else []:
            if path.is_file() and last_time(path) * ps > last[1]:
                last = (path, last_time(path) * ps)
    return last


def _deposits(action: Action) -> bool:
    return action.name.startswith(("METAD", "PBMETAD", "OPES"))


def _files_of(action: Action) -> list[str]:
    default = "HILLS" if action.name.startswith("METAD") else "KERNELS" if action.name.startswith("OPES") else ""
    return [name for name in action.options.get("FILE", default).split(",") if name]
