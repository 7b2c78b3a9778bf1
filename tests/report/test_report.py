"""The report of a small made-up run: complete, half-finished, without a reference."""

import base64
import csv
import gzip
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_up_run import COORDINATES, N_OBSERVED, N_WALKERS, chain, make_run

from uqbias.cli import campaigns
from uqbias.errors import UqbiasError
from uqbias.report import maps, plots
from uqbias.report.bias_plots import final_bias
from uqbias.report.figure_data import csv_link, figure_csv
from uqbias.report.frames_view import harvested_frames
from uqbias.report.map_axes import dihedral_coordinates
from uqbias.report.page import SECTIONS, write_figures, write_report
from uqbias.report.run_data import RunData
from uqbias.report.summary import campaign_story, print_summary, round_table, summary_json
from uqbias.runs.hills import load_hills
from uqbias.runs.ledger_lines import to_line


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "complete", 3)


@pytest.fixture(scope="module")
def run(complete):
    return RunData.load(complete)


def offsets(ax):
    """Number of dots of each scatter in ``ax``."""
    return [len(c.get_offsets()) for c in ax.collections if type(c).__name__ == "PathCollection"]


def test_made_up_geometries_have_their_dihedrals():
    angles = np.array([[-80.0, 75.0], [67.0, -37.0], [179.0, -179.0]])
    assert np.allclose(dihedral_coordinates(COORDINATES).project(chain(*angles.T)), angles)


def test_reads_everything(run):
    assert run.notes == []
    assert [entry.index for entry in run.rounds] == [0, 1, 2]
    assert len(run.labels) == 200
    assert (~run.labels.accepted).sum() == 4
    assert run.test_points.shape == (1200, 2)
    assert run.rounds[1].observations.positions.shape == (N_OBSERVED, N_WALKERS, 5, 3)
    assert run.rounds[1].guard_events[0]["walker"] == 3
    assert len(run.rounds[2].hills[0].height) == 300
    assert run.finished


def test_hills_sum_to_the_bias(run):
    hills = run.rounds[1].hills[0]
    assert hills.height[0] == pytest.approx(1.0, rel=1e-4)  # the file holds h·γ/(γ-1)
    u = np.array([0.5, 2.0])
    expected = [
        sum(
            h * np.exp(-0.5 * ((x - c) / s) ** 2)
            for c, s, h in zip(hills.centre[:, 0], hills.sigma[:, 0], hills.height, strict=True)
        )
        for x in u
    ]
    assert np.allclose(hills.potential(u[:, None]), expected)


