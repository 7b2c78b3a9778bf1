"""uqbias fes on run folders: what it writes, prints and refuses."""

import json
import logging
from functools import partial

import command_line
import matplotlib.image
import numpy as np
import pytest
from molecules import ALANINE_PDB
from synthetic_runs import (
    KT,
    NO_UNIT,
    exact,
    free_energy,
    independent,
    make,
    metadynamics_run,
    values_of,
    well,
    write_run,
)

from uqbias.free_energy.estimate_options import METHODS
from uqbias.free_energy.result import UNITS, Axis, FreeEnergy
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology
from uqbias.report.free_energy_plot import free_energy_figure
from uqbias.units import EV, KCAL

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)


@pytest.fixture(autouse=True)
def _log():
    yield
    logger = logging.getLogger("uqbias")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def rows_of(path):
    """Columns of a table: variables, F, error, frames."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return np.loadtxt(lines[1:], delimiter=",").T


call, refused = (partial(run, "fes") for run in (command_line.call, command_line.refused))


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    """Unbiased samples of the double well, 4 walkers."""
    return write_run(tmp_path_factory.mktemp("runs") / "simple", {"x": independent(well, (5000, 4), seed=0)})


@pytest.fixture(scope="module")
def alanine(tmp_path_factory, alanine_frames):
    """Frames of alanine dipeptide as two walkers under a metadynamics of one hill on φ and a wall on u."""
    topology = Topology.from_pdb(ALANINE_PDB)
    x = alanine_frames.positions
    x = np.stack([x, x[::-1]], axis=1)
    angles = dihedral_angles(x, [PHI, PSI])
    driver = np.random.default_rng(0).normal(size=x.shape[:2])
    hill, entry = make("metadynamics", variables=["phi"], periods=[2 * np.pi], sigma=0.5, height=4.0, pace=100)
    hill.update(100, np.array([[-1.5]]))
    wall = make("upper_wall", at=1.0, kappa=2.0)
    bias = values_of(hill, {"phi": angles[..., 0]}) + values_of(wall[0], {"driver": driver})
    folder = write_run(
        tmp_path_factory.mktemp("runs") / "alanine",
        {"phi": angles[..., 0]},
        [(hill, entry), wall],
        bias=bias,
        positions=x.astype(np.float32),
        variables={"phi": {"kind": "dihedral", "options": {"atoms": PHI}, "period": 2 * np.pi, "unit": "rad"}},
        topology=topology.to_dict(),
    )
    arrays = dict(np.load(folder / "observations.npz"))
    arrays["driver"] = driver
    arrays["energy"] = -np.arange(driver.size, dtype=float).reshape(driver.shape)
    arrays["restarted"][[3, 50], [0, 1]] = True
    arrays["driver"][50, 1] = arrays["bias"][50, 1] = np.nan
    np.savez(folder / "observations.npz", **arrays)
    return folder


def test_command_writes_table_and_figure(simple, tmp_path):
    done = call(simple, "--cv", "x", "--range=-1.5:1.5", "--bins", 30, "--unit", "kT", "-o", tmp_path / "new" / "fes")
    assert done.exit_code == 0, done.output
    assert "method        last-bias" in done.stdout
    assert "effective 18000" in done.stdout
    axis = Axis("x", "", -1.5, 1.5, 30)
    centres, F, *_ = rows_of(tmp_path / "new" / "fes" / "fes.csv")
    np.testing.assert_allclose(centres, axis.centres)
    reference = exact(axis)
    low = reference < 4 * KT
    assert np.abs(F * KT - reference)[low].max() < 0.3 * KT
    text = (tmp_path / "new" / "fes" / "fes.csv").read_text()
    for line in (
        "# unit: kT",
        "# temperature: 300.0 K, kT = 1 kT",
        "# minimum: the lowest F is 0; inf: no frame in the bin",
        "# method: last-bias: w = exp(V/kT)",
        "# biases: none",
        f"# read: {simple / 'run.json'}, {simple / 'observations.npz'}",
        "x,F,error,frames",
    ):
        assert line in text
    picture = matplotlib.image.imread(tmp_path / "new" / "fes" / "fes.png")
    assert picture.shape[0] > 400
    assert picture[..., :3].std() > 0.05
    assert sorted(path.name for path in (tmp_path / "new" / "fes").iterdir()) == ["fes.csv", "fes.png"]


def test_without_a_folder_the_table_is_printed(simple):
    done = call(simple, "--cv", "x", "--bins", 20)
    assert done.stdout.startswith("# free energy by uqbias\n# axis: name x, unit -, low ")
    assert len([line for line in done.stdout.splitlines() if not line.startswith("#")]) == 21


def test_json(simple):
    value = json.loads(call(simple, "--cv", "x", "--bins", 20, "--range=-3:3", "--json").stdout)
    assert value["variables"][0]["name"] == "x"
    assert len(value["free_energy"]) == 20
    assert value["free_energy"][0] is None  # never visited
    assert min(entry for entry in value["free_energy"] if entry is not None) == 0
    assert value["frames"] == 18000
    assert value["unit"] == "kJ/mol"
    assert value["temperature_K"] == 300.0


@pytest.mark.parametrize("unit", UNITS)
def test_units(simple, tmp_path, unit):
    found = free_energy([simple], ["x"])
    factor = {"kJ/mol": 1.0, "kcal/mol": 1 / KCAL, "kT": 1 / KT, "eV": 1 / EV}[unit]
    found.save(tmp_path / "fes.csv", unit)
    row = (tmp_path / "fes.csv").read_text().splitlines()[-30].split(",")
    assert float(row[1]) == pytest.approx(found.values[-30] * factor, rel=1e-6)
    assert float(row[2]) == pytest.approx(found.error[-30] * factor, rel=1e-5)
    _, F, error, _ = rows_of(tmp_path / "fes.csv")
    np.testing.assert_allclose(F, found.values * factor, rtol=1e-6)
    np.testing.assert_allclose(error, found.error * factor, rtol=1e-5)


def test_file_of_two_variables(alanine, tmp_path):
    found = free_energy([alanine], ["phi", "driver"], bins=[6, 5])
    assert found.axes[0].period == 360.0
    found.save(tmp_path / "fes.csv", "kcal/mol")
    phi, driver, F, _, frames = rows_of(tmp_path / "fes.csv")
    np.testing.assert_allclose(phi, np.repeat(found.axes[0].centres, 5))
    np.testing.assert_allclose(driver, np.tile(found.axes[1].centres, 6))
    np.testing.assert_allclose(F, found.values.ravel() / KCAL, rtol=1e-6)
    np.testing.assert_array_equal(frames, found.counts.ravel())
    text = (tmp_path / "fes.csv").read_text()
    assert "# axis: name phi, unit °, low -180.0, high 180.0, bins 6, period 360.0\n" in text
    assert f"# method: {found.method}\n" in text
    assert f"# temperature: {found.temperature} K" in text
    assert f"effective (Kish): {found.effective:.1f}\n" in text
    assert found.notes
    assert all(f"# {name}: {note}\n" in text for name, note in found.notes.items())


def test_phi_and_psi_are_found_and_in_degrees(alanine):
    """psi from the topology, phi from the column: weighted histograms of both."""
    found = free_energy([alanine], ["phi", "psi"], discard=0.0, bins=[6, 6], method="last-bias", blocks=5)
    arrays = np.load(alanine / "observations.npz")
    kept = ~arrays["restarted"]
    angles = np.degrees(dihedral_angles(arrays["positions"], [PHI, PSI]))[kept]
    weights = np.exp(arrays["bias"][kept] / KT)
    edges = np.linspace(-180, 180, 7)
    histogram = np.histogram2d(angles[:, 0], angles[:, 1], bins=[edges, edges], weights=weights)[0]
    with np.errstate(divide="ignore"):
        expected = -KT * np.log(histogram / histogram.max())
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.n_frames == kept.sum()
    assert found.axes[0].label == "phi (°)"


def test_restarts_and_walkers_are_in_the_header(alanine):
    text = call(alanine, "--cv", "phi", "--discard", 0).stdout
    assert "# restarts: 2; the frames that follow one are not from equilibrium" in text
    assert "walkers 2, frames 200, of which 198 are left" in text
    assert "# biases: metadynamics, upper_wall" in text
    assert "# biasfactor: γ = 10, F = -γ/(γ-1) V = -1.11111 V, heights in HILLS are those of the bias times" in text


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("d:8-9", "nm", lambda x: np.linalg.norm(x[..., 8, :] - x[..., 9, :], axis=-1)),
        ("d:CA-ALA2:HA", "nm", lambda x: np.linalg.norm(x[..., 8, :] - x[..., 9, :], axis=-1)),
        ("t:4-6-8-14", "°", lambda x: np.degrees(dihedral_angles(x, [PHI])[..., 0])),
        (
            "a:6-8-14",
            "°",
            lambda x: np.degrees(
                np.arccos(
                    np.einsum(
                        "...k,...k",
                        *(
                            (x[..., i, :] - x[..., 8, :])
                            / np.linalg.norm(x[..., i, :] - x[..., 8, :], axis=-1, keepdims=True)
                            for i in (6, 14)
                        ),
                    )
                )
            ),
        ),
        ("energy", "kJ/mol", lambda x: -np.arange(len(x) * 2.0).reshape(-1, 2)),
    ],
)
def test_variables_by_name_and_by_atoms(alanine, name, unit, expected):
    found = free_energy([alanine], [name], discard=0.0, bins=[12], method="last-bias")
    arrays = np.load(alanine / "observations.npz")
    values = expected(arrays["positions"].astype(float))[~arrays["restarted"]]
    axis = found.axes[0]
    assert axis.unit == unit
    if axis.period is None:
        assert (axis.low, axis.high) == pytest.approx((values.min(), values.max()), rel=1e-5)
    counts = np.histogram(values, bins=axis.edges)[0]
    assert np.abs(counts - found.counts).sum() <= 2  # single precision at an edge


def test_discard_is_taken_from_the_start(tmp_path):
    x = np.where(np.arange(100)[:, None] < 30, 5.0, np.linspace(0, 1, 100)[:, None])
    run = write_run(tmp_path, {"x": x})
    assert free_energy([run], ["x"], discard=0.29).axes[0].high == 5.0
    assert free_energy([run], ["x"], discard=0.3).axes[0].high == 1.0


def test_three_variables_of_a_bias_reduce_to_those_asked_for(tmp_path):
    """-γ/(γ-1) V of one hill: along one variable the others are integrated out as ∫ exp(-F/kT)."""
    part, entry = make("metadynamics", variables=["x", "y"], sigma=[0.4, 0.3], height=3.0, biasfactor=4.0, pace=10)
    part.update(10, np.array([[0.1, -0.2]]))
    random = np.random.default_rng(0)
    run = write_run(
        tmp_path,
        {"x": random.uniform(-1, 1, (5000, 1)), "y": random.uniform(-1, 1, (5000, 1))},
        [(part, entry)],
    )
    both = free_energy([run], ["y", "x"], method="bias", bins=[20, 20])
    v = part.value(np.stack(np.meshgrid(both.axes[1].centres, both.axes[0].centres), axis=-1).reshape(-1, 2))
    expected = -4 / 3 * v.reshape(20, 20)
    np.testing.assert_allclose(both.values, expected - expected.min(), atol=1e-6)
    one = free_energy([run], ["x"], method="bias", bins=[20])
    fine = np.linspace(-1, 1, 2001)
    x = one.axes[0].centres
    surface = -4 / 3 * part.value(np.stack(np.meshgrid(x, fine, indexing="ij"), axis=-1).reshape(-1, 2))
    marginal = -KT * np.log(np.exp(-surface.reshape(20, -1) / KT).mean(axis=1))
    np.testing.assert_allclose(one.values, marginal - marginal.min(), atol=0.01)
    told = refused(run, "--cv", "x", "--method", "bias", "--bins", 100_000)
    assert "6000000 points of a bias on 2 variables for these bins; give fewer --bins" in told


def test_what_acts_beside_a_bias_is_taken_off_or_refused(tmp_path):
    """-γ/(γ-1) V - W; a wall on something else, a boost or a second metadynamics has no part that is known."""
    hill = {"height": 3.0, "biasfactor": 4.0, "pace": 10}
    part, entry = make("metadynamics", variables=["x", "y"], sigma=[0.4, 0.3], **hill)
    part.update(10, np.array([[0.1, -0.2]]))
    random = np.random.default_rng(0)
    columns = {"x": random.uniform(-1, 1, (5000, 1)), "y": random.uniform(-1, 1, (5000, 1))}
    walls = [make("upper_wall", variables=["x"], at=0.2), make("restraint", variables=["y"], at=0.5, kappa=4.0)]
    run = write_run(tmp_path / "walled", columns, [(part, entry), *walls])
    found = free_energy([run], ["x", "y"], method="bias", bins=[20, 20])
    x, y = np.meshgrid(found.axes[0].centres, found.axes[1].centres, indexing="ij")
    v = part.value(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(x.shape)
    expected = -4 / 3 * v - 20 * np.maximum(x - 0.2, 0) ** 2 - 2 * (y - 0.5) ** 2
    np.testing.assert_allclose(found.values, expected - expected.min(), atol=1e-6)
    others = {
        "upper_wall on driver": make("upper_wall", at=1.0),
        "gamd on energy": make("gamd", pace=10, preparation_steps=0, conventional_steps=10, equilibration_steps=0),
        "opes on y": make("opes", variables=["y"], sigma=0.1, barrier=20.0),
    }
    others["gamd on energy"][0].update(10, random.normal(size=(50, 1)))
    for name, other in others.items():
        run = write_run(tmp_path / name, columns, [(part, entry), other], bias=columns["x"], step=np.arange(11, 5011))
        told = refused(run, "--cv", "x", "--method", "bias")
        assert f"{name} acts beside metadynamics on x, y" in told
        assert "use --method auto" in told


def test_weights_that_are_worth_little_are_told(tmp_path):
    """A few frames that weigh e^40 times the others: no free energy, whatever its error bars."""
    x = independent(well, (500, 4), seed=0)
    bias = np.where(np.arange(2000).reshape(500, 4) % 200 == 0, 100.0, 0.0)
    steep = make("restraint", variables=["x"], at=0.0, kappa=1.0)
    run = write_run(tmp_path / "run", {"x": x}, [steep], bias=bias)
    done = call(run, "--cv", "x", "--method", "quasi-static", "-o", tmp_path / "fes")
    assert "by their weights 1800 frames are worth 9: do not trust F and its error" in done.stdout
    assert "# warning: by their weights" in (tmp_path / "fes" / "fes.csv").read_text()
    adapted = make("linear", variables=["x"])
    run = write_run(tmp_path / "adapted", {"x": x}, [adapted], bias=bias)
    assert "linear adapted its tau during the run; run with a fixed tau" in refused(run, "--cv", "x")
    fixed = make("linear", variables=["x"], tau=1.0)
    assert call(write_run(tmp_path / "fixed", {"x": x}, [fixed]), "--cv", "x").exit_code == 0


def test_free_energy_along_an_extended_variable_is_refused(tmp_path):
    part, entry = make("eabf", variables=["x"], sigma=0.1)
    x = independent(well, (500, 4), seed=0)
    run = write_run(tmp_path / "run", {"x": x, "extended_x": x}, [(part, entry)])
    told = refused(run, "--cv", "extended_x")
    assert "a free energy along 'extended_x', an extended variable of" in told
    assert "ask for 'x'" in told


def test_opes_is_reweighted_with_the_bias_that_acted(tmp_path):
    """A bias of half of F, as OPES with γ = 2 converges to, recorded but for its first, wrong, part."""
    part, entry = make("opes", variables=["x"], barrier=20.0, sigma=0.2, pace=10)
    part.update(10, np.zeros((4, 1)))
    x = independent(lambda x: 0.5 * well(x), (4000, 5), seed=1)
    run = write_run(tmp_path, {"x": x}, [(part, entry)], bias=-0.5 * well(x))
    found = free_energy([run], ["x"], ranges=[(-1.5, 1.5)])
    assert found.method.startswith("quasi-static")
    reference = exact(found.axes[0])
    assert (found.values - reference)[reference < 8 * KT].std() < 0.15 * KT
    assert "γ = 8" in found.notes["biasfactor"]


def test_every_bias_factor_is_in_the_header(tmp_path):
    """Of each run, of each bias of a run, and of the hills inside WTM-eABF; only once where all are the same."""
    columns = {"x": independent(well, (100, 2), seed=0)}
    hills = {gamma: make("metadynamics", variables=["x"], biasfactor=gamma) for gamma in (5.0, 10.0)}
    runs = {gamma: write_run(tmp_path / f"m{gamma:g}", columns, [entry]) for gamma, entry in hills.items()}
    again = write_run(tmp_path / "again", columns, [hills[5.0]])
    none = write_run(tmp_path / "none", columns)
    heights = ", heights in HILLS are those of the bias times γ/(γ-1)"
    five = f"γ = 5, F = -γ/(γ-1) V = -1.25 V{heights}"
    ten = f"γ = 10, F = -γ/(γ-1) V = -1.11111 V{heights}"

    def said(*paths):
        return free_energy(paths, ["x"]).notes["biasfactor"]

    assert said(runs[5.0], again) == five
    assert said(runs[5.0], none) == f"metadynamics on x of {runs[5.0]}: {five}"
    both = [f"metadynamics on x of {runs[5.0]}: {five}", f"metadynamics on x of {runs[10.0]}: {ten}"]
    assert said(runs[5.0], runs[10.0]) == "; ".join(both)
    assert said(runs[10.0], runs[5.0]) == "; ".join(reversed(both))
    mixed = write_run(tmp_path / "mixed", columns, [hills[5.0], make("opes", variables=["x"], barrier=20.0, sigma=0.2)])
    assert said(mixed).startswith(f"metadynamics on x of {mixed}: {five}; opes on x of {mixed}: γ = 8.01816, F = ")
    main = make("wtm_eabf", variables=["x"], sigma=0.1, biasfactor=6.0)
    extended = write_run(tmp_path / "extended", columns | {"extended_x": columns["x"] + 0.05}, [main])
    assert said(extended) == f"γ = 6 on extended_x{heights}"


def test_bias_with_bins_that_were_not_visited(tmp_path):
    """Error bars are those of the visited bins, without a warning of NumPy's."""
    run = metadynamics_run(tmp_path / "run", biasfactor=10.0, height=KT, steps=1000, walkers=4)
    found = free_energy([run], ["x"], method="bias", ranges=[(-3, 3)], blocks=5)
    assert 0 < (found.counts > 0).sum() < 60
    assert np.isfinite(found.error).tolist() == (found.counts > 0).tolist()
    assert np.isfinite(found.values).tolist() == (found.counts > 0).tolist()
    assert found.error[found.counts > 0].max() > 0


