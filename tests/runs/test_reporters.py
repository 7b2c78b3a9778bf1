"""HILLS, COLVAR, trajectories and observations are read back as they were."""

import json
import tracemalloc
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest

from uqbias.bias.eabf import WellTemperedExtendedABF
from uqbias.bias.fixed import UpperWall
from uqbias.bias.metad import MetaD
from uqbias.errors import UqbiasError
from uqbias.md.walkers import Observation
from uqbias.molecule.topology import Topology
from uqbias.runs.hills import HillsFile, read_hills
from uqbias.runs.observation import GuardEvent
from uqbias.runs.run_files import RunFiles, hill_files
from uqbias.runs.series import ColvarFiles, colvar_paths, read_colvar
from uqbias.runs.trajectories import Trajectories
from uqbias.runs.writer import RunWriter

WATER = Topology((8, 1, 1), ((0, 1), (0, 2)), ("O", "H1", "H2"), ("HOH1",) * 3)


def observation(step, n_walkers=2, events=()):
    rng = np.random.default_rng(step)
    values = rng.normal(size=(4, n_walkers)) * 100
    restarted = np.zeros(n_walkers, dtype=bool)
    restarted[[e.walker for e in events]] = True
    positions = rng.normal(size=(n_walkers, 3, 3))
    return Observation(step, step * 0.0005, positions, *values, restarted, events=tuple(events))


def run(bias, file, steps):
    rng = np.random.default_rng(0)
    for step in steps:
        bias.update(step, rng.normal(3, 1, (2, 1)))
        file()


@pytest.mark.parametrize("gamma", [None, 10.0])
def test_hills_as_plumed_writes_them(tmp_path, gamma):
    bias = MetaD(height=1.2, sigma=0.5, pace=10, biasfactor=gamma)
    file = HillsFile(tmp_path / "HILLS", bias, timestep_fs=0.5)
    run(bias, file, range(0, 101, 10))
    file.close()
    lines = (tmp_path / "HILLS").read_text().splitlines()
    assert lines[:3] == [
        "#! FIELDS time driver sigma_driver height biasf",
        "#! SET multivariate false",
        "#! SET kerneltype gaussian",
    ]
    first = [float(word) for word in lines[3].split()]
    # PLUMED scales the height of a well-tempered run by γ/(γ-1), and writes biasf -1 for an untempered one.
    assert first[0] == 0.005
    assert first[3:] == pytest.approx([1.2 * 10 / 9, 10.0] if gamma else [1.2, -1.0])
    hills = read_hills(tmp_path / "HILLS", timestep_fs=0.5)
    assert len(hills) == 20
    for name in ("step", "centre", "sigma", "biasfactor"):
        np.testing.assert_array_equal(hills[name], bias.hills[name])
    np.testing.assert_allclose(hills["height"], bias.hills["height"], rtol=1e-14)
    again = MetaD(height=1.2, sigma=0.5, pace=10, biasfactor=gamma)
    again.load_hills(hills)
    x = np.linspace(-1, 7, 99)
    np.testing.assert_allclose(again.value(x), bias.value(x), atol=1e-5)


def test_sum_of_hills_in_the_file_is_minus_the_free_energy(tmp_path):
    bias = MetaD(height=1.2, sigma=0.5, pace=10, biasfactor=6.0)
    file = HillsFile(tmp_path / "HILLS", bias, timestep_fs=0.5)
    run(bias, file, range(10, 2001, 10))
    rows = np.loadtxt(tmp_path / "HILLS")
    u, energy = bias.free_energy()
    total = -(rows[:, 3] * np.exp(-0.5 * ((u - rows[:, 1]) / rows[:, 2]) ** 2)).sum(1)
    np.testing.assert_allclose(energy, total - total.min(), atol=1e-4)