def test_bias_on_several_variables(complete, tmp_path):
    """Hills on φ, on (u, φ) and on three variables, which are not drawn; a period in PLUMED's words."""
    path = tmp_path / "run"
    shutil.copytree(complete, path)
    md = path / "round_02" / "md"
    rng = np.random.default_rng(0)
    phi = rng.uniform(-np.pi, np.pi, (N_OBSERVED, N_WALKERS))
    with np.load(md / "observations.npz") as seen:
        arrays = dict(seen)
    names = {"driver": arrays["driver"], "phi": phi}
    np.savez(
        md / "observations.npz",
        **arrays,
        variables=np.stack([*names.values()], axis=-1),
        variable_names=np.array([*names]),
    )
    (md / "HILLS.phi").write_text(
        "#! FIELDS time phi sigma_phi height biasf\n#! SET min_phi -pi\n#! SET max_phi pi\n 0.1 3.0 0.3 10 10\n"
    )
    (md / "HILLS.u-phi").write_text(
        "#! FIELDS time driver phi sigma_driver sigma_phi height biasf\n"
        "#! SET min_phi -3.14159265\n#! SET max_phi 3.14159265\n"
        " 0.1 1.0 0.5 0.3 0.4 1.0 -1\n 0.2 4.0 -2.5 0.3 0.4 1.0 -1\n"
    )
    (md / "HILLS.a-b-c").write_text("#! FIELDS time a b c sigma_a sigma_b sigma_c height biasf\n 1 1 1 1 1 1 1 1 -1\n")
    (md / "HILLS.cut").write_text("#! FIELDS time x sigma_x")
    run = RunData.load(path)
    assert [note for note in run.notes if "HILLS.cut" in note]
    found = {hills.variables: hills for hills in run.rounds[2].hills}
    assert [*found] == [("driver",), ("a", "b", "c"), ("phi",), ("driver", "phi")]
    # Over the edge: 3.0 and -3.0 are 0.283 apart; the file holds h·γ/(γ-1).
    expected = 9.0 * np.exp(-0.5 * ((2 * np.pi - 6.0) / 0.3) ** 2)
    assert found["phi",].potential(np.array([[-3.0]])) == pytest.approx([expected])
    assert found["driver", "phi"].potential(np.array([[1.3, 0.5]])) == pytest.approx([np.exp(-0.5)])
    figure = final_bias(run)
    drawn = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_xlabel() for ax in drawn] == ["driver u"] * 2 + ["phi (rad)"] * 2 + ["driver u"] * 2
    assert [ax.get_ylabel() for ax in drawn[4:]] == ["phi (rad)"] * 2
    assert np.nansum(drawn[5].collections[0].get_array()) == ((arrays["driver"] > 0.1) & (arrays["driver"] < 4.9)).sum()
    figure.savefig(tmp_path / "bias.png")


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [
        ("-pi", "pi", (-math.pi, math.pi)),
        ("0", "2*pi", (0, 2 * math.pi)),
        ("-pi/2", "+pi/2", (-math.pi / 2, math.pi / 2)),
        ("0.5*pi", "3*pi/2", (math.pi / 2, 1.5 * math.pi)),
        ("-2.5", "1e1", (-2.5, 10.0)),
        ("-inf", "inf", None),
        ("-pi", "inf", None),
        ("-tau", "tau", None),
        ("0", "pi/0", None),
        ("pi", "-pi", None),
    ],
)
def test_bounds_of_hills(tmp_path, low, high, bounds):
    path = tmp_path / "HILLS"
    header = f"#! FIELDS time phi d sigma_phi sigma_d height biasf\n#! SET min_phi {low}\n#! SET max_phi {high}\n"
    path.write_text(f"# by hand\n{header} 0.1 1.0 2.0 0.1 0.2 1.0 -1\n")
    found = load_hills(path, 0.5)
    assert found.variables == ("phi", "d")
    assert found.height.tolist() == [1.0]
    assert found.ranges()[0] == pytest.approx(bounds or (0.7, 1.3))
    assert found.ranges()[1] == pytest.approx((1.4, 2.6))
    if bounds is None:
        assert found.periods == (None, None)
    else:
        period = bounds[1] - bounds[0]
        assert found.periods == (pytest.approx(period), None)
        at = np.array([[1.05 - period, 2.0], [1.05, 2.0], [1.05 + 2 * period, 2.0]])
        assert found.potential(at) == pytest.approx([np.exp(-0.125)] * 3)
        assert found.wrapped(at[:, 0], 0) == pytest.approx(found.wrapped(at[1:2, 0], 0)[0])
        assert bounds[0] <= found.wrapped(at[:1, 0], 0)[0] <= bounds[1]