def test_figures_have_labels_and_what_was_visited(simple, alanine):
    curve = free_energy_figure(free_energy([simple], ["x"]), "kT")
    assert curve.axes[0].get_ylabel() == "F (kT)"
    assert curve.axes[0].get_xlabel() == "x"
    found = free_energy([alanine], ["phi", "psi"])
    maps = free_energy_figure(found)
    assert [ax.get_xlabel() for ax in maps.axes[:2]] == ["φ (°)"] * 2
    shown = maps.axes[0].collections[0].get_array()
    assert (~np.ma.getmaskarray(shown)).sum() == np.isfinite(found.values).sum()
    assert shown.reshape(36, 36)[5, 9] is np.ma.masked or shown.reshape(36, 36)[5, 9] == found.values[9, 5]


def test_regions_wrap():
    axes = (Axis("phi", "°", -180.0, 180.0, 36, 360.0), Axis("d", "nm", 0.0, 1.0, 10))
    empty = np.zeros((36, 10))
    found = FreeEnergy(axes, empty, empty, empty.astype(int), 300.0, "none", 1.0)
    box = found.region([170.0, 0.0], [-170.0, 0.5])
    assert box.sum() == 2 * 5
    assert box[0, 0]
    assert box[35, 4]
    difference, error = found.difference(box, found.region([-180.0, 0.0], [180.0, 1.0]))
    assert difference == pytest.approx(-KT * np.log(36.0))
    assert np.isnan(error)


