"""Every uncertainty kind keeps its contract, and each contract test catches the fault that it is there for."""

import math

import pytest
import torch

from uqbias.errors import UqbiasError
from uqbias.registry import UNCERTAINTIES
from uqbias.testing import (
    ContractError,
    build_case,
    check_exploded,
    check_gradient,
    check_invariance,
    check_outputs,
    check_refit,
    check_round_trip,
    check_routes,
    check_smoothness,
    check_uncertainty,
    molecule,
    routes,
)
from uqbias.testing.report import Report
from uqbias.uncertainty.base import Uncertainty, set_buffers

pytestmark = pytest.mark.slow
NEAR = {"kind": "pair_distances", "min_separation": 2}
#: id: (kind, options); the first row of a kind has its defaults.
KINDS = {
    "gmm": ("gmm", {}),
    "gmm_elements": ("gmm", {"per_element": True, "choose_components": "bic", "n_components": 3}),
    "gmm_local": ("gmm", {"aggregation": {"kind": "local_mean_max", "atoms": "heavy"}}),
    "gmm_distances": ("gmm", {"features": NEAR, "squash": "softplus_sqrt", "reg_covar": 1e-2}),
    "auto": ("auto", {}),
    "kernel_density": ("kernel_density", {}),
    "kernel_gaussian": ("kernel_density", {"features": NEAR, "kernel": "gaussian"}),
    "local_densities": ("local_densities", {}),
    "committee": ("committee", {}),
    "committee_forces": ("committee", {"quantity": "forces", "bootstrap": True, "aggregation": "max"}),
    "shallow_ensemble": ("shallow_ensemble", {}),
    "shallow_ensemble_atoms": ("shallow_ensemble", {"score": "nll", "aggregation": "max"}),
    "llpr": ("llpr", {}),
    "llpr_structure": ("llpr", {"scope": "structure"}),
    "llpr_forces": ("llpr_forces", {}),
    "llpr_forces_max": ("llpr_forces", {"aggregation": "max", "n_readouts": 4, "dims": 3}),
    "mve": ("mve", {}),
    "mve_energy": ("mve", {"quantity": "energy"}),
    "evidential": ("evidential", {}),
    "evidential_energy": ("evidential", {"quantity": "energy", "part": "total"}),
    "distance": ("distance", {}),
    "distance_knn": ("distance", {"metric": "knn"}),
}
# One row of each kind in the quick run; the committee's forces too, since they take another way through the model.
QUICK = {kind for kind, _ in KINDS.values()} | {"committee_forces"}
ROWS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    kind, options = KINDS[name]
    print(check_uncertainty(kind, options))


def test_every_built_in_kind_has_a_row():
    assert set(UNCERTAINTIES.builtin) <= {kind for kind, options in KINDS.values() if not options}


class Sound(Uncertainty):
    """Mean square distance of the latents from their training mean: keeps the whole contract."""

    kind = "sound"

    def __init__(self, n_latents):
        super().__init__()
        self.n_latents = n_latents
        self.register_buffer("centre", torch.zeros(n_latents))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def build(cls, topology, n_latents):
        return cls(n_latents)

    def options(self):
        return {"n_latents": self.n_latents}

    @property
    def requires_latents(self):
        return True

    def fit(self, positions, energy, latents, forces=None, *, seed):
        centre = latents[0].mean((0, 1))
        set_buffers(self, centre=centre, scale=(latents[0] - centre).square().sum(-1).mean())

    def atom_values(self, latents):
        return (latents[0] - self.centre).square().sum(-1) / self.scale

    def forward(self, positions, energy, latents, forces=None):
        return self.atom_values(latents).mean(-1)

    def per_atom(self, positions, energy, latents, forces=None):
        return self.atom_values(latents)


class DependsOnTheBatch(Sound):
    def forward(self, positions, energy, latents, forces=None):
        u = super().forward(positions, energy, latents)
        return u + u.mean()


class AlwaysDouble(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents).double()


class Column(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents)[:, None]


class Drifting(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents) + positions[..., 0].mean(-1)


class Turning(Sound):
    def forward(self, positions, energy, latents, forces=None):
        centred = positions - positions.mean(1, keepdim=True)
        return super().forward(positions, energy, latents) + centred[..., 2].square().sum(-1)


class TellsAtomsApart(Sound):
    def forward(self, positions, energy, latents, forces=None):
        values = self.atom_values(latents)
        return values @ torch.linspace(0.9, 1.1, values.shape[-1]).to(values)


class TellsAtomsApartInValues(Sound):
    def per_atom(self, positions, energy, latents, forces=None):
        values = self.atom_values(latents)
        return values * torch.linspace(0.9, 1.1, values.shape[-1]).to(values)