def test_frames_are_drawn_between_the_bounds_of_the_hills(complete, tmp_path):
    """Hills on [0, 2π], frames on [-π, π]: none is left out."""
    path = tmp_path / "run"
    shutil.copytree(complete, path)
    phi = np.random.default_rng(0).uniform(-np.pi, np.pi, (N_OBSERVED, N_WALKERS))
    bounds = "#! SET min_phi 0\n#! SET max_phi 2*pi\n#! SET min_psi 0\n#! SET max_psi 2*pi\n"
    for md in path.glob("round_*/md"):
        (md / "HILLS").unlink()
        (md / "HILLS.1").write_text(f"#! FIELDS time phi sigma_phi height biasf\n{bounds} 0.1 3.0 0.3 10 -1\n")
        (md / "HILLS.2").write_text(
            f"#! FIELDS time phi psi sigma_phi sigma_psi height biasf\n{bounds} 0.1 3.0 3.0 0.3 0.3 10 -1\n"
        )
        with np.load(md / "observations.npz") as seen:
            arrays = dict(seen)
        values = np.stack([phi, phi], axis=-1)
        np.savez(md / "observations.npz", **arrays, variables=values, variable_names=np.array(["phi", "psi"]))
    figure = final_bias(RunData.load(path))
    lines, maps_ = figure.axes[:2], figure.axes[2:4]
    for line in lines[0].lines:
        assert (line.get_xdata()[0], line.get_xdata()[-1]) == pytest.approx((0, 2 * np.pi))
    counts = np.histogram(phi % (2 * np.pi), bins=np.linspace(0, 2 * np.pi, 41))[0]
    drawn = lines[1].patches[0].get_xy()[1:-1:2, 1]
    assert drawn == pytest.approx(counts / counts.sum() * 40 / (2 * np.pi))
    assert np.nansum(maps_[1].collections[0].get_array()) == phi.size


def test_map_of_several_groups_is_their_mean(complete, tmp_path):
    """The frames are those of all groups; each group has a bias of its own."""
    path = tmp_path / "groups"
    shutil.copytree(complete, path)
    md = path / "round_02" / "md"
    for group, height in enumerate((1.0, 3.0)):
        (md / f"group_{group}").mkdir()
        shutil.copy(md / "observations.npz", md / f"group_{group}")
        with np.load(md / "observations.npz") as seen:
            arrays = dict(seen)
        variables = np.stack([arrays["driver"], arrays["driver"] + group], axis=-1)
        np.savez(
            md / f"group_{group}" / "observations.npz",
            **arrays,
            variables=variables,
            variable_names=np.array(["driver", "x"]),
        )
        (md / f"group_{group}" / "HILLS").write_text(
            f"#! FIELDS time driver x sigma_driver sigma_x height biasf\n"
            f" 0.1 2.0 {2.0 + 3 * group} 1.0 1.0 {height} -1\n"
        )
    figure = final_bias(RunData.load(path))
    bias, frames = [ax for ax in figure.axes if "round 2" in ax.get_title(loc="left")]
    assert bias.get_title(loc="left") == "mean bias of 2 groups, round 2"
    drawn = bias.collections[0]
    mesh = drawn.get_coordinates()
    assert (mesh[..., 1].min(), mesh[..., 1].max()) == pytest.approx((-1.0, 8.0), abs=0.1)
    x, y = np.linspace(-1, 5, 80), np.linspace(-1, 8, 80)
    hills = [np.exp(-0.5 * ((x - 2) ** 2 + (y[:, None] - at) ** 2)) for at in (2.0, 5.0)]
    assert np.asarray(drawn.get_array()) == pytest.approx(0.5 * (1.0 * hills[0] + 3.0 * hills[1]))
    inside = sum(
        ((driver > -1) & (driver < 5) & (driver + group > -1) & (driver + group < 8)).sum()
        for group, driver in enumerate([arrays["driver"]] * 2)
    )
    assert np.nansum(frames.collections[0].get_array()) == inside


def test_report_holds_the_numbers_and_nothing_from_elsewhere(run, tmp_path):
    path = write_report(run, tmp_path / "report.html")
    page = path.read_text()
    for row in run.rows:
        for text in (f"{row['force_mae_meV_per_A']:.1f}", f"{row['energy_mae_meV_per_atom']:.2f}", str(row["labels"])):
            assert f"<td>{text}</td>" in page
    assert "reached C7ax in round 1" in page
    assert "Driver: auto chose local_densities; it acts on torsion N6-C8." in page
    assert "No barrier was crossed" not in page
    assert page.count("data:image/svg+xml;base64,") == len(SECTIONS)
    assert "Nothing to show" not in page
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert path.stat().st_size < 5e6
    assert list(tmp_path.iterdir()) == [path]


