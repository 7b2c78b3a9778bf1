"""One PLUMED inside this process: input, commands in the right order, one update per step, a clean end."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.plumed.kernel import find_kernel, make_plumed
from uqbias.runs.series import drop_cut_line
from uqbias.units import kt
from uqbias.variables.names import LOCAL, is_of_model

Array = NDArray[np.float64]

#: Values that the MD side can hand to EXTRACV, and what each is.
EXTRA = {
    "judge": "calibrated model uncertainty, kJ/mol/nm",
    "driver": "driver of the bias",
    "energy": "energy of the model, kJ/mol",
}
LINE_TO_PASTE = "u: EXTRACV NAME=judge"
#: Files that METAD and OPES write where FILE is not given.
_DEFAULT_FILES = ("HILLS", "KERNELS")


class PlumedStop(UqbiasError):  # noqa: N818 - a request of the user's input, not a fault
    """An action such as COMMITTOR asked for the end of the run."""


class Action(NamedTuple):
    """One action of a PLUMED input."""

    #: Such as ``METAD``.
    name: str
    #: Such as ``FILE`` to ``HILLS``.
    options: Mapping[str, str]
    #: Number of its first line.
    line: int


def input_lines(plumed_dat: str | Path | Sequence[str]) -> list[str]:
    """Lines of a PLUMED input, of which the path is given or the lines."""
    if not isinstance(plumed_dat, str | Path):
        return [line for lines in plumed_dat for line in lines.splitlines()]
    path = Path(plumed_dat)
    if not path.is_file():
        raise UqbiasError(f"no such file: {path}", "give the path of a PLUMED input, or a list of its lines")
    return path.read_text(encoding="utf-8").splitlines()


def read_actions(lines: Iterable[str], folder: Path) -> list[Action]:
    """The actions of a PLUMED input, those of included files with them; comments and continuations are resolved."""
    actions: list[Action] = []
    words: list[str] = []
    start, open_block = 0, False
    for number, line in enumerate(lines, start=1):
        line_words = line.split("#", 1)[0].split()
        if line_words and line_words[0] == "ENDPLUMED":
            break
        if open_block:
            open_block = not (line_words and line_words[0] == "...")
            words += [word for word in line_words if word != "..."] if open_block else []
        else:
            words, start = line_words, number
            if len(line_words) > 1 and line_words[-1] == "...":
                words, open_block = line_words[:-1], True
        if words and not open_block:
            actions += _action(words, start, folder)
            words = []
    return actions


def _action(words: list[str], line: int, folder: Path) -> list[Action]:
    labelled = words[0].endswith(":") and len(words) > 1
    name, rest = (words[1], words[2:]) if labelled else (words[0], words[1:])
    options = {key: value for key, _, value in (word.partition("=") for word in rest)}
    included = folder / options.get("FILE", "")
    if name == "INCLUDE" and included.is_file():
        return read_actions(included.read_text(encoding="utf-8").splitlines(), folder)
    return [Action(name, options, line)]


def names_in_use(actions: Sequence[Action]) -> tuple[str, ...]:
    """Which of `EXTRA`, and which parts of the driver, the input asks for.

    Raises
    ------
    UqbiasError
        If it asks for none, for an unknown one, or has a line that would give wrong forces without a word.
    """
    used: list[str] = []
    for action in actions:
        if action.name == "UNITS":
            _check_units(action)
        if action.name == "ENERGY":
            raise UqbiasError(
                f"plumed.dat, line {action.line}: ENERGY, which this bridge cannot give",
                "for the energy of the model write 'e: EXTRACV NAME=energy'",
            )
        if action.name == "EXTRACV":
            name = action.options.get("NAME", "")
            if name not in EXTRA and (name == LOCAL or not is_of_model(name)):
                raise UqbiasError(f"plumed.dat, line {action.line}: EXTRACV NAME={name}", did_you_mean(name, EXTRA))
            used.append(name)
    # The plugin's action computes the uncertainty itself.
    if not used and all(action.name != "UNCERTAINTY" for action in actions):
        raise UqbiasError(
            "plumed.dat has no line that uses the uncertainty", f"add one such as '{LINE_TO_PASTE}' and use u in ARG"
        )
    return tuple(name for name in dict.fromkeys((*EXTRA, *used)) if name in used)


def _check_units(action: Action) -> None:
    """PLUMED hands the force on an EXTRACV back in its own energy unit, so that unit must be the MD engine's."""
    energy = action.options.get("ENERGY", "kj/mol")
    if energy.lower() not in {"kj/mol", "1", "1.0"} or "NATURAL" in action.options:
        raise UqbiasError(
            f"plumed.dat, line {action.line}: UNITS ENERGY={energy} makes the bias force wrong by that unit",
            "leave ENERGY out: energies are kJ/mol, as OpenMM's",
        )


