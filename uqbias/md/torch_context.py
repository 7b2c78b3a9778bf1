"""MD on tensors: what stands where the openmm.Context of the walkers stands, with all of a step on one device."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.compile.fused import FusedEvaluator
from uqbias.units import kt

_ARRAYS = ("positions", "velocities", "steps", "random")


class TorchContext:
    """Particles that move under an evaluator alone: LangevinMiddle (Zhang et al., J. Phys. Chem. A 123, 6056, 2019).

    The same splitting as that of OpenMM's integrator, in double precision. Positions, velocities, noise and forces stay
    on the evaluator's device; the host sees them where it asks. The methods with names of OpenMM are those of its
    Context and integrator that walkers and snapshots use.

    Parameters
    ----------
    system : openmm.System, of which only the masses count.
    evaluator : gives the forces on its W*N atoms and W*K extended variables, walker after walker.
    timestep : ps.
    temperature : K.
    friction : 1/ps; None for leapfrog Verlet dynamics at constant energy.
    seed : seed of the noise.
    """

    def __init__(
        self,
        system: Any,
        evaluator: FusedEvaluator,
        timestep: float,
        temperature: float,
        friction: float | None,
        seed: int,
    ) -> None:
        self._system, self._evaluator, self._timestep = system, evaluator, timestep
        count, device = system.getNumParticles(), evaluator.device
        masses = np.array([[system.getParticleMass(index)._value] for index in range(count)], dtype=np.float64)
        self._positions = torch.zeros(count, 3, dtype=torch.float64, device=device)
        self._velocities = torch.zeros_like(self._positions)
        self._kick = torch.from_numpy(timestep / masses).to(device)
        self._kept = None if friction is None else math.exp(-friction * timestep)
        spread = 0.0 if self._kept is None else math.sqrt(1 - self._kept**2)
        self._noise = torch.from_numpy(spread * np.sqrt(kt(temperature) / masses)).to(device)
        self._random = torch.Generator(device).manual_seed(seed)
        self._steps = 0

    def step(self, steps: int) -> None:
        """Move all particles by ``steps`` steps, with one evaluation each."""
        x, v, half = self._positions, self._velocities, 0.5 * self._timestep
        for _ in range(steps):
            v.addcmul_(self._forces(), self._kick)
            if self._kept is None:
                x.add_(v, alpha=self._timestep)
            else:
                x.add_(v, alpha=half)
                drawn = torch.randn(x.shape, generator=self._random, dtype=x.dtype, device=x.device)
                v.mul_(self._kept).addcmul_(drawn, self._noise)
                x.add_(v, alpha=half)
            self._steps += 1

    def _forces(self) -> Tensor:
        return self._evaluator.evaluate_for_host(self._positions)[1].to(self._positions.dtype)

    def getState(self, *, forces: bool = False, **_: bool) -> Any:  # noqa: N802
        """Positions, velocities, time and cell on the host, after an evaluation if ``forces`` are asked for."""
        values: dict[str, Any] = {
            "Positions": self._positions,
            "Velocities": self._velocities,
            "Forces": self._forces() if forces else None,
            "Time": self._steps * self._timestep,
            "PeriodicBoxVectors": np.eye(3),
        }
        return SimpleNamespace(**{f"get{name}": _Quantity(value) for name, value in values.items()})

    def getSystem(self) -> Any:  # noqa: N802
        """The openmm.System."""
        return self._system

    def getPlatform(self) -> Any:  # noqa: N802
        """Has ``getName``: what the numbers of a run depend on."""
        return SimpleNamespace(getName=lambda: f"torch {torch.__version__} {self._positions.device.type}")

    def getStepCount(self) -> int:  # noqa: N802
        """Steps so far."""
        return self._steps

    def setStepCount(self, steps: int) -> None:  # noqa: N802
        """Count from ``steps`` on; the time goes with them."""
        self._steps = steps

    def setTime(self, time: float) -> None:  # noqa: N802
        """Do nothing: the time is that of the steps."""

    def setPeriodicBoxVectors(self, *vectors: Any) -> None:  # noqa: N802
        """Do nothing: cells are the evaluator's."""

    def setPositions(self, positions: NDArray[Any]) -> None:  # noqa: N802
        """Put all particles at [P, 3] nm."""
        self._positions.copy_(torch.from_numpy(np.asarray(positions, dtype=np.float64)))

    def setVelocities(self, velocities: NDArray[Any]) -> None:  # noqa: N802
        """Velocities [P, 3] nm/ps, half a step before the positions."""
        self._velocities.copy_(torch.from_numpy(np.asarray(velocities, dtype=np.float64)))

    def createCheckpoint(self) -> bytes:  # noqa: N802
        """All that the next steps depend on, the state of the noise included."""
        stream, values = io.BytesIO(), (self._positions, self._velocities, self._steps, self._random.get_state())
        arrays: dict[str, Any] = {name: _on_host(value) for name, value in zip(_ARRAYS, values, strict=True)}
        np.savez(stream, **arrays)
        return stream.getvalue()

    def loadCheckpoint(self, checkpoint: bytes) -> None:  # noqa: N802
        """Put `createCheckpoint` back.

        Raises
        ------
        openmm.OpenMMException
            If it is not whole or of another number of particles; then nothing is changed.
        """
        import openmm

        try:
            with np.load(io.BytesIO(checkpoint)) as stream:
                arrays: Mapping[str, NDArray[Any]] = {name: stream[name] for name in _ARRAYS}
            random = torch.Generator(self._positions.device)
            random.set_state(torch.from_numpy(arrays["random"]))
            x, v = (torch.from_numpy(arrays[name]).view_as(self._positions) for name in _ARRAYS[:2])
            steps = int(arrays["steps"])
        except Exception as error:
            raise openmm.OpenMMException(f"not a checkpoint of this context: {error}") from error
        self._positions.copy_(x)
        self._velocities.copy_(v)
        self._random, self._steps = random, steps


class _Quantity:
    """A value as OpenMM hands it out: ``getPositions(asNumpy=True)._value``."""

    def __init__(self, value: Any) -> None:
        self._tensor = value

    def __call__(self, *, asNumpy: bool = True) -> _Quantity:
        return self

    @property
    def _value(self) -> Any:
        return _on_host(self._tensor)


def _on_host(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else np.array(value)
