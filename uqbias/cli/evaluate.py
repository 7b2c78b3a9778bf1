"""The command evaluate: errors of a model on labelled frames, and what its uncertainty knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, ModelPath, print_json
from uqbias.molecule.labels import FORMATS, LabelKeys
from uqbias.settings.system_section import System

LABEL_KEYS = options_from(System, "energy_key", "forces_key", "stress_key")
Labelled = Annotated[Path, typer.Argument(metavar="DATA", help=f"Labelled frames: {FORMATS}.")]

#: Quantity, keys of its mean absolute and root mean square error, unit.
ERRORS = (
    ("force", "force_mae_meV_per_A", "force_rmse_meV_per_A", "meV/Å, of a component"),
    ("energy", "energy_mae_meV_per_atom", "energy_rmse_meV_per_atom", "meV/atom"),
    ("stress", "stress_mae_GPa", "stress_rmse_GPa", "GPa, of a component"),
)
#: Key of a score, name, meaning.
RANKING = (
    ("spearman", "Spearman ρ", "rank correlation; 1 is perfect, 0 chance"),
    ("auroc", "AUROC", "of finding the {share} % with the largest error; 1 is perfect, 0.5 chance"),
    ("driver_spearman", "Spearman ρ, driver", "the same for what the bias acts on"),
)
DISTRIBUTION = (
    ("miscalibration_area", "miscalibration area", "observed against nominal coverage; 0 is perfect, 0.5 the worst"),
    ("nll", "calibrated NLL", "nats per component, of errors in meV/Å; less is better"),
    ("crps_meV_per_A", "CRPS", "meV/Å; less is better"),
    ("sharpness_meV_per_A", "sharpness", "meV/Å, root mean square of σ; the force RMSE if σ is right on average"),
)


def evaluate(
    model: ModelPath,
    data: Labelled,
    large: Annotated[
        float, typer.Option(metavar="QUANTILE", help="For the AUROC, errors above this quantile of them are large.")
    ] = 0.8,
    label_keys: dict[str, Any] = LABEL_KEYS,
    json: Json = False,
) -> None:
    """Errors of a model on labelled frames, and how well its uncertainty ranks, predicts and bounds them.

    Uncertainty and force error are compared frame by frame, and atom by atom where the judge has values for atoms; the
    error is the root mean square over the force components of the frame or atom. Give frames that the model was not
    made from. On frames unlike those it was calibrated on, coverage tells how far the calibration still holds.

    \b
    Examples:
      uqbias evaluate model.uqb test.xyz
      uqbias evaluate model.uqb test.xyz --large 0.95 --json
    """
    from uqbias.model.model import UncertaintyModel
    from uqbias.model.score import score_model
    from uqbias.molecule.frames import read_frames
    from uqbias.molecule.sense import check_sense
    from uqbias.molecule.structure import whole_frames

    loaded = UncertaintyModel.load(model)
    keys = LabelKeys(*label_keys.values())
    frames = whole_frames(read_frames(data, labelled="energies", periodic=True, keys=keys), loaded.topology)
    check_sense(frames, loaded.topology, "the model")
    scores = score_model(loaded, frames, large)
    if json:
        print_json({"model": str(model), "data": str(data), **scores})
    else:
        print_scores(scores)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Everything that `uqbias.model.score.score_model` found, as tables."""
    typer.echo(f"{scores['frames']} frames")
    known = scores.get("frames_trained_on")
    if known is None:
        typer.echo("the model does not know which frames it was made from; some of these may be among them")
    elif known:
        typer.echo(f"warning: the model was made from {known} of these frames, on which it looks better than it is")
    if calibrated := scores.get("frames_calibrated_on"):
        typer.echo(f"warning: it was calibrated on {calibrated} of these frames, which flatters coverage and NLL")
    typer.echo()
    print_errors(scores)
    if "spearman" not in scores:
        typer.echo("\nthe frames have no forces: the uncertainty, which is one of forces, is not scored")
        return
    typer.echo(f"\nuncertainty '{scores['judge']}' against the force error of a frame and of an atom")
    if "atoms" not in scores:
        typer.echo("this kind has no values per atom")
    _print_row("", "frame", "atom")
    share = f"{100 * (1 - scores['large']):.3g}"
    for key, name, meaning in RANKING:
        _print_score(scores, key, name, meaning.format(share=share))
    if "calibration" not in scores:
        typer.echo("\nthe model is not calibrated: it says nothing of the size of errors, so there is no more to score")
        return
    typer.echo("\nforce components as samples of N(0, σ²), σ from the variance scaling")
    for key, name, meaning in DISTRIBUTION:
        _print_score(scores, key, name, meaning)
    typer.echo("\nshare of errors within the conformal bound of miscoverage α")
    _print_coverage(scores)


def print_errors(scores: Mapping[str, Any]) -> None:
    """Errors of forces and energies that `uqbias.model.score.score_model` found."""
    _print_row("", "MAE", "RMSE")
    for name, mae, rmse, unit in ERRORS:
        if mae in scores:
            _print_row(name, _number(scores[mae]), _number(scores[rmse]), unit)


def _print_coverage(scores: Mapping[str, Any]) -> None:
    from uqbias.model.score import ALPHAS
    from uqbias.uncertainty.conformal import frames_needed

    keys = {alpha: f"coverage_{alpha:g}" for alpha in ALPHAS}
    if scores["calibration"] == "conformal":
        # The calibrated uncertainty that the model gives is such a bound, too.
        keys = {scores["alpha"]: "coverage"} | keys
    for alpha, key in sorted(keys.items()):
        meaning = f"{1 - alpha:g} expected on frames like the calibration frames"
        needed, there = frames_needed(alpha), scores["calibration_frames"]
        if key not in scores and 0 < there < needed:
            meaning = (
                f"{1 - alpha:g} expected; that of a frame needs {needed} calibration frames, the model has {there}"
            )
        _print_score(scores, key, f"coverage, α = {alpha:g}", meaning)


def _print_score(scores: Mapping[str, Any], key: str, name: str, meaning: str) -> None:
    frame, atom = (_number(scores[column]) if column in scores else "–" for column in (key, f"atom_{key}"))
    _print_row(name, frame, atom, meaning)


def _print_row(name: str, first: str, second: str, meaning: str = "") -> None:
    typer.echo(f"{name:<20}{first:>9}{second:>9}  {meaning}".rstrip())


def _number(value: float) -> str:
    """Three digits, never with an exponent where it is large."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