def test_report_says_when_no_barrier_was_crossed(tmp_path):
    run = RunData.load(make_run(tmp_path / "stuck", 2, crossing=False))
    story = " ".join(campaign_story(run))
    assert "No barrier was crossed" in story
    assert "C7ax" not in story


def test_story_says_when_the_error_rose(tmp_path):
    path = make_run(tmp_path / "worse", 2)
    summary = json.loads((path / "summary.json").read_text())
    summary["rounds"][1]["force_mae_meV_per_A"] = 2 * summary["rounds"][0]["force_mae_meV_per_A"]
    (path / "summary.json").write_text(json.dumps(summary))
    assert "force MAE rose" in " ".join(campaign_story(RunData.load(path)))


def test_half_finished_run(complete, tmp_path):
    path = tmp_path / "half"
    shutil.copytree(complete, path)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"stopped": "", "rounds": summary["rounds"][:1]}))
    shutil.rmtree(path / "round_02")
    for name in ("scores.npz", "harvest.json", "md/HILLS"):
        (path / "round_01" / name).unlink()
    lines = [line for line in (path / "ledger.jsonl").read_text().splitlines() if '"round": 2' not in line]
    (path / "ledger.jsonl").write_text("\n".join(lines) + '\n{"event": "label", "round": 2, "posi')
    run = RunData.load(path)
    assert run.notes == []
    assert not run.finished
    assert len(run.labels) == 150
    page = write_report(run).read_text()
    assert "not finished" in page
    assert "Nothing to show: nothing is harvested yet." in page
    assert page.count("data:image/svg+xml;base64,") == len(SECTIONS) - 2


def test_campaign_that_has_just_begun(complete, tmp_path):
    shutil.copy(complete / "campaign.yaml", tmp_path)
    run = RunData.load(tmp_path)
    assert len(run.notes) == 2  # surface and test set are not beside it
    assert "No round is finished yet." in write_report(run).read_text()
    with pytest.raises(UqbiasError, match="no labelled frames"):
        maps.hero_figure(run)


def test_run_without_reference(tmp_path):
    path = make_run(tmp_path / "no_reference", 2, reference=False)
    run = RunData.load(path)
    assert run.surface is None
    assert run.coordinates.labels == ("component 1 (nm)", "component 2 (nm)")
    page = write_report(run).read_text()
    assert "principal components" in page
    assert "errors are unknown" in page
    assert "No barrier was crossed" not in page
    assert "principal" not in page.split("error-maps")[-1].split("<h2")[0]


def test_damaged_files_are_said_and_not_fatal(complete, tmp_path, monkeypatch):
    monkeypatch.setattr("uqbias.report.page.SECTIONS", ())  # the figures do not matter here
    path = tmp_path / "damaged"
    shutil.copytree(complete, path)
    scores = path / "round_01" / "scores.npz"
    scores.write_bytes(scores.read_bytes()[:200])
    run = RunData.load(path)
    assert run.rounds[1].scores == {}
    assert any("scores.npz" in note for note in run.notes)
    assert "scores.npz could not be read" in write_report(run).read_text()


@pytest.mark.parametrize("name", ["summary.json", "campaign.yaml", "ledger.jsonl"])
def test_deep_nesting_is_said(complete, tmp_path, name):
    (tmp_path / "campaign.yaml").write_text("{}")
    (tmp_path / name).write_text("[" * 100_000 + "\n" + "{}\n")
    (note,) = RunData.load(tmp_path).notes
    assert note.startswith(f"{name} could not be read")


def test_a_changed_ledger_is_said(tmp_path):
    events = [{"event": "campaign", "identity": {}}]
    events += [{"event": "phase", "round": 0, "phase": name, "wall_s": 1.0} for name in ("label", "train")]
    lines, checksum = [], ""
    for event in events:
        line, checksum = to_line(event, checksum)
        lines.append(line)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(lines))
    run = RunData.load(tmp_path)
    assert (run.events, run.notes) == (events, [])
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(lines).replace(b'"wall_s": 1.0', b'"wall_s": 9.0', 1))
    run = RunData.load(tmp_path)
    assert run.notes == ["ledger.jsonl is not whole: line 2 does not fit its checksum: it was changed"]
    assert len(run.events) == 3