class PlumedSession:
    """A ``plumed.Plumed`` that sees the MD engine's steps; each step is updated exactly once.

    PLUMED's ``update`` (deposit a hill, print) of step k runs when the first evaluation of a later step arrives, on
    the values of the last evaluation of step k. That is the one from whose forces the integrator left step k: reports,
    minimisations and trial moves of a barostat come before it. So none of them adds, loses or moves a hill.

    Parameters
    ----------
    lines : the PLUMED input.
    names : values handed in, see `EXTRA`.
    masses, charges : [n] dalton and e.
    timestep : ps.
    temperature : K, or None.
    output_dir : relative paths in the input start here.
    log : file for PLUMED's log.
    restart : append to the files and begin with their bias.
    flush : steps between flushes of all files, or None.

    Raises
    ------
    UqbiasError
        If no kernel is found or PLUMED refuses the input; with PLUMED's own message in one line.
    """

    def __init__(
        self,
        lines: Sequence[str],
        names: Sequence[str],
        *,
        masses: Array,
        charges: Array,
        timestep: float,
        temperature: float | None,
        output_dir: Path,
        log: str,
        restart: bool,
        flush: int | None,
    ) -> None:
        self.step = -1
        self.stopped = False
        self.pending = False
        self.closed = False
        self.flush = flush
        self._folder = str(output_dir.resolve())
        self.bias = np.zeros(1)
        self.forces = np.zeros((len(masses), 3))
        self.box = np.zeros((3, 3))
        # PLUMED keeps pointers: all of these arrays live as long as it does.
        self.values = {name: np.zeros(1) for name in names}
        self.value_forces = {name: np.zeros(1) for name in names}
        self.positions = np.zeros((len(masses), 3))
        self._step, self._stop = np.zeros(1, dtype=np.int_), np.zeros(1, dtype=np.intc)
        output_dir.mkdir(parents=True, exist_ok=True)
        self._plumed = make_plumed(find_kernel())
        self._cmd = self._plumed.cmd
        before: list[tuple[str, Any]] = [
            ("setMDEngine", "OpenMM"),
            ("setNatoms", len(masses)),
            ("setNoVirial", None),
            ("setTimestep", float(timestep)),
            ("setLogFile", log),
        ]
        if temperature is not None:
            before.append(("setKbT", kt(temperature)))
        if restart:
            before.append(("setRestart", 1))
        try:
            with self._in_output_dir():
                for command, value in before:
                    self._cmd(command, value)
                self._cmd("init")
                self._cmd("readInputLines", "\n".join([*lines, ""]))
            self._cmd("setStopFlag", self._stop)
        except Exception as error:
            self.closed = True
            self._plumed.finalize()
            raise UqbiasError(f"PLUMED refuses the input: {message(error)}", f"see {log}") from error
        self._each_step: list[tuple[str, Any]] = [
            ("setStepLong", self._step),
            *((f"setExtraCV {name}", array) for name, array in self.values.items()),
            *((f"setExtraCVForce {name}", array) for name, array in self.value_forces.items()),
            ("setMasses", masses),
            ("setCharges", charges),
            ("setBox", self.box),
            ("setPositions", self.positions),
            ("setForces", self.forces),
            ("prepareCalc", None),
            ("performCalcNoUpdate", None),
            ("getBias", self.bias),
        ]

    def begin(self, step: int) -> None:
        """Say that an evaluation at ``step`` comes; updates the step before if that is due.

        Raises
        ------
        PlumedStop
            If an action asked for the end.
        UqbiasError
            If the step went back.
        """
        if self.closed:
            raise UqbiasError("PLUMED was finalised, no more forces", "make a new PlumedBridge, with restart=True")
        if step < self.step:
            raise UqbiasError(
                f"the step count went back from {self.step} to {step}: two runs would mix in PLUMED's files",
                "make a new System and PlumedBridge for a new run, and leave the step count alone in a run",
            )
        if step > self.step:
            # A jump means that a checkpoint was loaded: nobody integrated from the values seen before.
            if step == self.step + 1:
                self.update()
            self.pending, self.step = False, step
        if self.stopped:
            raise PlumedStop(
                f"PLUMED asked to stop at step {self._step[0]}", "run by PlumedBridge.step, which returns then"
            )

    def calculate(self, positions: Array, values: Mapping[str, float]) -> None:
        """Forces of all biases at this geometry: `forces`, `value_forces` and `bias` hold them then.

        Parameters
        ----------
        positions : [n, 3] nm.
        values : value of each name handed in.
        """
        self._step[0] = self.step
        self.positions[:] = positions
        self.forces.fill(0.0)
        for name, array in self.values.items():
            array[0] = values[name]
            self.value_forces[name][0] = 0.0
        cmd = self._cmd
        try:
            for command, value in self._each_step:
                cmd(command, value)
        except Exception as error:
            raise UqbiasError(f"PLUMED failed at step {self.step}: {message(error)}", "see its log") from error
        self.pending = True

    def update(self) -> None:
        """Let the actions take in the values of the latest evaluation, if that is still due."""
        if not self.pending:
            return
        self.pending = False
        with self._in_output_dir():
            if self.flush and self.step % self.flush == 0:
                self._cmd("doCheckPoint", 1)
            try:
                self._cmd("update")
            except Exception as error:
                raise UqbiasError(f"PLUMED failed at step {self.step}: {message(error)}", "see its log") from error
        self.stopped = self.stopped or bool(self._stop[0])

    def close(self) -> None:
        """Update what is due, write all files out and end PLUMED; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        with self._in_output_dir():
            try:
                if not self.stopped:
                    self.update()
                self._cmd("runFinalJobs")
            finally:
                self._plumed.finalize()

    @contextlib.contextmanager
    def _in_output_dir(self) -> Iterator[None]:
        """PLUMED opens files relative to the working directory, some of them only in an update."""
        here = os.getcwd()  # noqa: PTH109 - each step: a Path costs as much as all of PLUMED
        if here == self._folder:
            yield
            return
        os.chdir(self._folder)
        try:
            yield
        finally:
            os.chdir(here)


def drop_cut_lines(actions: Sequence[Action], folder: Path) -> None:
    """Cut the incomplete last line, which a killed run leaves, off the files that PLUMED will append to."""
    names = {action.options["FILE"] for action in actions if "FILE" in action.options}
    for name in sorted({*names, *_DEFAULT_FILES}):
        path = folder / name
        if path.is_file() and path.read_bytes().startswith(b"#!"):
            drop_cut_line(path)


def message(error: BaseException) -> str:
    """What PLUMED says, in one line and without the place in its sources."""
    text = str(error)
    text = text.rsplit("message follows +++", 1)[-1]
    text = re.sub(r"\(\S+\.(?:cpp|h):\d+\)[^\n]*\n", "", text)
    return " ".join(text.replace("+++", " ").split())[:400]
