"""Reads a run directory, finished or not; whatever is not there yet is simply absent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.files import read_arrays
from uqbias.molecule.surface import ReferenceSurface
from uqbias.report.map_axes import GREEK, MapAxes, dihedral_coordinates, principal_components
from uqbias.runs.hills import Hills, load_hills
from uqbias.settings.sampler_sections import DISTORTING

Array = NDArray[np.float64]
OBSERVED = ("step", "positions", "energy", "driver", "judge", "bias")


@dataclass(frozen=True)
class Region:
    """A named part of the map, for which errors are reported apart.

    Attributes
    ----------
    name : as in the keys of summary.json.
    title : as it is written in tables.
    text : its bounds in words, such as ``15° < φ < 135°``.
    box : [from, to] in degrees for each coordinate that bounds it.
    """

    name: str
    title: str
    text: str
    box: dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """Labelled frames in the order (round, index).

    Attributes
    ----------
    round : [n] round in which each label was paid.
    positions : [n, N, 3] nm.
    accepted : [n] False where the label was paid and then left out of the training.
    info : n dicts (reason, driver, judge, walker, step where known).
    """

    round: NDArray[np.int64]
    positions: Array
    accepted: NDArray[np.bool_]
    info: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.round)


@dataclass(frozen=True)
class Observations:
    """What the walkers of one round showed, every observation interval.

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
    """Files of ``round_XX``; each attribute is None or empty until the campaign has written it.

    Several groups of walkers become one set of walkers, with the ``hills`` of all. ``attacks`` is
    attacks.npz: how adversarial attacks ended and, where `attack.keep_every` keeps them, their ways.
    """

    index: int
    summary: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    scores: dict[str, Array] | None = None
    harvest: dict[str, Any] | None = None
    observations: Observations | None = None
    guard_events: list[dict[str, Any]] = field(default_factory=list)
    hills: list[Hills] = field(default_factory=list)
    attacks: dict[str, Array] | None = None


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
        path = Path(directory)
        if not path.is_dir():
            raise UqbiasError(f"no such run directory: {path}", "give the directory that 'uqbias run' wrote")
        if not any((path / name).is_file() for name in ("campaign.yaml", "ledger.jsonl", "summary.json")):
            raise UqbiasError(
                f"{path} is not a run directory (no campaign.yaml, ledger.jsonl or summary.json)",
                "give the directory that 'uqbias run' wrote",
            )
        return _Reader(path).read()

    @property
    def name(self) -> str:
        """Name of the campaign: the configured one, else the directory's."""
        return str(self.config.get("name") or self.directory.resolve().name)

    @property
    def proposing(self) -> str:
        """The sampler if it is one without MD: ``attack``, ``random`` or ``pool``; else empty."""
        sampler = self.config.get("sampler")
        return str(sampler) if sampler in DISTORTING else ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Summary entries, one a scored round."""
        return [entry for entry in self.summary.get("rounds", []) if isinstance(entry, dict)]

    @property
    def finished(self) -> bool:
        """Whether the campaign ended; ``summary["stopped"]`` says why."""
        return bool(self.summary.get("stopped"))

    def display(self, name: str) -> str:
        """How figures and tables write a basin or a region."""
        return str((section(section(self.config, "score"), "display_names")).get(name, name))

    @cached_property
    def regions(self) -> list[Region]:
        """Regions of the campaign file."""

        def words(box: dict[str, Any]) -> str:
            return ", ".join(f"{low:g}° < {GREEK.get(name, name)} < {high:g}°" for name, (low, high) in box.items())

        boxes = section(section(self.config, "score"), "regions")
        return [Region(name, self.display(name), words(box), box) for name, box in boxes.items()]

    def shaded(self) -> list[tuple[float, float]]:
        """[low, high] in degrees of the regions on the first coordinate alone, in two pieces where one wraps around."""
        names = list(section(section(self.config, "score"), "coordinates"))[:1]
        pieces: list[tuple[float, float]] = []
        for region in self.regions:
            if [*region.box] == names:
                low, high = region.box[names[0]]
                pieces += [(low, high)] if low <= high else [(low, 180.0), (-180.0, high)]
        return pieces

    @cached_property
    def coordinates(self) -> MapAxes | None:
        """The first two configured dihedrals, else principal components of the labelled frames, else None."""
        named = section(self.config, "score").get("coordinates") or {}
        if len(named) >= 2:
            return dihedral_coordinates(named)
        if self.labels is not None and self.labels.accepted.sum() >= 3:
            return principal_components(self.labels.positions[self.labels.accepted], self.numbers)
        return None

    @cached_property
    def label_points(self) -> Array | None:
        """[n, 2] the labelled frames on the map."""
        if self.coordinates is None or self.labels is None:
            return None
        return self.coordinates.project(self.labels.positions)

    @cached_property
    def test_points(self) -> Array | None:
        """[n, 2] the test set on the map."""
        if self.coordinates is None or self.test_positions is None:
            return None
        return self.coordinates.project(self.test_positions)

    def visited_points(self, entry: Round) -> Array | None:
        """[T, W, 2] the walkers of one round on the map."""
        if self.coordinates is None or entry.observations is None:
            return None
        return self.coordinates.project(entry.observations.positions)

    def scored(self, key: str) -> list[tuple[Round, Array]]:
        """Rounds whose ``scores.npz`` holds ``key``, with the values."""
        return [(entry, entry.scores[key]) for entry in self.rounds if entry.scores is not None and key in entry.scores]

    def scored_on_map(self) -> list[Round]:
        """Rounds whose force errors belong to test frames with a known place on the map."""
        points = self.test_points
        errors = self.scored("force_mae_frame")
        return [entry for entry, values in errors if points is not None and len(values) == len(points)]


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the configuration, ``{}`` where it is absent."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


class _Reader:
    """Reads one directory; a file that cannot be read becomes a note instead of an exception."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunData(directory=path)

    def read(self) -> RunData:
        run = self.run
        config_file = self.path / "campaign.yaml"
        if config_file.is_file():
            run.config_text = config_file.read_text(encoding="utf-8")
            try:
                content = yaml.safe_load(run.config_text)
                run.config = content if isinstance(content, dict) else {}
            except yaml.YAMLError as error:
                self.note(config_file, error)
        run.summary = self.json(self.path / "summary.json") or {}
        run.events = self.json_lines(self.path / "ledger.jsonl")
        run.labels, run.numbers = self.labels()
        run.rounds = self.rounds()
        self.scoring_files()
        return run

    def note(self, path: Path, error: object) -> None:
        self.run.notes.append(f"{path.name} could not be read: {error}".replace("\n", " "))

    def json(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            self.note(path, error)
            return None
        return content if isinstance(content, dict) else None

    def json_lines(self, path: Path) -> list[dict[str, Any]]:
        """Events of a line-by-line file; a torn last line is normal after a kill, any other is noted."""
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        events = []
        for number, line in enumerate(lines):
            try:
                event = json.loads(line)
            except ValueError as error:
                if number < len(lines) - 1 and line.strip():
                    self.note(path, f"line {number + 1}: {error}")
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def npz(self, path: Path, needed: tuple[str, ...] = ()) -> dict[str, Array] | None:
        if not path.is_file():
            return None
        try:
            content = read_arrays(path, "file of a run", "put it back from a copy")
        except UqbiasError as error:
            self.note(path, error)
            return None
        missing = [key for key in needed if key not in content]
        if missing:
            self.note(path, f"no {', '.join(missing)}")
            return None
        return content

    def labels(self) -> tuple[Labels | None, NDArray[np.int64] | None]:
        """Labels from the ledger; verdicts and atomic numbers from the data set that is derived from it."""
        from uqbias.molecule.frames import read_frames

        verdicts: dict[tuple[int, int], str] = {}
        numbers = None
        path = self.path / "dataset.xyz"
        if path.is_file():
            try:
                frames = read_frames(path)
                numbers = frames.numbers
                verdicts = {(int(e["round"]), int(e["index"])): str(e["verdict"]) for e in frames.info}
            except (UqbiasError, KeyError, ValueError) as error:
                self.note(path, error)
        paid = [event for event in self.run.events if event.get("event") == "label" and "positions" in event]
        found = {(int(event.get("round", 0)), int(event.get("index", 0))): event for event in paid}
        if not found:
            return None, numbers
        keys = sorted(found)
        labels = Labels(
            round=np.array([key[0] for key in keys]),
            positions=np.array([found[key]["positions"] for key in keys], dtype=np.float64),
            accepted=np.array([verdicts.get(key, "accepted") == "accepted" for key in keys], dtype=bool),
            info=[found[key].get("info") or {} for key in keys],
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
        seen = [content for group in groups if (content := self.npz(group / "observations.npz", OBSERVED)) is not None]
        n_walkers = np.cumsum([0] + [content["driver"].shape[1] for content in seen])
        events = [
            event | {"walker": event["walker"] + int(offset)} if isinstance(event.get("walker"), int) else event
            for group, offset in zip(groups, n_walkers, strict=False)
            for event in self.json_lines(group / "events.jsonl")
        ]
        return Round(
            index=index,
            summary=row,
            training=self.json(folder / "training.json"),
            scores=self.npz(folder / "scores.npz"),
            harvest=self.json(folder / "harvest.json"),
            observations=_joined(seen),
            guard_events=events,
            hills=[hills for group in groups for hills in self.hills(group)],
            attacks=self.npz(folder / "md" / "attacks.npz", ("status",)),
        )

    def hills(self, folder: Path) -> list[Hills]:
        """All hills of a group of walkers, a file for each set of variables."""
        timestep = float(section(self.run.config, "md").get("timestep_fs", 0.5))
        found = []
        for path in sorted(folder.glob("HILLS*")):
            try:
                found.append(load_hills(path, timestep))
            except (UqbiasError, ValueError) as error:
                self.note(path, error)
        return [hills for hills in found if hills is not None]

    def scoring_files(self) -> None:
        """Reference surface and test set, where the configuration names them and they can be found."""
        score = section(self.run.config, "score")
        test_set = self.find(score.get("test_set"))
        if test_set is not None:
            from uqbias.molecule.frames import read_frames

            try:
                self.run.test_positions = read_frames(test_set, labelled=False).positions
            except UqbiasError as error:
                self.note(test_set, error)
        surface = self.find(score.get("surface"))
        if surface is not None and len(score.get("coordinates") or ()) >= 2:
            try:
                self.run.surface = ReferenceSurface.load(surface)
            except (UqbiasError, ValueError, OSError) as error:
                self.note(surface, error)

    def find(self, name: Any) -> Path | None:
        """A file named in the configuration, relative to the run directory."""
        if not isinstance(name, str):
            return None
        candidate = self.path / name
        if candidate.is_file():
            return candidate
        self.run.notes.append(f"{name} is named in the configuration and not found from here")
        return None


def _joined(groups: list[dict[str, Array]]) -> Observations | None:
    """Observations of all groups side by side, cut to the shortest."""
    if not groups:
        return None
    length = min(len(content["step"]) for content in groups)
    walkers = {
        name: np.concatenate([content[name][:length] for content in groups], axis=1)
        for name in OBSERVED
        if name != "step"
    }
    return Observations(groups[0]["step"][:length], **walkers, variables=_variables(groups, length))


def _variables(groups: list[dict[str, Array]], length: int) -> dict[str, Array]:
    """Variables of the bias that all groups have kept."""
    if not all({"variables", "variable_names"} <= content.keys() for content in groups):
        return {}
    names = [content["variable_names"].tolist() for content in groups]
    return {
        name: np.concatenate(
            [content["variables"][:length, :, own.index(name)] for content, own in zip(groups, names, strict=True)],
            axis=1,
        )
        for name in names[0]
        if all(name in own for own in names)
    }
