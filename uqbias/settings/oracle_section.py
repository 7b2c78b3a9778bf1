"""Keys of an oracle's section in the campaign file that bound what one label may take."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from uqbias.options import KindSection, Positive

#: Keys that every oracle has; they change no label.
BOUNDS = ("timeout", "memory_gb", "keep_files")


class OracleSection(KindSection):
    """An oracle with its options, and the bounds of a label."""

    timeout: Positive = Field(
        default=21600.0,
        description="s that a label may take; one that takes longer is tried once more, alone, and then has failed",
    )
    memory_gb: Positive | None = Field(
        default=None, description="GB that the process of a label may allocate; null: four fifths of the machine's"
    )
    keep_files: Literal["failed", "all"] = Field(
        default="failed",
        description="labels whose folders, with the files of the calculation, stay in the run directory: failed or all",
    )

    def arguments(self) -> dict[str, Any]:
        """Options of the oracle."""
        return self.model_dump(exclude={"kind", *BOUNDS})
