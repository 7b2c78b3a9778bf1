"""Labels that others compute: geometries go out in a file, and come back labelled in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import Doc

from uqbias.molecule.frames import read_frames
from uqbias.molecule.labels import LabelKeys
from uqbias.oracles.base import Answer, Array, Oracle, OracleError
from uqbias.oracles.pool import label_at


class HandoffOracle(Oracle):
    """Labels made outside: a campaign writes ``to_label.xyz``, ends with exit code 3, and goes on with the answer.

    It is asked by `uqbias.campaign.handed_over`. As an oracle by itself it looks geometries up in the answer.

    Parameters
    ----------
    labelled : file of the answer. Its frames may be part of those asked for, in any order; ``failed=T``, or a reason,
        marks a geometry that has no label.
    energy_key, forces_key, stress_key : names of the labels in it, as the system section states them.
    """

    kind: ClassVar[str] = "handoff"
    only_known: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = True

    def __init__(
        self,
        *,
        labelled: Annotated[
            str, Doc("labelled frames, in a file in the run directory or at an absolute path, as `uqbias train` reads")
        ] = "labelled.xyz",
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
    ) -> None:
        self.labelled, self._keys = labelled, LabelKeys(energy_key, forces_key, stress_key)

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this oracle."""
        names = {f"{name}_key": value for name, value in vars(self._keys).items() if value is not None}
        return {"labelled": self.labelled, **names}

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        if not Path(self.labelled).is_file():
            raise OracleError(f"handoff oracle: no labelled file {self.labelled}", "label the geometries, and write it")
        frames = read_frames(self.labelled, labelled="unless failed", periodic=True, keys=self._keys)
        return label_at(frames, positions, cell, self.kind)
