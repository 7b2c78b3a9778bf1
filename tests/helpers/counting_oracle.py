"""Labels by a formula, in any process: calls begun and finished go to $COUNTING_CALLS; some geometries misbehave."""

import os
import time
from pathlib import Path

import numpy as np

from uqbias.oracles.base import Oracle, OracleError


class CountingOracle(Oracle):
    kind = "counting_oracle:CountingOracle"

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def options(self):
        return {"scale": self.scale}

    def _evaluate(self, positions):
        note("begun", positions)
        if positions[0, 0] > 5:
            raise OracleError("no convergence")
        time.sleep(float(os.environ.get("COUNTING_SECONDS", "0")))
        note("finished", positions)
        return float(self.scale * positions.sum()), -self.scale * np.ones_like(positions)


def note(what, positions):
    file = os.open(os.environ["COUNTING_CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, f"{what} {positions[0, 0]:g}\n".encode())
    os.close(file)


def calls(what="begun"):
    """First coordinates of the geometries of all calls so far."""
    try:
        with Path(os.environ["COUNTING_CALLS"]).open() as file:
            return sorted(float(value) for name, value in map(str.split, file) if name == what)
    except FileNotFoundError:
        return []
