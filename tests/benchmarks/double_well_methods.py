"""The bias methods of `double_wells.py`, what they are set to, and the estimators of F that belong to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from uqbias.bias.czar import czar_series
from uqbias.bias.eabf import ExtendedABF, WellTemperedExtendedABF
from uqbias.bias.fixed import LowerWall, UpperWall
from uqbias.bias.gamd import GaMD
from uqbias.bias.metad import MetaD
from uqbias.bias.opes import OPES
from uqbias.free_energy.multistate import window_log_weights
from uqbias.free_energy.reweighting import HillHistory, cumulant_log_factors, reweighting_offset

#: kT; steps between observations, and between hills or kernels of each walker.
BARRIER, PACE, HILL_PACE = 10.0, 10, 50

# Estimators: run -> F [bins] in kT.


def reweighted(run):
    """Weights exp(V/kT) of the bias that acted: exact for a bias that does not change, quasi-static for OPES."""
    frames = run.frames()
    return -frames.density(frames.bias / run.problem.kT)


def offset(run, frames):
    part = run.part(MetaD)
    hills = part.hills
    nothing = [None] * hills["centre"].shape[1]
    steps, c = reweighting_offset(
        HillHistory(hills["step"], hills["centre"], hills["sigma"], hills["height"], part.biasfactor, nothing, nothing),
        run.problem.kT,
    )
    return c[np.searchsorted(steps, frames.step)]


def tiwary_parrinello(run):
    frames = run.frames()
    return -frames.density((frames.bias - offset(run, frames)) / run.problem.kT)


def from_bias(run):
    """The bias's own estimate: -γ/(γ-1) V of metadynamics, from the kernel density of OPES."""
    part = run.parts[0]
    return part.free_energy(run.problem.centres)[1] / run.problem.kT


