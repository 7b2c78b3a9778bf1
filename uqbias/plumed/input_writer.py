"""A ready-to-run plumed.dat, the exported model and a page that says how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from uqbias.bias.fixed import UpperWall
from uqbias.errors import UqbiasError
from uqbias.files import write_text
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.options import options_of
from uqbias.plumed.compile_plugin import PLUGIN_NAME
from uqbias.plumed.input_options import PlumedOptions

#: Stiffness of the wall: that of a campaign's.
KAPPA = options_of(UpperWall)["kappa"].default


def write_plumed_input(
    model: UncertaintyModel, directory: str | Path, options: PlumedOptions | None = None, *, plugin: Path | None = None
) -> list[Path]:
    """Write ``driver.pt``, ``plumed.dat`` (plugin), ``plumed_openmm.dat`` (`PlumedBridge`) and ``README.md``.

    Parameters
    ----------
    model : calibrated or not.
    directory : made if missing; files of these names are replaced.
    options : see `PlumedOptions`.
    plugin : the built plugin; its plain name if None, to be found by the loader.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    UqbiasError
        If an option is out of range, or the width of the hills cannot be guessed.
    """
    options = _completed(options or PlumedOptions(), model)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    driver = directory / "driver.pt"
    # The form with forces needs no autograd in the engine.
    export_torchscript(model, driver, options.output, with_forces=True)
    atoms = options.atoms or f"1-{len(model.numbers)}"
    library = f"./{PLUGIN_NAME}" if plugin is None else str(plugin.resolve())
    action = f"u: UNCERTAINTY ATOMS={atoms} MODEL={driver.name}{' FLOAT64' if options.float64 else ''}"
    loaded = [
        "# The plugin, once built here: uqbias plumed --build -o . ; or give the full path of a built one.",
        f"LOAD FILE={library}",
        "",
        f"# {_meaning(model, options)}",
        action,
    ]
    name = "driver" if options.output == "driver" else "judge"
    bridged = [f"# {_meaning(model, options)}", f"u: EXTRACV NAME={name}"]
    texts = {
        "plumed.dat": "\n".join([*_header("any engine with PLUMED, or openmm-plumed"), *loaded, *_bias(options)]),
        "plumed_openmm.dat": "\n".join([*_header("OpenMM, through uqbias.PlumedBridge"), *bridged, *_bias(options)]),
        "README.md": _readme(model, options),
    }
    for file, text in texts.items():
        write_text(directory / file, text.rstrip() + "\n")
    return [driver, *(directory / file for file in texts)]


def _completed(options: PlumedOptions, model: UncertaintyModel) -> PlumedOptions:
    biased = model.driver if options.output == "driver" else None
    if options.bias == "metad" and options.sigma is None:
        if biased is None or biased.hill_width is None:
            unit = "kJ/mol/nm" if biased is None else biased.unit
            raise UqbiasError(
                f"no width for hills on a CV in {unit}",
                "give --sigma: about half the standard deviation of the CV in a short unbiased run",
            )
        options = replace(options, sigma=biased.hill_width)
    if options.wall is None and biased is not None:
        options = replace(options, wall=biased.wall)
    return options


def _header(where: str) -> list[str]:
    return [
        f"# Uncertainty-biased sampling, for {where}.",
        "# PLUMED's own units: nm, ps, kJ/mol. For other units, put a UNITS line first.",
        "",
    ]


def _meaning(model: UncertaintyModel, options: PlumedOptions) -> str:
    if options.output == "judge":
        return "the judge: calibrated uncertainty of the model, kJ/mol/nm of force error"
    return f"the driver: uncertainty of kind {model.driver.kind}, in {model.driver.unit}"


def _bias(options: PlumedOptions) -> Sequence[str]:
    lines = [""]
    if options.bias == "metad":
        lines += [
            "# Well-tempered metadynamics: hills push the molecule to where the model knows less.",
            f"METAD ARG=u SIGMA={options.sigma:g} HEIGHT={options.height:g} PACE={options.pace} "
            f"BIASFACTOR={options.biasfactor:g} TEMP={options.temperature:g} FILE=HILLS LABEL=bias",
        ]
    else:
        sigma = "" if options.sigma is None else f" SIGMA={options.sigma:g}"
        lines += [
            "# OPES: the bias settles faster than that of metadynamics; BARRIER is the most it will level.",
            f"OPES_METAD ARG=u PACE={options.pace} BARRIER={options.barrier:g} TEMP={options.temperature:g}{sigma} "
            "FILE=KERNELS STATE_WFILE=STATE STATE_WSTRIDE=10000 LABEL=bias",
        ]
    if options.wall is not None:
        lines += [
            "",
            "# Beyond this value the molecule is broken, not unknown.",
            f"UPPER_WALLS ARG=u AT={options.wall:g} KAPPA={KAPPA:g} LABEL=wall",
        ]
    arguments = "u,bias.bias" + (",wall.bias" if options.wall is not None else "")
    return [*lines, "", f"PRINT ARG={arguments} STRIDE=100 FILE=COLVAR", "FLUSH STRIDE=1000"]


def _readme(model: UncertaintyModel, options: PlumedOptions) -> str:
    atoms = options.atoms or f"1-{len(model.numbers)}"
    numbers = " ".join(str(number) for number in model.numbers)
    return f"""\
# PLUMED input

`driver.pt` is the model as plain TorchScript, `plumed.dat` biases {_meaning(model, options)}.
The model is of {len(model.numbers)} atoms with these atomic numbers, and `ATOMS={atoms}` must list them in this order:
{numbers}.

Build the plugin once, with the PLUMED and the torch that will run it: `uqbias plumed --build -o .` in this folder.

- any trajectory: `plumed driver --plumed plumed.dat --mf_xtc traj.xtc`
- GROMACS patched with PLUMED: `gmx mdrun -s topol.tpr -plumed plumed.dat`
- LAMMPS with its PLUMED package: `fix uq all plumed plumedfile plumed.dat outfile plumed.log`
- OpenMM with openmm-plumed: `system.addForce(PlumedForce(open("plumed.dat").read()))`
- OpenMM without a plugin, faster, with energy and uncertainty from one evaluation:

      import uqbias
      bridge = uqbias.PlumedBridge(system, "plumed_openmm.dat", "model.uqb", timestep=0.0005, temperature=300)
      with bridge:
          bridge.step(simulation, 100_000)

  `system` then holds the model's energy too; `include_energy=False` leaves it out, on top of another force field.

The free energy along `u`: `plumed sum_hills --hills HILLS`. A free energy of other coordinates needs reweighting with
`bias.bias`.
"""
