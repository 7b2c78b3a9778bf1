"""The PLUMED action UNCERTAINTY, compiled and run by the Python wrapper with torch loaded, and by ``plumed driver``."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from molecules import ALANINE

import uqbias
from uqbias.errors import UqbiasError
from uqbias.model.export import export_torchscript
from uqbias.plumed import compile_plugin as build
from uqbias.plumed.kernel import environment, find_kernel, make_plumed

pytestmark = pytest.mark.plumed
ROOT = Path(__file__).parents[2]
REGTEST = ROOT / "plugins" / "plumed" / "regtest"
#: Rows are lattice vectors, nm.
TRICLINIC = np.array([[3.0, 0.0, 0.0], [0.3, 3.2, 0.0], [-0.2, 0.4, 3.5]])


@pytest.fixture(scope="session")
def kernel():
    try:
        return find_kernel()
    except UqbiasError as error:
        pytest.skip(f"no PLUMED kernel: set PLUMED_KERNEL or put plumed on PATH ({error})")


@pytest.fixture(scope="session")
def plugin(kernel, tmp_path_factory):
    """Built once for these sources, this torch and this PLUMED."""
    if shutil.which("cmake") is None or build.find_compiler() is None:
        pytest.skip("no cmake or no C++ compiler to build the PLUMED plugin with")
    return build.build_plugin(tmp_path_factory.mktemp("plugin"), kernel)


@pytest.fixture(scope="session")
def files(alanine_model, tmp_path_factory):
    """Folder with ``<output>.pt`` and ``<output>_forces.pt`` of alanine dipeptide."""
    directory = tmp_path_factory.mktemp("exported")
    for output in ("judge", "driver", "energy"):
        export_torchscript(alanine_model, directory / f"{output}.pt", output)
        export_torchscript(alanine_model, directory / f"{output}_forces.pt", output, with_forces=True)
    return directory


@pytest.fixture(scope="session")
def small_files(tmp_path_factory):
    """Folder with the five-atom models of the regtests: also one that depends on the box, and one of components."""
    directory = tmp_path_factory.mktemp("small")
    load(REGTEST / "models.py").write_models(directory)
    return directory


@pytest.fixture(scope="session")
def positions(alanine_frames):
    """[22, 3] nm."""
    return np.ascontiguousarray(alanine_frames.positions[10])


@pytest.fixture(scope="session")
def cluster():
    """[5, 3] nm."""
    shape = np.array([[0, 0, 0], [0.105, 0.02, 0.01], [-0.05, 0.095, 0.01], [-0.06, -0.08, 0.09], [0.02, -0.13, 0.15]])
    return shape + 0.4


def load(path):
    specification = importlib.util.spec_from_file_location(f"regtest_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Host:
    """An MD code of a few atoms that biases with the value itself: forces are -du/dx, the virial is dE/dstrain."""

    def __init__(self, kernel, plugin, folder, n_atoms, *lines):
        self.log = folder / "log"
        self.n_atoms = n_atoms
        self.plumed = make_plumed(kernel)
        self.plumed.cmd("setNatoms", n_atoms)
        self.plumed.cmd("setMDEngine", "test")
        self.plumed.cmd("setTimestep", 0.001)
        self.plumed.cmd("setLogFile", str(self.log))
        self.plumed.cmd("init")
        for line in (f"LOAD FILE={plugin}", *lines):
            self.plumed.cmd("readInputLine", line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.plumed.finalize()

    def __call__(self, positions, box=TRICLINIC, masses=None):
        """Bias, forces [N, 3], virial [3, 3]."""
        forces, virial, bias = np.zeros((self.n_atoms, 3)), np.zeros((3, 3)), np.zeros(1)
        positions = np.ascontiguousarray(positions)
        masses = np.ones(self.n_atoms) if masses is None else masses
        self.plumed.cmd("setStep", 0)
        self.plumed.cmd("setPositions", positions)
        self.plumed.cmd("setForces", forces)
        self.plumed.cmd("setVirial", virial)
        self.plumed.cmd("setMasses", masses)
        box = None if box is None else np.ascontiguousarray(box)
        if box is not None:
            self.plumed.cmd("setBox", box)
        self.plumed.cmd("calc")
        self.plumed.cmd("getBias", bias)
        return float(bias[0]), forces, virial


@pytest.fixture
def host(kernel, plugin, tmp_path):
    def make(model, options="", n_atoms=22, before=(), after=("BIASVALUE ARG=u",)):
        line = f"u: UNCERTAINTY ATOMS=1-{n_atoms} MODEL={model} {options}"
        return Host(kernel, plugin, tmp_path, n_atoms, *before, line, *after)

    return make


@pytest.mark.parametrize("output", ["judge", "driver", "energy"])
@pytest.mark.parametrize("form", ["", "_forces"])
def test_single_precision_as_the_file_in_python(host, files, positions, output, form):
    points = torch.tensor(positions, dtype=torch.float32, requires_grad=True)
    expected = torch.jit.load(str(files / f"{output}.pt"))(points)
    (gradient,) = torch.autograd.grad(expected, points)
    with host(files / f"{output}{form}.pt") as md:
        value, forces, _ = md(positions)
        # A restarted run has to give the same bits, so no call may differ from the first.
        for _ in range(3):
            again = md(positions)
            assert again[0] == value
            np.testing.assert_array_equal(again[1], forces)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert np.abs(forces + gradient.numpy()).max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("output", ["judge", "driver", "energy"])
@pytest.mark.parametrize("form", ["", "_forces"])
def test_double_precision_is_double_throughout(host, files, alanine_model, positions, output, form):
    import copy

    # The file holds the weights in float32.
    model = copy.deepcopy(alanine_model).float().double()
    points = torch.tensor(positions, requires_grad=True)
    expected = getattr(model(points.unsqueeze(0)), output)[0]
    (gradient,) = torch.autograd.grad(expected, points)
    with host(files / f"{output}{form}.pt", "FLOAT64") as md:
        value, forces, _ = md(positions)
    assert value == pytest.approx(expected.item(), rel=1e-9)
    assert np.abs(forces + gradient.numpy()).max() <= 1e-9 * gradient.abs().max()


def differences(md, positions, box, step=1e-6):
    """Central differences of the bias: [N, 3] in the positions, [3, 3] in a strain of atoms and box."""
    atoms, strain = np.zeros_like(positions), np.zeros((3, 3))
    for index in np.ndindex(atoms.shape):
        shift = np.zeros_like(positions)
        shift[index] = step
        atoms[index] = (md(positions + shift, box)[0] - md(positions - shift, box)[0]) / (2 * step)
    for index in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[index] = step
        ends = [md(positions @ (np.eye(3) + s * shift), box @ (np.eye(3) + s * shift))[0] for s in (1, -1)]
        strain[index] = (ends[0] - ends[1]) / (2 * step)
    return atoms, strain


@pytest.mark.parametrize("name", ["judge.pt", "driver_forces.pt"])
def test_derivatives_of_atoms_and_box(host, files, positions, name):
    with host(files / name, "FLOAT64") as md:
        _, forces, virial = md(positions)
        atoms, strain = differences(md, positions, TRICLINIC)
    assert np.abs(forces + atoms).max() <= 1e-6 * np.abs(atoms).max()
    assert np.abs(virial - strain).max() <= 1e-6 * np.abs(strain).max()


def test_derivatives_of_a_model_that_takes_the_box(host, small_files, cluster):
    with host(small_files / "periodic.pt", "FLOAT64", 5) as md:
        _, forces, virial = md(cluster)
        atoms, strain = differences(md, cluster, TRICLINIC)
    assert np.abs(forces + atoms).max() <= 1e-6 * np.abs(atoms).max()
    assert np.abs(virial - strain).max() <= 1e-6 * np.abs(strain).max()
    # The box matters beyond the atoms that move with it.
    moment = -cluster.T @ forces
    assert np.abs(virial - moment).max() > 0.1 * np.abs(virial).max()


def test_broken_molecule_is_made_whole(host, files, positions):
    rng = np.random.default_rng(0)
    broken = positions + rng.integers(-2, 3, size=(22, 3)) @ TRICLINIC
    with host(files / "judge.pt", "FLOAT64") as md:
        whole, broken = md(positions), md(broken)
    for expected, found in zip(whole, broken, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_nopbc_takes_positions_as_they_are(host, files, positions):
    broken = positions.copy()
    broken[0] += TRICLINIC[0]
    with host(files / "judge.pt", "FLOAT64 NOPBC") as md:
        assert abs(md(positions)[0] - md(broken)[0]) > 1e-3


@pytest.mark.parametrize(("output", "factor"), [("judge", 1.0), ("energy", 4.184)])
def test_units(host, files, positions, output, factor):
    """BIASVALUE is in PLUMED's energy unit and reaches the engine in kJ/mol; only an energy means the same there."""
    with host(files / f"{output}.pt", "FLOAT64") as md:
        expected = md(positions)
    with host(files / f"{output}.pt", "FLOAT64", before=["UNITS LENGTH=A ENERGY=kcal/mol"]) as md:
        value, forces, virial = md(positions)
    scale = 4.184 / factor
    assert value == pytest.approx(scale * expected[0], rel=1e-9)
    np.testing.assert_allclose(forces, scale * expected[1], atol=1e-9 * np.abs(expected[1]).max())
    np.testing.assert_allclose(virial, scale * expected[2], atol=1e-9 * np.abs(expected[2]).max())


