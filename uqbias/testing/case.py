"""A trained, fitted and calibrated model of the test molecule around one uncertainty, and its derivatives."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.model.fit import calibrate
from uqbias.model.model import UncertaintyModel
from uqbias.model.readouts import fit_uncertainty
from uqbias.model.training import train
from uqbias.molecule.frames import Frames
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES, import_attribute
from uqbias.settings.training_sections import TrainingOptions
from uqbias.testing import molecule
from uqbias.testing.measuring import gradient_of
from uqbias.testing.report import Report
from uqbias.uncertainty.base import Uncertainty

TRAINING_FRAMES, HELD_OUT_FRAMES = 80, 30
#: Optimiser steps: enough for weights of all scales, too few for a good potential.
STEPS = 30
#: Widths of the potential's hidden layers; the last is the number of latents.
HIDDEN = (16, 8)
#: Geometries differentiated together, to bound the memory.
BLOCK = 128


class Values(NamedTuple):
    """What a model says of n geometries, without autograd history."""

    #: [n] u before calibration.
    raw: Tensor
    #: [n] u after calibration, kJ/mol/nm.
    calibrated: Tensor
    #: [n, N, 3] ∂raw/∂x and ∂calibrated/∂x, per nm; [n, 0] where not asked for.
    raw_gradient: Tensor
    calibrated_gradient: Tensor


@dataclass(frozen=True)
class Case:
    """One uncertainty in a model of the test molecule; made by `build_case`.

    Attributes
    ----------
    model : in float64, trained, fitted and calibrated; the uncertainty is judge and driver.
    training : frames that it was made from.
    held_out : frames that it was calibrated on.
    seed : seed of the fit.
    """

    model: UncertaintyModel
    training: Frames
    held_out: Frames
    seed: int = 0
    _copies: dict[torch.dtype, UncertaintyModel] = field(default_factory=dict, repr=False)

    @property
    def judge(self) -> Uncertainty:
        """The uncertainty that is tested."""
        return self.model.judge

    def report(self) -> Report:
        """An empty report that names the uncertainty."""
        simple = {k: v for k, v in self.judge.options().items() if isinstance(v, str | int | float)}
        return Report(f"uncertainty '{self.judge.kind}' {json.dumps(simple)}")

    def in_dtype(self, dtype: torch.dtype) -> UncertaintyModel:
        """A copy of the model in ``dtype``, always the same."""
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(self.model).to(dtype)
        return self._copies[dtype]

    def evaluate(
        self, positions: NDArray[Any], dtype: torch.dtype = torch.float64, *, gradients: bool = False
    ) -> Values:
        """Evaluate geometries [n, N, 3] nm in ``dtype``, without compilation."""
        model = self.in_dtype(dtype)
        parts = [
            evaluate(model, block, gradients) for block in torch.split(torch.tensor(positions, dtype=dtype), BLOCK)
        ]
        return Values(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def per_atom(self, positions: NDArray[Any], dtype: torch.dtype = torch.float64) -> Tensor | None:
        """Values of each atom [n, N] before calibration, or None for a kind without."""
        model, x = self.in_dtype(dtype), torch.tensor(positions, dtype=dtype)
        with torch.no_grad():
            return model.judge.per_atom(x, *model.terms(x))


def evaluate(model: UncertaintyModel, positions: Tensor, gradients: bool = False) -> Values:
    """Values of a model at ``positions`` [W, N, 3] nm; the gradient of a u that autograd cannot reach is zero."""
    with torch.set_grad_enabled(gradients):
        x = positions.detach().clone().requires_grad_(gradients)
        prediction = model(x)
        values = (prediction.driver, prediction.judge)
        gradients_of_u = [gradient_of(u, x) if gradients else x.new_zeros(len(x), 0) for u in values]
    return Values(*(u.detach() for u in values), *gradients_of_u)


def build_case(
    kind: str | type[Uncertainty], options: Mapping[str, Any] | None = None, *, seed: int = 0, steps: int = STEPS
) -> Case:
    """Train a small potential on the test molecule together with the uncertainty's own weights, fit and calibrate.

    Parameters
    ----------
    kind : name in the registry, ``"module:Class"``, or a class at the top of a module.
    options : options of that kind, as in a campaign file.
    seed : seed of frames, weights and fit.
    steps : optimiser steps of the training.

    Raises
    ------
    UqbiasError
        If the kind is unknown, cannot be imported, or refuses the options.
    """
    name = kind if isinstance(kind, str) else _name(kind)
    part = UNCERTAINTIES.build(name, options or {}, topology=molecule.topology(), n_latents=HIDDEN[-1]).double()
    training, held_out = molecule.frames(TRAINING_FRAMES, seed), molecule.frames(HELD_OUT_FRAMES, seed + 1)
    part.prepare(torch.tensor(training.positions))
    members = max(part.default_members, part.fewest_members)
    potential = _potential(members, seed)
    if part.bootstrap or any(True for _ in part.parameters()):
        _train(potential, training, seed, steps, part)
    else:
        potential.load_state_dict(_trained_alone(members, seed, steps))
    model = UncertaintyModel(potential, part, molecule.topology()).double().eval()
    model.potential.record_seen(training.positions)
    fit_uncertainty(potential, part, training, seed)
    calibrate(model, held_out)
    return Case(model, training, held_out, seed)


def refitted(case: Case, seed: int = 100) -> UncertaintyModel:
    """A copy of the case's model with the uncertainty fitted and calibrated anew, on other frames and fewer."""
    model = copy.deepcopy(case.model)
    other = molecule.frames(TRAINING_FRAMES - 20, seed)
    model.potential.record_seen(other.positions)
    fit_uncertainty(model.potential, model.judge, other, seed)
    calibrate(model, molecule.frames(HELD_OUT_FRAMES, seed + 1))
    return model


def _potential(members: int, seed: int) -> PowerSpectrum:
    return PowerSpectrum(
        molecule.NUMBERS, n_members=members, n_radial=5, n_channels=4, l_max=2, hidden=HIDDEN, seed=seed
    ).double()


def _train(potential: PowerSpectrum, frames: Frames, seed: int, steps: int, *parts: Uncertainty) -> None:
    train(potential, frames, options=TrainingOptions(steps=steps), uncertainties=parts, seed=seed, runner="eager")


@cache
def _trained_alone(members: int, seed: int, steps: int) -> dict[str, Tensor]:
    """Weights of the potential for a kind that has none of its own: the same for all of them."""
    potential = _potential(members, seed)
    _train(potential, molecule.frames(TRAINING_FRAMES, seed), seed, steps)
    return potential.state_dict()


def _name(kind: type[Uncertainty]) -> str:
    """A registry name or ``module:Class`` under which a model file finds the class again."""
    registered = getattr(kind, "kind", None)
    if registered in UNCERTAINTIES.names() and UNCERTAINTIES.get(registered) is kind:
        return str(registered)
    path = f"{kind.__module__}:{kind.__qualname__}"
    if "<locals>" in path or import_attribute(path) is not kind:
        raise UqbiasError(f"uncertainty {path} cannot be imported by its name", "define it at the top of a module")
    return path
