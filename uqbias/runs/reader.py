"""A run as it lies on disk: what the walkers did, and the biases that drove them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import content_of, memory_for, read_arrays
from uqbias.molecule.topology import Bonds, Topology, backbone_dihedrals
from uqbias.registry import VARIABLES, names_of_file
from uqbias.runs.writer import read_description

if TYPE_CHECKING:
    from uqbias.bias.base import Bias

Array = NDArray[np.float64]

#: Quantities of every run, with the array of observations.npz and the unit.
OBSERVED = {"driver": ("driver", ""), "energy": ("energy", "kJ/mol"), "judge": ("judge", "kJ/mol/nm")}
#: Kinds of variable that can be given by their atoms, as d:2-5.
BY_ATOMS = {"d": "distance", "a": "angle", "t": "dihedral"}


@dataclass(frozen=True)
class Column:
    """One quantity of every frame.

    Attributes
    ----------
    values : [T, W].
    unit : unit of the values.
    period : None for a quantity without one.
    """

    values: Array
    unit: str = ""
    period: float | None = None

    def in_degrees(self) -> Column:
        """Angles in degrees, everything else as it is."""
        if self.unit != "rad":
            return self
        return Column(np.degrees(self.values), "°", None if self.period is None else float(np.degrees(self.period)))


class _Model(TypedDict):
    sha256: NotRequired[str | None]


class _Bias(TypedDict):
    kind: str


class _Variable(TypedDict):
    kind: str
    options: dict[str, Any]
    unit: NotRequired[str | None]
    period: NotRequired[FiniteFloat | None]


class _Jumps(TypedDict):
    walkers: NotRequired[list[int]]


class Facts(TypedDict):
    """Schema of run.json; further keys may stand in it."""

    temperature: Annotated[FiniteFloat, Gt(0)]
    topology: Bonds
    biases: list[_Bias]
    variables: NotRequired[dict[str, _Variable] | None]
    model: NotRequired[_Model | None]
    jumps: NotRequired[_Jumps]


AGAIN = "run the MD again"


#: Columns of proposed geometries that may hold text.
TEXTS = ("source", "status")


def check_observations(
    file: Path, arrays: Mapping[str, NDArray[Any]], needed: Iterable[str], n_atoms: int, cure: str
) -> None:
    """See that arrays of observations hold numbers and agree on how many observations, walkers and variables there are.

    Parameters
    ----------
    file, cure : for the message.
    needed : arrays that must be there.

    Raises
    ------
    UqbiasError
        With the array that is missing or does not fit.
    """
    if missing := sorted({"step", *needed} - set(arrays)):
        raise UqbiasError(f"{file} has no {', '.join(missing)}", cure)
    driver = arrays.get("driver", np.empty((0, 0)))
    shape = (arrays["step"].size, driver.shape[1] if driver.ndim == 2 else 1)
    fitting = dict.fromkeys(sorted(needed), shape) | {
        "step": shape[:1],
        "variables": (*shape, *arrays.get("variable_names", np.empty(0)).shape[:1]),
        "positions": (*shape, n_atoms, 3),
        "boxes": (*shape, 3, 3),
    }
    for name, wanted in fitting.items():
        kinds = "biufU" if name in TEXTS else "biuf"
        if name in arrays and (arrays[name].shape != wanted or arrays[name].dtype.kind not in kinds):
            raise UqbiasError(
                f"{file}: '{name}' is of shape {arrays[name].shape} and type {arrays[name].dtype}, not {wanted} "
                "numbers",
                cure,
            )


class RunFolder:
    """What ``uqbias md`` or a group of walkers of a campaign wrote: run.json, observations.npz, bias.npz.

    Parameters
    ----------
    path : the folder.
    trust : import what it names by ``module:attribute``, because it is yours.

    Attributes
    ----------
    facts : run.json.
    jumping : walkers that jumped.
    parts : the biases as they were at the end, in double precision.
    temperature : K.
    step : [T] MD step of each observation.
    under_plumed : whether PLUMED held the biases, which are then not among ``parts``.
    bias : [T, W] total bias in kJ/mol that acted, walls and restraints included, before the hills of that step.
    restarted : [T, W] whether the walker goes on from elsewhere: stopped by the guard, or jumping.
    boxes : [T, W, 3, 3] nm; None of molecules in vacuum.

    Raises
    ------
    UqbiasError
        If a file is missing or broken.
    """

    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        self.path = Path(path)
        self.trust = trust
        self.facts = self._read_facts()
        self.temperature = float(self.facts["temperature"])
        with content_of(self._description, AGAIN):
            self.topology = Topology.from_dict(self.facts["topology"])
        self.variables: Mapping[str, Mapping[str, Any]] = dict(self.facts.get("variables") or {})
        self.model = (self.facts.get("model") or {}).get("sha256")
        self.under_plumed = "plumed" in self.facts
        self.jumping = list(self.facts.get("jumps", {}).get("walkers", ()))
        file = self.path / "observations.npz"
        self._arrays = self._read_arrays(file)
        needed = {"bias", "restarted", *(name for name, _ in OBSERVED.values())}
        if "variable_names" in self._arrays:
            needed.add("variables")
        check_observations(file, self._arrays, needed, len(self.topology), AGAIN)
        self.step = self._arrays["step"].astype(np.int64)
        self.bias = self._arrays["bias"].astype(np.float64)
        self.restarted = self._arrays["restarted"].astype(bool)
        self.boxes = self._arrays.get("boxes")
        self.parts: list[Bias] = self._restored()

    @property
    def _description(self) -> Path:
        return self.path / "run.json"

    @contextmanager
    def _making(self, file: Path, fault: str = "does not describe a run", cure: str = AGAIN) -> Iterator[None]:
        """Make parts from what stands in a file."""
        with content_of(file, cure, fault), names_of_file(self.trust), memory_for(file):
            yield

    def _read_facts(self) -> dict[str, Any]:
        file = self._description
        if not file.is_file():
            raise UqbiasError(
                f"no run.json in {self.path}",
                "give the folder of a finished run ('uqbias md -o', or a campaign's md/N)",
            )
        return read_description(file, Facts, AGAIN)

    def _read_arrays(self, file: Path) -> dict[str, NDArray[Any]]:
        if not file.is_file():
            raise UqbiasError(f"no {file.name} in {self.path}", "the run has not ended; let it")
        return read_arrays(file, "file of a run", "it is cut short or of another program")

    def _restored(self) -> list[Bias]:
        import torch

        from uqbias.bias.build import build_bias

        if not self.facts["biases"]:
            return []
        options = [dict(entry) for entry in self.facts["biases"]]
        with self._making(self._description):
            bias = build_bias(tuple((entry.pop("kind"), entry) for entry in options), self.temperature)
        file = self.path / "bias.npz"
        arrays = self._read_arrays(file)
        with self._making(file, "does not fit run.json", "is it of this run?"):
            if beyond := [name for name in arrays if name.partition(".")[0] not in map(str, range(len(options)))]:
                raise UqbiasError(f"'{beyond[0]}' for {len(options)} bias(es)", "is it of this run?")
            bias.restore(arrays)
        bias.to(torch.float64)
        return list(bias.biases)

    @property
    def files(self) -> list[str]:
        """Names of the files that are read."""
        return [
            str(self.path / name) for name in ("run.json", "observations.npz", *(["bias.npz"] if self.parts else []))
        ]

    @property
    def extended(self) -> frozenset[str]:
        """Names of the extended variables."""
        return frozenset(one.name for part in self.parts for one in part.extended)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the biases."""
        return [part.kind for part in self.parts]

    @cached_property
    def _stored(self) -> dict[str, int]:
        """Variables in observations.npz, and their places."""
        return {str(name): place for place, name in enumerate(self._arrays.get("variable_names", ()))}

    def names(self) -> list[str]:
        """What `column` knows by name."""
        return sorted({*OBSERVED, *self._stored, *self.variables, *self._backbone})

    @cached_property
    def _backbone(self) -> dict[str, Sequence[int]]:
        try:
            return dict(zip(("phi", "psi"), backbone_dihedrals(self.topology), strict=True))
        except UqbiasError:  # not every molecule has them
            return {}

    def column(self, name: str) -> Column:
        """A quantity of every frame, in the units of the biases (rad for angles).

        Parameters
        ----------
        name : ``driver``, ``energy``, ``judge``; a variable or extended variable of the run; ``phi`` or ``psi`` of the
            first residue that has both; or atoms, by index from 0 or name: ``d:2-5`` a distance in nm, ``a:1-2-3`` an
            angle, ``t:1-2-3-4`` a dihedral.

        Raises
        ------
        UqbiasError
            If there is none.
        """
        if name in OBSERVED:
            key, unit = OBSERVED[name]
            return Column(self._arrays[key].astype(np.float64), unit)
        if name in self._stored:
            unit, period = self._unit_and_period(name)
            return Column(self._arrays["variables"][..., self._stored[name]].astype(np.float64), unit, period)
        if name in self.variables:
            return self._evaluated({"kind": None, "options": {}} | dict(self.variables[name]))
        kind, separator, atoms = name.partition(":")
        if separator and kind in BY_ATOMS:
            words = [int(word) if word.isdecimal() else word for word in atoms.split("-")]
            spec = {"kind": BY_ATOMS[kind], "atoms": words}
            return self._evaluated(VARIABLES.build(spec, topology=self.topology).describe())
        if name in self._backbone:
            return self._evaluated({"kind": "dihedral", "options": {"atoms": self._backbone[name]}})
        raise UqbiasError(
            f"unknown variable '{name}'", f"{did_you_mean(name, self.names())}, or atoms as d:2-5, a:1-2-3, t:1-2-3-4"
        )

    def _unit_and_period(self, name: str) -> tuple[str, float | None]:
        """Those of a stored variable; an extended variable has those of the one it follows."""
        followed = {one.name: one.of for part in self.parts for one in part.extended}
        name = followed.get(name, name)
        if name in OBSERVED:
            return OBSERVED[name][1], None
        description = self.variables.get(name, {})
        return description.get("unit") or "", description.get("period")

    def _evaluated(self, description: Mapping[str, Any]) -> Column:
        """A variable that no bias acted on, from the positions."""
        import torch

        if "positions" not in self._arrays:
            raise UqbiasError(f"{self.path / 'observations.npz'} has no positions", "choose among its variables")
        x = self._arrays["positions"]
        flat = torch.from_numpy(x.reshape(-1, *x.shape[2:]).astype(np.float64))
        with self._making(self._description):
            variable = VARIABLES.restore(description).to(torch.float64)
        with content_of(self._description, AGAIN, "does not describe a run"), torch.no_grad():
            values = torch.cat([variable(block) for block in torch.split(flat, 4096)]).numpy()
        return Column(values.reshape(self.restarted.shape), variable.unit, variable.period)

    def energy_of(self, which: int | Bias, columns: Callable[[str], Array]) -> Array:
        """A bias as it was at the end, in kJ/mol.

        Parameters
        ----------
        which : its place among ``parts``, or the bias.
        columns : gives the values [n] of a variable.

        Returns
        -------
        [n].
        """
        import torch

        part = self.parts[which] if isinstance(which, int) else which
        x = torch.from_numpy(np.stack([columns(name) for name in part.variables], axis=1))
        with content_of(self.path / "bias.npz", AGAIN), torch.no_grad():
            values = [part.energy(block, part.state()) for block in torch.split(x, 65536)]
        return np.asarray(torch.cat(values).numpy(), dtype=np.float64)


def join(runs: Sequence[RunFolder]) -> None:
    """Let each run know the variables of the others, so that its frames can be put under their biases.

    Raises
    ------
    UqbiasError
        Unless the runs are of one temperature, one molecule and one model, and mean the same by a variable's name.
    """
    first = runs[0]
    variables: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if run.temperature != first.temperature:
            raise UqbiasError(
                f"{run.path} is of {run.temperature:g} K, {first.path} of {first.temperature:g} K",
                "give runs of one temperature",
            )
        if (run.topology.numbers, run.topology.bonds) != (first.topology.numbers, first.topology.bonds):
            raise UqbiasError(
                f"{run.path} is of another molecule than {first.path}", "give runs of one molecule, in one atom order"
            )
        if run.model != first.model:
            raise UqbiasError(
                f"{run.path} was driven by another model than {first.path}",
                "energies and uncertainties of two models are not comparable: analyse the runs one by one",
            )
        for name, description in run.variables.items():
            if variables.setdefault(name, description) != description:
                raise UqbiasError(f"'{name}' in {run.path} is another variable than before", "analyse it by itself")
    for run in runs:
        run.variables = variables