def test_not_a_run_directory(tmp_path):
    with pytest.raises(UqbiasError, match="not a run directory"):
        RunData.load(tmp_path)
    with pytest.raises(UqbiasError, match="no such run directory"):
        RunData.load(tmp_path / "absent")


def test_groups_of_walkers_are_joined(complete, tmp_path):
    path = tmp_path / "groups"
    shutil.copytree(complete, path)
    md = path / "round_01" / "md"
    for group in ("group_0", "group_1"):
        (md / group).mkdir()
        for name in ("observations.npz", "events.jsonl", "HILLS"):
            shutil.copy(md / name, md / group)
    entry = RunData.load(path).rounds[1]
    assert entry.observations.driver.shape == (N_OBSERVED, 2 * N_WALKERS)
    assert [event["walker"] for event in entry.guard_events] == [3, 3 + N_WALKERS]
    assert len(entry.hills) == 2


def test_ramachandran_draws_every_label_once(run):
    figure = maps.ramachandran(run)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [sum(offsets(ax)) for ax in panels] == [100, 148, 196]
    assert "100 + 48 labels" in panels[1].get_title(loc="left")
    crosses = [line.get_xdata() for line in panels[2].lines if line.get_marker() == "x"]
    assert [len(x) for x in crosses] == [2]


def test_error_map_holds_the_mean_of_each_bin(run):
    figure = maps.error_maps(run)
    assert len(figure.axes) == 3 * 3 + 3  # quantities x rounds, and colour bars
    drawn = figure.axes[6].collections[0].get_array()
    assert drawn.shape == (24, 24)
    points, error = run.test_points, run.rounds[0].scores["force_mae_frame"]
    bins = np.floor((points + 180) / 15).astype(int)
    column, row = bins[0]
    expected = error[(bins == bins[0]).all(axis=1)].mean()
    assert drawn[row, column] == pytest.approx(expected)


def test_kernel_mean_is_periodic():
    coordinates = dihedral_coordinates(COORDINATES)
    points = np.array([[179.0, 0.0], [0.0, 0.0]])
    mean = maps.kernel_mean(points, np.array([5.0, 1.0]), np.array([-179.0, 0.0]), np.array([0.0]), coordinates)
    assert np.allclose(mean[:, 0], [5.0, 1.0], atol=1e-6)
    far = maps.kernel_mean(points, np.array([5.0, 1.0]), np.array([90.0]), np.array([0.0]), coordinates)
    assert np.isnan(far).all()


def test_hero_shows_first_and_last_round(run):
    figure = maps.hero_figure(run)
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["round 0: 100 labels", "round 2: 196 labels"]
    curve = figure.axes[2].lines[-1]
    assert np.allclose(curve.get_ydata(), [row["force_mae_meV_per_A"] for row in run.rows])


def test_learning_curve_shows_the_summary(run):
    force, energy, coverage = plots.learning_curve(run).axes
    assert np.allclose(force.lines[0].get_ydata(), [row["force_mae_meV_per_A"] for row in run.rows])
    assert np.allclose(energy.lines[1].get_ydata(), [row["energy_mae_phi_positive_meV_per_atom"] for row in run.rows])
    assert np.allclose(coverage.lines[0].get_ydata(), [100 * row["coverage"] for row in run.rows])
    assert np.array_equal(coverage.lines[0].get_xdata(), [100, 150, 200])


def test_calibration_figure_has_a_dot_per_test_frame(run):
    axes = plots.uncertainty_against_error(run).axes
    assert [offsets(ax) for ax in axes] == [[1200], [1200]]
    u = run.rounds[0].scores["judge"] * 1.03643
    below = 100 * (run.rounds[0].scores["force_mae_frame"] <= u).mean()
    assert f"{below:.0f} % below" in axes[0].get_title(loc="left")


