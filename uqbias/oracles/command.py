"""Labels from any program, run in a folder for each geometry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.molecule.cells import EVERYWHERE, ISOLATED
from uqbias.molecule.frames import Frames, read_frames
from uqbias.molecule.labels import LabelKeys
from uqbias.molecule.sense import check_molecule
from uqbias.options import InputFile
from uqbias.oracles.base import Answer, Array, Oracle, numbers_of
from uqbias.oracles.pool import ROUNDED, Places
from uqbias.oracles.shell import filled, run_command
from uqbias.units import ANGSTROM

#: What a template must hold one of: the file that ASE writes, or lines of symbol and x, y, z.
GEOMETRY = ("geometry", "atoms")
#: Options that are kept as they are.
TAKEN = ("run", "input_file", "input_format", "template", "files", "output_file", "output_format", "charge", "spin")


class CommandOracle(Oracle):
    """Any program: a folder with an input for each geometry, a command in it, an output that is read back.

    A command that fails, writes no output, or the output of another geometry, costs that label alone, with its last
    lines as the reason; so does an output that says ``converged=F`` or ``failed`` of the frame. Let the command itself
    fail where a calculation does not converge: ``... > out && grep -q CONVERGED out``.

    Parameters
    ----------
    run : command of the shell, in the folder; ``{input}``, ``{output}``, ``{charge}`` and ``{spin}`` are filled in.
    template : file with ``{geometry}``, which becomes what ASE writes in ``input_format``, or ``{atoms}``, lines of
        symbol, x, y, z in Å; and ``{cell}``, three lines of lattice vectors in Å, ``{charge}`` and ``{spin}``.
    numbers : [N] atomic numbers; or give
    structure : file to take them from, see `uqbias.molecule.structure.read_structure`.
    charge, spin : total charge and multiplicity; also in the info of an extended XYZ input.
    pbc : whether the system repeats along each lattice vector; for geometries with a cell.
    energy_key, forces_key, stress_key : names of the labels in the output, as the system section states them.

    Raises
    ------
    UqbiasError
        If a format is none of ASE's, the template has no place for the geometry, or charge or spin reach no command.
    """

    kind: ClassVar[str] = "command"
    periodic: ClassVar[bool] = True
    numbers: tuple[int, ...]

    def __init__(
        self,
        *,
        run: Annotated[str, Doc("command of the shell, run in a folder for each geometry; {input} and {output} in it")],
        input_file: Annotated[str, Doc("name of the file that holds the geometry, in that folder")] = "input.xyz",
        input_format: Annotated[str, Doc("ASE's name of its format (Å)")] = "extxyz",
        template: Annotated[
            str | None, InputFile(), Doc("text of that file, with {geometry} or {atoms}, {cell}, {charge}, {spin}")
        ] = None,
        files: Annotated[
            list[Annotated[str, InputFile()]], Doc("files that are copied into the folder, such as scripts and INCAR")
        ] = [],  # noqa: B006
        output_file: Annotated[
            str, Doc("file in that folder that the command leaves, as `uqbias train` reads: energy, forces, stress")
        ] = "output.xyz",
        output_format: Annotated[
            str | None, Doc("ASE's name of its format (eV, Å); null: known by its name, else extended XYZ")
        ] = None,
        numbers: Sequence[int] | None = None,
        structure: str | Path | None = None,
        charge: int | None = None,
        spin: int | None = None,
        pbc: Sequence[bool] = EVERYWHERE,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
    ) -> None:
        self.numbers = numbers_of(self.kind, numbers, structure)
        self.run, self.input_file, self.input_format = run, input_file, input_format
        self.output_file, self.output_format = output_file, output_format
        self.template = None if template is None else str(Path(template).absolute())
        self.files = [str(Path(file).absolute()) for file in files]
        self.charge, self.spin = charge, spin
        self.pbc = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
        self._keys = LabelKeys(energy_key, forces_key, stress_key)
        self._text = None if template is None else Path(template).read_text(encoding="utf-8")
        self._check()

    def _check(self) -> None:
        from ase.io.formats import ioformats

        for option, which in (("input_format", "can_write"), ("output_format", "can_read")):
            names = [name for name, form in ioformats.items() if getattr(form, which)]
            if (name := getattr(self, option)) is not None and name not in names:
                raise UqbiasError(f"oracle.{option} = {name}: no format of ASE", did_you_mean(name, names))
        for option in ("input_file", "output_file"):
            if (name := getattr(self, option)) != Path(name).name or name in ("", ".", ".."):
                raise UqbiasError(f"oracle.{option} = {name}: no name of a file in the label's folder", "give a name")
        if self.input_file == self.output_file or self.output_file in [Path(name).name for name in self.files]:
            raise UqbiasError(
                f"oracle.output_file = {self.output_file} is there before the command is run", "give another name"
            )
        text = self.run + (self._text or "")
        if self._text is not None and not any(f"{{{name}}}" in self._text for name in GEOMETRY):
            raise UqbiasError(f"oracle.template = {self.template}: no {{geometry}} and no {{atoms}}", "put one there")
        for name in ("charge", "spin"):
            value, used = getattr(self, name), f"{{{name}}}" in text
            if value is None and used:
                raise UqbiasError(f"oracle.run or template has {{{name}}}, which is not stated", f"give system.{name}")
            if value is not None and not used and (self._text is not None or self.input_format != "extxyz"):
                raise UqbiasError(
                    f"system.{name} = {value} does not reach the command", f"put {{{name}}} into oracle.template or run"
                )

    @classmethod
    def check_molecule(cls, options: dict[str, Any], numbers: tuple[int, ...]) -> None:
        cls(**{"numbers": numbers, **options})

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        taken = {name: getattr(self, name) for name in TAKEN} | {f"{k}_key": v for k, v in vars(self._keys).items()}
        lists = {"numbers": list(self.numbers), "pbc": list(self.pbc)}
        return {name: value for name, value in taken.items() if value is not None} | lists

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        frame = Frames(
            np.array(self.numbers),
            positions[None],
            cells=None if cell is None else cell[None],
            periodic=ISOLATED if cell is None else self.pbc,
        )
        with nullcontext(self.folder) if self.folder else tempfile.TemporaryDirectory(prefix="uqbias-") as name:
            folder = Path(name)
            for file in self.files:
                shutil.copy(file, folder)
            self._write(folder, frame)
            names = {"input": self.input_file, "output": self.output_file, "charge": self.charge, "spin": self.spin}
            said = run_command(filled(self.run, names), folder)
            return self._read(folder / self.output_file, frame, said)

    def _write(self, folder: Path, frame: Frames) -> None:
        import ase.io
        from ase import Atoms

        atoms = Atoms(self.numbers, frame.positions[0] / ANGSTROM, pbc=frame.periodic)
        if frame.cells is not None:
            atoms.set_cell(frame.cells[0] / ANGSTROM)
        facts = {name: value for name, value in (("charge", self.charge), ("spin", self.spin)) if value is not None}
        atoms.info.update(facts)
        path = folder / self.input_file
        if self._text is None or "{geometry}" in self._text:
            ase.io.write(path, atoms, format=self.input_format)
        if self._text is not None:
            rows = zip(atoms.symbols, atoms.positions, strict=True)
            names = {
                "geometry": path.read_text(encoding="utf-8") if path.is_file() else "",
                "atoms": "\n".join(f"{symbol:2s} {x:.10f} {y:.10f} {z:.10f}" for symbol, (x, y, z) in rows),
                "cell": "\n".join(f"{x:.10f} {y:.10f} {z:.10f}" for x, y, z in atoms.cell.array),
                **facts,
            }
            path.write_text(filled(self._text, names), encoding="utf-8")

    def _read(self, path: Path, asked: Frames, said: str) -> Answer:
        if not path.exists():
            raise UqbiasError(f"`{self.run}` wrote no {self.output_file}{said}")
        try:
            frames = read_frames(path, periodic=True, keys=self._keys, form=self.output_format)[-1:]
            check_molecule(frames, self.numbers, "the geometry asked for")
        except UqbiasError as error:
            raise UqbiasError(f"{error.what}{said}") from None
        if frames.periodic != asked.periodic:
            raise UqbiasError(f"{path} has pbc {list(frames.periodic)}, the geometry {list(asked.periodic)}")
        (index,), (apart,) = Places(asked).find(frames, ROUNDED)
        if index < 0:
            raise UqbiasError(
                f"{path} is of another geometry: a coordinate is {apart / ANGSTROM:.3g} Å from what was asked for, "
                f"allowed are {ROUNDED / ANGSTROM:g}"
            )
        (info,) = frames.info
        if info.get("failed") or not info.get("converged", True):
            raise UqbiasError(f"{path} is marked as {'failed' if info.get('failed') else 'not converged'}{said}")
        energies, forces = frames.labels()
        return float(energies[0]), forces[0], None if frames.stresses is None else frames.stresses[0]
