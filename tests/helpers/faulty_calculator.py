"""An ASE calculator that does, on some geometries, what calculators have done: each fault by its place in `FAULTS`."""

import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

SPRING = 5.0


def spring(x):
    """Energy in eV of a spring between two atoms at x [2, 3] Å, and forces in eV/Å."""
    apart = x[1] - x[0]
    force = -SPRING * apart
    return 0.5 * SPRING * float(apart @ apart), np.array([-force, force])


def hang(_):
    time.sleep(1000)


def hang_deaf(_):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)


def hang_with_lock(_):
    ctypes.PyDLL(None).sleep(1000)


def grow(_):
    kept = []
    while True:
        kept.append(np.ones(10**7))


def print_for_ever(_):
    while True:
        os.write(1, b"SCF cycle\n" * 1000)


def kill(number, pid=None):
    def fault(_):
        os.kill(os.getpid() if pid is None else pid, number)
        time.sleep(1000)

    return fault


def exits(code):
    def fault(_):
        sys.exit(code)

    return fault


def raises(error):
    def fault(_):
        raise error

    return fault


def close_everything(_):
    os.closerange(3, 256)
    time.sleep(1000)


def remove_folder(_):
    shutil.rmtree(Path.cwd())


def recurse(results):
    recurse(results)


def move_atoms(_):
    raise AssertionError("done by the calculator itself")


def alarm(_):
    signal.alarm(1)
    time.sleep(1000)


def change(**values):
    def fault(results):
        for name, value in values.items():
            results[name] = value(results[name]) if callable(value) else value

    return fault


def lose_forces(results):
    del results["forces"]


def leave_folder(_):
    os.chdir("/")


def close_output(_):
    os.close(1)
    os.close(2)


def leave_a_process(_):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)


def chatter(_):
    print("SCF converged after 8 cycles")
    os.write(1, b"total energy of some Fortran code\n")
    os.write(2, b"a warning\n")


#: Fault, and what the reason of the failure must say.
FAULTS = [
    (raises(RuntimeError("no convergence\nafter 50 cycles")), "no convergence after 50 cycles"),
    (raises(ValueError()), "ValueError"),
    (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raises(GeneratorExit()), "GeneratorExit"),
    (exits(0), r"SystemExit \(0\)"),
    (exits("SCF failed"), r"SystemExit \(SCF failed\)"),
    (lambda _: os._exit(0), "exit code 0"),
    (lambda _: os._exit(3), "exit code 3"),
    (lambda _: os.abort(), "SIGABRT"),
    (lambda _: ctypes.string_at(0), "SIGSEGV"),
    (kill(signal.SIGKILL), "SIGKILL"),
    (kill(signal.SIGTERM), "SIGTERM"),
    (kill(signal.SIGKILL, 0), "SIGKILL"),
    (alarm, "SIGALRM"),
    (hang, "no answer within"),
    (hang_deaf, "no answer within"),
    (hang_with_lock, "no answer within"),
    (lambda _: np.ones(10**15), "allocate"),
    (grow, "allocate|MemoryError"),
    (print_for_ever, "printed more than"),
    (close_everything, "closed the connection|SIGKILL"),
    (remove_folder, "No such file"),
    (recurse, "recursion"),
    (move_atoms, "moved the atoms"),
    (change(energy=np.nan), "not finite"),
    (change(energy=-np.inf), "not finite"),
    (change(energy=-1e14), "absurd"),
    (change(energy=1e14), "absurd"),
    (change(energy=lambda e: e + 1j), "complex"),
    (change(energy="-76.4"), "energy|dtype|type"),
    (change(energy=None), "not real"),
    (change(energy=True), "bool"),
    (change(energy=lambda e: np.array([e, e])), r"shape \(2,\)"),
    (change(forces=lambda f: np.full_like(f, np.nan)), "not finite"),
    (change(forces=lambda f: f[:, :2]), r"shape \(2, 2\)"),
    (change(forces=lambda f: f[:1]), r"shape \(1, 3\)"),
    (change(forces=lambda f: f.ravel()), r"shape \(6,\)"),
    (change(forces=lambda f: f + 1j), "complex"),
    (change(forces=lambda f: np.ma.masked_array(f, mask=np.eye(2, 3))), "not finite"),
    (change(forces=None), "not real|None"),
    (lose_forces, "forces"),
]
#: What does no harm to the label.
HARMLESS = [
    change(energy=lambda e: np.array([e])),
    change(energy=lambda e: np.array([[e]])),
    change(energy=np.float64),
    change(forces=np.ndarray.tolist),
    lambda results: results.update(free_energy=results["energy"], energy=0.8 * results["energy"]),
    leave_folder,
    close_output,
    leave_a_process,
    chatter,
]
ALL = [*(fault for fault, _ in FAULTS), *HARMLESS]


def geometry(index):
    """Geometry [2, 3] nm whose calculation has a fault, by the place of the fault in `ALL`."""
    return np.array([[float(index), 0, 0], [index + 0.1, 0.01, 0]])


class Faulty(Calculator):
    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = spring(atoms.positions)
        self.results = {"energy": energy, "forces": forces}
        fault = ALL[round(atoms.positions[0, 0] / 10)]
        if fault is move_atoms:
            atoms.positions[0] += 0.1
        else:
            fault(self.results)


class KillsItsParent(Calculator):
    """A spring whose frame of 1.03 Å takes along the worker that leads it."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = dict(zip(("energy", "forces"), spring(atoms.positions), strict=True))
        if round(atoms.get_distance(0, 1), 3) == 1.03:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(100)


class LeavesFiles(KillsItsParent):
    """A spring that writes where it works, and fails at 1.01 Å."""

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        Path("log").write_text(str(Path.cwd().parent))
        if round(atoms.get_distance(0, 1), 3) == 1.01:
            raise RuntimeError("no convergence")