def test_components(host, small_files, cluster, tmp_path):
    after = [
        "BIASVALUE ARG=u.energy",
        f"PRINT ARG=u.value,u.energy,u.max FILE={tmp_path / 'COLVAR'} FMT=%.10f",
    ]
    with host(small_files / "components.pt", "FLOAT64 COMPONENTS", 5, after=after) as md:
        energy, forces, virial = md(cluster)
    with host(small_files / "energy.pt", "FLOAT64", 5) as md:
        expected = md(cluster)
    assert energy == pytest.approx(expected[0], rel=1e-9)
    np.testing.assert_allclose(forces, expected[1], atol=1e-9 * np.abs(forces).max())
    np.testing.assert_allclose(virial, expected[2], atol=1e-9 * np.abs(virial).max())
    with host(small_files / "driver.pt", "FLOAT64", 5) as md:
        driver = md(cluster)[0]
    printed = np.loadtxt(tmp_path / "COLVAR")[-3:]
    np.testing.assert_allclose(printed, [2 * driver + 1, expected[0], driver], rtol=1e-7)


def test_components_of_an_exported_model(host, alanine_model, positions, tmp_path):
    """A file of `export_torchscript` with components: each is a value that can be biased, in its own unit."""
    path = tmp_path / "components.pt"
    export_torchscript(alanine_model, path, "driver", components=["energy"])
    with torch.no_grad():
        expected = alanine_model(torch.tensor(positions)[None])
    biases = {}
    for name in ("value", "energy"):
        with host(path, "COMPONENTS", after=(f"BIASVALUE ARG=u.{name}",)) as md:
            biases[name], forces, _ = md(positions)
            assert np.abs(forces).max() > 1e-3
    assert biases["value"] == pytest.approx(float(expected.driver), rel=1e-4)
    assert biases["energy"] == pytest.approx(float(expected.energy), rel=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_a_mode_without_gradients(host, files, positions, mode):
    with host(files / "driver.pt") as md:
        expected = md(positions)
        with mode():
            found = md(positions)
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.abs(found[1]).max() > 0


def test_threads_of_the_host_stay(host, files, positions):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with host(files / "driver.pt") as md:
            md(positions)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_two_plumed_objects_at_once(host, files, positions):
    with host(files / "driver.pt") as first, host(files / "energy.pt") as second:
        values = first(positions)[0], second(positions)[0], first(positions)[0]
    assert values[0] == values[2] != values[1]


def test_masses_of_the_engine(host, files, alanine_frames, positions):
    from ase.data import atomic_masses

    masses = atomic_masses[alanine_frames.numbers]
    swapped = masses[::-1].copy()
    for given, warns in ((masses, False), (np.ones(22), False), (swapped, True)):
        with host(files / "driver.pt") as md:
            md(positions, masses=given)
            md(positions, masses=given)
        assert md.log.read_text().count("check the order of ATOMS") == warns


def rewrite(source, target, **changes):
    """A copy of an exported file with another manifest; None leaves it out."""
    extra = {"manifest.json": ""}
    module = torch.jit.load(str(source), _extra_files=extra)
    manifest = {**json.loads(extra["manifest.json"]), **changes}
    kept = {"manifest.json": json.dumps(manifest)} if None not in changes.values() else {}
    torch.jit.save(module, str(target), _extra_files=kept)
    return target


def test_model_of_another_torch_is_logged(host, files, positions, tmp_path):
    model = rewrite(files / "driver.pt", tmp_path / "old.pt", versions={"torch": "2.1.0"})
    with host(model) as md:
        md(positions)
    assert "WARNING: " in md.log.read_text()
    assert "exported with torch 2.1.0" in md.log.read_text()


@pytest.mark.parametrize(
    ("name", "options", "n_atoms", "message"),
    [
        ("missing.pt", "", 22, r"no such file: MODEL=.*missing\.pt; write one with uqbias\.export"),
        ("text.pt", "", 22, "is not a TorchScript file"),
        ("bare.pt", "", 22, r"has no manifest\.json"),
        ("driver.pt", "", 21, "ATOMS has 21 atoms and MODEL=.* was made for 22"),
        ("driver.pt", "COMPONENTS", 22, "gives one value only; leave COMPONENTS out"),
        ("driver.pt", "THREADS=0", 22, "THREADS=0, it must be at least 1"),
        ("driver.pt", "DEVICE=gpu", 22, "DEVICE=gpu is not a device; give cpu, cuda"),
        ("driver.pt", "DEVICE=mps", 22, "DEVICE=mps is not supported; give cpu, cuda"),
        ("driver.pt", "FLOAT32", 22, "FLOAT32"),
        ("periodic.pt", "NOPBC", 5, "is periodic; leave NOPBC out"),
        ("periodic_forces.pt", "", 5, "without the derivative in the box; export it with with_forces=False"),
    ],
)
def test_bad_input(host, files, small_files, tmp_path, name, options, n_atoms, message):
    (tmp_path / "text.pt").write_text("not a model")
    rewrite(files / "driver.pt", tmp_path / "bare.pt", format=None)
    rewrite(small_files / "periodic.pt", tmp_path / "periodic_forces.pt", with_forces=True)
    places = [folder / name for folder in (files, small_files, tmp_path) if (folder / name).exists()]
    with pytest.raises(Exception, match=message):
        host((places or [tmp_path / name])[0], options, n_atoms)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(host, files):
    with pytest.raises(Exception, match="DEVICE=cuda and torch sees no CUDA device; use DEVICE=cpu"):
        host(files / "driver.pt", "DEVICE=cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")
@pytest.mark.parametrize("form", ["", "_forces"])
def test_cuda_as_cpu(host, files, positions, form):
    with host(files / f"driver{form}.pt", "FLOAT64") as md:
        expected = md(positions)
    with host(files / f"driver{form}.pt", "FLOAT64 DEVICE=cuda") as md:
        for _ in range(4):
            found = md(positions)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9 * np.abs(a).max())


