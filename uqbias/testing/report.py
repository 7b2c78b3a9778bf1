"""Measurements of the contract tests, and the error that says which clauses are violated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """One number of a contract test.

    Attributes
    ----------
    clause : what was measured.
    measured : the number; anything but a number at or below ``allowed`` is a violation.
    allowed : its limit; infinite for a number that is only reported.
    note : where it was measured, or why a number is only reported.
    """

    clause: str
    measured: float
    allowed: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the clause is kept; NaN violates every clause, also one that is only reported."""
        return self.measured <= self.allowed

    def __str__(self) -> str:
        limit = "-" if math.isinf(self.allowed) else f"{self.allowed:.3g}"
        verdict = "ok" if self.holds else "VIOLATED"
        line = f"{self.clause:<46} {self.measured:>11.3g} {limit:>9}  {verdict:<8}  {self.note}"
        return line.rstrip()


@dataclass
class Report:
    """All measurements of one part; print it for a table.

    Attributes
    ----------
    subject : kind and options.
    measurements : in the order of the checks.
    skipped : clause to the reason why it could not be checked here.
    """

    subject: str
    measurements: list[Measurement] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, clause: str, measured: float, allowed: float, note: str = "") -> None:
        """Record a number and its limit."""
        self.measurements.append(Measurement(clause, float(measured), float(allowed), note))

    def extend(self, other: Report) -> None:
        """Take over what another report of the same part has."""
        self.measurements += other.measurements
        self.skipped |= other.skipped

    @property
    def violations(self) -> list[Measurement]:
        """Measurements beyond their limit."""
        return [entry for entry in self.measurements if not entry.holds]

    def verified(self) -> Report:
        """Return the report itself.

        Raises
        ------
        ContractError
            If a clause is violated; the message holds every violated one with its numbers.
        """
        if self.violations:
            raise ContractError(self)
        return self

    def __getitem__(self, clause: str) -> float:
        """Largest number measured for ``clause``."""
        measured = [entry.measured for entry in self.measurements if entry.clause == clause]
        if not measured:
            raise KeyError(f"no clause '{clause}' among {sorted(set(self))}")
        return max(measured)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(entry.clause for entry in self.measurements))

    def __str__(self) -> str:
        lines = [self.subject, f"  {'clause':<46} {'measured':>11} {'allowed':>9}"]
        lines += [f"  {entry}" for entry in self.measurements]
        lines += [f"  {clause:<46} skipped: {reason}" for clause, reason in self.skipped.items()]
        return "\n".join(lines)


class ContractError(AssertionError):
    """A part does not keep its contract.

    Attributes
    ----------
    report : all that was measured.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        count = len(report.violations)
        lines = [f"{report.subject}: {count} clause(s) of the contract violated (clause, measured, allowed)"]
        lines += [f"  {entry}" for entry in report.violations]
        super().__init__("\n".join(lines))