class DifferenceOfSquares(Sound):
    """A distance from the squares of the coordinates: invariant, but not in float32 far from the origin."""

    def forward(self, positions, energy, latents, forces=None):
        first, second = positions[:, 0], positions[:, 1]
        return (first * first).sum(-1) + (second * second).sum(-1) - 2 * (first * second).sum(-1)


class NoDigitsLeft(Sound):
    """A small difference of large numbers."""

    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents) + 1e5 - 1e5


class HardMaximum(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return self.atom_values(latents)[:, 4:].amax(-1)


class Absolute(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return (super().forward(positions, energy, latents) - 2.0).abs()


class Stepping(Sound):
    def forward(self, positions, energy, latents, forces=None):
        u = super().forward(positions, energy, latents)
        return u + 1e-3 * u.floor()


class OnePercent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        return u.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * gradient


class WrongGradient(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return OnePercent.apply(super().forward(positions, energy, latents))


class Detached(Sound):
    def forward(self, positions, energy, latents, forces=None):
        u = super().forward(positions, energy, latents)
        return u * u.detach()


class WithoutGradient(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents).detach()


class NotANumber(Sound):
    def forward(self, positions, energy, latents, forces=None):
        apart = (positions[:, 6] - positions[:, 11]).square().sum(-1).sqrt()
        return super().forward(positions, energy, latents) - torch.log(apart - 0.03)


class NoAngleOnALine(Sound):
    """The value is finite on a line, the gradient of the norm there is not."""

    def forward(self, positions, energy, latents, forces=None):
        first, second = positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]
        sine = torch.linalg.cross(first, second).square().sum(-1).sqrt()
        return super().forward(positions, energy, latents) + sine


class SmallFarOut(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return -super().forward(positions, energy, latents)


class DiffersWhenTraced(Sound):
    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents) * (1.001 if torch.jit.is_tracing() else 1.0)


class NotJSON(Sound):
    def options(self):
        return super().options() | {"n_latents": {self.n_latents}}


class ForgetsAnOption(Sound):
    def __init__(self, n_latents, power=1.0):
        super().__init__(n_latents)
        self.power = power

    @classmethod
    def build(cls, topology, n_latents, *, power=2.0):
        return cls(n_latents, power)

    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents) ** self.power


class Counting(Sound):
    def __init__(self, n_latents):
        super().__init__(n_latents)
        self.register_buffer("frames", torch.zeros((), dtype=torch.int64))

    def fit(self, positions, energy, latents, forces=None, *, seed):
        super().fit(positions, energy, latents, seed=seed)
        self.frames.fill_(len(positions))


class KeepsTheFrames(Sound):
    def fit(self, positions, energy, latents, forces=None, *, seed):
        super().fit(positions, energy, latents, seed=seed)
        self.register_buffer("references", latents[0].mean(1))


class NumberOutsideTheBuffers(Sound):
    shift = 0.0

    def fit(self, positions, energy, latents, forces=None, *, seed):
        super().fit(positions, energy, latents, seed=seed)
        self.shift = float(self.forward(positions, energy, latents).amin())

    def forward(self, positions, energy, latents, forces=None):
        return super().forward(positions, energy, latents) - self.shift


class RemembersFits(Sound):
    def fit(self, positions, energy, latents, forces=None, *, seed):
        set_buffers(self, centre=0.5 * self.centre + 0.5 * latents[0].mean((0, 1)))


class Branching(Sound):
    """Fails in every compiled route."""

    def forward(self, positions, energy, latents, forces=None):
        u = super().forward(positions, energy, latents)
        if torch._C._get_tracing_state() is not None or torch.fx.experimental.proxy_tensor.get_proxy_mode():
            raise RuntimeError("data-dependent branch")
        return u


FAULTS = [
    (DependsOnTheBatch, check_outputs, "walkers alone, float64"),
    (AlwaysDouble, check_outputs, "outputs of wrong shape, float32"),
    (Column, check_outputs, "outputs of wrong shape, float64"),
    (NoDigitsLeft, check_outputs, "u in float32 against float64"),
    (Drifting, check_invariance, "u: translation, float64"),
    (Turning, check_invariance, "u: rotation, float64"),
    (TellsAtomsApart, check_invariance, "u: exchange, float64"),
    (TellsAtomsApartInValues, check_invariance, "per atom: exchange, float64"),
    (DifferenceOfSquares, check_invariance, "u: translation, float32"),
    (WrongGradient, check_gradient, "u: gradient, float64"),
    (Detached, check_gradient, "u: gradient, float32"),
    (WithoutGradient, check_gradient, "calibrated u: gradient, float64"),
    (HardMaximum, check_smoothness, "jump at half the step, torsion"),
    (Absolute, check_smoothness, "jump at half the step, torsion"),
    (Stepping, check_smoothness, "jump at half the step, torsion"),
    (NotANumber, check_exploded, "clash: not finite, float64"),
    (NoAngleOnALine, check_exploded, "line: not finite, float32"),
    (SmallFarOut, check_exploded, "clash: u not large"),
    (SmallFarOut, check_exploded, "apart: u not large"),
    (Detached, check_routes, "exported: forces"),
    (DiffersWhenTraced, check_routes, "exported: total energy"),
    (NotJSON, check_round_trip, "options: not JSON"),
    (ForgetsAnOption, check_round_trip, "file: values changed, float64"),
    (Counting, check_round_trip, "file: not plain, float64"),
    (Counting, check_refit, "refit: changed tensors not floating"),
    (KeepsTheFrames, check_refit, "refit: tensors of another shape"),
    (NumberOutsideTheBuffers, check_refit, "refit: u of the old graph"),
    (NumberOutsideTheBuffers, check_round_trip, "file: values changed, float64"),
    (RemembersFits, check_refit, "refit: u of the first fit again"),
]


@pytest.mark.parametrize(
    ("broken", "check", "clause"), [pytest.param(*row, id=f"{row[0].__name__}-{row[1].__name__}") for row in FAULTS]
)
def test_a_fault_is_caught(broken, check, clause):
    with pytest.raises(ContractError) as raised:
        check(build_case(broken))
    violated = {entry.clause for entry in raised.value.report.violations}
    assert clause in violated, raised.value.report
    assert clause in str(raised.value)


def test_a_sound_kind_passes_and_the_report_has_the_numbers(monkeypatch):
    def without_torchforce(backend):
        if backend == "torchforce":
            raise UqbiasError("openmmtorch is not installed")
        return backend

    monkeypatch.setattr(routes, "choose_backend", without_torchforce)
    report = check_uncertainty(Sound)
    assert not report.violations
    assert report.skipped == {"route torchforce": "openmmtorch is not installed"}
    assert 0 < report["u: gradient, float64"] < 1e-6 < 10 * report["u: gradient, float32"] < 1e-2
    assert report["jump at half the step, line"] == pytest.approx(0.5, abs=0.02)
    assert report["refit: change of u, reported"] > 1e-3
    text = str(report)
    assert "Sound" in text
    assert all(clause in text for clause in report)
    assert "skipped: openmmtorch is not installed" in text


def test_all_violations_are_told_together():
    with pytest.raises(ContractError) as raised:
        check_uncertainty(Branching, backends=())
    message = str(raised.value)
    assert "routes: raised RuntimeError" in message
    assert "data-dependent branch" in message
    assert "refit: raised RuntimeError" in message
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert "u: gradient, float64" in list(raised.value.report)


def test_whether_u_must_be_large_can_be_said():
    case = build_case(SmallFarOut)
    assert check_exploded(case, expects_large=False)["clash: u not large"] == 6
    with pytest.raises(ContractError, match="clash: u not large"):
        check_exploded(case, expects_large=True)


def test_unknown_and_local_kinds_are_refused():
    class Local(Sound):
        pass

    with pytest.raises(UqbiasError, match="did you mean 'gmm'"):
        check_uncertainty("gm")
    with pytest.raises(UqbiasError, match="unknown option 'n_component'"):
        check_uncertainty("gmm", {"n_component": 2})
    with pytest.raises(UqbiasError, match="top of a module"):
        check_uncertainty(Local)


def test_nan_violates_even_what_is_only_reported():
    report = Report("subject")
    report.add("reported", math.nan, math.inf)
    with pytest.raises(ContractError, match="reported"):
        report.verified()
    with pytest.raises(KeyError, match="no clause 'other'"):
        report["other"]


def test_the_molecule_is_what_the_checks_need():
    frames = molecule.frames(20, seed=3)
    assert len(frames) == 20
    step = 1e-6
    shifted = frames.positions[0] + step * torch.eye(36, dtype=torch.float64).reshape(36, 12, 3).numpy()
    slope = (molecule.label(shifted).energies - frames.energies[0]) / step
    assert -slope == pytest.approx(frames.forces[0].reshape(-1), rel=1e-2, abs=5.0)
    broken = molecule.exploded()
    nearest = torch.cdist(*(2 * [torch.tensor(broken["clash"])])) + torch.eye(12)
    assert nearest.amin((1, 2)) == pytest.approx(0.02, abs=1e-6)
    assert len(molecule.swaps(labelled=False)) > len(molecule.swaps(labelled=True)) > 0
