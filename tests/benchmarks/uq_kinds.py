"""Every uncertainty kind on the same data with the same training: what it knows of the error, and what it costs.

Three data sets: acetylacetone (trained on 300 K, judged on 600 K frames), ammonia (78 DFT geometries in five blocks,
each judged by models that never saw it) and alanine dipeptide (trained on 100 frames with φ < 0, judged on the whole
map). ``--parts rmd17`` stands for the ten molecules of revised MD17 (trained and judged on the official split 1),
``--parts silica`` for crystals of silica at 300 and 1000 K, judged on melts, glasses and coesite.
Kinds that need no training of their own share one trained potential, whose training time each is charged with.
All trainings have the same steps, batches and seeds; the best weights on the validation frames are kept.

The columns: force MAE of the model; AUROC (of the fifth with the largest force error) and Spearman ρ of structures and
of atoms; miscalibration area, NLL and CRPS of the calibrated force components with one σ a frame, all on frames unlike
the training frames; coverage of the conformal bounds on frames like them (100 (1 − α) % is right; 20 random splits of
the held-out frames); training time. Then the cost: the time of E + V(u) over that of the energy of a single model, one
evaluation of one walker and of eight, in turns in this process. Last the cost of a committee's forces as the judge of
a torsion density that drives, looked at every 50 evaluations (``--parts judge``), over the energy of a single model and
over that of the committee, whose mean moves the atoms.

Each part writes its numbers to the output directory; the figure shows all sets that are there.

    python tests/benchmarks/uq_kinds.py [--seeds N] [--steps N] [--parts NAME ...] [--kinds NAME ...] [-o DIR]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from step_cost import Side, measure, repeat
from uq_sets import DATA, RMD17, SETS, alanine

from uqbias.bias.base import BiasSum
from uqbias.bias.fixed import UpperWall
from uqbias.compile.fused import FusedEvaluator
from uqbias.model import metrics
from uqbias.model.fit import complete_model, make_potential, make_uncertainties
from uqbias.model.inference import residuals
from uqbias.model.splitting import Dealt, split_by_role
from uqbias.model.training import train
from uqbias.settings.file import check_campaign
from uqbias.settings.training_sections import TrainingOptions
from uqbias.uncertainty.conformal import Conformal
from uqbias.units import EV_PER_ANGSTROM

COMMITTEE = {"n_members": 5}
SHARED = COMMITTEE | {"shared_density": True}
#: name: (kind, options, options of the potential, goal of the cost)
KINDS = {
    "gmm": ("gmm", {}, {}, 1.2),
    "gmm per element": ("gmm", {"per_element": True}, {}, 1.2),
    "distance, Mahalanobis": ("distance", {}, {}, 1.2),
    "distance, kNN": ("distance", {"metric": "knn"}, {}, 1.2),
    "llpr, atoms": ("llpr", {}, {}, 1.2),
    "llpr, structure": ("llpr", {"scope": "structure"}, {}, 1.2),
    "llpr, forces": ("llpr_forces", {}, {}, 6.0),
    "shallow ensemble": ("shallow_ensemble", {}, {}, 1.2),
    "mve": ("mve", {}, {}, 1.2),
    "evidential": ("evidential", {}, {}, 1.2),
    "committee, energy": ("committee", {}, COMMITTEE, 1.6),
    "committee, forces": ("committee", {"quantity": "forces"}, COMMITTEE, 6.0),
    "committee, bootstrap": ("committee", {"quantity": "forces", "bootstrap": True}, COMMITTEE, 6.0),
    "shared body, energy": ("committee", {}, SHARED, 1.6),
    "shared body, forces": ("committee", {"quantity": "forces"}, SHARED, 6.0),
}
#: A committee of this size is what the goals of the cost are for.
COST_MEMBERS = 4
#: Evaluations from one look at the judge to the next, and the goal of its cost over the energy alone.
LOOK, JUDGE_GOAL = 50, 1.2
SPLITS = 20
#: Sets that run and that the figure shows, unless others are asked for.
SHOWN = ("acetylacetone", "ammonia", "alanine")
COSTS = ("cost", "judge")
#: Panels in a row of the figure.
ACROSS = 7
MEV_PER_A = EV_PER_ANGSTROM * 1e-3
COLUMNS = (
    ("force_mae", "force MAE", "{:.1f}"),
    ("auroc", "AUROC", "{:.3f}"),
    ("spearman", "rho", "{:.2f}"),
    ("atom_auroc", "AUROC/atom", "{:.3f}"),
    ("atom_spearman", "rho/atom", "{:.2f}"),
    ("miscalibration", "miscal.", "{:.3f}"),
    ("nll", "NLL", "{:.2f}"),
    ("crps", "CRPS", "{:.1f}"),
    ("coverage_0.05", "cov 95 %", "{:.1%}"),
    ("coverage_0.32", "cov 68 %", "{:.1%}"),
    ("train_s", "train s", "{:.0f}"),
)


def campaign_of(kind, options, potential, seed, driver=None):
    section = {"kind": kind, **options}
    return check_campaign(
        {
            "system": {"structure": "-", "start": "-"},
            "seed": seed,
            "potential": potential,
            "driver": driver or section,
            "judge": section,
        },
        "benchmark",
    )


def split_of(frames, seed, calibration=0.2, validation=0.1):
    """A fifth of the frames, and 20 at least, for calibration."""
    order = np.random.default_rng(seed).permutation(len(frames))
    n_calibration = max(20, round(calibration * len(frames)))
    role = np.zeros(len(frames), dtype=np.int64)
    role[order[:n_calibration]] = 2
    role[order[n_calibration : n_calibration + round(validation * len(frames))]] = 1
    return split_by_role(frames, role)


def trained(campaign, task, split, seed, steps):
    """Potential and judge after training, and its seconds."""
    potential = make_potential(campaign, task.topology, seed)
    judge, _ = make_uncertainties(campaign, task.topology, potential, split.training, split.training)
    options = TrainingOptions(steps=steps, patience=steps)
    result = train(potential, split.training, split.validation, options, uncertainties=[judge], seed=seed)
    return potential, judge, result.seconds


def training_key(judge):
    """Kinds with the same key have the same training."""
    own = sum(1 for _ in judge.parameters())
    return (judge.kind if own else "", judge.bootstrap)


def models_of(task, fold, kinds, seed, steps):
    """Yield (name, model, split, seconds of training and fitting) for every kind, sharing trainings."""
    shared = {}
    split = split_of(fold[0], seed)
    for name in kinds:
        kind, options, potential_options, _ = KINDS[name]
        campaign = campaign_of(kind, options, {**task.potential, **potential_options}, seed)
        untrained = make_potential(campaign, task.topology, seed)
        probe, _ = make_uncertainties(campaign, task.topology, untrained, split.training, split.training)
        key = (*training_key(probe), *potential_options)
        if key not in shared:
            shared[key] = trained(campaign, task, split, seed, steps)
        potential, judge, seconds = shared[key]
        if not any(True for _ in judge.parameters()):
            judge = probe
        begin = time.perf_counter()
        dealt = {"": Dealt(task.topology, split)}
        model, _ = complete_model(campaign, copy.deepcopy(potential), judge, judge, dealt, (seed, seed))
        yield name, model, split, seconds + time.perf_counter() - begin


def judged(model, test):
    """Errors and uncertainties on the frames to be judged: arrays by name, in meV/Å."""
    found, errors = residuals(model, test)
    errors = errors / MEV_PER_A
    calibration, raw_atoms = model.calibration, found.raw_atom_uncertainty

    def of(map_, raw):
        with torch.no_grad():
            return map_(torch.tensor(raw)).double().numpy() / MEV_PER_A

    result = {
        "errors": errors,
        "driver": of(calibration.structure_bound, found.raw_judge),
        "sigma": of(calibration.structure_deviation, found.raw_judge),
    }
    return result if raw_atoms is None else result | {"atom_u": of(calibration.atom_bound, raw_atoms)}


def scores_of(parts):
    """Scores of all folds of a set together."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    errors = joined["errors"]
    frame = np.sqrt(np.square(errors).mean(axis=(1, 2)))
    sigma = np.broadcast_to(joined["sigma"][:, None, None], errors.shape)
    scores = {
        "force_mae": float(np.abs(errors).mean()),
        "auroc": metrics.auroc(joined["driver"], frame),
        "spearman": metrics.spearman(joined["driver"], frame),
    }
    if "atom_u" in joined:
        atom = np.sqrt(np.square(errors).mean(axis=2))
        scores |= {
            "atom_auroc": metrics.auroc(joined["atom_u"], atom),
            "atom_spearman": metrics.spearman(joined["atom_u"], atom),
        }
    scores |= {
        "miscalibration": metrics.miscalibration_area(errors, sigma),
        "nll": metrics.gaussian_nll(errors, sigma),
        "crps": metrics.gaussian_crps(errors, sigma),
    }
    return scores, frame, joined["driver"]


