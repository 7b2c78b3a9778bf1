"""The cells that the walkers are in: one each, moved by a barostat where there is a pressure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.md.barostat import EVERY, Barostat
from uqbias.md.extended import ExtendedVariables
from uqbias.molecule.cells import Periodic, check_cell

Array = NDArray[np.float64]


class WalkerCells:
    """Cells of W walkers, of which the evaluator is told; the openmm.Context knows of none.

    Parameters
    ----------
    evaluator : of the walkers; made with a box, or they are in vacuum.
    box : cell [3, 3] nm of ``n_start`` frames, whose walkers take turns, or [n, 3, 3] of each; the evaluator's if None.
    n_start : n.
    safe_boxes : likewise of ``n_safe`` safe frames; None for the cells that the walkers begin in.
    n_safe : their number.

    Attributes
    ----------
    boxes : [W, 3, 3] nm, rows are lattice vectors; None in vacuum.
    safe : [n_safe, 3, 3] nm, cells of the safe frames; None in vacuum.
    barostat : moves them, see `press`; or None.

    Raises
    ------
    UqbiasError
        For cells of an evaluator without one, or of another number than there are frames; for what is no cell.
    """

    def __init__(
        self,
        evaluator: FusedEvaluator,
        box: NDArray[Any] | None,
        n_start: int,
        safe_boxes: NDArray[Any] | None,
        n_safe: int,
    ) -> None:
        self.evaluator = evaluator
        self.barostat: Barostat | None = None
        self.ensemble: dict[str, Any] = {}
        self.boxes: Array | None = None
        self.safe: Array | None = None
        if evaluator.box is None:
            if box is not None or safe_boxes is not None:
                raise UqbiasError("a box for walkers whose evaluator has none", "make the evaluator with it, too")
            return
        if box is None:
            known = evaluator.box.cpu().double().numpy()
            box = known[0] if (known == known[0]).all() else known
        start = _cells_for(box, n_start, evaluator.periodic, "box")
        self.safe = _cells_for(box if safe_boxes is None else safe_boxes, n_safe, evaluator.periodic, "safe_boxes")
        self.boxes = start[np.arange(evaluator.n_walkers) % n_start]
        self._tell()

    def press(self, pressure: float | None, kind: str, **settings: Any) -> None:
        """Let a barostat of this ``kind`` move the cells; ``settings`` are those of `Barostat`."""
        if pressure is None:
            return
        if self.boxes is None:
            raise UqbiasError(f"a pressure of {pressure:g} bar on a molecule in vacuum", "leave it out, or give a box")
        self.ensemble = {"pressure": float(pressure), "barostat": kind}
        self.barostat = Barostat(pressure, kind, boxes=self.boxes, periodic=self.evaluator.periodic, **settings)

    def put(self, boxes: Mapping[int, Array]) -> None:
        """Put walkers into cells [3, 3] nm."""
        if self.boxes is None:
            if boxes:
                raise UqbiasError("a box for a walker in vacuum", "leave it out")
            return
        for walker, box in boxes.items():
            self.boxes[walker] = box
        self._tell()

    def put_as_in(self, frames: Mapping[int, int]) -> None:
        """Put walkers into the cells of safe frames."""
        self.put({} if self.safe is None else {walker: self.safe[frame] for walker, frame in frames.items()})

    def seen(self) -> Array | None:
        """A copy of the cells as they are."""
        return None if self.boxes is None else self.boxes.copy()

    def steps_until(self, step: int, wanted: int) -> int:
        """How many of the steps from ``step`` on come before the barostat's next move."""
        return wanted if self.barostat is None else min(wanted, EVERY - step % EVERY)

    def move(self, context: Any, extended: ExtendedVariables, generators: Sequence[np.random.Generator]) -> None:
        """Move the cells, at a step of the barostat; neither a refused move nor its energy leaves a trace."""
        if self.barostat is None or self.boxes is None or context.getStepCount() % EVERY:
            return
        evaluator, (w, n) = self.evaluator, (self.evaluator.n_walkers, self.evaluator.n_atoms)
        x = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)
        outside = torch.from_numpy(x[extended.particles, 0]) if len(extended) else None

        def energies(positions: Array, boxes: Array) -> Array:
            before = evaluator.broken.copy()
            evaluator.broken[:] = False
            values = evaluator.evaluate(torch.from_numpy(positions), outside, torch.from_numpy(boxes), judged=False)
            total = np.where(evaluator.broken, np.inf, (values.energy + values.bias).cpu().numpy())
            evaluator.broken[:] = before
            return np.asarray(total, dtype=np.float64)

        accepted = self.barostat.move(x[: w * n].reshape(w, n, 3), self.boxes, energies, generators)
        self._tell()
        if accepted.any():
            context.setPositions(x)

    def _tell(self) -> None:
        held, boxes = self.evaluator.box, torch.as_tensor(self.boxes)
        if held is not None and not torch.equal(boxes.to(held), held):
            held.copy_(boxes)
            self.evaluator.arm_memo(False)

    def arrays(self) -> dict[str, Array]:
        """The cells, for a snapshot."""
        return {} if self.boxes is None else {"boxes": self.boxes.copy()}

    def facts(self) -> dict[str, Any]:
        """What a snapshot keeps beside them."""
        return self.ensemble | ({} if self.barostat is None else {"volumes": self.barostat.state()})

    def check(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raise UqbiasError where a snapshot's walkers are in vacuum and these are not, or the other way round."""
        shapes = [None if boxes is None else boxes.shape for boxes in (arrays.get("boxes"), self.boxes)]
        if shapes[0] != shapes[1]:
            where = ["in vacuum" if shape is None else "in cells" for shape in shapes]
            raise UqbiasError(f"{path} is of walkers {where[0]}, these are {where[1]}", "give one of this system")

    def restore(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put back what a snapshot keeps."""
        if self.boxes is not None:
            self.put(dict(enumerate(arrays["boxes"].astype(np.float64))))
        if self.barostat is not None:
            self.barostat.restore(facts["volumes"])


def _cells_for(box: NDArray[Any], count: int, periodic: Periodic, name: str) -> Array:
    """The cell [3, 3] nm of ``count`` frames, or the cells of each, as cells [count, 3, 3].

    Raises
    ------
    UqbiasError
        If there are as many as neither, or one is no cell.
    """
    cells = np.array(box, dtype=np.float64)
    if cells.shape not in {(3, 3), (count, 3, 3)}:
        raise UqbiasError(f"{name} of shape {cells.shape} for {count} frames", "give [3, 3] in nm, or one a frame")
    cells = cells if cells.ndim == 3 else cells[None]
    checked = np.stack([check_cell(cell, periodic, f"{name} {place}") for place, cell in enumerate(cells)])
    return np.broadcast_to(checked, (count, 3, 3)).copy()
