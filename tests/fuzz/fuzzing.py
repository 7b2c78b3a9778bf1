"""Readers of files, fed with damaged files: `python tests/fuzz/fuzzing.py --inputs 30000`, `make fuzz`.

A reader may take a file or refuse it with `UqbiasError` in one line. Anything else is a fault: another exception, more
than 5 s, more than 1 GB, the end of the process.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parent)]  # as pytest has it

# ruff: noqa: E402
from file_readers import READERS, write_seeds
from mutations import damaged

from uqbias.errors import UqbiasError

SECONDS, BYTES = 5, 1 << 30
#: Files that are no data of the program's.
KEPT = {"ledger.lock", "structure.pdb", "start.xyz"}


def too_long(*_):
    raise TimeoutError("more than 5 s")


def try_one(reader, seeds, folder, seed):
    """Read one damaged copy; None, or the fault in a line."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds / reader, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in KEPT)
    chosen = files[sum(seed.encode()) % len(files)]
    chosen.write_bytes(damaged(chosen.read_bytes(), chosen.name, seed))
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        READERS[reader](folder)
    except UqbiasError as error:
        if "\x1b" in str(error) or len(str(error)) > 3000:
            return f"{seed}: a message that is not one printable line"
        return "refused"
    except TimeoutError:
        return f"{seed}: hang"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{seed}: traceback {type(error).__name__} {str(error)[:80]!r} {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _child(pipe, reader, seeds, names):
    logging.disable()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    # A process forked from a large one, such as a worker of pytest, begins with its memory.
    most = max(BYTES, _peak() + BYTES // 2)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in names:
            fault = try_one(reader, seeds, Path(scratch) / "x", seed)
            peak = _peak()
            pipe.send((seed, fault, peak, peak > most))
            if peak > most:
                os._exit(0)


def _peak():
    """Largest memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(reader, seeds, count, start=0):
    """Numbers of inputs, refusals, and the faults, of one reader; each batch runs in a process of its own."""
    names = [f"{reader}-{index}" for index in range(start, start + count)]
    result = SimpleNamespace(tried=0, refused=0, faults=[], peak=0)
    context = multiprocessing.get_context("fork")
    while names:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(send, reader, seeds, names[:2000]))
        child.start()
        send.close()
        try:
            while receive.poll(4 * SECONDS):
                seed, fault, peak, too_large = receive.recv()
                names.remove(seed)
                result.tried += 1
                result.refused += fault == "refused"
                result.peak = max(result.peak, peak)
                if fault not in {None, "refused"}:
                    result.faults.append(fault)
                if too_large:
                    result.faults.append(f"{seed}: memory {peak / 1e9:.1f} GB")
            result.faults.append(f"{names[0]}: hang (not to be interrupted)")
            names.pop(0)
            child.kill()
        except EOFError:
            child.join()
            if child.exitcode:
                result.faults.append(f"{names[0]}: the process ended with {child.exitcode}")
                names.pop(0)
        child.join()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=30000, help="damaged files over all readers")
    parser.add_argument("--start", type=int, default=0, help="number of the first: another number, other damage")
    parser.add_argument("readers", nargs="*", default=list(READERS))
    options = parser.parse_args()
    each = -(-options.inputs // len(options.readers))
    total, faults, peak = 0, [], 0
    print(f"{'reader':<14}{'tried':>8}{'refused':>9}{'tracebacks':>12}{'hangs':>7}{'>1 GB':>7}{'peak MB':>9}{'s':>7}")
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        for reader in options.readers:
            begun = time.monotonic()
            one = fuzz(reader, Path(folder), each, options.start)
            kinds = [sum(word in fault for fault in one.faults) for word in (": hang", ": memory")]
            counts = [one.tried, one.refused, len(one.faults) - sum(kinds), *kinds]
            row = "".join(f"{count:>{width}}" for count, width in zip(counts, (8, 9, 12, 7, 7), strict=True))
            print(f"{reader:<14}{row}{one.peak / 1e6:>9.0f}{time.monotonic() - begun:>7.0f}", flush=True)
            total, faults, peak = total + one.tried, faults + one.faults, max(peak, one.peak)
    print(f"{total} damaged files, {len(faults)} faults, peak memory {peak / 1e6:.0f} MB")
    print("\n".join(faults[:40]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
