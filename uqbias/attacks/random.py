"""Random distortions of frames, with which attacks are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Doc

from uqbias.attacks.ascent import SAID, Array, AttackResult, checked_positions
from uqbias.attacks.base import DistortionSpace
from uqbias.attacks.usable_frames import farthest, radius
from uqbias.errors import UqbiasError
from uqbias.model.inference import BLOCK, evaluate_frames
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.frames import Frames
from uqbias.options import NotNegative, OfKind, Positive, check_values
from uqbias.registry import SPACES

UNEVALUATED = "failed: the model cannot evaluate the distorted frame"
FLOWN_APART = "failed: the molecule flew apart"


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Options of random distortions.

    The unit of an amplitude is nm for the space ``cartesian``, rad (a length: 0.1 nm) for the others.
    """

    space: Annotated[str | Mapping[str, Any], OfKind(SPACES.kind, "cartesian"), Doc("what is distorted")] = "cartesian"
    amplitude: Annotated[
        Positive | list[NotNegative],
        Doc(
            "standard deviation, or half width, in the unit of the space (nm or rad): one for all or one for each "
            "coordinate"
        ),
    ] = 0.01
    distribution: Annotated[Literal["normal", "uniform"], Doc("normal or uniform")] = "normal"

    def __post_init__(self) -> None:
        check_values("random distortions", type(self), vars(self))


def distort_at_random(
    model: UncertaintyModel,
    frames: Frames | NDArray[Any],
    options: RandomOptions | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> AttackResult:
    """Distort each frame once.

    Parameters
    ----------
    frames : frames, or positions [n, N, 3] nm in vacuum; for several distortions of a frame give it several times.
    variables : collective variables by name, as in a campaign file, for the space ``variables``.

    Returns
    -------
    AttackResult
        With the status ``random``, without ln L and trajectory. A distortion that the model cannot evaluate is marked
        as failed, and its start frame kept.

    Raises
    ------
    UqbiasError
        If the frames are not of the model's molecule or not finite, or the amplitudes do not fit the space.
    """
    options = RandomOptions() if options is None else options
    frames = frames if isinstance(frames, Frames) else Frames(np.array(model.numbers), frames)
    x = checked_positions(model, frames.positions)
    if not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x).all(axis=(1, 2))))
        raise UqbiasError(f"frame {bad} to distort is not finite", "leave it out")
    space: DistortionSpace = SPACES.build(
        options.space, topology=model.topology, reference=x[0], collective_variables=variables
    )
    amplitude = np.asarray(options.amplitude, dtype=float)
    if amplitude.ndim and amplitude.shape != (space.n_coordinates,):
        raise UqbiasError(
            f"{amplitude.size} amplitudes for {space.n_coordinates} coordinates", "give one number, or one for each"
        )
    random, shape = np.random.default_rng(seed), (len(x), space.n_coordinates)
    drawn = random.standard_normal(shape) if options.distribution == "normal" else random.uniform(-1.0, 1.0, shape)
    delta = amplitude * drawn
    distorted = distort(space, x, delta)
    whole = radius(distorted) <= farthest(x)  # false for NaN
    distorted[~whole] = x[~whole]
    evaluated = evaluate_frames(model, replace(frames, positions=distorted))
    said = {name: getattr(evaluated, name) for name in SAID}
    good = np.asarray(whole & np.isfinite(list(said.values())).all(axis=0))
    if not good.all():
        start = evaluate_frames(model, frames[~good])
        distorted[~good], delta[~good] = x[~good], 0.0
        for name, values in said.items():
            values[~good] = getattr(start, name)
    with torch.no_grad():
        norm: Array = space.norm(torch.from_numpy(delta)).numpy()
    return AttackResult(
        positions=distorted,
        **said,
        log_likelihood=np.full(len(x), np.nan),
        norm=norm,
        iterations=np.zeros(len(x), dtype=np.int64),
        status=np.where(good, "random", np.where(whole, UNEVALUATED, FLOWN_APART)).tolist(),
        trajectory={},
        delta=delta,
    )


def distort(space: DistortionSpace, positions: Array, delta: Array) -> Array:
    """Distorted frames [n, N, 3] nm from ``positions`` [n, N, 3] and ``delta`` [n, D], in float64."""
    blocks = []
    for at in range(0, len(positions), BLOCK):
        chosen = slice(at, at + BLOCK)
        with torch.no_grad():
            blocks.append(space(torch.from_numpy(positions[chosen]), torch.from_numpy(delta[chosen])).numpy())
    return np.concatenate(blocks) if blocks else positions.copy()
