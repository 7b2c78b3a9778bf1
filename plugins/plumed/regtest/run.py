"""Run the regtests with ``plumed driver`` and compare what they write with the reference files.

    python run.py [--plugin libuqbias.so] [--update] [rt-value ...]

Without a plugin one is built (or taken from uqbias' cache). The folders have PLUMED's layout: ``config`` with the type
and the arguments, ``plumed.dat``, input files, ``<file>.reference``. Numbers may differ by 2e-4, or by
1e-4 relative.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from models import write_models

from uqbias.plumed.compile_plugin import PLUGIN_NAME, build_plugin
from uqbias.plumed.kernel import Kernel, environment, find_kernel

HERE = Path(__file__).parent
ABSOLUTE, RELATIVE = 2e-4, 1e-4


def main(arguments: list[str] | None = None) -> int:
    """Number of regtests that failed."""
    parser = argparse.ArgumentParser(description="Regtests of the PLUMED action UNCERTAINTY.")
    parser.add_argument("--plugin", type=Path)
    parser.add_argument("--update", action="store_true", help="write the reference files anew")
    parser.add_argument("names", nargs="*", metavar="rt-...")
    options = parser.parse_args(arguments)
    kernel = find_kernel()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="uqbias-regtest-") as scratch:
        plugin = options.plugin or build_plugin(Path(scratch), kernel)
        models = Path(scratch) / "models"
        models.mkdir()
        write_models(models)
        for folder in sorted(HERE.glob("rt-*")):
            if options.names and folder.name not in options.names:
                continue
            faults = run(folder, Path(scratch) / folder.name, plugin.resolve(), models, kernel, update=options.update)
            print(f"{folder.name}: {'failed' if faults else 'ok'}")
            for fault in faults:
                print(f"  {fault}")
            failed += bool(faults)
    return failed


def run(folder: Path, work: Path, plugin: Path, models: Path, kernel: Kernel, *, update: bool = False) -> list[str]:
    """Differences of one regtest, one line each."""
    config = read_config(folder / "config")
    if config.get("type") != "driver" or kernel.executable is None:
        return [f"type '{config.get('type')}' or no command plumed beside {kernel.path}"]
    shutil.copytree(folder, work)
    for model in models.iterdir():
        shutil.copy(model, work)
    (work / PLUGIN_NAME).symlink_to(plugin)
    if PLUGIN_NAME != "libuqbias.so":
        (work / "libuqbias.so").symlink_to(plugin)
    before = {path.name for path in work.iterdir()}
    command = [str(kernel.executable), "--no-mpi", "driver", *shlex.split(config["arg"])]
    env = {**environment(kernel.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return [f"plumed driver ended with {done.returncode}: {error_line(done.stdout + done.stderr)}"]
    if update:
        for path in work.iterdir():
            if path.name not in before and not path.name.startswith("bck."):
                shutil.copy(path, folder / f"{path.name}.reference")
        return []
    references = sorted(folder.glob("*.reference"))
    if not references:
        return ["no reference files; run with --update"]
    return [fault for reference in references for fault in compare(reference, work / reference.stem)]


def read_config(path: Path) -> dict[str, str]:
    """The ``name=value`` lines of a regtest's config, a shell file."""
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {name: " ".join(shlex.split(value)) for name, value in (line.split("=", 1) for line in lines)}


def error_line(text: str) -> str:
    """The line of a failed run that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "ERROR" in line or "rror:" in line]
    return (told or lines or ["no output"])[-1]


def compare(reference: Path, found: Path) -> list[str]:
    """Differences beyond the tolerance; the first three."""
    if not found.is_file():
        return [f"{found.name} was not written"]
    expected, lines = reference.read_text().splitlines(), found.read_text().splitlines()
    if len(expected) != len(lines):
        return [f"{found.name} has {len(lines)} lines, the reference {len(expected)}"]
    faults = [
        f"{found.name}, line {number}: '{line}' and not '{wanted}'"
        for number, (wanted, line) in enumerate(zip(expected, lines, strict=True), start=1)
        if not same_line(wanted, line)
    ]
    return faults[:3]


def same_line(wanted: str, line: str) -> bool:
    """Whether two lines have the same words, and numbers within the tolerance."""
    left, right = wanted.split(), line.split()
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if a == b:
            continue
        try:
            x, y = float(a), float(b)
        except ValueError:
            return False
        if not abs(x - y) <= ABSOLUTE + RELATIVE * abs(x):
            return False
    return True


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
