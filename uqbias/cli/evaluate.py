"""The command evaluate: errors of a model on labelled frames, and what its uncertainty knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqbias.cli.part_options import options_from
from uqbias.cli.printing import Json, ModelPath, print_json
from uqbias.molecule.labels import FORMATS, LabelKeys
from uqbias.settings.system_section import System

if TYPE_CHECKING:
    from uqbias.model.model import UncertaintyModel
    from uqbias.molecule.frames import Frames

LABEL_KEYS = options_from(System, "energy_key", "forces_key", "stress_key")
LABELLED = f"Labelled frames, of one or of several systems: {FORMATS}."

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
#: Key of a score, heading, in a table of systems.
SYSTEMS = (
    ("frames", "frames"),
    ("force_mae_meV_per_A", "force error"),
    ("energy_mae_meV_per_atom", "energy error"),
    ("spearman", "Spearman ρ"),
    ("auroc", "AUROC"),
    ("coverage", "coverage"),
)
DISTRIBUTION = (
    ("miscalibration_area", "miscalibration area", "observed against nominal coverage; 0 is perfect, 0.5 the worst"),
    ("nll", "calibrated NLL", "nats per component, of errors in meV/Å; less is better"),
    ("crps_meV_per_A", "CRPS", "meV/Å; less is better"),
    ("sharpness_meV_per_A", "sharpness", "meV/Å, root mean square of σ; the force RMSE if σ is right on average"),
)


def evaluate(
    model: ModelPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=LABELLED)],
    large: Annotated[
        float, typer.Option(metavar="QUANTILE", help="For the AUROC, errors above this quantile of them are large.")
    ] = 0.8,
    label_keys: dict[str, Any] = LABEL_KEYS,
    json: Json = False,
) -> None:
    """Errors of a model on labelled frames, and how well its uncertainty ranks, predicts and bounds them.

    Uncertainty and force error are compared frame by frame, and atom by atom where the judge has values for atoms; the
    error is the root mean square over the force components of the frame or atom. Give frames that the model was not
    made from. On frames unlike those it was calibrated on, coverage tells how far the calibration still holds. A model
    whose driver and judge are of atoms and elements takes other systems of its elements, too.

    \b
    Examples:
      uqbias evaluate model.uqb test.xyz
      uqbias evaluate model.uqb test.xyz --large 0.95 --json
    """
    from uqbias.model.model import UncertaintyModel
    from uqbias.model.score import score_model
    from uqbias.model.several import of_system, score_systems, whole_and_checked
    from uqbias.molecule.collection import read_collection

    loaded = UncertaintyModel.load(model)
    keys = LabelKeys(*label_keys.values())
    sets = read_collection([data], labelled="energies", keys=keys)
    placed = {}
    for name, frames in sets.items():
        twin = of_system(loaded, frames)
        placed[name] = twin, whole_and_checked(loaded, twin, frames)
    news = {name: news for name, (twin, frames) in placed.items() if (news := _news(loaded, frames))}
    if len(sets) == 1:
        scores = score_model(*next(iter(placed.values())), large)
    else:
        scores = score_systems(loaded, {name: frames for name, (_, frames) in placed.items()}, large=large)
    if json:
        new = {"not_trained_on": news} if news else {}
        print_json({"model": str(model), "data": str(data), **scores, **new})
        return
    for name, story in news.items():
        typer.echo(f"{name}: {story}")
    if len(sets) == 1:
        print_scores(scores)
        return
    print_systems(scores)
    for name, each in scores["systems"].items():
        if known := each.get("frames_trained_on"):
            typer.echo(f"warning: the model was made from {known} of the frames of {name}, which flatters it there")


def _news(model: UncertaintyModel, frames: Frames) -> str:
    """What is to be said of a system that the model was not trained on."""
    from uqbias.model.several import is_new, zero_is_known

    if not is_new(model, frames):
        return ""
    story = "the model was not trained on this system, but knows its elements"
    if zero_is_known(model, frames):
        return story
    return f"{story}; what it was trained on does not fix the zero of these energies, whose errors hold a constant"


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


def print_systems(scores: Mapping[str, Any]) -> None:
    """A line for each system and one for all that `uqbias.model.several.score_systems` found."""
    systems = {**scores["systems"], "all": scores}
    width = max(len(name) for name in systems) + 2
    heads = [(key, title) for key, title in SYSTEMS if any(key in each for each in systems.values())]
    typer.echo(" " * width + "".join(f"{title:>14}" for _, title in heads))
    for name, each in systems.items():
        cells = [_number(each[key]) if key in each else "–" for key, _ in heads]
        typer.echo(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    typer.echo("errors are mean absolute ones, of a force component in meV/Å, of energies in meV/atom")


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