def test_a_line_cut_short_is_left_out_and_repaired(tmp_path):
    path = tmp_path / "HILLS"
    bias = MetaD(height=1.0, sigma=0.5, pace=10)
    file = HillsFile(path, bias, timestep_fs=0.5)
    run(bias, file, range(10, 51, 10))
    file.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert len(read_hills(path, 0.5)) == 9
    again = MetaD(height=1.0, sigma=0.5, pace=10)
    again.load_hills(read_hills(path, 0.5))
    file = HillsFile(path, again, timestep_fs=0.5, append=True)
    run(again, file, [60])
    assert read_hills(path, 0.5)["step"].tolist() == [10, 10, 20, 20, 30, 30, 40, 40, 50, 60, 60]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("#! FIELDS time driver sigma_driver height biasf\n1 2 3 4 5\n1 2 x 4 5\n", "HILLS, line 3"),
        (
            "#! FIELDS time driver sigma_driver height biasf\n1 2 3 4\n1 2 3 4 5\n",
            "HILLS, line 2: 4 numbers for 5 fields",
        ),
        ("#! FIELDS time phi psi sigma_phi height biasf\n", "sigma_ of each"),
        ("1 2 3 4 5\n", "HILLS, line 1"),
        (
            "#! FIELDS time driver sigma_driver height biasf\n1 2 3 4 5\n# nan\n1 2 3 nan 5\n",
            "HILLS, line 4: .* not finite",
        ),
        ("#! FIELDS time driver sigma_driver height biasf\nnan 2 3 4 5\n", "HILLS, line 2"),
        ("#! FIELDS time driver sigma_driver height biasf\n1e300 2 3 4 5\n", "HILLS, line 2"),
        ("#! FIELDS time driver sigma_driver height biasf\n1 inf 3 4 5\n", "HILLS, line 2"),
        ("#! FIELDS time driver sigma_driver height biasf\n1 2 3 4 5\n1 2 0 4 5\n", "HILLS, line 3: .* sigma"),
        ("#! FIELDS time driver sigma_driver height biasf\n1 2 -3 4 5\n", "HILLS, line 2"),
        (b"\xff\xfe\x00abc\n", "HILLS is not a text file"),
        ("", "FIELDS"),
        (None, "no such file"),
    ],
)
def test_bad_hills(tmp_path, content, message):
    path = tmp_path / "HILLS"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UqbiasError, match=message):
        read_hills(path, 0.5)


def test_names_of_several_files(tmp_path):
    def on(*names):
        return MetaD(height=1.0, sigma=0.5, pace=10, variables=list(names))

    wall, bound = UpperWall(at=1.0), WellTemperedExtendedABF()
    for biases, expected in (
        ([], []),
        ([wall, on("phi", "psi"), None], ["HILLS"]),
        ([on("driver"), on("phi", "psi"), bound], ["HILLS.driver", "HILLS.phi-psi", "HILLS.extended_driver"]),
        ([on("driver"), on("driver"), on("driver")], ["HILLS.driver", "HILLS.driver.1", "HILLS.driver.2"]),
    ):
        assert [path for path, _ in hill_files(tmp_path / "HILLS", biases)] == [tmp_path / name for name in expected]
    names = [path.name for path, _ in hill_files("hills.dat", [on("driver"), on("energy"), on("driver")])]
    assert names == ["hills.driver.dat", "hills.energy.dat", "hills.driver.2.dat"]
    assert hill_files(None, [on("driver")]) == []


def test_plumeds_own_hills_are_read(tmp_path):
    path = tmp_path / "HILLS"
    path.write_text(
        "#! FIELDS time driver sigma_driver height biasf clock\n#! SET multivariate false\n"
        "#! SET kerneltype stretched-gaussian\n"
        "     1     0.5     0.2     1.3333333     4   1700000000\n"
    )
    hills = read_hills(path, 2.0)
    assert hills["step"][0] == 500
    assert hills["height"][0] == pytest.approx(1.0)


PLUMED_PHI = (
    "#! FIELDS time phi sigma_phi height biasf\n#! SET multivariate false\n#! SET kerneltype stretched-gaussian\n"
    "#! SET min_phi -pi\n#! SET max_phi pi\n     1     0.5     0.2     1.3333333     4\n"
)


def begin_with(path, bias):
    RunFiles(path, None, [bias], bias.variables).load_hills()


