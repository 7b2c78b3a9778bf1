"""The base of every section of a campaign file: strict, unknown keys refused, every field described."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, model_validator
from pydantic_core import PydanticCustomError

from uqbias.errors import did_you_mean
from uqbias.registry import Registry


class Section(BaseModel):
    """A mapping of the campaign file; unknown keys are refused with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and cls.model_config.get("extra") == "forbid":
            for key in value:
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields)
                    raise PydanticCustomError(
                        "unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": hint}
                    )
        return value


class KindSection(Section):
    """A section whose ``kind`` chooses a class by name; the other keys are that class's options."""

    kind: str

    def arguments(self) -> dict[str, Any]:
        """Arguments of the class: every key but ``kind``."""
        return self.model_dump(exclude={"kind"})


class ThirdParty(KindSection):
    """A kind added through an entry point: its options are handed on as they are and checked by its class."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


def by_kind(default: str, builtin: tuple[str, ...]) -> Discriminator:
    """Choose the section class by ``kind``; names that are not built in go to `ThirdParty`."""

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return str(kind) if kind in builtin else "third_party"

    return Discriminator(tag)


def known_kind(registry: Registry, default: str | None = None, *, imports: bool = False) -> BeforeValidator:
    """Refuse a ``kind`` that is not in the registry, and fill in the default one.

    With ``imports`` a name ``module:attribute`` is let through; whoever builds the part imports it.
    """

    def check(value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            return value
        if "kind" not in value and default is not None:
            return {"kind": default, **value}
        names = registry.names()
        if (kind := value.get("kind")) not in names and not (imports and ":" in str(kind)):
            hint = did_you_mean(str(kind), names)
            raise PydanticCustomError(
                "unknown_kind", "unknown kind '{kind}'; {hint}", {"kind": str(kind), "hint": hint}
            )
        return value

    return BeforeValidator(check)