def split_coverage(model, held_out, alphas=(0.05, 0.32)):
    """Share of frames under their conformal bound: calibrated on half of the held-out frames, tried on the others."""
    found, errors = residuals(model, held_out)
    u, frame = found.raw_judge, np.sqrt(np.square(errors).mean(axis=(1, 2)))
    covered = {alpha: [] for alpha in alphas}
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(u))
        half, rest = np.split(order, [len(u) // 2])
        for alpha in alphas:
            if len(half) * alpha < 1:
                continue
            bound = Conformal(model.judge.statistic).double()
            bound.fit(u[half], frame[half], alpha)
            covered[alpha].append(metrics.coverage(bound(torch.tensor(u[rest])).numpy(), frame[rest]))
    return {f"coverage_{alpha}": float(np.mean(values)) for alpha, values in covered.items() if values}


def costs(kinds, runner):
    """Time of E + V(u) over the time of the energy of a single model, by kind and number of walkers."""
    task = alanine()
    frames = task.folds[0][0]
    split = split_of(frames, 0)
    single = quick_model(campaign_of("gmm", {}, {}, 0), task, split)
    found = {name: {} for name in kinds}
    for n_walkers in (1, 8):
        points = torch.tensor(np.repeat(frames.positions[:1], n_walkers, axis=0), dtype=torch.float32)
        evaluators = {"energy": FusedEvaluator(single, None, n_walkers, energy_only=True, runner=runner)}
        for name in kinds:
            kind, options, potential, _ = KINDS[name]
            if potential:  # the goals are for another size
                potential = potential | {"n_members": COST_MEMBERS}
            model = quick_model(campaign_of(kind, options, potential, 0), task, split)
            bias = BiasSum([UpperWall(at=-1e3, kappa=1e-3)])
            evaluators[name] = FusedEvaluator(model, bias, n_walkers, runner=runner)
        medians = measure([Side(name, repeat(each, points), 100) for name, each in evaluators.items()], 25)
        for name in kinds:
            found[name][f"cost_{n_walkers}"] = medians[name] / medians["energy"]
        found[f"energy_us_{n_walkers}"] = medians["energy"] * 1e6
    return found


def print_costs(found, kinds):
    print("cost of E + V(u) over the energy of a single model, alanine dipeptide, committees of", COST_MEMBERS)
    for name in kinds:
        one, eight, goal = found[name]["cost_1"], found[name]["cost_8"], KINDS[name][3]
        print(
            f"{name:24s} one walker {one:6.2f}, eight {eight:6.2f}   goal {goal}: {'met' if one <= goal else 'not met'}"
        )
    print(f"energy alone: {found['energy_us_1']:.0f} and {found['energy_us_8']:.0f} us\n", flush=True)


def judge_costs(runner):
    """Microseconds of an evaluation with a committee's forces as judge, looked at every `LOOK` and every evaluation."""
    task = alanine()
    frames = task.folds[0][0]
    split = split_of(frames, 0)
    models = {"single": quick_model(campaign_of("gmm", {}, {}, 0), task, split)}
    for name, options in (("committee", COMMITTEE), ("shared density", SHARED)):
        potential = options | {"n_members": COST_MEMBERS}
        campaign = campaign_of("committee", {"quantity": "forces"}, potential, 0, {"kind": "kernel_density"})
        models[name] = quick_model(campaign, task, split)
    found = {}
    for n_walkers in (1, 8):
        points = torch.tensor(np.repeat(frames.positions[:1], n_walkers, axis=0), dtype=torch.float32)
        sides = []
        for name, model in models.items():
            energy = FusedEvaluator(model, None, n_walkers, energy_only=True, runner=runner)
            sides.append(Side(f"{name}: E", repeat(energy, points), 2 * LOOK))
            if name == "single":
                continue
            biased = FusedEvaluator(model, BiasSum([UpperWall(at=-1e3, kappa=1e-3)]), n_walkers, runner=runner)
            for every in (LOOK, 1):
                sides.append(Side(f"{name}: E + V, judge every {every}", looked_at(biased, points, every), 2 * LOOK))
        found[n_walkers] = {name: 1e6 * seconds for name, seconds in measure(sides, 25).items()}
    return found


def looked_at(evaluator, points, every):
    def run(count):
        for place in range(count):
            evaluator.evaluate(points, judged=place % every == 0)

    return run


def print_judge_costs(found):
    print(f"cost with the forces of a committee of {COST_MEMBERS} as judge, a torsion density as driver")
    for n_walkers, times in found.items():
        for name, value in times.items():
            of_single, of_mean = (value / times[f"{one}: E"] for one in ("single", name.split(":")[0]))
            goal = f" (goal {JUDGE_GOAL})" if name.endswith(f" {LOOK}") else ""
            print(
                f"{n_walkers} walker(s), {name:40s} {value:7.0f} us, {of_single:5.2f} x E of a single model, "
                f"{of_mean:5.2f} x its own E{goal}",
                flush=True,
            )


def quick_model(campaign, task, split):
    """A model as good as untrained, for the cost."""
    potential = make_potential(campaign, task.topology, 0)
    judge, driver = make_uncertainties(campaign, task.topology, potential, split.training, split.training)
    options = TrainingOptions(steps=2, evaluate_every=1)
    train(potential, split.training, split.validation, options, uncertainties=[judge], runner="eager")
    return complete_model(campaign, potential, judge, driver, {"": Dealt(task.topology, split)}, (0, 0))[0]


def run_set(task, kinds, seeds, steps):
    """Scores of every kind, by seed; and what the figure shows, of the first seed."""
    scores, shown = {name: [] for name in kinds}, {}
    for seed in range(seeds):
        parts = {name: [] for name in kinds}
        extra = {name: [] for name in kinds}
        for fold in task.folds:
            for name, model, split, seconds in models_of(task, fold, kinds, seed, steps):
                parts[name].append(judged(model, fold[1]))
                extra[name].append({"train_s": seconds, **split_coverage(model, split.calibration)})
        for name in kinds:
            found, error, u = scores_of(parts[name])
            for key in {key for entry in extra[name] for key in entry}:
                values = [entry[key] for entry in extra[name] if key in entry]
                found[key] = sum(values) if key == "train_s" else statistics.mean(values)
            scores[name].append(found)
            if seed == 0:
                shown[name] = (u.tolist(), error.tolist(), found["auroc"])
        print(f"{task.name}: seed {seed} done", flush=True)
    return scores, shown


def medians_of(entries):
    keys = {key for entry in entries for key in entry}
    return {key: statistics.median([entry[key] for entry in entries if key in entry]) for key in keys}


def print_table(task_name, scores, seeds):
    print(f"\n{task_name}: medians of {seeds} seed(s)")
    print(f"{'':24s}" + "".join(f"{heading:>11s}" for _, heading, _ in COLUMNS))
    table = {name: medians_of(entries) for name, entries in scores.items()}
    for name, row in table.items():
        cells = [form.format(row[key]) if key in row else "-" for key, _, form in COLUMNS]
        print(f"{name:24s}" + "".join(f"{cell:>11s}" for cell in cells))
    print_goals(table)


def print_goals(table):
    committees = [name for name in table if KINDS[name][2] == COMMITTEE]
    singles = [name for name in table if not KINDS[name][2]]
    if committees and singles:
        best = max(committees, key=lambda name: table[name]["auroc"])
        near = max(singles, key=lambda name: table[name]["auroc"])
        print(
            f"best committee: {best}, AUROC {table[best]['auroc']:.3f}; best single model: {near}, "
            f"{table[near]['auroc']:.3f} ({table[near]['auroc'] - table[best]['auroc']:+.3f}, goal -0.02 or more) at "
            f"{table[near]['train_s'] / table[best]['train_s']:.2f} of its training time (goal 0.33)"
        )
    print(flush=True)


def draw(output, path):
    """One panel for each kind and set: force error against calibrated uncertainty, frame by frame."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = [json.loads((output / f"{name}.json").read_text()) for name in SHOWN if (output / f"{name}.json").is_file()]
    found = [part for part in found if "shown" in part]
    shown = {part["name"]: part["shown"] for part in found}
    if not shown:
        return
    names = [name for name in KINDS if any(name in panels for panels in shown.values())]
    n_rows = -(-len(names) // ACROSS)
    figure, axes = plt.subplots(
        n_rows * len(shown), ACROSS, figsize=(1.75 * ACROSS, 1.95 * n_rows * len(shown) + 0.3), squeeze=False
    )
    for block, (task_name, panels) in enumerate(shown.items()):
        everything = np.concatenate([np.concatenate(panel[:2]) for panel in panels.values()])
        low, high = np.quantile(everything[everything > 0], (0.005, 0.998))
        low, high = low / 1.3, high * 1.3
        rows = axes[block * n_rows : (block + 1) * n_rows].ravel()
        for index, axis in enumerate(rows):
            if index >= len(names) or names[index] not in panels:
                axis.set_axis_off()
                continue
            u, error, auroc = panels[names[index]]
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            axis.tick_params(labelsize=7, which="both", length=2)
            axis.plot([low, high], [low, high], color="0.4", linewidth=0.8)
            axis.scatter(u, error, s=3, alpha=0.35, linewidths=0, color="#1f5fa8", rasterized=True)
            axis.text(0.05, 0.95, f"AUROC {auroc:.2f}", transform=axis.transAxes, fontsize=7, va="top")
            axis.set_title(names[index], fontsize=8)
            if index % ACROSS:
                axis.set_yticklabels([])
            else:
                axis.set_ylabel(f"{task_name}\nforce error, meV/Å", fontsize=8)
    figure.tight_layout(w_pad=0.2, rect=(0, 0.02, 1, 1))
    figure.text(
        0.5,
        0.006,
        "calibrated uncertainty, meV/Å; 90 % of frames like the training frames lie below the line",
        ha="center",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of every training")
    parser.add_argument("--parts", nargs="+", choices=[*SETS, "rmd17", *COSTS], default=[*SHOWN, *COSTS])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--runner", default="auto", help="of the cost: auto, aoti, torchscript or eager")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/uq_kinds"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (part for asked in options.parts for part in (RMD17 if asked == "rmd17" else [asked])):
        if name == "cost":
            found = costs(options.kinds, options.runner)
            print_costs(found, options.kinds)
            (options.output / "cost.json").write_text(json.dumps(found, indent=1) + "\n")
            continue
        if name == "judge":
            found = judge_costs(options.runner)
            print_judge_costs(found)
            (options.output / "judge.json").write_text(json.dumps(found, indent=1) + "\n")
            continue
        if name not in ("alanine", "silica") and not DATA.is_dir():
            print(f"{name}: left out, no reference data in {DATA}", flush=True)
            continue
        task = SETS[name]()
        scores, shown = run_set(task, options.kinds, options.seeds, options.steps)
        print_table(task.name, scores, options.seeds)
        content = {"name": task.name, "scores": scores, "shown": shown}
        (options.output / f"{name}.json").write_text(json.dumps(content) + "\n")
        draw(options.output, options.output / "uq_kinds.png")
    print(f"numbers and uq_kinds.png: {options.output}")


if __name__ == "__main__":
    main()
