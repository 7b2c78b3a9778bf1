"""Hills shared between processes through files."""

import subprocess
import sys

import numpy as np
import pytest

from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD, sum_of_hills
from uqbias.bias.parallel import ParallelMetaD
from uqbias.errors import UqbiasError
from uqbias.registry import BIASES
from uqbias.runs.hills import read_hills
from uqbias.runs.sharing import EXCHANGED, SharedHills, SharedSum, check_shareable
from uqbias.units import kt

AT = np.linspace(-4, 10, 301)


def make(**options):
    return MetaD(**{"sigma": 0.5, "pace": 1, "biasfactor": 6.0, **options})


def test_two_processes_have_one_bias(tmp_path):
    """Alternating updates and exchanges give what one bias with both walkers gets, one after the other."""
    biases = [make(), make()]
    shared = [SharedHills(tmp_path, bias, 0.5, name=str(index)) for index, bias in enumerate(biases)]
    alone = make()
    rng = np.random.default_rng(0)
    for step in range(1, 41):
        for bias, exchange in zip(biases, shared, strict=True):
            exchange.sync()
            x = rng.normal(3, 1, (1, 1))
            bias.update(step, x)
            alone.update(step, x)
            exchange.sync()
    for exchange in shared:
        exchange.sync()
        assert exchange.sync() == 0
    for bias in biases:
        assert len(bias.hills) == 80
        np.testing.assert_allclose(bias.value(AT), alone.value(AT), atol=1e-9)
    assert len(read_hills(tmp_path / "HILLS.0", 0.5)) == 40


def test_one_that_begins_again_has_all_hills_once(tmp_path):
    first, second = make(), make()
    one, two = SharedHills(tmp_path, first, 0.5, name="a"), SharedHills(tmp_path, second, 0.5, name="b")
    for step in (1, 2, 3):
        first.update(step, np.array([[1.0]]))
        second.update(step, np.array([[2.0]]))
    one.sync()
    two.sync()
    # A crash in the middle of a line.
    path = tmp_path / "HILLS.a"
    path.write_bytes(path.read_bytes()[:-7])
    again = make()
    three = SharedHills(tmp_path, again, 0.5, name="a")
    assert len(again.hills) == 5
    again.update(4, np.array([[1.5]]))
    three.sync()
    assert len(read_hills(path, 0.5)) == 3
    two.sync()
    fresh = make()
    SharedHills(tmp_path, fresh, 0.5)
    np.testing.assert_allclose(fresh.value(AT), again.value(AT), atol=1e-9)


def test_hills_of_another_bias_are_refused(tmp_path):
    SharedHills(tmp_path, make(), 0.5, name="a")
    with pytest.raises(UqbiasError, match=r"HILLS\.a holds hills of another bias"):
        SharedHills(tmp_path, make(variables=["phi"]), 0.5, name="b")
    with pytest.raises(UqbiasError, match=r"HILLS\.a holds hills of another bias"):
        SharedHills(tmp_path, make(kernel="stretched-gaussian"), 0.5, name="b")
    assert [path.name for path in tmp_path.iterdir()] == ["HILLS.a"]
    bias = make()
    exchange = SharedHills(tmp_path, bias, 0.5, name="a")
    for step in (1, 2, 3):
        bias.update(step, np.array([[1.0]]))
        exchange.sync()
    with pytest.raises(UqbiasError, match=r"HILLS\.a holds hills with the bias factor 6, this bias has 3"):
        SharedHills(tmp_path, make(biasfactor=3.0), 0.5, name="b")


def test_a_bad_line_is_named_by_its_place_in_the_file(tmp_path):
    bias = make()
    writer = SharedHills(tmp_path, bias, 0.5, name="a")
    reader = SharedHills(tmp_path, make(), 0.5, name="b")
    for step in (1, 2, 3):
        bias.update(step, np.array([[1.0]]))
        writer.sync()
        reader.sync()
    assert len(reader.bias.hills) == 3
    with writer.path.open("a") as stream:
        stream.write("0.002 1.0 0.5 nonsense 6\n")
    assert writer.path.read_text().splitlines()[6].endswith("nonsense 6")
    with pytest.raises(UqbiasError, match=r"HILLS\.a, line 7: could not convert"):
        reader.sync()


