"""What `uqbias doctor` says of PLUMED: the kernel, a step of it, the plugin. PLUMED is optional: nothing fails here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uqbias.doctor.row import Row, shortened
from uqbias.errors import UqbiasError
from uqbias.plumed.kernel import Kernel, find_kernel, make_plumed

#: Modules that a user of an uncertainty may want; all but opes are always there.
WANTED = ("opes",)
AT, KAPPA, VALUE = 1.5, 3.0, 0.25


def examine_plumed() -> Iterator[Row]:
    """Yield a row for the kernel, one for a step through the wrapper, one for the plugin."""
    try:
        kernel = find_kernel()
    except UqbiasError as error:
        yield Row("PLUMED kernel", "absent", error.what, error.cure)
        return
    missing = [name for name in WANTED if kernel.modules and name not in kernel.modules]
    detail = f"{kernel.long_version}, {kernel.path}, {len(kernel.modules) or 'unknown'} modules"
    if missing:
        cure = "build PLUMED with --enable-modules=+opes, or take the one of conda-forge"
        yield Row("PLUMED kernel", "limited", f"{detail}, without {', '.join(missing)}", cure)
    else:
        yield Row("PLUMED kernel", "ok", f"{detail}, opes among them" if kernel.modules else detail)
    yield _one_step(kernel)
    yield _plugin()


def _one_step(kernel: Kernel) -> Row:
    """A harmonic restraint on a value that is handed in: the force that comes back is known."""
    what = "PLUMED through its Python wrapper"
    try:
        force = step_with_restraint(kernel)
    except UqbiasError as error:
        return Row(what, "limited", error.what, error.cure)
    except Exception as error:  # the wrapper raises its own kinds
        return Row(what, "limited", shortened(error), "install wrapper and kernel of one version")
    expected = -KAPPA * (VALUE - AT)
    if abs(force - expected) > 1e-9:
        return Row(what, "failed", f"a restraint gives the force {force:g}, not {expected:g}", "install PLUMED again")
    return Row(what, "ok", f"one step, force of a restraint {force:g} as it must be")


def step_with_restraint(kernel: Kernel) -> float:
    """Force of a harmonic restraint on a value handed to PLUMED, after one step."""
    value, force = np.full(1, VALUE), np.zeros(1)
    with tempfile.TemporaryDirectory(prefix="uqbias-") as folder, make_plumed(kernel) as plumed:
        plumed.cmd("setMDEngine", "uqbias")
        plumed.cmd("setNatoms", 0)
        plumed.cmd("setNoVirial")
        plumed.cmd("setTimestep", 0.001)
        plumed.cmd("setLogFile", str(Path(folder) / "log"))
        plumed.cmd("init")
        plumed.cmd("readInputLine", "x: EXTRACV NAME=x")
        plumed.cmd("readInputLine", f"RESTRAINT ARG=x AT={AT} KAPPA={KAPPA}")
        plumed.cmd("setStep", 0)
        plumed.cmd("setExtraCV x", value)
        plumed.cmd("setExtraCVForce x", force)
        plumed.cmd("calc")
    return float(force[0])


def _plugin() -> Row:
    from uqbias.plumed.compile_plugin import plugin_status

    status = plugin_status()
    if status["path"] is None:
        return Row("PLUMED plugin", "absent", "not built", "uqbias plumed --build")
    detail = f"{status['path']}, for torch {status['torch']}, PLUMED {status['plumed']}"
    if status["fault"]:
        return Row("PLUMED plugin", "limited", f"{detail}: {status['fault']}", "uqbias plumed --build")
    return Row("PLUMED plugin", "ok", detail)
