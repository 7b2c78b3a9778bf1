"""One line of an examination."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line of the examination."""

    #: What was looked at.
    what: str
    #: ``ok``, ``limited`` (works, but not in every way), ``absent`` (optional and not here) or ``failed``.
    status: str
    #: What was found.
    detail: str
    #: What to do about it; empty if nothing.
    cure: str = ""


def shortened(*messages: object) -> str:
    """Messages of other programs as one line that fits into a row."""
    return " ".join(" ".join(map(str, messages)).split())[:160]