@pytest.mark.slow
def test_processes_at_the_same_time(tmp_path):
    """Three processes at once: afterwards every hill is in the folder once, and every bias is their sum."""
    script = (
        "import sys, numpy as np\n"
        "from uqbias.bias.metad import MetaD\n"
        "from uqbias.runs.sharing import SharedHills\n"
        "bias = MetaD(sigma=0.5, pace=1, biasfactor=None)\n"
        "shared = SharedHills(sys.argv[1], bias, 0.5, name=sys.argv[2])\n"
        "rng = np.random.default_rng(int(sys.argv[2]))\n"
        "for step in range(1, 201):\n"
        "    bias.update(step, rng.normal(3, 1, (2, 1)))\n"
        "    shared.sync()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(index)]) for index in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    bias = make(biasfactor=None)
    SharedHills(tmp_path, bias, 0.5)
    assert len(bias.hills) == 3 * 200 * 2
    centres = [np.random.default_rng(index).normal(3, 1, (200, 2)).ravel() for index in range(3)]
    np.testing.assert_allclose(np.sort(bias.hills["centre"][:, 0]), np.sort(np.concatenate(centres)), rtol=1e-15)


def group(folder, name, every=10, **options):
    return SharedSum([make(**{"sigma": 0.2, "reflect_at": None, **options})], folder, name, 0.5, every)


def walk(bias, x, rng, begin, end, pace=10):
    """Brownian motion of walkers in U = 6 (x² - 1)² kJ/mol at 300 K under a bias, which is updated every ``pace``."""
    at = np.linspace(-2.5, 2.5, 501)
    for step in range(begin, end, pace):
        slope = np.gradient(bias.biases[0].value(at), at) + 24 * at * (at**2 - 1)
        for noise in rng.normal(size=(pace, len(x))):
            x = x - 0.002 * np.interp(x, at, slope) / kt(300.0) + np.sqrt(2 * 0.002) * noise
        bias.update(step + pace, x[:, None])
    return x


def hills_in(folder):
    return np.sort(np.concatenate([read_hills(path, 0.5)["centre"][:, 0] for path in folder.glob("HILLS.*")]))


def test_groups_with_hills_in_common_give_the_free_energy_of_a_double_well(tmp_path):
    """Each alone would have half of the hills; together they give F = U, and each knows all hills but the last."""
    groups = [group(tmp_path, name, 100, biasfactor=6.0, pace=10, height=0.2) for name in ("a", "b")]
    walkers, rngs = [np.full(4, -1.0), np.full(4, -1.0)], [np.random.default_rng(seed) for seed in (1, 2)]
    for begin in range(0, 6000, 100):
        for place, bias in enumerate(groups):
            walkers[place] = walk(bias, walkers[place], rngs[place], begin, begin + 100)
    at = np.linspace(-1.3, 1.3, 53)
    hills = hills_in(tmp_path)
    assert len(hills) == 2 * 4 * 600
    for bias, missing in zip(groups, (40, 0), strict=True):  # the last exchange of the second comes after the first's
        (part,) = bias.biases
        assert len(part.hills) == 4800 - missing
        assert np.isin(part.hills["centre"][:, 0], hills).all()
        summed = sum_of_hills(at[:, None], *(part.hills[name] for name in ("centre", "sigma", "height")), (None,))
        np.testing.assert_allclose(part.value(at), summed, atol=2e-3)
        deviation = part.free_energy(at[:, None])[1] - 6 * (at**2 - 1) ** 2
        assert np.std(deviation) < kt(300.0) / 3  # of a barrier of 6 kJ/mol
        assert np.ptp(part.hills["centre"]) > 2.4


def test_a_group_that_goes_on_counts_no_hill_twice_and_loses_none(tmp_path):
    one, other = group(tmp_path, "a"), group(tmp_path, "b")
    x = np.random.default_rng(0).normal(size=(40, 3, 1))
    for step in range(31):
        for bias, shift in ((one, 0.0), (other, 5.0)):
            bias.update(step, x[step] + shift)
        if step == 20:
            saved = one.checkpoint()
    assert len(hills_in(tmp_path)) == 2 * 3 * 30
    again = group(tmp_path, "a")
    again.restore(saved)
    for step in range(21, 36):
        again.update(step, x[step])
    killed = again  # hills of steps 31 to 35 are in no file yet
    assert len(killed.biases[0].hills) == 3 * 35 + 3 * 30
    again = group(tmp_path, "a")
    again.restore(saved)
    for step in range(21, 41):
        if step > 30:
            other.update(step, x[0] + 5.0)
        again.update(step, x[step % 40])
    assert len(hills_in(tmp_path)) == 3 * (40 + 40)
    np.testing.assert_array_equal(np.sort(again.biases[0].hills["centre"][:, 0]), hills_in(tmp_path))
    # One that does not repeat itself keeps what it left behind, which the other has read.
    third = group(tmp_path, "a")
    third.restore(saved)
    for step in range(21, 31):
        third.update(step, x[step] + (0.01 if step > 25 else 0.0))
    assert len(hills_in(tmp_path)) == 3 * (40 + 40) + 3 * 5
    np.testing.assert_array_equal(np.sort(third.biases[0].hills["centre"][:, 0]), hills_in(tmp_path))


def test_hills_of_the_round_before_are_not_shared_again(tmp_path):
    before = group(tmp_path / "before", "a")
    for step in range(11):
        before.update(step, np.full((2, 1), 0.1 * step))
    arrays = before.checkpoint()
    del arrays[EXCHANGED]
    groups = [group(tmp_path / "now", name) for name in ("a", "b")]
    for step in range(11):
        for bias in groups:
            if not step:
                bias.restore(arrays)
            bias.update(step, np.full((2, 1), 1.0))
    assert len(hills_in(tmp_path / "now")) == 40
    assert [len(bias.biases[0].hills) for bias in groups] == [20 + 20, 20 + 40]


@pytest.mark.parametrize("kind", ["opes", "wtm_eabf", "linear"])
def test_biases_that_are_no_sums_of_hills_are_not_shared(tmp_path, kind):
    parts = [BIASES.build({"kind": kind, "variables": ["driver"]}), UpperWall(at=5.0)]
    with pytest.raises(UqbiasError, match=f"share_hills_every with the bias {kind}, which is no sum of hills"):
        check_shareable(parts)
    with pytest.raises(UqbiasError, match="with the bias of no hills"):
        check_shareable(parts[1:])
    check_shareable([ParallelMetaD(variables=["driver"]), parts[1]])
