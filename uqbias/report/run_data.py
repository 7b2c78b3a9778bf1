"""Contents of a run directory, finished or not; whatever is not there yet is simply absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from uqbias.errors import UqbiasError
from uqbias.files import parse_json, read_arrays
from uqbias.molecule.frames import read_frames
from uqbias.molecule.surface import ReferenceSurface
from uqbias.registry import SAMPLERS
from uqbias.report.map_axes import MapAxes, Region, dihedral_coordinates, principal_components, regions_of
from uqbias.runs.hills import Hills, load_hills
from uqbias.runs.ledger_lines import NAME, read_ledger
from uqbias.settings.yaml_text import read_yaml

Array = NDArray[np.float64]
T = TypeVar("T")
OBSERVED = ("step", "positions", "energy", "driver", "judge", "bias")


@dataclass(frozen=True)
class Labels:
    """Labelled frames in the order (round, index).

    Attributes
    ----------
    round : [n] round in which each label was paid.
    positions : [n, N, 3] nm.
    accepted : [n] False where the label was paid and then left out of the training.
    """

    round: NDArray[np.int64]
    positions: Array
    accepted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.round)


@dataclass(frozen=True)
class Observations:
    """Values of the walkers of one round, every observation interval.

    Attributes
    ----------
    step : [T] MD steps per walker.
    positions : [T, W, N, 3] nm.
    energy : [T, W] kJ/mol (the model's).
    driver : [T, W] driver u.
    judge : [T, W] kJ/mol/nm (the judge's).
    bias : [T, W] kJ/mol.
    variables : [T, W] each, those of the bias by name, where the run has kept them.
    """

    step: Array
    positions: Array
    energy: Array
    driver: Array
    judge: Array
    bias: Array
    variables: dict[str, Array] = field(default_factory=dict)


@dataclass
class Round:
    """Files of ``round_XX``; each attribute is empty, the observations None, until the campaign has written it.

    Several groups of walkers become one set of walkers, with the ``hills`` of all. ``attacks`` is
    attacks.npz: how adversarial attacks ended and, where `attack.keep_every` keeps them, their paths.
    """

    index: int
    summary: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Array] = field(default_factory=dict)
    harvest: dict[str, Any] = field(default_factory=dict)
    observations: Observations | None = None
    guard_events: list[dict[str, Any]] = field(default_factory=list)
    hills: list[Hills] = field(default_factory=list)
    attacks: dict[str, Array] = field(default_factory=dict)


@dataclass
class RunData:
    """A run directory in memory.

    Attributes
    ----------
    directory : the run directory.
    config : resolved configuration, ``{}`` if there is none yet.
    config_text : the file as it is.
    summary : content of ``summary.json``.
    rounds : every round that has a directory or an entry in the summary, in order.
    events : ledger events in order.
    labels : labelled frames, or None.
    notes : files that could not be read, said in the report.
    """

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    labels: Labels | None = None
    numbers: NDArray[np.int64] | None = None
    surface: ReferenceSurface | None = None
    test_positions: Array | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, directory: str | Path) -> RunData:
        """Read whatever the campaign has written so far.

        Raises
        ------
        UqbiasError
            If ``directory`` is missing or is not a run directory.
        """
        path, cure = Path(directory), "give the directory that 'uqbias run' wrote"
        if not path.is_dir():
            raise UqbiasError(f"no such run directory: {path}", cure)
        if not any((path / name).is_file() for name in ("campaign.yaml", "ledger.jsonl", "summary.json")):
            raise UqbiasError(f"{path} is not a run directory (no campaign.yaml, ledger.jsonl or summary.json)", cure)
        return _Reader(path).read()

    @property
    def name(self) -> str:
        """Name of the campaign: the configured one, else the directory's."""
        return str(self.config.get("name") or self.directory.resolve().name)

    @property
    def proposing(self) -> str:
        """The sampler if it is one without MD, such as ``attack``, ``random`` or ``pool``; else empty."""
        sampler = self.config.get("sampler")
        kind = str((sampler.get("kind") if isinstance(sampler, dict) else sampler) or "md")
        try:
            return "" if SAMPLERS.get(kind).walks else kind
        except UqbiasError:  # a third party's, which is not installed here
            return ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Summary entries, one a scored round."""
        return [entry for entry in self.summary.get("rounds", []) if isinstance(entry, dict)]

    def values(self, key: str) -> list[float]:
        """Finite values of a key of the summary, one a round that has it."""
        return [row[key] for row in self.rows if is_number(row.get(key))]

    def learned(self, key: str) -> tuple[Array, Array]:
        """Number of labels, and the value of ``key``, in each round of the summary that has both."""
        both = [(row.get("labels"), row.get(key)) for row in self.rows]
        kept = [pair for pair in both if all(map(is_number, pair))]
        labels, values = np.array(kept, dtype=np.float64).reshape(-1, 2).T
        return labels, values

    @property
    def finished(self) -> bool:
        """Whether the campaign ended; ``summary["stopped"]`` says why."""
        return bool(self.summary.get("stopped"))

    @cached_property
    def regions(self) -> list[Region]:
        """Regions of the campaign file."""
        return regions_of(self.score)

    @property
    def score(self) -> dict[str, Any]:
        """The section ``score`` of the configuration."""
        return section(self.config, "score")

    @cached_property
    def coordinates(self) -> MapAxes | None:
        """The first two configured dihedrals, else principal components of the labelled frames, else None."""
        named = section(self.score, "coordinates")
        if len(named) >= 2:
            return dihedral_coordinates(named)
        if self.labels is not None and self.labels.accepted.sum() >= 3:
            return principal_components(self.labels.positions[self.labels.accepted], self.numbers)
        return None

    @cached_property
    def label_points(self) -> Array | None:
        """[n, 2] the labelled frames on the map."""
        return self.on_map(None if self.labels is None else self.labels.positions)

    @cached_property
    def test_points(self) -> Array | None:
        """[n, 2] the test set on the map."""
        return self.on_map(self.test_positions)

    def visited_points(self, entry: Round) -> Array | None:
        """[T, W, 2] the walkers of one round on the map."""
        return self.on_map(None if entry.observations is None else entry.observations.positions)

    def on_map(self, positions: Array | None) -> Array | None:
        """[..., 2] where geometries [..., N, 3] lie on the map; None without a map or without geometries."""
        return None if self.coordinates is None or positions is None else self.coordinates.project(positions)

    def scored(self, key: str) -> list[tuple[Round, Array]]:
        """Rounds whose ``scores.npz`` holds ``key``, with the values."""
        return [(entry, entry.scores[key]) for entry in self.rounds if key in entry.scores]

    def scored_on_map(self) -> list[Round]:
        """Rounds whose force errors belong to test frames with a known place on the map."""
        points = self.test_points if self.test_points is not None else ()
        return [entry for entry, values in self.scored("force_mae_frame") if len(values) == len(points) > 0]


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the configuration, ``{}`` where it is absent."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


class _Reader:
    """Reader of one directory; a file that cannot be read becomes a note instead of an exception."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunData(directory=path)

    def read(self) -> RunData:
        run = self.run
        run.config_text = self.file(self.path / "campaign.yaml", lambda path: path.read_text(encoding="utf-8")) or ""
        run.config = self.mapping(self.path / "campaign.yaml", None)
        run.summary = self.mapping(self.path / "summary.json", _Summary)
        run.events = self.ledger()
        run.labels, run.numbers = self.labels()
        run.rounds = self.rounds()
        self.scoring_files()
        return run

    def file(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """Result of ``read`` on a file; None, with a note, where it fails, and without one where there is no file."""
        if not path.is_file():
            return None
        try:
            return read(path)
        except (UqbiasError, ValueError, KeyError, OSError) as error:
            self.note(path, error)
            return None

    def note(self, path: Path, error: object) -> None:
        self.run.notes.append(f"{path.name} could not be read: {error}".replace("\n", " "))

    def ledger(self) -> list[dict[str, Any]]:
        """Events of the ledger; its faults are noted. One of a version without checksums is taken as it is."""
        content = read_ledger(self.path)
        if not any(content.sums):
            return self.json_lines(self.path / NAME)
        self.run.notes += [f"{NAME} is not whole: {fault}" for fault in content.faults]
        return [*content.events, *content.doubtful, *content.misplaced]

    def json_lines(self, path: Path) -> list[dict[str, Any]]:
        """Events of a line-by-line file; a torn last line is normal after a kill, any other is noted."""
        text = self.file(path, lambda path: path.read_text(encoding="utf-8", errors="replace")) or ""
        lines, events = text.splitlines(), []
        for number, line in enumerate(lines):
            try:
                events.append(parse_json(line, Any, "content", ""))
            except UqbiasError as error:
                if number < len(lines) - 1 and line.strip():
                    self.note(path, f"line {number + 1}: {error}")
        return [event for event in events if isinstance(event, dict)]

    def arrays(self, path: Path, needed: tuple[str, ...] = ()) -> dict[str, Array]:
        def read(path: Path) -> dict[str, Array]:
            content = read_arrays(path, "file of a run", "put it back from a copy")
            if missing := [key for key in needed if key not in content]:
                raise ValueError(f"no {', '.join(missing)}")
            return content

        return self.file(path, read) or {}

    def mapping(self, path: Path, schema: Any = Any) -> dict[str, Any]:
        """The mapping in a file of JSON, or without a schema of YAML; empty for a file that holds something else."""
        read = read_yaml if schema is None else lambda text: parse_json(text, schema, "content", "")
        content = self.file(path, lambda path: read(path.read_text(encoding="utf-8")))
        return content if isinstance(content, dict) else {}

    def labels(self) -> tuple[Labels | None, NDArray[np.int64] | None]:
        """Labels from the ledger; verdicts and atomic numbers from the data set that is derived from it."""

        def verdicts_of(path: Path) -> tuple[NDArray[np.int64], dict[tuple[int, int], str]]:
            frames = read_frames(path, periodic=True)
            return frames.numbers, {(int(e["round"]), int(e["index"])): str(e["verdict"]) for e in frames.info}

        numbers, verdicts = self.file(self.path / "dataset.xyz", verdicts_of) or (None, {})
        paid = {
            (int(event.get("round", 0)), int(event.get("index", 0))): event
            for event in self.run.events
            if event.get("event") == "label" and "positions" in event
        }
        if not paid:
            return None, numbers
        keys = sorted(paid)
        labels = Labels(
            round=np.array([key[0] for key in keys]),
            positions=np.array([paid[key]["positions"] for key in keys], dtype=np.float64),
            accepted=np.array([verdicts.get(key, "accepted") == "accepted" for key in keys], dtype=bool),
        )
        return labels, numbers

    def rounds(self) -> list[Round]:
        folders = {
            int(folder.name[6:]): folder
            for folder in self.path.glob("round_*")
            if folder.is_dir() and folder.name[6:].isdigit()
        }
        rows = {int(row.get("round", position)): row for position, row in enumerate(self.run.rows)}
        return [self.round(index, folders.get(index), rows.get(index, {})) for index in sorted({*folders, *rows})]

    def round(self, index: int, folder: Path | None, row: dict[str, Any]) -> Round:
        if folder is None:
            return Round(index, row)
        groups = sorted((folder / "md").glob("group_*")) or [folder / "md"]
        seen = [arrays for group in groups if (arrays := self.arrays(group / "observations.npz", OBSERVED))]
        n_walkers = np.cumsum([0] + [arrays["driver"].shape[1] for arrays in seen])
        events = [
            event | {"walker": event["walker"] + int(offset)} if isinstance(event.get("walker"), int) else event
            for group, offset in zip(groups, n_walkers, strict=False)
            for event in self.json_lines(group / "events.jsonl")
        ]
        timestep = float(section(self.run.config, "md").get("timestep_fs", 0.5))
        files = [file for group in groups for file in sorted(group.glob("HILLS*"))]
        hills = [self.file(file, lambda file: load_hills(file, timestep)) for file in files]
        return Round(
            index=index,
            summary=row,
            training=self.mapping(folder / "training.json"),
            scores=self.arrays(folder / "scores.npz"),
            harvest=self.mapping(folder / "harvest.json"),
            observations=_joined(seen),
            guard_events=events,
            hills=[one for one in hills if one is not None],
            attacks=self.arrays(folder / "md" / "attacks.npz", ("status",)),
        )

    def scoring_files(self) -> None:
        """Reference surface and test set, where the configuration names them and they can be found."""
        score = self.run.score
        test_set, surface = (self.named(score.get(key)) for key in ("test_set", "surface"))
        if test_set is not None:
            test = self.file(test_set, lambda path: read_frames(path, labelled=False, periodic=True))
            self.run.test_positions = None if test is None else test.positions
        if surface is not None and len(score.get("coordinates") or ()) >= 2:
            self.run.surface = self.file(surface, ReferenceSurface.load)

    def named(self, name: Any) -> Path | None:
        """A file named in the configuration, relative to the run directory."""
        if not isinstance(name, str) or (self.path / name).is_file():
            return self.path / name if isinstance(name, str) else None
        self.run.notes.append(f"{name} is named in the configuration and not found from here")
        return None


class _Row(TypedDict, total=False):
    round: NonNegativeInt


class _Summary(TypedDict, total=False):
    rounds: list[_Row]


def _joined(groups: list[dict[str, Array]]) -> Observations | None:
    """Observations of all groups side by side, cut to the shortest."""
    if not groups:
        return None
    length = min(len(arrays["step"]) for arrays in groups)

    def beside(columns: Iterable[Array]) -> Array:
        return np.concatenate([column[:length] for column in columns], axis=1)

    walkers = {name: beside(arrays[name] for arrays in groups) for name in OBSERVED if name != "step"}
    variables = [
        dict(zip(arrays["variable_names"].tolist(), np.moveaxis(arrays["variables"], -1, 0), strict=True))
        if {"variables", "variable_names"} <= arrays.keys()
        else {}
        for arrays in groups
    ]
    common = [name for name in variables[0] if all(name in each for each in variables)]
    kept = {name: beside(each[name] for each in variables) for name in common}
    return Observations(groups[0]["step"][:length], **walkers, variables=kept)