def test_method_names_stand_in_the_help():
    text = "".join(call("--help").output.split())
    for method in ("auto", *METHODS, *UNITS):
        assert method in text
    assert "uqbiasfesmd/--cvphi,psi-omd/fes" in text


def changed(run, folder, **facts):
    """A copy of a run with other entries in run.json, or other arrays."""
    folder.mkdir(parents=True)
    arrays = dict(np.load(run / "observations.npz"))
    described = json.loads((run / "run.json").read_text())
    for name, value in facts.items():
        if callable(value):
            arrays[name] = value(arrays[name])
        else:
            described[name] = value
    np.savez(folder / "observations.npz", **arrays)
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "bias.npz").write_bytes((run / "bias.npz").read_bytes())
    return folder


def test_folder_without_a_run(tmp_path, simple):
    assert f"no run.json in {tmp_path}" in refused(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "does not describe a run" in refused(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "uqbias-run", "version": 2, "temperature": 1}')
    assert "does not describe a run" in refused(tmp_path)
    (tmp_path / "run.json").write_bytes((simple / "run.json").read_bytes())
    assert "no observations.npz" in refused(tmp_path)
    (tmp_path / "observations.npz").write_bytes((simple / "observations.npz").read_bytes()[:-200])
    assert "is not a whole file of a run" in refused(tmp_path)
    newer = changed(simple, tmp_path / "newer", version=2)
    assert "of format uqbias-run 2; update uqbias" in refused(newer)


def test_bias_that_is_missing_or_of_another_run(alanine, simple, tmp_path):
    run = changed(alanine, tmp_path / "run")
    (run / "bias.npz").unlink()
    assert "no bias.npz" in refused(run, "--cv", "phi")
    (run / "bias.npz").write_bytes((simple / "bias.npz").read_bytes())
    assert f"{run / 'bias.npz'}: checkpoint with []" in refused(run, "--cv", "phi")
    with np.load(alanine / "bias.npz") as arrays:
        np.savez(run / "bias.npz", **arrays, **{"2.origin": np.zeros(1)})
    assert f"{run / 'bias.npz'}: '2.origin' for 2 bias(es)" in refused(run, "--cv", "phi")


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"topology": {}}, "does not describe a run: topology.numbers: field required"),
        ({"topology": {"numbers": [1, 1], "bonds": [[0, 5]]}}, "bond (0, 5) in a molecule of 2 atoms"),
        ({"temperature": "x"}, "does not describe a run: temperature = 'x': input should be a valid number"),
        ({"temperature": None}, "does not describe a run: temperature = None"),
        ({"temperature": -1}, "temperature = -1: input should be greater than 0"),
        ({"variables": [1]}, "does not describe a run: variables = [1]"),
        ({"variables": {"x": "angle"}}, "does not describe a run: variables.x = 'angle'"),
        ({"variables": {"x": {**NO_UNIT, "period": "long"}}}, "does not describe a run: variables.x.period = 'long'"),
        ({"model": "m.uqb"}, "does not describe a run: model = 'm.uqb'"),
        ({"biases": [{"sigma": 1.0}]}, "does not describe a run: biases.0.kind: field required"),
        ({"biases": ["opes"]}, "does not describe a run: biases.0 = 'opes'"),
        ({"biases": [{"kind": "opus"}]}, "did you mean 'opes'?"),
        ({"biases": [{"kind": "metadynamics", "sigma": "wide"}]}, "run.json"),
        ({"biases": [{"kind": "metadynamics", "width": 1.0}]}, "unknown option 'width' of bias 'metadynamics'"),
    ],
)
def test_run_json_that_is_broken(simple, tmp_path, facts, fault):
    run = changed(simple, tmp_path / "run", **facts)
    told = refused(run, "--cv", "x")
    assert told.startswith(f"uqbias: {run / 'run.json'}")
    assert fault in told


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("variables", None, " has no variables"),
        ("bias", None, " has no bias"),
        ("variables", lambda values: values[:-1], ": 'variables' is of shape (4999, 4, 1) and type float64, not (5000"),
        ("variables", lambda values: values[..., [0, 0]], ": 'variables' is of shape (5000, 4, 2)"),
        ("positions", lambda values: values[:, 1:], ": 'positions' is of shape (5000, 3, 2, 3)"),
        ("positions", lambda values: values[:, :, :1], ": 'positions' is of shape (5000, 4, 1, 3)"),
        ("bias", lambda values: values[:, 0], ": 'bias' is of shape (5000,)"),
        ("energy", lambda values: values.astype(str), ": 'energy' is of shape (5000, 4) and type <U"),
        ("restarted", lambda values: values[1:], ": 'restarted' is of shape (4999, 4)"),
        ("step", lambda values: values[1:], " is of shape (5000, 4)"),
    ],
)
def test_observations_that_do_not_fit(simple, tmp_path, name, change, fault):
    run = changed(simple, tmp_path / "run", **({name: change} if change else {}))
    if change is None:
        with np.load(run / "observations.npz") as arrays:
            np.savez(run / "observations.npz", **{key: array for key, array in arrays.items() if key != name})
    told = refused(run, "--cv", "x")
    assert told.startswith(f"uqbias: {run / 'observations.npz'}")
    assert fault in told