def test_walkers_figure_has_a_line_per_walker(run):
    axes = plots.walkers_in_time(run).axes
    assert len(axes) == 3 * 2
    assert all(sum(len(line.get_xdata()) == N_OBSERVED for line in ax.lines) == N_WALKERS for ax in axes)
    crosses = [line for line in axes[0].lines if line.get_marker() == "x"]
    assert crosses[0].get_xdata() == pytest.approx([2.0])  # step 4000 of 0.5 fs


def test_harvest_bars_add_up_to_the_candidates(run):
    bars, candidates = plots.harvest_reasons(run).axes
    heights = [
        sum(patch.get_height() for patch in bars.patches if abs(patch.get_x() + 0.31 - i) < 0.01) for i in range(2)
    ]
    assert heights == [N_OBSERVED * N_WALKERS] * 2
    assert sum(offsets(candidates)) == N_OBSERVED * N_WALKERS


def test_cost_bars_are_the_phases_of_the_ledger(run):
    ax = plots.cost(run).axes[0]
    assert sum(patch.get_width() for patch in ax.patches) == pytest.approx(17.5 + 38.5 + 37.5)


def test_rank_correlation():
    x = np.arange(20.0)
    assert plots.spearman(x, x**3) == pytest.approx(1.0)
    assert plots.spearman(x, -x) == pytest.approx(-1.0)
    assert np.isnan(plots.spearman(x, np.zeros(20)))


def test_terminal_summary_fits_in_80_columns(run, capsys):
    from rich.console import Console

    print_summary(run, Console(width=80, force_terminal=False))
    text = capsys.readouterr().out
    assert "112.5" in text or f"{run.rows[0]['force_mae_meV_per_A']:.1f}" in text
    assert "C7ax" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_json_summary_keeps_the_entries(run):
    content = json.loads(json.dumps(summary_json(run)))
    assert content["rounds"] == json.loads((run.directory / "summary.json").read_text())["rounds"]
    assert content["status"] == "finished: all 2 rounds are done"


def test_figures_as_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr("uqbias.report.page.SECTIONS", SECTIONS[:2])
    written = write_figures(run, tmp_path, dpi=40)
    assert {path.name for path in written} == {"maps.png", "learning.png", "hero.png"}
    assert all(path.stat().st_size > 1000 for path in written)


