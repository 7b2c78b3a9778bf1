"""Every reader of a file, and one sound file for each: for tests that damage them."""

import contextlib
import shutil
from types import SimpleNamespace

import ase.io
import numpy as np
import torch
from molecules import PEROXIDE, peroxide, write_pdb
from synthetic_runs import make, write_run

from uqbias.bias.base import BiasSum
from uqbias.bias.metad import MetaD
from uqbias.campaign.label_requests import label_key
from uqbias.campaign.ledger import open_ledger
from uqbias.campaign.phases import observed, requests_of
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.cells import ISOLATED
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.molecule.sense import check_sense
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import UNCERTAINTIES
from uqbias.report.run_data import RunData
from uqbias.runs.hills import HillsFile, load_hills, read_hills
from uqbias.runs.reader import RunFolder
from uqbias.runs.series import read_colvar, rows_until
from uqbias.runs.snapshot import open_snapshot, restore_bias, write_snapshot
from uqbias.settings.file import load_campaign
from uqbias.units import EV, EV_PER_ANGSTROM

IDENTITY = {"seed": 1, "md.steps": 100}
#: Put in the place of an entry that is to be removed.
GONE = object()


def put(value, key, entry):
    """Change what stands at a dotted key of nested mappings and lists."""
    *above, last = [int(name) if name.isdecimal() else name for name in key.split(".")] if key else [None]
    if last is None:
        return entry
    holder = value
    for name in above:
        holder = holder[name]
    if entry is GONE:
        del holder[last]
    else:
        holder[last] = entry
    return value


def hills_bias():
    bias = MetaD(variables=["driver"], pace=1, sigma=0.3)
    for step in range(4):
        bias.update(step, np.array([[0.1 * step], [0.5]]))
    return bias


def write_seeds(folder):
    """One sound file for each reader, in a folder of the reader's name."""
    for reader in READERS:
        (folder / reader).mkdir()
    x = peroxide()[None] + np.random.default_rng(0).normal(scale=0.005, size=(12, 4, 3))
    numbers = PEROXIDE.numbers
    potential = PowerSpectrum(numbers, n_radial=3, n_channels=2, l_max=1, hidden=(4, 3))
    judge = UNCERTAINTIES.build("gmm", {"n_components": 1}, topology=PEROXIDE, n_latents=3)
    density = {"features": {"kind": "torsions", "heavy_only": False}, "capacity": 8}
    driver = UNCERTAINTIES.build("kernel_density", density, topology=PEROXIDE, n_latents=3)
    positions = torch.tensor(x, dtype=torch.float32)
    with torch.no_grad():
        energy, latents = potential(positions)
    for part in (judge, driver):
        part.prepare(positions)
        part.fit(positions, energy, latents, seed=0)
    UncertaintyModel(potential, judge, PEROXIDE, driver).save(folder / "model" / "model.uqb")

    write_pdb(folder / "campaign" / "structure.pdb", PEROXIDE, x[0])
    write_frames(folder / "campaign" / "start.xyz", Frames(np.array(numbers), x, None, None, [{} for _ in x]))
    (folder / "campaign" / "campaign.yaml").write_text(CAMPAIGN)

    with open_ledger(folder / "ledger", IDENTITY, np.array(numbers), {"seed": 1}) as ledger:
        for index, frame in enumerate(x[:3]):
            common = {"round": 0, "index": index, "key": label_key(frame, "oracle")}
            ledger.append("label", **common, positions=frame, energy=1.0, forces=0 * frame, info={"reason": "start"})
        ledger.append("failure", round=0, index=3, key="0" * 32, reason="no convergence")
        ledger.append("phase", round=0, phase="label", wall_s=0.1, labelled=3)

    report = folder / "report"
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(folder / "ledger" / name, report)
    (report / "campaign.yaml").write_text(CAMPAIGN)
    (report / "summary.json").write_text('{"stopped": "", "rounds": [{"round": 0, "labels": 3, "coverage": 0.5}]}')

    run = folder / "run"
    parts = [
        make("metadynamics", variables=["x"], sigma=0.1, pace=10),
        make("restraint", variables=["x"], at=1.0, kappa=2.0),
    ]
    parts[0][0].update(0, np.array([[0.3], [0.5]]))
    columns = {"x": np.linspace(0, 1, 10).reshape(5, 2)}
    write_run(run, columns, parts, positions=np.random.default_rng(1).normal(size=(5, 2, 2, 3)).astype(np.float32))
    harvest = folder / "harvest"
    (harvest / "harvest.json").write_text(
        '{"candidates": [{"energy": 1.0, "taken": true, "reason": "x"}, {"energy": null}]}'
    )
    np.savez(harvest / "harvest.npz", positions=x[:2].astype(np.float32), candidate=np.array([0, 1]))
    seen = folder / "observations" / "md"
    seen.mkdir()
    shape = (3, 2)
    values = {name: np.ones(shape) for name in ("energy", "driver", "judge")}
    np.savez(seen / "observations.npz", step=np.arange(3), positions=np.ones((*shape, 4, 3)), **values)

    write_data(folder, x)

    bias = hills_bias()
    arrays = {
        "positions": x[0],
        "velocities": x[0],
        "box": np.eye(3),
        "time": np.array(1.0),
        "step_count": np.array(10),
    }
    arrays |= {"checkpoint": np.zeros(4, np.uint8), "platform": np.array("Reference 8.5")}
    write_snapshot(folder / "snapshot" / "snapshot.npz", numbers, {"step": 10, "pace": 5}, arrays, BiasSum([bias]))
    with HillsFile(folder / "hills" / "HILLS", bias, 0.5) as hills:
        hills._written = 0
        hills()
    rows = "".join(f"{t:14.6f} 1.0 2.0 3.0 0.5 0\n" for t in range(20))
    (folder / "colvar" / "COLVAR").write_text("#! FIELDS time driver energy judge bias restarted\n" + rows)


