"""Sections of kinds that are written by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator, ConfigDict, Discriminator
from pydantic_core import PydanticCustomError

from uqbias.errors import did_you_mean
from uqbias.options import KindSection
from uqbias.registry import Registry


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