def test_regions_are_those_of_the_campaign_file(complete, tmp_path):
    path = tmp_path / "two_regions"
    shutil.copytree(complete, path)
    config = yaml.safe_load((path / "campaign.yaml").read_text())
    config["score"]["regions"] = {"trans": {"phi": [150, -150]}, "corner": {"phi": [0, 90], "psi": [-90, 0]}}
    (path / "campaign.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    summary = json.loads((path / "summary.json").read_text())
    for row in summary["rounds"]:
        row["force_mae_trans_meV_per_A"] = 3.25
    (path / "summary.json").write_text(json.dumps(summary))
    run = RunData.load(path)
    assert [region.text for region in run.regions] == ["150° < φ < -150°", "0° < φ < 90°, -90° < ψ < 0°"]
    assert [region.shaded for region in run.regions] == [((150, 180.0), (-180.0, -150)), ()]
    assert "force MAE at 150° < φ < -150° rose from 3.25 to 3.25" in " ".join(campaign_story(run))
    assert [line.get_label() for line in plots.learning_curve(run).axes[0].lines] == ["whole map", "150° < φ < -150°"]
    config["score"].pop("regions")
    (path / "campaign.yaml").write_text(yaml.safe_dump(config))
    run = RunData.load(path)
    assert run.regions == []
    assert "φ > 0" not in " ".join(summarised(run))


def summarised(run):
    return [*campaign_story(run), *round_table(run)[0]]


def table_of(figure):
    """Points (x, y, value) of each panel and series in the CSV of a figure."""
    lines = figure_csv(figure).splitlines()
    series = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        series.setdefault((row["panel"], row["series"]), []).append((row["x"], row["y"], row["value"]))
    return [line for line in lines if line.startswith("#")], series


def test_csv_of_a_figure_is_what_it_shows(run):
    heads, series = table_of(plots.learning_curve(run))
    assert heads[0] == "# panel 1: ; x: labelled frames; y: force MAE (meV/Å)"
    force = [f"{row['force_mae_meV_per_A']:.6g}" for row in run.rows]
    assert series["1", "whole map"] == [(x, y, "") for x, y in zip(("100", "150", "200"), force, strict=True)]
    heads, series = table_of(plots.walkers_in_time(run))
    assert heads[4] == "# panel 5: round 1; x: time per walker (ps); y: φ (°)"
    driver = run.rounds[2].observations.driver[:, 3]
    assert [float(y) for _, y, _ in series["2", "walker 3"]] == pytest.approx(driver.tolist(), rel=1e-5)
    assert series["1", "stopped by a guard"][0][0] == "2"
    assert not any(name.startswith("child") for _, name in series)


def test_csv_of_maps_and_bars(run):
    _, series = table_of(maps.error_maps(run))
    inside = np.floor((run.test_points + 180) / 15).astype(int)
    x, y, value = map(float, series["7", "force MAE (meV/Å)"][0])
    here = (inside == [(x + 180) // 15, (y + 180) // 15]).all(axis=1)
    assert value == pytest.approx(run.rounds[0].scores["force_mae_frame"][here].mean(), rel=1e-5)
    assert len(series["7", "force MAE (meV/Å)"]) == len(np.unique(inside, axis=0))
    _, series = table_of(maps.ramachandran(run))
    assert [len(series["3", name]) for name in ("labelled before", "labelled in this round", "label rejected")] == [
        148,
        48,
        2,
    ]
    _, series = table_of(plots.harvest_reasons(run))
    bars = [float(y) for (panel, _), rows in series.items() for x, y, _ in rows if panel == "1" and x == "2"]
    assert sum(bars) == N_OBSERVED * N_WALKERS
    _, series = table_of(plots.cost(run))
    assert series["1", "train (45 s)"] == [("16", "round 0", ""), ("15", "round 1", ""), ("14", "round 2", "")]


def test_address_of_a_long_csv_is_compressed():
    text = "x,y\n" + "1,2\n" * 400_000
    suffix, address = csv_link(text)
    assert suffix == ".csv.gz"
    assert gzip.decompress(base64.b64decode(address.partition(",")[2])).decode() == text
    noise = np.random.default_rng(0).bytes(2_000_000).hex()
    assert csv_link(noise) == ("", "")


def test_harvested_frames_say_why(complete, run):
    frames = harvested_frames(run)
    assert [(frame.round, frame.index) for frame in frames] == [(1 + n // 50, 100 + n) for n in range(100)]
    line = frames[0].xyz.splitlines()[3].split()
    assert line[0] == "N"
    assert [float(x) for x in line[1:]] == pytest.approx([1.5, 0, 0])
    events = [dict(event) for event in run.events]
    chosen = next(event for event in events if event.get("index") == 120)
    chosen |= {"energy": 31.0, "info": {"reason": "taken: farthest point", "driver": 4.25, "judge": 118.4}}
    story = next(frame for frame in harvested_frames(replace(run, events=events)) if frame.index == 120).story
    assert story == (
        "round 1, label 120: taken: farthest point; driver 4.25; judge 118 kJ/mol/nm; "
        "oracle energy 30.0 kJ/mol above the lowest label"
    )
    assert harvested_frames(replace(run, numbers=None)) == []


def test_a_run_that_goes_on_reports_at_most_once_a_minute(complete, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    clock = [0.0]
    monkeypatch.setattr(campaigns.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("uqbias.report.page.SECTIONS", ())
    after_round = campaigns._now_and_then(folder)
    for now, written in ((59.0, False), (61.0, True)):
        clock[0] = now
        after_round()
        assert (folder / "report.html").is_file() == written
    (folder / "report.html").unlink()
    after_round()
    assert not (folder / "report.html").exists()
    shutil.rmtree(folder)
    clock[0] = 200.0
    after_round()
    assert "the report could not be written: no such run directory" in capsys.readouterr().err
