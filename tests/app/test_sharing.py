"""Hills shared between processes through files."""

import subprocess
import sys

import numpy as np
import pytest

from uqbias.app.sharing import SharedHills
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.runs.hills import read_hills

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
        "from uqbias.app.sharing import SharedHills\n"
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
