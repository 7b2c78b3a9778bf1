"""The command fes: free energies from biased runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uqbias.cli.part_options import option, options_from
from uqbias.cli.printing import Json, print_json, print_pairs, split_names
from uqbias.errors import UqbiasError
from uqbias.files import check_directory
from uqbias.free_energy.estimate_options import FreeEnergyOptions

OPTIONS = options_from(FreeEnergyOptions, "method", "discard", "blocks", "bins", "temperature", "order")


def fes(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, each with run.json.")],
    cv: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="One or two of: driver, judge, energy, a variable of the run, phi, psi, or atoms from 0 or by name, "
            "d:2-5 (distance), a:1-2-3 (angle), t:1-2-3-4 (dihedral).",
        ),
    ] = "driver",
    options: dict[str, Any] = OPTIONS,
    span: Annotated[str | None, option(FreeEnergyOptions, "ranges", "--range")] = None,
    unit: Annotated[str, typer.Option(help="kJ/mol, kcal/mol, kT or eV.")] = "kJ/mol",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="For fes.csv and fes.png.")
    ] = None,
    json: Json = False,
) -> None:
    """Free energy along one or two variables from biased runs, with error bars; writes fes.csv and fes.png.

    Frames are weighted by the bias that acted on them, walls and restraints included, so that F is that of the model.
    Several runs of one molecule, model and temperature are joined by MBAR (pip install 'uqbias[analysis]'). Error bars
    come from blocks in time; the header of fes.csv says how everything was done.

    \b
    Examples:
      uqbias fes md/ --cv phi,psi -o md/fes
      uqbias fes md/ --cv driver --method bias --unit kT
      uqbias fes run1/ run2/ --cv d:2-5 --bins 40 --range 0.2:0.6 --json
    """
    from uqbias.free_energy.estimate import free_energy
    from uqbias.report.free_energy_plot import save_figure

    if output is not None:
        check_directory(output)
    chosen = FreeEnergyOptions(ranges=_ranges(span), **options)
    surface = free_energy(runs, split_names(cv), chosen)
    factor = surface.factor(unit)
    files = []
    if output is not None:
        files = [output / "fes.csv", output / "fes.png"]
        surface.save(files[0], unit)
        save_figure(surface, files[1], unit)
    if json:
        print_json(
            {
                "variables": [
                    {"name": axis.name, "unit": axis.unit, "period": axis.period, "centres": axis.centres.tolist()}
                    for axis in surface.axes
                ],
                "unit": unit,
                "temperature_K": surface.temperature,
                "method": surface.method,
                "free_energy": (surface.values * factor).tolist(),
                "error": (surface.error * factor).tolist(),
                "frames_in_bin": surface.counts.tolist(),
                "frames": surface.n_frames,
                "effective_frames": surface.effective,
                "notes": dict(surface.notes),
                "files": [str(file) for file in files],
            }
        )
    elif output is None:
        typer.echo(surface.table(unit), nl=False)
    else:
        import numpy as np

        finite = np.isfinite(surface.values)
        print_pairs(
            [
                ("method", surface.method),
                (
                    "frames",
                    f"{surface.n_frames}" + (f", effective {surface.effective:.0f}" if surface.effective > 0 else ""),
                ),
                ("bins", f"{int(finite.sum())} of {finite.size} visited"),
                ("highest F", f"{float(surface.values[finite].max()) * factor:.4g} {unit}"),
                ("median error", _median(surface.error[finite] * factor, unit)),
                *(
                    (name, text)
                    for name, text in surface.notes.items()
                    if name in ("warning", "restarts", "anharmonicity")
                ),
                ("files", ", ".join(str(file) for file in files)),
            ]
        )


def _median(values: Any, unit: str) -> str:
    import numpy as np

    known = values[np.isfinite(values)]
    return f"{float(np.median(known)):.3g} {unit}" if known.size else "not known"


def _ranges(text: str | None) -> list[tuple[float, float] | None]:
    """LOW:HIGH each; an empty entry leaves that variable's range open."""
    ranges: list[tuple[float, float] | None] = []
    for entry in text.split(",") if text else ():
        try:
            low, high = map(float, entry.split(":")) if entry.strip() else (None, None)
            ranges.append(None if low is None or high is None else (low, high))
        except ValueError:
            raise UqbiasError(f"--range {text}", "give LOW:HIGH each, as 0.2:0.6 or --range=-2:2") from None
    return ranges
