"""An interrupted run is the uninterrupted one, bit for bit on the Reference platform; extended variables."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from molecules import peroxide
from toy_walkers import make

from uqbias.bias.base import Bias, BiasSum, Extended
from uqbias.bias.eabf import ExtendedABF
from uqbias.bias.fixed import UDD, Restraint, UpperWall
from uqbias.bias.gamd import GaMD
from uqbias.bias.linear import Linear
from uqbias.bias.metad import MetaD
from uqbias.bias.opes import OPES
from uqbias.errors import UqbiasError
from uqbias.md.guards import Guard
from uqbias.runs.snapshot import open_snapshot, write_snapshot
from uqbias.units import kt

torch.set_num_threads(1)
K = 400.0


class Spring(Bias):
    """½ k (u - λ)² with an extended variable."""

    kind = "spring"

    def __init__(self, mass=50.0):
        super().__init__(("driver", "extended_driver"))
        self.extended = (Extended("extended_driver", "driver", mass),)
        self._state = {"k": torch.tensor([K])}

    def energy(self, x, state):
        return 0.5 * state["k"] * (x[:, 0] - x[:, 1]) ** 2


def biased(**options):
    hills = MetaD(variables=["extended_driver"], pace=10, sigma=0.3)
    return make(bias=BiasSum([Spring(), hills, UpperWall(at=5.5)]), **options)


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_interrupted_run_is_the_uninterrupted_run(tmp_path, backend):
    if backend == "torchforce":
        pytest.importorskip("openmmtorch")
    whole, seen = biased(backend=backend), []
    whole.run(200, pace=10, observers=[seen.append])
    whole.save(tmp_path / "snapshot.npz")
    whole.run(300, pace=10, observers=[seen.append])
    hills = whole.bias.biases[1].hills.copy()
    del whole
    again, rest = biased(backend=backend, seed=99), []
    again.load(tmp_path / "snapshot.npz")
    again.run(300, pace=10, observers=[rest.append])
    assert [o.step for o in rest] == list(range(210, 501, 10))
    for one, other in zip(seen[21:], rest, strict=True):
        for name in ("positions", "variables", "energy", "driver", "judge", "bias"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(hills, again.bias.biases[1].hills)


def test_restarts_of_walkers_go_on_too(tmp_path):
    """A guard that stops walkers draws from generators of their own: these are in the snapshot."""

    def run():
        guard = Guard(make().topology, peroxide(), bond_range=(0.8, 1.25), driver_cap=4.0)
        low = peroxide(np.pi / 2 * 3)[None]
        return make(guard=guard, start=low, safe_frames=low, temperature=900.0)

    whole, seen = run(), []
    whole.run(2000, pace=10, observers=[seen.append])
    whole.save(tmp_path / "s.npz")
    whole.run(2000, pace=10, observers=[seen.append])
    assert len(whole.events) > 4
    del whole
    again, rest = run(), []
    again.load(tmp_path / "s.npz")
    again.run(2000, pace=10, observers=[rest.append])
    np.testing.assert_array_equal(seen[-1].positions, rest[-1].positions)
    assert sum(o.restarted.sum() for o in rest) == sum(o.restarted.sum() for o in seen[201:]) > 0


def test_another_process_goes_on(tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[1].split()\n"
        "import numpy as np\n"
        "from test_snapshot import biased\n"
        "walkers, seen = biased(), []\n"
        "if sys.argv[2] == 'first':\n"
        "    walkers.run(100, pace=10); walkers.save(sys.argv[3])\n"
        "else:\n"
        "    walkers.load(sys.argv[3])\n"
        "walkers.run(100, pace=10, observers=[seen.append])\n"
        "np.save(sys.argv[4], seen[-1].positions)\n"
    )
    here = Path(__file__).parent
    for turn in ("first", "second"):
        arguments = [f"{here} {here.parent / 'helpers'}", turn, str(tmp_path / "s.npz"), str(tmp_path / turn)]
        command = [sys.executable, "-c", script, *arguments]
        subprocess.run(command, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))


def test_snapshots_that_do_not_fit(tmp_path):
    path = tmp_path / "s.npz"
    walkers = biased()
    walkers.run(20, pace=10)
    walkers.save(path)
    before = walkers.context.getState(positions=True).getPositions(asNumpy=True)._value.copy()
    with pytest.raises(UqbiasError, match="walkers 4, this run has 2"):
        biased(n_walkers=2).load(path)
    with pytest.raises(UqbiasError, match="timestep_fs"):
        biased(timestep_fs=1.0).load(path)
    with pytest.raises(UqbiasError, match="holds a bias"):
        make().load(path)
    with pytest.raises(UqbiasError, match="no such snapshot"):
        walkers.load(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UqbiasError, match=r"cut\.npz is not a whole snapshot"):
        walkers.load(tmp_path / "cut.npz")
    walkers.topology = type(walkers.topology)((1, 8, 8, 8), walkers.topology.bonds)
    with pytest.raises(UqbiasError, match="another system"):
        walkers.load(path)
    after = walkers.context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_array_equal(before, after)


def rewritten(source, target, change):
    """A snapshot with its arrays and manifest changed by ``change(arrays, manifest)``."""
    with np.load(source) as file:
        arrays = dict(file)
    manifest = json.loads(str(arrays["manifest"]))
    change(arrays, manifest)
    np.savez(target, **{**arrays, "manifest": np.array(json.dumps(manifest))})
    return target


def test_a_damaged_snapshot_changes_nothing(tmp_path):
    path, odd = tmp_path / "s.npz", tmp_path / "odd.npz"
    walkers = biased()
    walkers.run(20, pace=10)
    walkers.save(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(UqbiasError, match=r"one\.npy is not a whole snapshot"):
        walkers.load(tmp_path / "one.npy")
    again = biased()
    for change, message in (
        (lambda arrays, _: arrays.pop("positions"), "without positions"),
        (lambda arrays, _: arrays.update(box=np.zeros(3)), "without box"),
        (lambda arrays, _: arrays.pop("bias.1.hill_step"), "checkpoint with"),
        (lambda arrays, _: arrays.update({"bias.1.hill_centre": np.zeros((1, 5))}), "is not a whole snapshot"),
        (lambda _, manifest: manifest.pop("atomic_numbers"), "atomic_numbers"),
        (lambda _, manifest: manifest.pop("bias"), "bias"),
        (lambda _, manifest: manifest["own"].pop("step"), "step"),
    ):
        with pytest.raises(UqbiasError, match=rf"odd\.npz.*{message}"):
            again.load(rewritten(path, odd, change))
        assert not len(again.bias.biases[1].hills)
        assert again.step == 0
    again.load(path)
    assert len(again.bias.biases[1].hills) == len(walkers.bias.biases[1].hills) > 0


@pytest.mark.parametrize(
    ("made", "differently", "message"),
    [
        (
            MetaD(biasfactor=8, pace=10),
            MetaD(biasfactor=20, pace=10),
            "biasfactor 8, .* 20; use the same",
        ),
        (MetaD(biasfactor=8, pace=10), MetaD(biasfactor=None, pace=10), "biasfactor 8, .* None"),
        (MetaD(height=1, pace=10), MetaD(height=2, pace=10), "height 1, .* 2; use the same height"),
        (MetaD(pace=10), MetaD(pace=20), "pace 10, .* 20"),
        (UpperWall(at=1.0), UpperWall(at=5.0), "at 1.0, .* 5.0"),
        (GaMD(pace=10), GaMD(pace=10, threshold="upper"), "threshold lower, .* upper"),
        (GaMD(pace=10), GaMD(pace=10, sigma0=1.0), "sigma0"),
        (OPES(barrier=20, sigma=1, pace=10), OPES(barrier=30, sigma=1, pace=10), "barrier 20"),
        (ExtendedABF(full_samples=10), ExtendedABF(full_samples=20), "full_samples"),
        (UDD(A=20), UDD(A=30), "A 20"),
        (Linear(relative=0.1), Linear(relative=0.2), "relative"),
        (Restraint(at=1, kappa=1), Restraint(at=1, kappa=2), "kappa"),
    ],
)
def test_a_bias_with_other_options_is_refused(tmp_path, made, differently, message):
    path = tmp_path / "s.npz"
    numbers, own = [8, 1], {"step": 0}
    write_snapshot(path, numbers, own, {}, BiasSum([made]))
    with pytest.raises(UqbiasError, match=rf"s\.npz holds a .* with {message}"):
        open_snapshot(path, numbers, {}, BiasSum([differently]))

    # A snapshot of an earlier version, without the options; it ends at the arrays that are not in this one.
    def without(_, manifest):
        del manifest["bias_options"]

    rewritten(path, tmp_path / "old.npz", without)
    for name, bias in (("old", differently), ("s", copy.deepcopy(made))):
        with pytest.raises(UqbiasError, match=rf"{name}\.npz is not a whole snapshot \(without positions"):
            open_snapshot(tmp_path / f"{name}.npz", numbers, {}, BiasSum([bias]))


def test_options_of_a_bias():
    """As they were given, whether one by one or for all variables, and as JSON has them."""
    variables = ["a", "b"]
    one = MetaD(variables=variables, sigma=0.3, periods=[None, None], grid_range=[[0, 1], [0, 2]])
    other = MetaD(variables=variables, sigma=np.array([0.3, 0.3]).tolist(), grid_range=((0, 1), (0.0, 2.0)))
    assert one.options() == other.options() == json.loads(json.dumps(one.options()))
    assert one.options()["grid_range"] == [[0.0, 1.0], [0.0, 2.0]]
    assert one.options()["pace"] == 50
    assert Spring(2.0).options() == copy.deepcopy(Spring(mass=2.0)).options() == {"mass": 2.0}
    assert BiasSum([one]).options() == {}


def test_extended_variable_has_its_distribution():
    """⟨(u - λ)²⟩ = k_B T / k, and λ moves at the temperature of the thermostat."""
    # A light λ forgets within 0.1 ps: some 250 independent gaps, their variance known to 9 % (a mass of 20 leaves 100).
    walkers, seen = make(8, bias=Spring(mass=1.0), friction_per_ps=10.0), []
    walkers.run(8000, pace=10, observers=[seen.append])
    x = np.array([o.variables for o in seen[200:]])
    gap = x[..., 0] - x[..., 1]
    assert np.var(gap) == pytest.approx(kt(300.0) / K, rel=0.12)
    assert abs(gap.mean()) < 0.3 * np.std(gap)
    assert seen[0].names == ("driver", "extended_driver")
    np.testing.assert_allclose(seen[0].variables[:, 0], seen[0].variables[:, 1], rtol=1e-12)


def test_extended_variable_conserves_energy():
    walkers, seen = make(2, bias=Spring(mass=20.0), friction_per_ps=None, timestep_fs=0.25), []

    def total(_):
        state = walkers.context.getState(energy=True)
        seen.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)

    walkers.run(8000, pace=20, observers=[total])
    drift = np.polyfit(np.arange(len(seen)), seen, 1)[0] * len(seen)
    assert abs(drift) < 0.02
    assert np.std(seen) < 0.2


def test_a_stiff_coupling_breaks_no_walker_at_its_beginning():
    """Before λ is placed at u it is 0, where the coupling pulls with 1e6 kJ/mol/nm and more."""
    walkers = make(2, bias=ExtendedABF(sigma=0.005, mass=2000.0, pace=10), start=peroxide(0.5)[None])
    assert not walkers.evaluator.broken.any()
    walkers.run(50, pace=10)
    assert not walkers.evaluator.broken.any()
    assert not walkers.events


def test_unknown_variable_is_named():
    with pytest.raises(UqbiasError, match="'phi', a variable that nobody defines"):
        make(bias=UpperWall(at=1.0, variables=["phi"]))