def write_data(folder, x):
    """Frames of springs between all atoms in each format; ``x`` [n, N, 3] nm."""
    x = 10 * x
    apart = x[:, :, None] - x[:, None]
    length = np.linalg.norm(apart, axis=-1) + np.eye(x.shape[1])
    stretch = length - length.mean(axis=0)
    forces = -20 * (stretch / length)[..., None] * apart
    labels = {"R": x, "E": 5 * np.square(stretch).sum(axis=(1, 2)), "F": forces.sum(axis=2)}
    values = labels["E"] * EV, labels["F"] * EV_PER_ANGSTROM
    write_frames(folder / "xyz" / "frames.xyz", Frames(np.array(PEROXIDE.numbers), x / 10, *values))
    ase.io.write(folder / "traj" / "frames.traj", ase.io.read(folder / "xyz" / "frames.xyz", ":"))
    np.savez(folder / "npz" / "frames.npz", z=PEROXIDE.numbers, **labels, e_unit="eV", r_unit=np.array(b"Ang"))
    (folder / "deepmd" / "set.000").mkdir()
    for name, values in zip(("coord", "energy", "force"), labels.values(), strict=True):
        np.save(folder / "deepmd" / "set.000" / f"{name}.npy", values.reshape(len(x), -1))
    (folder / "deepmd" / "type.raw").write_text(" ".join(str(int(number == 1)) for number in PEROXIDE.numbers))
    (folder / "deepmd" / "type_map.raw").write_text("O H")


CAMPAIGN = """
name: peroxide
seed: 3
system: {structure: structure.pdb, start: start.xyz}
oracle: {kind: double_well}
potential: {n_channels: 3, n_radial: 4, l_max: 1, hidden: [8, 4]}
training: &training {steps: 4, evaluate_every: 2, runner: eager}
driver: {kind: kernel_density, features: {kind: torsions, heavy_only: false}, capacity: 64}
judge: {kind: gmm, n_components: 1}
md: {walkers: 2, steps: 50, pace: 10, observe_every: 10, trajectory_every: 50}
variables: {d: {kind: distance, atoms: [0, 1]}}
bias: [{kind: metadynamics, pace: 10}, {kind: upper_wall, at: 8.0}]
stop: {rounds: 2}
"""


def read_ledger(folder):
    with open_ledger(folder, IDENTITY, np.array(PEROXIDE.numbers), {}) as ledger:
        ledger.labels()
        ledger.failed(0)
        ledger.phase_done(0, "label")


def read_report(folder):
    run = RunData.load(folder)
    run.learned("coverage")
    if run.notes:
        raise UqbiasError(run.notes[0])


def read_run(folder):
    run = RunFolder(folder)
    for name in [*run.names(), "d:0-1"]:
        with contextlib.suppress(UqbiasError):
            run.column(name).in_degrees()
    for index, part in enumerate(run.parts):
        values = {name: np.linspace(0, 1, 4) for name in part.variables}
        run.energy_of(index, values.__getitem__)


def read_snapshot(folder):
    bias = BiasSum([hills_bias()])
    path = folder / "snapshot.npz"
    _, arrays = open_snapshot(path, PEROXIDE.numbers, {"pace": 5}, bias, 4)
    restore_bias(path, bias, arrays)


def read_the_hills(folder):
    load_hills(folder / "HILLS", 0.5)
    read_hills(folder / "HILLS", 0.5, bias=hills_bias())


def read_the_colvar(folder):
    read_colvar(folder / "COLVAR")
    rows_until(folder / "COLVAR", ["driver"], 10.0)


def read_data(path):
    check_sense(read_frames(path, labelled=False))
    check_sense(read_frames(path))


def work(folder):
    campaign = SimpleNamespace(md=SimpleNamespace(timestep_fs=0.5))
    return SimpleNamespace(
        folder=lambda _: folder,
        topology=PEROXIDE,
        oracle_identity="oracle",
        oracle_facts={},
        campaign=campaign,
        start=SimpleNamespace(cells=None, periodic=ISOLATED),
        ledger=SimpleNamespace(numbers=np.array(PEROXIDE.numbers)),
    )


#: Reader by name, which is given the folder with the damaged file.
READERS = {
    "model": lambda folder: UncertaintyModel.load(folder / "model.uqb"),
    "campaign": lambda folder: load_campaign(folder / "campaign.yaml"),
    "ledger": read_ledger,
    "report": read_report,
    "harvest": lambda folder: requests_of(work(folder), 1),
    "observations": lambda folder: observed(work(folder), 1),
    "run": read_run,
    "snapshot": read_snapshot,
    "hills": read_the_hills,
    "colvar": read_the_colvar,
    "xyz": lambda folder: read_data(folder / "frames.xyz"),
    "traj": lambda folder: read_data(folder / "frames.traj"),
    "npz": lambda folder: read_data(folder / "frames.npz"),
    "deepmd": read_data,
}
