"""An oracle whose labels are computed in a process and a folder of their own, for labels outside a campaign."""

from __future__ import annotations

from typing import Any

from uqbias.campaign.executors.base import LostLabel
from uqbias.campaign.labelling import OracleSpec, label_one
from uqbias.oracles.base import Answer, Array, Oracle, OracleError


class ContainedOracle(Oracle):
    """Labels of another oracle, which may crash, hang or print without harm; a lost label is tried once more.

    Parameters
    ----------
    oracle : the oracle, of which another is built in the other process.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.kind = oracle.kind  # type: ignore[misc] # that of the other
        self.periodic = oracle.periodic  # type: ignore[misc]
        self.numbers = oracle.numbers
        self._spec = OracleSpec(oracle.kind, oracle.options())

    def options(self) -> dict[str, Any]:
        """JSON-able keyword arguments of the other oracle."""
        return self._spec.options

    def _evaluate(self, positions: Array, cell: Array | None = None) -> Answer:
        result = label_one(self._spec, positions, cell)
        if isinstance(result, LostLabel):
            result = label_one(self._spec, positions, cell)
        if isinstance(result, str):
            raise OracleError(str(result))
        return result
