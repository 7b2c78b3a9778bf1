"""Trajectories of the walkers as mdtraj reads them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqbias.files import atomic_path
from uqbias.molecule.cells import lower_triangular
from uqbias.molecule.topology import Topology
from uqbias.runs.observation import Observation
from uqbias.runs.series import Files
from uqbias.units import ANGSTROM


class Trajectories(Files):
    """One XTC file a walker, ``walker_0.xtc``, ..., and ``topology.pdb``: ``mdtraj.load(xtc, top=pdb)`` reads them.

    Walkers in a cell have it in the files, turned with the atoms so that its first vector is along x, its second in the
    plane of x and y.

    Parameters
    ----------
    directory : for the files; made if missing.
    topology : bond graph of the molecule.
    n_walkers : W.
    append : continue the files.
    """

    def __init__(self, directory: str | Path, topology: Topology, n_walkers: int, *, append: bool = False) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        self._aside = tempfile.TemporaryDirectory(prefix="uqbias-xtc-")
        self.directory, self._topology, self._begun = Path(directory), topology, append
        self.directory.mkdir(parents=True, exist_ok=True)
        self.paths = [self.directory / f"walker_{walker}.xtc" for walker in range(n_walkers)]
        self._files: list[Any] = [
            path.open("ab") if append else XTCTrajectoryFile(str(path), "w") for path in self.paths
        ]
        self._streams = self._files

    def __call__(self, observation: Observation) -> None:
        """Append the positions; a walker that is not finite or far out of the format's range is left out."""
        if not self._begun:
            self._write_topology(*_upright(observation, 0))
            self._begun = True
        when = {
            "time": np.array([observation.time_ps], dtype=np.float32),
            "step": np.array([observation.step], dtype=np.int32),
        }
        for walker, file in enumerate(self._files):
            x, box = _upright(observation, walker)
            # XTC holds 0.001 nm in 32-bit integers.
            if np.isfinite(x).all() and np.abs(x).max() < 1e6:
                cell = {} if box is None else {"box": box[None].astype(np.float32)}
                self._write(file, x[None].astype(np.float32), **when, **cell)
                file.flush()

    def _write(self, file: Any, x: NDArray[np.float32], **when: NDArray[Any]) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        if isinstance(file, XTCTrajectoryFile):
            file.write(x, **when)
            return
        # mdtraj continues no file; a frame does not depend on those before it.
        aside = Path(self._aside.name, "frame.xtc")
        with XTCTrajectoryFile(str(aside), "w") as frame:
            frame.write(x, **when)
        file.write(aside.read_bytes())

    def close(self) -> None:
        super().close()
        self._aside.cleanup()

    def _write_topology(self, positions: NDArray[Any], box: NDArray[Any] | None) -> None:
        from openmm import app

        x, topology = np.nan_to_num(positions) / ANGSTROM, self._topology.to_openmm()
        topology.setPeriodicBoxVectors(box)
        with atomic_path(self.directory / "topology.pdb") as temporary, temporary.open("w") as stream:
            app.PDBFile.writeFile(topology, x, stream, keepIds=True)


def _upright(observation: Observation, walker: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Positions [N, 3] of a walker, and its box [3, 3] or None, turned as readers of XTC and PDB expect a box."""
    x = observation.positions[walker]
    if observation.boxes is None:
        return x, None
    box, turn = lower_triangular(observation.boxes[walker])
    return x @ turn, box