def averaged_bias(run):
    """-V of metadynamics, averaged over the second half of the run."""
    part, problem = run.part(MetaD), run.problem
    hills, end = part.hills, run.walkers.step
    weight = hills["height"] * np.clip((end - hills["step"]) / (0.5 * end), 0.0, 1.0)
    V = np.zeros(len(problem.centres))
    for chunk in np.array_split(np.arange(len(hills)), max(1, len(hills) // 2000)):
        z = (problem.centres[:, None] - hills["centre"][chunk]) / hills["sigma"][chunk]
        V += np.exp(-0.5 * np.square(z).sum(axis=2)) @ weight[chunk]
    return -V / problem.kT


def by_czar(run):
    """CZAR of the bias itself: from the first sample on. Along the variable of the extended one only."""
    if len(run.problem.axes) > 1:
        return None
    return run.parts[0].free_energy(run.problem.centres[:, 0])[1] / run.problem.kT


def over_windows_weights(run, frames):
    part = run.parts[0]
    xi, extended = (frames.column(name) for name in part.variables)
    return window_log_weights(xi, extended, part.sigma)


def over_windows(run):
    """MBAR over the windows of the extended variable, for any quantity."""
    frames = run.frames()
    return -frames.density(over_windows_weights(run, frames))


def boosted(rest, order):
    """Another estimate times the factor ⟨exp(ΔV/kT)⟩ of each bin: by cumulants, or with order 0 by the average."""

    def estimate(run):
        frames = run.frames()
        log_weights, F = rest(run, frames)
        if F is None:
            return None
        if order:
            return F - cumulant_log_factors(frames.bins, len(F), frames.boost, run.problem.kT, log_weights, order)[0]
        with np.errstate(invalid="ignore"):  # an empty bin, where F is infinite anyway
            factors = frames.density(log_weights + frames.boost / run.problem.kT) - frames.density(log_weights)
        return F - np.nan_to_num(factors)

    return estimate


def no_rest(run, frames):
    weights = np.zeros(len(frames.step))
    return weights, -frames.density(weights)


def metadynamics_rest(run, frames):
    """With the boost that acted taken off the bias."""
    weights = (frames.bias - frames.boost - offset(run, frames)) / run.problem.kT
    return weights, -frames.density(weights)


def czar_rest(run, frames):
    """CZAR of the frames that count: that of the bias itself would include the stages in which the boost changes."""
    problem, part = run.problem, run.parts[0]
    if len(problem.axes) > 1:
        return None, None
    xi, extended = (frames.column(name) for name in part.variables)
    options = {"bin_width": problem.widths[0], "sigma": part.sigma, "temperature": problem.temperature}
    centres, found = czar_series(xi, extended, **options)
    F = np.full(len(problem.centres), np.inf)
    places = problem.bins(centres[:, None])
    F[places[places >= 0]] = found[places >= 0] / problem.kT
    return np.zeros(len(frames.step)), F


def windows_rest(run, frames):
    weights = over_windows_weights(run, frames)
    return weights, -frames.density(weights)


# Methods. Heights, barriers and so on in kT.


def metadynamics(p, height, biasfactor):
    return MetaD(
        variables=list(p.axes),
        height=height * p.kT,
        sigma=list(p.sigma),
        pace=HILL_PACE,
        biasfactor=biasfactor,
        temperature=p.temperature,
    )


def opes(p, exploratory):
    return OPES(
        variables=list(p.axes),
        barrier=1.2 * BARRIER * p.kT,
        sigma=list(p.sigma),
        pace=HILL_PACE,
        exploratory=exploratory,
        temperature=p.temperature,
    )


def extended_options(p):
    return {
        "variables": ["x"],
        "sigma": p.coupling,
        "mass": 2.0,
        "bin_width": p.widths[0],
        "full_samples": 200,
        "pace": PACE,
        "temperature": p.temperature,
    }


def eabf(p):
    return ExtendedABF(**extended_options(p))


def wtm_eabf(p):
    return WellTemperedExtendedABF(
        **extended_options(p),
        height=0.1 * p.kT,
        hill_sigma=p.sigma[0],
        biasfactor=BARRIER,
        hill_pace=HILL_PACE,
    )


def walls(p):
    """On the extended variable, where the free energy ends that is asked for. CZAR holds under any bias on it.

    Without them hills push it ever further up the outer slopes: WTM-eABF spent 70 to 80 % of its frames beyond 10 kT.
    """
    x = p.centres[p.judged, 0]
    options = {"variables": ["extended_x"], "kappa": 200 * p.kT}
    return [LowerWall(at=x.min(), **options), UpperWall(at=x.max(), **options)]


def gamd(p, threshold="lower", sigma0=2.0):
    return GaMD(
        threshold=threshold,
        sigma0=sigma0 * p.kT,
        preparation_steps=200,
        conventional_steps=1000,
        equilibration_steps=4000,
        pace=PACE,
        temperature=p.temperature,
    )


@dataclass
class Method:
    """Biases, and estimators by name, of which the first that a problem has is judged. None: umbrella sampling.

    ``axes`` are those that the bias acts on: along another, states of 10 kT are as rare as without a bias.
    """

    biases: Callable | None
    estimators: dict
    axes: str = "xy"


BOOSTED = {"cumulants": 2, "average": 0}


METHODS = {
    "unbiased": Method(lambda p: [], {"histogram": reweighted}),
    "metadynamics": Method(
        lambda p: [metadynamics(p, 0.02, None)],
        {"mean of -V": averaged_bias, "Tiwary-Parrinello": tiwary_parrinello, "last -V": from_bias},
    ),
    "well-tempered metadynamics": Method(
        lambda p: [metadynamics(p, 0.1, BARRIER)],
        {"Tiwary-Parrinello": tiwary_parrinello, "last -γ/(γ-1) V": from_bias},
    ),
    "OPES": Method(lambda p: [opes(p, False)], {"exp(V/kT)": reweighted, "kernel density": from_bias}),
    "OPES explore": Method(lambda p: [opes(p, True)], {"exp(V/kT)": reweighted, "kernel density": from_bias}),
    "umbrella sampling": Method(None, {"MBAR": None}, "x"),
    "eABF": Method(lambda p: [eabf(p), *walls(p)], {"CZAR": by_czar, "MBAR over λ": over_windows}, "x"),
    "WTM-eABF": Method(lambda p: [wtm_eabf(p), *walls(p)], {"CZAR": by_czar, "MBAR over λ": over_windows}, "x"),
    "GaMD, lower": Method(lambda p: [gamd(p)], {name: boosted(no_rest, n) for name, n in BOOSTED.items()}),
    "GaMD, upper": Method(lambda p: [gamd(p, "upper")], {name: boosted(no_rest, n) for name, n in BOOSTED.items()}),
    "metadynamics + GaMD": Method(
        lambda p: [metadynamics(p, 0.1, BARRIER), gamd(p)],
        {name: boosted(metadynamics_rest, n) for name, n in BOOSTED.items()},
    ),
    "eABF + GaMD": Method(
        lambda p: [eabf(p), *walls(p), gamd(p)],
        {f"CZAR, {name}": boosted(czar_rest, n) for name, n in BOOSTED.items()}
        | {f"MBAR over λ, {name}": boosted(windows_rest, n) for name, n in BOOSTED.items()},
    ),
}
