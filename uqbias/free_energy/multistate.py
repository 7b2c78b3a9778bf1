"""Frames of several biases in one estimate: MBAR over runs, and over the windows of an extended system."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Width of a window, and of a histogram bin in which the equations are solved, in units of the coupling width.
WINDOW, CELL = 0.25, 0.1
MAX_WINDOWS = 1000


def minimum_image(difference: Any, period: float | None) -> Array:
    """``difference`` moved into [-period/2, period/2)."""
    values = np.asarray(difference, dtype=np.float64)
    return values if period is None else np.asarray(values - period * np.floor(values / period + 0.5))


def window_log_weights(xi: Array, lam: Array, sigma: float, period: float | None = None) -> Array:
    """Logarithmic weights of the frames of an extended-system run, each in the umbrella window of its λ.

    Given λ, the molecule feels U + k/2 (ξ - λ)², k = kT/σ², whatever drives λ. Frames of like λ are a window; MBAR over
    the windows gives w = 1/Σ_k N_k exp(f_k - (ξ - λ_k)²/2σ²) for averages of any quantity, biased or not (Hulm,
    Dietschreit and Ochsenfeld, J. Chem. Phys. 157, 024110, 2022). Since the windows differ by a function of ξ alone,
    the equations are solved on a histogram of ξ, where MBAR becomes WHAM. A window is centred on the mean λ of its
    frames.

    Parameters
    ----------
    xi, lam : [n] variable and extended variable.
    sigma : coupling width, in units of the variable.
    period : period of the variable, or None.

    Returns
    -------
    [n] ln w.

    Raises
    ------
    UqbiasError
        If the run spans hundreds of coupling widths.
    """
    origin = float(lam[0])
    at, place = minimum_image(xi - origin, period), minimum_image(lam - origin, period)
    window = np.unique(np.floor(place / (WINDOW * sigma)).astype(np.int64), return_inverse=True)[1]
    counts = np.bincount(window).astype(np.float64)
    if len(counts) > MAX_WINDOWS:
        raise UqbiasError(
            f"λ spans {WINDOW * len(counts):.0f} coupling widths of {sigma}", "couple λ with a wider sigma"
        )
    centres = np.bincount(window, place) / counts

    def reduced(x: NDArray[Any]) -> Array:
        return 0.5 * (minimum_image(x[None, :] - centres[:, None], period) / sigma) ** 2

    low = float(at.min()) - 0.5 * CELL * sigma
    cells, histogram = np.unique(np.floor((at - low) / (CELL * sigma)).astype(np.int64), return_counts=True)
    # Thermodynamic integration along λ, df/dλ = ⟨λ - ξ⟩/σ², comes close to the solution.
    force = np.bincount(window, minimum_image(place - at, period)) / counts / sigma**2
    start = np.concatenate([[0.0], np.cumsum(0.5 * (force[1:] + force[:-1]) * np.diff(centres))])
    f = solve_mbar(reduced(low + CELL * sigma * (cells + 0.5)), counts, histogram.astype(np.float64), start)
    fine = np.linspace(low, float(at.max()), 2 * int(np.ceil((at.max() - low) / (CELL * sigma))) + 2)
    return np.asarray(-np.interp(at, fine, logsumexp((np.log(counts) + f)[:, None] - reduced(fine), axis=0)))


def solve_mbar(reduced: Array, counts: Array, multiplicity: Array, initial: Array) -> Array:
    """Free energies f of K states from the MBAR equations, by damped Newton steps on their convex objective.

    Σ_n h_n ln Σ_k N_k exp(f_k - u_kn) - Σ_k N_k f_k is smallest at the solution (Shirts and Chodera, J. Chem. Phys.
    129, 124105, 2008, appendix C).

    Parameters
    ----------
    reduced : [K, n] u_kn = V_k(x_n)/kT.
    counts : [K] N_k > 0 samples from state k.
    multiplicity : [n] h_n, how often x_n occurs; Σ h = Σ N.
    initial : [K] f to begin with.

    Returns
    -------
    [K], the first is 0.

    Raises
    ------
    UqbiasError
        If it does not converge.
    """
    log_counts = np.log(counts)

    def objective(f: Array) -> tuple[float, Array]:
        terms = (log_counts + f)[:, None] - reduced
        total = logsumexp(terms, axis=0)
        return float(multiplicity @ total - counts @ f), np.exp(terms - total)

    f = initial - initial[0]
    value, share = objective(f)
    for _ in range(100):
        weighted = share * multiplicity
        gradient = weighted.sum(axis=1) - counts
        if np.abs(gradient).max() < 1e-8 * counts.sum():
            return np.asarray(f)
        hessian = np.diag(weighted.sum(axis=1)) - weighted @ share.T
        # Singular along a common shift of all f, and nearly so between states that hardly overlap.
        hessian[np.diag_indices_from(hessian)] += 1e-12 * counts.sum() + 1e-9 * counts
        step = np.linalg.solve(hessian, -gradient)
        step *= min(1.0, 10.0 / np.abs(step - step[0]).max())
        scale, slope = 1.0, float(gradient @ step)
        while True:
            trial, trial_share = objective(f + scale * step)
            # Rounding hides a decrease below a part in 1e13 of the value.
            if trial <= value + 1e-4 * scale * slope + 1e-13 * abs(value) or scale < 1e-4:
                break
            scale *= 0.5
        f, value, share = f + scale * step, trial, trial_share
        f -= f[0]
    raise UqbiasError(
        f"MBAR over {len(counts)} windows does not converge", "run longer, or with a wider coupling sigma"
    )


def mbar(reduced: Array, counts: Indices, initial: Array | None = None) -> tuple[Array, Array]:
    """Weights of the frames of several runs by pymbar's MBAR (Shirts and Chodera, J. Chem. Phys. 129, 124105, 2008).

    Parameters
    ----------
    reduced : [K, n] u_kn = V_k(x_n)/kT: every frame under the bias of every run.
    counts : [K] frames of each run; those of the first run come first in ``reduced``.
    initial : [K] f to begin with.

    Returns
    -------
    log_weights : [n] -ln Σ_k N_k exp(f_k - u_kn), of the unbiased state.
    f : [K] reduced free energies of the runs.

    Raises
    ------
    UqbiasError
        If pymbar is not installed, or does not converge.
    """
    # pymbar announces at import, and as warnings, what it can be made faster with.
    logger = logging.getLogger("pymbar")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        pymbar: Any = importlib.import_module("pymbar")
    except ImportError as error:
        raise UqbiasError(
            f"MBAR over runs needs pymbar ({error})",
            "pip install 'uqbias[analysis]', or give one run, or another --method",
        ) from error
    else:
        failures = (pymbar.utils.ConvergenceError, pymbar.utils.ParameterError, np.linalg.LinAlgError)
        try:
            solved = pymbar.MBAR(
                reduced, counts, initial_f_k=initial, relative_tolerance=1e-9, solver_protocol="robust"
            )
        except failures as error:
            raise UqbiasError(
                f"MBAR over {len(counts)} runs does not converge ({error})", "do they overlap? analyse them one by one"
            ) from error
    finally:
        logger.setLevel(level)
    f = np.asarray(solved.f_k, dtype=np.float64)
    return np.asarray(-logsumexp((np.log(counts) + f)[:, None] - reduced, axis=0)), f


def overlap(reduced: Array, counts: Indices, f: Array, log_weights: Array) -> float:
    """Connection of the frames of all runs: 1 for runs of one ensemble, 0 if they fall into two groups.

    One less the second eigenvalue of the overlap matrix O_ij = Σ_n p_i(x_n) p_j(x_n)/N_j, p_i the probability that x_n
    came from run i (Klimovich, Shirts and Mobley, J. Comput.-Aided Mol. Des. 29, 397, 2015).

    Parameters
    ----------
    reduced, counts : arguments of `mbar`.
    f, log_weights : results of `mbar`.
    """
    share = np.exp((np.log(counts) + f)[:, None] - reduced + log_weights)
    eigenvalues = np.linalg.eigvals(share @ share.T / counts)
    return float(1.0 - np.sort(eigenvalues.real)[-2])
