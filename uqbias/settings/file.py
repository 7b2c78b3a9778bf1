"""Campaign files: reading, checking, comparing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from uqbias.errors import UqbiasError, fault_text
from uqbias.files import sha256, write_text
from uqbias.options import InputFile
from uqbias.settings.oracle_section import BOUNDS
from uqbias.settings.schema import Campaign, Executors
from uqbias.settings.yaml_text import read_yaml

S = TypeVar("S", bound=BaseModel)
#: Keys that may change between two runs in one directory: they do not change what the finished part computed.
FREE_KEYS = ("name", "stop", "executors", "score", *(f"oracle.{name}" for name in BOUNDS))


#: Endings of structures that may lie beside start frames in a folder of systems.
STRUCTURES = (".pdb", ".cif", ".vasp")
#: Bytes of a campaign file, at most.
LARGEST = 1_000_000


@dataclass(frozen=True)
class CampaignFile:
    """A checked campaign and the folder that its paths are relative to.

    Attributes
    ----------
    campaign : the settings.
    folder : folder of the campaign file.
    """

    campaign: Campaign
    folder: Path

    def path(self, *keys: str) -> Path:
        """Absolute path of a file named in the campaign, e.g. ``path("system", "start")``.

        Raises
        ------
        UqbiasError
            If the file is not there.
        """
        value: Any = self.campaign
        for key in keys:
            value = getattr(value, key)
        return self._existing(".".join(keys), str(value))

    @cached_property
    def resolved(self) -> Campaign:
        """The settings with absolute paths."""
        absolute: Campaign = with_files(self.campaign, lambda key, name: str(self._existing(key, name)))
        return absolute

    def files(self) -> dict[str, Path]:
        """Absolute paths of all files named in the campaign, by key."""
        paths: dict[str, Path] = {}

        def note(key: str, name: str) -> str:
            paths[key] = self._existing(key, name)
            return name

        with_files(self.campaign, note)
        return paths

    def identity(self) -> dict[str, Any]:
        """What makes this campaign this campaign: flat ``key: value``, files by their SHA-256, `FREE_KEYS` left out."""
        hashed = with_files(self.campaign, lambda key, name: sha256(self._existing(key, name)))
        flat = flatten(hashed.model_dump())
        return {key: value for key, value in sorted(flat.items()) if not {key, key.split(".")[0]} & {*FREE_KEYS}}

    def write(self, path: str | Path) -> None:
        """Write the settings, defaults filled in, with file paths relative to ``path``."""
        folder = Path(path).parent.resolve()
        moved = with_files(self.campaign, lambda key, name: os.path.relpath(self._existing(key, name), folder))
        write_text(Path(path), yaml.safe_dump(moved.model_dump(), sort_keys=False, allow_unicode=True))

    def members(self) -> dict[str, CampaignFile]:
        """The campaign of each system, by its name; of one system this one, without a name.

        Raises
        ------
        UqbiasError
            If the keys that are a system's own do not fit.
        """
        if self.campaign.systems is None:
            return {"": self}
        plain = self.campaign.model_dump(exclude={"systems"})
        names, members = [entry.name for entry in self.campaign.systems], {}
        for index, entry in enumerate(self.campaign.systems):
            kind = entry.oracle.get("kind", plain["oracle"]["kind"])
            changes = {
                "name": entry.name,
                "system": entry.system.model_dump(),
                "together": names,
                "oracle": (plain["oracle"] if kind == plain["oracle"]["kind"] else {}) | entry.oracle,
                "score": None if entry.test_set is None else {"test_set": entry.test_set},
            }
            member = CampaignFile(check_campaign({**plain, **changes}, f"systems.{index} ({entry.name})"), self.folder)
            member.files()
            members[entry.name] = member
        return members

    def _existing(self, key: str, name: str) -> Path:
        path = Path(os.path.abspath(self.folder / name))  # noqa: PTH100 - resolve() would follow links
        if not path.is_file():
            what = "a folder, no file" if path.is_dir() else "no such file"
            raise UqbiasError(f"{key} = {name}: {what} ({path})", "give a path relative to the campaign file")
        return path


def with_files(value: Any, change: Callable[[str, str], str], key: str = "", annotation: Any = None) -> Any:
    """Copy of sections in which each option marked as `uqbias.options.InputFile` has another file name.

    Parameters
    ----------
    value : a section, or a list or mapping of sections; other values are left as they are.
    change : gives the new name from the dotted key and the old name.
    key : dotted key of ``value``.
    annotation : type of ``value``, which may hold the mark at any depth: in a list, a mapping, a union.
    """
    prefix = f"{key}." if key else ""
    if isinstance(value, str):
        return change(key, value) if _names_file(annotation, value) else value
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        types = {name: Annotated[(field.annotation, *field.metadata, None)] for name, field in fields}
        return value.model_copy(
            update={name: with_files(getattr(value, name), change, prefix + name, kind) for name, kind in types.items()}
        )
    if isinstance(value, dict):
        return {name: with_files(entry, change, f"{prefix}{name}", annotation) for name, entry in value.items()}
    if isinstance(value, list):
        return [with_files(entry, change, f"{prefix}{index}", annotation) for index, entry in enumerate(value)]
    return value


def _names_file(annotation: Any, value: str) -> bool:
    """Whether text that stands where an annotation is names a file: `InputFile` anywhere in it, and no fixed choice."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal or any(get_origin(one) is Literal and value in get_args(one) for one in inner):
        return False
    return any(not one.unless(value) if isinstance(one, InputFile) else _names_file(one, value) for one in inner)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists of mappings as one flat mapping with dotted keys."""
    if isinstance(value, dict) and value:
        items = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        items = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in items:
        flat.update(flatten(entry, f"{prefix}.{key}" if prefix else key))
    return flat


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load_campaign(path: str | Path, executors: Path | None = None) -> CampaignFile:
    """Read and check a campaign file.

    Parameters
    ----------
    executors : file whose content stands in for the section of this name.

    Raises
    ------
    UqbiasError
        One line with the key, the value and the cure, for anything wrong with the file or the files it names.
    """
    path = Path(path)
    settings = _read_settings(path, "campaign file", "`uqbias template`")
    if isinstance(settings, dict) and isinstance(folder := settings.get("systems"), str):
        settings = {**settings, "systems": _in_folder(path.parent, folder)}
    campaign = check_campaign(settings, str(path))
    if executors is not None:
        campaign = campaign.model_copy(update={"executors": load_executors(executors)})
    file = CampaignFile(campaign, Path(os.path.abspath(path.parent)))  # noqa: PTH100
    file.files()
    file.members()
    return file


def _in_folder(parent: Path, name: str) -> list[dict[str, str]]:
    """Entries of ``systems`` for the start frames in a folder, with the structures beside them."""
    entries = []
    for start in sorted((parent / name).glob("*.xyz")):
        beside = [path for end in STRUCTURES if (path := start.with_suffix(end)).is_file()]
        files = {"structure": (beside or [start])[0], "start": start}
        entries.append({"name": start.stem, **{key: os.path.relpath(path, parent) for key, path in files.items()}})
    if len(entries) < 2:
        raise UqbiasError(
            f"systems = {name}: {len(entries)} file(s) *.xyz in this folder",
            "give a folder with start frames of two systems or more, relative to the campaign file, or a list",
        )
    return entries


def load_executors(path: Path) -> Executors:
    """Read and check a file of executors: what a campaign file has under ``executors``.

    Raises
    ------
    UqbiasError
        As `load_campaign` does.
    """
    kinds = "`uqbias template --kinds executors`"
    return _checked(Executors, _read_settings(path, "file of executors", kinds), str(path), kinds)


def _read_settings(path: Path, what: str, example: str) -> Any:
    if not path.is_file():
        raise UqbiasError(f"no such {what}: {path}", f"write one with {example}")
    if path.stat().st_size > LARGEST:
        raise UqbiasError(f"{path} is larger than {LARGEST} bytes", f"a {what} is a page or two of text")
    try:
        return read_yaml(path.read_bytes())
    except UqbiasError as error:
        raise UqbiasError(f"{path}: {error.what}", error.cure or f"compare with {example}") from None


def check_campaign(settings: Any, source: str = "campaign") -> Campaign:
    """Turn a mapping into checked settings.

    Raises
    ------
    UqbiasError
        One line for the first fault: key path, value, cure; and how many more there are.
    """
    return _checked(Campaign, settings, source, "`uqbias template`")


def _checked(kind: type[S], settings: Any, source: str, example: str) -> S:
    if not isinstance(settings, dict):
        raise UqbiasError(f"{source} holds no mapping but {repr(settings)[:60]}", f"compare with {example}")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = error.errors()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UqbiasError(f"{source}: {_explain(faults[0], settings)}{more}") from None


def _explain(fault: Any, settings: Any) -> str:
    """One fault as ``key.path = value: message``."""
    where: list[str] = []
    value: Any = settings
    for position, part in enumerate(fault["loc"]):
        inside = value
        last = position == len(fault["loc"]) - 1
        if isinstance(part, str) and not _has(inside, part) and not (last and fault["type"] == "missing"):
            continue  # the tag of a union of kinds, not a key
        where.append(str(part))
        value = inside[part] if _has(inside, part) else None
    context = fault.get("ctx", {})
    message = fault_text(fault)
    if fault["type"] == "unknown_key":
        where.append(str(context["key"]))
        # YAML may have read the key as a number or a date.
        value = next((entry for key, entry in value.items() if str(key) == context["key"]), None)
    if fault["type"] == "unknown_kind":
        where.append("kind")
        value = context["kind"]
    name = ".".join(where)
    if not name:
        return message
    if fault["type"] == "missing":
        return f"'{name}' is missing; add it (see `uqbias template`)"
    if isinstance(value, dict) and fault["type"] == "value_error":
        return f"{name}: {message}"
    shown = repr(value)
    return f"{name} = {shown if len(shown) < 60 else shown[:57] + '...'}: {message}"


def _has(container: Any, part: Any) -> bool:
    if isinstance(container, dict):
        return part in container
    return isinstance(container, list) and isinstance(part, int) and part < len(container)