def test_hills_for_a_bias_of_another_kernel_or_period(tmp_path):
    path = tmp_path / "HILLS"
    path.write_text(PLUMED_PHI)

    def on_phi(period, kernel="stretched-gaussian"):
        return MetaD(variables=["phi"], periods=[period], sigma=0.2, kernel=kernel, biasfactor=4.0)

    # What the file does not state is not compared: older PLUMED states no kernel.
    for stated, bias in (
        (PLUMED_PHI, on_phi(2 * np.pi)),
        (PLUMED_PHI.replace("#! SET kerneltype stretched-gaussian\n", ""), on_phi(2 * np.pi, "gaussian")),
        (PLUMED_PHI.replace("-pi", "0").replace(" pi", " 2*pi"), on_phi(2 * np.pi)),
        (PLUMED_PHI.replace("-pi", "-1.5").replace(" pi", " 1.5"), on_phi(3.0)),
        (PLUMED_PHI.replace("min_phi", "min_psi"), on_phi(None)),
    ):
        path.write_text(stated)
        assert len(read_hills(path, 2.0, bias=bias)) == 1
        HillsFile(path, bias, 2.0, append=True).close()
        assert path.read_text() == stated
    path.write_text(PLUMED_PHI)
    for bias, message in (
        (on_phi(None), r"on phi with period 6\.28319, in this bias its period is None"),
        (on_phi(2.0), r"its period is 2\.0"),
        (on_phi(2 * np.pi, "gaussian"), "HILLS holds hills of the kernel stretched-gaussian, this bias has gaussian"),
        (MetaD(), "hills on phi, not on driver"),
    ):
        with pytest.raises(UqbiasError, match=message):
            begin_with(path, bias)
        assert not len(bias.hills)
        with pytest.raises(UqbiasError, match=r"kernel|period"):
            HillsFile(path, bias, 2.0, append=True)
    # Files that can be read, but not continued by this bias.
    path.write_text(PLUMED_PHI.replace("biasf", "biasf clock").replace("     4\n", "     4 17\n"))
    assert len(read_hills(path, 2.0, bias=on_phi(2 * np.pi))) == 1
    with pytest.raises(UqbiasError, match=r"HILLS has other columns: .* clock"):
        begin_with(path, on_phi(2 * np.pi))
    path.write_text(PLUMED_PHI)
    for factor, message in ((2.0, "bias factor 4, this bias has 2"), (None, "bias factor 4, this bias has none")):
        other = MetaD(variables=["phi"], periods=[2 * np.pi], sigma=0.2, kernel="stretched-gaussian", biasfactor=factor)
        with pytest.raises(UqbiasError, match=f"HILLS holds hills with the {message}; use the same"):
            begin_with(path, other)
        assert not len(other.hills)
    path.write_text(PLUMED_PHI.replace("     0.2 ", " 0.0001 "))
    with pytest.raises(UqbiasError, match="HILLS: hills of sigma"):
        begin_with(path, on_phi(2 * np.pi))


def test_files_with_other_columns_are_not_continued(tmp_path):
    bias, path = MetaD(), tmp_path / "FILE"
    files = {
        "hills": lambda: HillsFile(path, bias, 0.5, append=True),
        "colvar": lambda: ColvarFiles(path, 1, names=["driver", "phi"], append=True),
    }
    for name, content in (
        ("hills", "#! FIELDS time phi sigma_phi height biasf\n"),
        ("hills", "#! FIELDS time driver sigma_driver height biasf clock\n"),
        ("colvar", "#! FIELDS time driver energy judge bias restarted\n 1 2 3 4 5 0\n"),
        ("colvar", "#! FIELDS time driver energy judge bias restarted psi\n 1 2 3 4 5 0 6\n"),
        ("colvar", "my notes"),
    ):
        path.write_text(content)
        with pytest.raises(UqbiasError, match="FILE has other columns"):
            files[name]()
        assert path.read_text() == content
    # A kill while the header was written.
    for name, header in (
        ("hills", "#! FIELDS time driver sigma_driver height biasf"),
        ("colvar", "#! FIELDS time driver energy"),
    ):
        path.write_text(header)
        files[name]().close()
        assert path.read_text().startswith(header)
        assert path.read_text().endswith("\n")


def test_colvar(tmp_path):
    seen = [observation(step) for step in range(0, 50, 10)]
    files = ColvarFiles(tmp_path / "COLVAR", 2)
    for o in seen:
        files(o)
    assert [path.name for path in colvar_paths(tmp_path / "COLVAR", 2)] == ["COLVAR.0", "COLVAR.1"]
    assert colvar_paths("a/colvar.dat", 2)[1].name == "colvar.1.dat"
    assert colvar_paths("COLVAR", 1)[0].name == "COLVAR"
    # Read before closing: rows are flushed as they come.
    table = read_colvar(tmp_path / "COLVAR.1")
    assert list(table) == ["time", "driver", "energy", "judge", "bias", "restarted"]
    np.testing.assert_allclose(table["time"], [o.time_ps for o in seen])
    np.testing.assert_allclose(table["driver"], [o.driver[1] for o in seen], rtol=1e-8)
    np.testing.assert_allclose(table["bias"], [o.bias[1] for o in seen], rtol=1e-8)
    files.close()


