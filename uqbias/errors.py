"""Errors that a user can act on: one line with what was wrong, the value, and the cure."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

#: Categories of characters: controls, formats (directions of writing), halves of a pair of UTF-16.
UNPRINTABLE = ("Cc", "Cf", "Cs")
#: Characters of a message: a file may hold a key of any length.
LONGEST = 1500


def printable(text: str) -> str:
    r"""Text that no terminal obeys: controls other than tab and end of line become ``\u001b``, as JSON has them."""
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(one):04x}" if unicodedata.category(one) in UNPRINTABLE and one not in "\t\n" else one for one in text
    )


class UqbiasError(Exception):
    """Bad input or a broken environment; the command line prints it as one line and exits with code 2.

    Parameters
    ----------
    what : what was wrong, with the offending value in it.
    cure : what the user can do about it; printed after the fault.
    """

    def __init__(self, what: str, cure: str = "") -> None:
        self.what = what = printable(what if len(what) <= LONGEST else f"{what[:LONGEST]}...")
        self.cure = cure
        super().__init__(f"{what}; {cure}" if cure else what)


#: What was called otherwise before there were driver and judge, to what it is called now.
RENAMED = {
    "cv": "driver",
    "u": "driver",
    "uncertainty": "judge",
    "cv_cap": "driver_cap",
    "uncertainty_cap": "judge_cap",
    "cv_window": "driver_window",
    "uncertainty_window": "judge_window",
    "cv_features": "driver_features",
    "uncertainty_below": "judge_below",
    "extended_u": "extended_driver",
}


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? valid: a, b, x"`` for a name that is not in ``valid``."""
    choices = sorted(valid)
    if RENAMED.get(name) in choices:
        return f"write '{RENAMED[name]}'"
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}valid: {', '.join(choices)}"


def fault_text(fault: Mapping[str, Any]) -> str:
    """One fault of pydantic in our words: lower case, and the name that was meant where a choice is misspelt."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        hint = did_you_mean(fault["input"], re.findall("'([^']*)'", fault["ctx"]["expected"])).partition(" valid: ")[0]
        message += "" if hint.startswith("valid: ") else f"; {hint}"
    return message