def test_periodic_model_needs_a_box(host, small_files, cluster):
    with host(small_files / "periodic.pt", "", 5) as md, pytest.raises(Exception, match="calculating u"):
        md(cluster, box=None)
    # The wrapper shows the outermost of PLUMED's nested errors; the log and other engines have all of them.
    assert "the model is periodic and the engine gives no box" in md.log.read_text()


def test_regtests_in_the_stand_alone_driver(kernel, plugin):
    """A process of its own, which has no Python in it; models and reference files of plugins/plumed/regtest."""
    done = subprocess.run(
        [sys.executable, str(REGTEST / "run.py"), "--plugin", str(plugin)],
        env=environment(kernel.path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == len(list(REGTEST.glob("rt-*")))


def test_regtest_runner_sees_a_difference(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REGTEST))
    run = load(REGTEST / "run.py")
    (tmp_path / "COLVAR.reference").write_text("#! FIELDS time driver\n 0.0 1.2097\n")
    (tmp_path / "COLVAR").write_text("#! FIELDS time driver\n 0.0 1.2098\n")
    assert run.compare(tmp_path / "COLVAR.reference", tmp_path / "COLVAR") == []
    for wrong in ("1.2107", "nan", "inf"):
        (tmp_path / "COLVAR").write_text(f"#! FIELDS time driver\n 0.0 {wrong}\n")
        assert len(run.compare(tmp_path / "COLVAR.reference", tmp_path / "COLVAR")) == 1
    assert run.compare(tmp_path / "COLVAR.reference", tmp_path / "HILLS") == ["HILLS was not written"]


def test_status_of_the_built_plugin(plugin):
    status = build.plugin_status(plugin)
    assert status["fault"] is None
    assert status["matches"] is True
    facts = json.loads(plugin.with_name(build.FACTS_NAME).read_text())
    assert (status["torch"], status["plumed"]) == (facts["torch"], facts["plumed"])
    assert facts["torch"] == torch.__version__
    assert "$ " in plugin.with_name(build.LOG_NAME).read_text()


def test_plugin_of_another_torch(host, plugin, kernel, files, tmp_path):
    ours = torch.__version__.encode()
    other = tmp_path / plugin.name
    other.write_bytes(plugin.read_bytes().replace(b"torch=" + ours, b"torch=1.7" + ours[3:]))
    status = build.plugin_status(other)
    assert status["fault"] == f"compiled against torch 1.7{torch.__version__[3:]}, this is torch {torch.__version__}"
    assert status["matches"] is False
    with pytest.raises(Exception, match=r"compiled against torch 1\.7.* and the process has loaded torch .*--build"):
        Host(kernel, other, tmp_path, 22, f"u: UNCERTAINTY ATOMS=1-22 MODEL={files / 'driver.pt'}")


def test_status_without_a_plugin(monkeypatch, tmp_path):
    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path))
    assert build.plugin_status()["path"] is None
    assert build.plugin_status(tmp_path / "no.so")["fault"] == f"no such file: {tmp_path / 'no.so'}"
    (tmp_path / "other.so").write_bytes(b"\x7fELF")
    assert "is not the plugin of uqbias" in build.plugin_status(tmp_path / "other.so")["fault"]