@pytest.mark.parametrize("block", [7, 64, 1 << 22])
def test_colvar_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    """Restarts, comments, empty lines, odd numbers and a cut last line, as the lines say one by one."""
    monkeypatch.setattr("uqbias.runs.plumed_files.BLOCK", block)
    head = "#! FIELDS time a b\n"
    content = f"{head}#! SET min_a -pi\n0 1 2.5\n1 -1e300 nan\n\n{head} 2\t inf 1_0\r\n  # end\n3 0 1\n4 5 6"
    (path := tmp_path / "COLVAR").write_bytes(content.encode())
    table = read_colvar(path)
    assert list(table) == ["time", "a", "b"]
    rows = [[0, 1, 2.5], [1, -1e300, np.nan], [2, np.inf, 10], [3, 0, 1]]
    np.testing.assert_array_equal(np.stack([*table.values()], axis=1), rows)
    for bad, message in (
        ("#! FIELDS time a c\n", "line 10: other fields"),
        ("4 5\n4 5 6 7\n", "line 10: 2 numbers for 3 fields"),
        ("4 5 6\n4 5 x6\n", "line 11: could not convert string to float: 'x6'"),
        ("4 5 6.0.1\n", "line 10: could not convert"),
        ("4 5 6 # note\n", "line 10: could not convert"),
        ("4 5 6\x007\n", "line 10: could not convert"),
        ("4 5 0x10\n", "line 10: could not convert"),
        ("4 5 1,5\n", "line 10: could not convert"),
    ):
        path.write_bytes((content[:-5] + bad + "5 6 7\n").encode())
        with pytest.raises(UqbiasError, match=message):
            read_colvar(path)
    path.write_bytes(content.encode() + b"\n1 2 \xff\n")
    with pytest.raises(UqbiasError, match="not a text file"):
        read_colvar(path)


def test_memory_of_a_colvar_that_is_read(tmp_path, monkeypatch):
    """Beside the numbers and those of their lines, a few blocks."""
    monkeypatch.setattr("uqbias.runs.plumed_files.BLOCK", 1 << 14)
    (tmp_path / "COLVAR").write_text("#! FIELDS time a b c\n" + "1.234567 1.234567 1.234567 1.5\n" * 50_000)
    tracemalloc.start()
    table = read_colvar(tmp_path / "COLVAR")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table["c"]) == 50_000
    assert peak < 1.5 * 50_000 * (4 + 1) * 8


def test_trajectories_are_read_by_mdtraj(tmp_path):
    seen = [observation(step) for step in range(0, 60, 20)]
    for append in (False, True):
        files = Trajectories(tmp_path, WATER, 2, append=append)
        for o in seen[2:] if append else seen[:2]:
            files(o)
        files.close()
    for walker in range(2):
        trajectory = mdtraj.load(str(tmp_path / f"walker_{walker}.xtc"), top=str(tmp_path / "topology.pdb"))
        np.testing.assert_allclose(trajectory.xyz, [o.positions[walker] for o in seen], atol=1e-3)
        np.testing.assert_allclose(trajectory.time, [0, 0.01, 0.02], atol=1e-6)
        assert [atom.name for atom in trajectory.top.atoms] == ["O", "H1", "H2"]
        assert trajectory.top.n_bonds == 2


def test_observations_and_events(tmp_path):
    event = GuardEvent(20, 0.01, 1, "bond", {"ratio": 1.4}, 3)
    seen = [observation(step, events=[event] if step == 10 else []) for step in range(0, 60, 10)]
    walkers = SimpleNamespace(
        topology=WATER, n_walkers=2, timestep_fs=0.5, bias=None, names=(), events=[event], runner="eager",
        n_evaluations=6,
    )  # fmt: skip
    with RunWriter(tmp_path, {"steps": 50, "settings": {}}) as writer:
        writer.start(walkers, observe_every=20, trajectory_every=10)
        for o in seen:
            writer(o)
        # The event is on disk although its observation is not kept and nothing was closed.
        assert json.loads((tmp_path / "events.jsonl").read_text()) == event.to_dict()
        writer.finish()
    with np.load(tmp_path / "observations.npz") as file:
        assert file["positions"].shape == (3, 2, 3, 3)
        assert file["positions"].dtype == np.float32
        np.testing.assert_array_equal(file["step"], [0, 20, 40])
        for name in ("energy", "driver", "judge", "bias", "restarted"):
            np.testing.assert_array_equal(file[name], [getattr(o, name) for o in seen[::2]])
