"""Start frames for a campaign: a relaxation and a short MD on the oracle itself, every frame with its label."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from threadpoolctl import threadpool_limits

from uqbias.campaign.progress import Progress
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames
from uqbias.molecule.structure import Structure
from uqbias.oracles.base import Label, Oracle
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

#: eV/Å and steps of the relaxation; it need not be exact.
RELAXED, MOST_STEPS = 0.05, 300
#: Steps before the first frame and between two, of `TIMESTEP` fs; friction in 1/fs, strong, so that frames differ.
BEFORE, BETWEEN, TIMESTEP, FRICTION = 300, 30, 0.5, 0.02


class _ByOracle(Calculator):  # type: ignore[misc] # ASE has no types
    """An oracle for ASE's integrators, which keeps its last label."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as ASE has it

    def __init__(self, oracle: Oracle, advance: Any) -> None:
        super().__init__()
        self.oracle, self.advance, self.calls = oracle, advance, 0

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        cell = self.atoms.cell.array * ANGSTROM if any(self.atoms.pbc) else None
        self.answer: Label = self.oracle.label(self.atoms.positions * ANGSTROM, cell)
        self.calls += 1
        self.advance(1)
        self.results = {"energy": self.answer.energy / EV, "forces": self.answer.forces / EV_PER_ANGSTROM}


def start_frames(
    oracle: Oracle, structure: Structure, count: int, temperature: float, seed: int, progress: Progress
) -> tuple[Frames, float]:
    """Relax a structure, and keep frames of Langevin dynamics that begins there; the relaxed one comes first.

    Parameters
    ----------
    count : number of frames.
    temperature : K.

    Returns
    -------
    frames : labelled, in the order of time.
    seconds : time that a label took, on average.

    Raises
    ------
    UqbiasError
        If the oracle fails.
    """
    numbers = np.array(structure.topology.numbers, dtype=np.int64)
    box = None if structure.cell is None else structure.cell / ANGSTROM
    atoms = Atoms(numbers, structure.positions / ANGSTROM, cell=box, pbc=structure.periodic)
    atoms.calc = calculator = _ByOracle(oracle, progress.advance)
    random = np.random.default_rng(seed)
    rows: list[tuple[Any, Label]] = []

    def keep() -> None:
        atoms.get_forces()
        rows.append((atoms.positions * ANGSTROM, calculator.answer))

    begun = time.perf_counter()
    with threadpool_limits(1):  # small molecules run slower on more
        progress.phase("relax the structure", None)
        FIRE(atoms, logfile=None).run(fmax=RELAXED, steps=MOST_STEPS)
        keep()
        steps = BEFORE + BETWEEN * (count - 2)
        progress.phase(f"MD at {temperature:g} K", steps)
        widths = np.sqrt(units.kB * temperature * atoms.get_masses())
        atoms.set_momenta(random.standard_normal((len(atoms), 3)) * widths[:, None])
        bath = {"temperature_K": temperature, "friction": FRICTION / units.fs, "fixcm": False, "rng": random}
        dynamics = Langevin(atoms, TIMESTEP * units.fs, **bath)
        dynamics.run(BEFORE)
        keep()
        for _ in range(count - 2):
            dynamics.run(BETWEEN)
            keep()
    seconds = (time.perf_counter() - begun) / max(calculator.calls, 1)
    x = np.array([positions for positions, _ in rows])
    if not np.isfinite(x).all():
        raise UqbiasError("the MD gave positions that are not finite", "check the structure and the oracle")
    stresses = [label.stress for _, label in rows]
    return Frames(
        numbers,
        x,
        np.array([label.energy for _, label in rows]),
        np.array([label.forces for _, label in rows]),
        cells=None if structure.cell is None else np.tile(structure.cell, (len(x), 1, 1)),
        stresses=None if any(one is None for one in stresses) else np.array(stresses),
        source="the start frames",
        periodic=structure.periodic,
    ), seconds