def test_build_names_what_is_missing(monkeypatch, kernel, plugin, tmp_path):
    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(build.shutil, "which", lambda name, path=None: None)
        with pytest.raises(UqbiasError, match="no cmake found; pip install cmake"):
            build.build_plugin(tmp_path, kernel)
    with monkeypatch.context() as patch:
        patch.setattr(build, "find_compiler", lambda: None)
        with pytest.raises(UqbiasError, match=r"no C\+\+ compiler found; install g\+\+"):
            build.build_plugin(tmp_path, kernel)


def test_build_without_headers(monkeypatch, kernel, plugin, tmp_path):
    """A kernel alone, as some packages ship it."""
    from dataclasses import replace

    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    library = tmp_path / "lib" / kernel.path.name
    library.parent.mkdir()
    shutil.copy(kernel.path, library)
    if any(Path(prefix, "include/plumed/core/Colvar.h").exists() for prefix in ("/usr", "/usr/local")):
        pytest.skip("PLUMED's headers are installed in the system")
    with pytest.raises(UqbiasError, match=r"^no PLUMED headers \(plumed/core/Colvar\.h\).*; the whole log is .*\.log$"):
        build.build_plugin(tmp_path, replace(kernel, path=library, executable=None))


def test_driver_example(kernel, plugin, alanine_model, tmp_path):
    """The whole path of a user: export, build, plumed driver, picture; with a model that is there already."""
    if kernel.executable is None:
        pytest.skip(f"no command plumed beside {kernel.path}")
    alanine_model.save(tmp_path / "model.uqb")
    path = [str(Path(sys.executable).parent), str(kernel.executable.parent), os.environ["PATH"]]
    done = subprocess.run(
        [str(ROOT / "examples" / "plumed" / "driver" / "run.sh")],
        cwd=tmp_path,
        env={**environment(kernel.path), "PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    medians = re.search(r"^driver u, nats: median (\S+) where phi < 0, (\S+) where", done.stdout, re.MULTILINE)
    assert float(medians[2]) > float(medians[1]) + 3
    frames = uqbias.read_frames(ALANINE / "reference" / "test_set.xyz")
    colvar = np.loadtxt(tmp_path / "COLVAR")
    assert len(colvar) == len(frames.positions) == 1344
    with torch.no_grad():
        prediction = alanine_model(torch.tensor(frames.positions[::100]))
    np.testing.assert_allclose(colvar[::100, 3], prediction.driver, atol=1e-3)
    np.testing.assert_allclose(colvar[::100, 4], prediction.judge, rtol=1e-3)
    assert (tmp_path / "figure.png").stat().st_size > 10000
