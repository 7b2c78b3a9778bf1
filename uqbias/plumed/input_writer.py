"""A ready-to-run plumed.dat, the exported model and a page that says how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uqbias.errors import UqbiasError, did_you_mean
from uqbias.files import write_text
from uqbias.model.export import export_torchscript
from uqbias.model.model import UncertaintyModel
from uqbias.plumed.compile_plugin import PLUGIN_NAME

BIASES = ("metad", "opes")
OUTPUTS = ("driver", "judge")


@dataclass(frozen=True)
class PlumedOptions:
    """What goes into plumed.dat; PLUMED's units: nm, ps, kJ/mol.

    Attributes
    ----------
    bias : ``metad`` (well-tempered metadynamics) or ``opes`` (OPES_METAD).
    output : ``driver`` (the driver) or ``judge`` (the judge, kJ/mol/nm).
    temperature : K.
    sigma : width of a hill in units of the CV; None for that of the driver's kind, and for OPES that of PLUMED.
    height : of a hill, kJ/mol.
    pace : steps between hills.
    biasfactor : γ.
    barrier : highest barrier that OPES is to level, kJ/mol.
    wall : value of the CV where an upper wall begins; None for that of the driver's kind, if it has one.
    atoms : the model's atoms in the engine's numbering, from 1, as PLUMED writes it; None for 1-N.
    float64 : evaluate in double precision.
    """

    bias: str = "metad"
    output: str = "driver"
    temperature: float = 300.0
    sigma: float | None = None
    height: float = 1.0
    pace: int = 500
    biasfactor: float = 10.0
    barrier: float = 50.0
    wall: float | None = None
    atoms: str | None = None
    float64: bool = False


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
    options = _checked(options or PlumedOptions(), model)
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


def _checked(options: PlumedOptions, model: UncertaintyModel) -> PlumedOptions:
    if options.bias not in BIASES:
        raise UqbiasError(f"unknown bias '{options.bias}'", did_you_mean(options.bias, BIASES))
    if options.output not in OUTPUTS:
        raise UqbiasError(f"unknown output '{options.output}'", did_you_mean(options.output, OUTPUTS))
    for name in ("temperature", "height", "pace", "barrier"):
        if not getattr(options, name) > 0:
            raise UqbiasError(f"{name} = {getattr(options, name)}", "give a number above 0")
    if not options.biasfactor > 1:
        raise UqbiasError(f"biasfactor = {options.biasfactor}", "give a number above 1")
    if options.sigma is not None and not options.sigma > 0:
        raise UqbiasError(f"sigma = {options.sigma}", "give a number above 0")
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
            f"UPPER_WALLS ARG=u AT={options.wall:g} KAPPA=20 LABEL=wall",
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
