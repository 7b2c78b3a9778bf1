"""Trajectories of the walkers as mdtraj reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uqbias.files import atomic_path
from uqbias.molecule.topology import Topology
from uqbias.runs.observation import Observation
from uqbias.units import ANGSTROM


class Trajectories:
    """One XTC file a walker, ``walker_0.xtc``, ..., and ``topology.pdb``: ``mdtraj.load(xtc, top=pdb)`` reads them.

    Parameters
    ----------
    directory : for the files; made if missing.
    topology : bond graph of the molecule.
    n_walkers : W.
    stride : write every so many observations.
    """

    def __init__(self, directory: str | Path, topology: Topology, n_walkers: int, *, stride: int = 1) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        self.directory, self.stride, self._topology = Path(directory), stride, topology
        self.directory.mkdir(parents=True, exist_ok=True)
        self.paths = [self.directory / f"walker_{walker}.xtc" for walker in range(n_walkers)]
        self._files = [XTCTrajectoryFile(str(path), "w") for path in self.paths]
        self._seen = 0

    def __call__(self, observation: Observation) -> None:
        """Append the positions; a walker that is not finite or far out of the format's range is left out."""
        if self._seen == 0:
            self._write_topology(observation.positions[0])
        if self._seen % self.stride == 0:
            time = np.array([observation.time_ps], dtype=np.float32)
            step = np.array([observation.step], dtype=np.int32)
            for file, x in zip(self._files, observation.positions, strict=True):
                # XTC holds 0.001 nm in 32-bit integers.
                if np.isfinite(x).all() and np.abs(x).max() < 1e6:
                    file.write(x[None].astype(np.float32), time=time, step=step)
                    file.flush()
        self._seen += 1

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_topology(self, positions: NDArray[Any]) -> None:
        from openmm import app

        x = np.nan_to_num(positions) / ANGSTROM
        with atomic_path(self.directory / "topology.pdb") as temporary, temporary.open("w") as stream:
            app.PDBFile.writeFile(self._topology.to_openmm(), x, stream, keepIds=True)
