"""Contract test of an uncertainty: all checks on one kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uqbias.testing.case import build_case
from uqbias.testing.checks import (
    check_exploded,
    check_gradient,
    check_invariance,
    check_outputs,
    check_smoothness,
)
from uqbias.testing.report import ContractError, Report
from uqbias.testing.routes import check_routes
from uqbias.testing.storage import check_refit, check_round_trip
from uqbias.testing.systems import check_systems
from uqbias.uncertainty.base import Uncertainty


def check_uncertainty(
    kind: str | type[Uncertainty],
    options: Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str] = ("pythonforce", "torchforce"),
    expects_large: bool | None = None,
    seed: int = 0,
) -> Report:
    """Run every contract test on one uncertainty; a few seconds. Needs no pytest, and works inside one.

    Parameters
    ----------
    kind : name in the registry, built-in or by an entry point; ``"module:Class"``; or a class at the top of a module.
    options : options of that kind, as in a campaign file.
    backends : backends of OpenMM, see `check_routes`; one that does not work here is skipped, with the reason in the
        report.
    expects_large : see `check_exploded`.
    seed : seed of frames, weights and fit.

    Returns
    -------
    Report
        Every clause with what was measured and what is allowed; print it for a table.

    Raises
    ------
    ContractError
        An AssertionError that lists every violated clause of all checks, with the numbers; its cause is the first
        exception that stopped a check.
    UqbiasError
        If the kind is unknown or refuses the options.
    """
    case = build_case(kind, options, seed=seed)
    checks: dict[str, Callable[[], Report]] = {
        "outputs": lambda: check_outputs(case),
        "invariance": lambda: check_invariance(case),
        "gradient": lambda: check_gradient(case),
        "smoothness": lambda: check_smoothness(case),
        "exploded": lambda: check_exploded(case, expects_large),
        "routes": lambda: check_routes(case, backends),
        "round trip": lambda: check_round_trip(case),
        "refit": lambda: check_refit(case),
        "systems": lambda: check_systems(case),
    }
    report, failure = case.report(), None
    for name, check in checks.items():
        try:
            report.extend(check())
        except ContractError as error:
            report.extend(error.report)
        except Exception as error:  # a third party's kind may fail in any way; the other checks still say their part
            report.add(f"{name}: raised {type(error).__name__}", math.nan, 0.0, str(error).strip().partition("\n")[0])
            failure = failure or error
    if report.violations:
        raise ContractError(report) from failure
    return report