def test_observations_of_another_format(simple, tmp_path):
    run = changed(simple, tmp_path / "run")
    with (run / "observations.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    assert f"{run / 'observations.npz'} is not a whole file of a run" in refused(run, "--cv", "x")


def test_runs_that_do_not_belong_together(simple, tmp_path):
    for name, facts, message in (
        ("hot", {"temperature": 500.0}, "is of 500 K"),
        ("other", {"topology": Topology((1, 8), ((0, 1),)).to_dict()}, "of another molecule than"),
        ("model", {"model": {"path": "m", "sha256": "1"}}, "driven by another model than"),
        ("variable", {"variables": {"x": {"kind": "angle", "options": {}}}}, "is another variable than before"),
    ):
        assert message in refused(simple, changed(simple, tmp_path / name, **facts), "--cv", "x")
    assert "a run folder twice" in refused(simple, simple, "--cv", "x")


def test_options_that_do_not_fit(simple, alanine):
    assert "did you mean 'phi'?" in refused(alanine, "--cv", "phy")
    assert "no atom is called 'CX'" in refused(alanine, "--cv", "d:CX-CA")
    assert "99 in a molecule of 22 atoms" in refused(alanine, "--cv", "d:1-99")
    assert "list should have at most 2 items" in refused(alanine, "--cv", "d:1-2-3")
    assert "did you mean 'last-bias'?" in refused(simple, "--cv", "x", "--method", "lastbias")
    assert "did you mean 'kJ/mol'?" in refused(simple, "--cv", "x", "--unit", "kj/mol")
    assert "is of 300 K" in refused(simple, "--cv", "x", "--temperature", 310)
    assert "discard 1.0; input should be less than 1" in refused(simple, "--cv", "x", "--discard", 1)
    assert "5001 blocks for 4500 observations" in refused(simple, "--cv", "x", "--blocks", 5001)
    assert "blocks 1; input should be greater than or equal to 2" in refused(simple, "--cv", "x", "--blocks", 1)
    assert "variables ['x', 'u', 'energy']" in refused(simple, "--cv", "x,u,energy")
    assert "'driver' from 0 to 0" in refused(simple, "--cv", "driver")
    assert "bins ['many']; input should be a valid integer" in refused(simple, "--cv", "x", "--bins", "many")
    assert "2 bins for 1 variable(s)" in refused(simple, "--cv", "x", "--bins", "4,4")
    assert "--range 5" in refused(simple, "--cv", "x", "--range", "5")
    assert "--range 0.2:0.6:0.9; give LOW:HIGH" in refused(simple, "--cv", "x", "--range", "0.2:0.6:0.9")
    for span in ("0:inf", "-inf:0", "nan:1"):
        assert "input should be a finite number" in refused(simple, "--cv", "x", f"--range={span}")
    for span in ("1:0", "-1e308:1e308"):
        assert "give a finite --range, its end above" in refused(simple, "--cv", "x", f"--range={span}")
    assert "1000000000 bins in all; give at most 250000" in refused(simple, "--cv", "x", "--bins", 10**9)
    assert "1000000 bins in all" in refused(alanine, "--cv", "phi,psi", "--bins", "1000,1000")
    assert "no frame lies in the range" in refused(simple, "--cv", "x", "--range", "50:60")
    assert "which is periodic" in refused(alanine, "--cv", "phi", "--range", "0:60")
    assert "order 4; input should be 2 or 3" in refused(simple, "--cv", "x", "--order", 4)


def test_methods_that_do_not_fit(simple, alanine):
    assert "the biases that changed are none" in refused(simple, "--cv", "x", "--method", "tiwary-parrinello")
    assert "0 extended variables" in refused(simple, "--cv", "x", "--method", "czar")
    assert "cumulant takes runs with gamd" in refused(simple, "--cv", "x", "--method", "cumulant")
    assert "0 biases of" in refused(simple, "--cv", "x", "--method", "bias")
    assert "act on psi" in refused(alanine, "--cv", "psi", "--method", "bias")


def test_variable_that_is_not_a_number(simple, tmp_path):
    def broken(values):
        values[2000, 1] = np.nan
        return values

    run = changed(simple, tmp_path / "nan", variables=broken)
    assert "'x' is not finite in 1 of 18000 frames, first at step 20000" in refused(run, "--cv", "x")
    run = changed(simple, tmp_path / "bias", bias=broken)
    assert "the bias is not finite in 1 frames" in refused(run, "--cv", "x")


def test_nothing_left(simple, tmp_path):
    run = changed(simple, tmp_path / "stopped", restarted=np.ones_like)
    assert "stopped at every observation" in refused(run, "--cv", "x")
    boost, entry = make("gamd", preparation_steps=10, conventional_steps=100, equilibration_steps=1000)
    columns = {"x": independent(well, (50, 2), seed=0)}
    run = write_run(tmp_path / "conventional", columns, [(boost, entry)], bias=columns["x"])
    assert "not got beyond its conventional stage" in refused(run, "--cv", "x")
    for step in range(10, 2000, 10):
        boost.update(step, np.random.default_rng(step).normal(size=(4, 1)))
    run = write_run(tmp_path / "early", columns, [(boost, entry)], bias=columns["x"])
    assert "nothing is left of 50 observations up to step 1100" in refused(run, "--cv", "x")


def test_well_tempered_run_end_to_end(tmp_path):
    """The command on a real metadynamics run: less error with Tiwary and Parrinello's c(t) than without it."""
    run = metadynamics_run(tmp_path / "run", biasfactor=10.0, height=0.5 * KT, steps=8000)
    deviations = {}
    for method in ("auto", "quasi-static"):
        done = call(
            run, "--cv", "x", "--range=-1.6:1.6", "--discard", 0.02, "--method", method, "-o", tmp_path / method
        )
        assert done.exit_code == 0, done.output
        F = rows_of(tmp_path / method / "fes.csv")[1]
        reference = exact(Axis("x", "", -1.6, 1.6, 60))
        deviations[method] = (F - reference)[reference < 8 * KT].std() / KT
    assert deviations["auto"] < 0.3
    assert deviations["auto"] < 0.7 * deviations["quasi-static"]
