"""Collective variables: values against other programs, gradients, invariance, tracing, bad input."""

import doctest
import importlib
import json
import math

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALANINE_PDB
from scipy.spatial.transform import Rotation

from uqbias.compile.flatten import flatten
from uqbias.compile.runners import compile_function
from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import fixed_atoms, ordered_atoms
from uqbias.molecule.measures import dihedral_angles
from uqbias.molecule.topology import Topology, read_pdb
from uqbias.plumed.kernel import find_kernel, make_plumed
from uqbias.registry import VARIABLES
from uqbias.variables.base import CollectiveVariable

PHI = ["ACE1:C", "ALA2:N", "CA", "ALA2:C"]
CARBONS = [1, 4, 8, 10, 14, 18]
SPECS = {
    "distance": ({"kind": "distance", "atoms": ["CA", 5]}, "nm", None),
    "centres": ({"kind": "distance", "groups": [["ACE1:C", "ACE1:O", 6], [16, 18, 17]]}, "nm", None),
    "angle": ({"kind": "angle", "atoms": [4, "ALA2:N", "CA"]}, "rad", None),
    "dihedral": ({"kind": "dihedral", "atoms": PHI}, "rad", 2 * math.pi),
    "rmsd": ({"kind": "rmsd", "atoms": "heavy"}, "nm", None),
    "coordination": ({"kind": "coordination", "group_a": "heavy", "group_b": "all", "r0": 0.3}, "", None),
    "within": ({"kind": "coordination", "group_a": CARBONS, "r0": 0.25, "n": 5, "m": 9}, "", None),
    "position": ({"kind": "position", "axis": "y", "atom": "CA"}, "nm", None),
    "function": ({"kind": f"{__name__}:gyration", "unit": "nm"}, "nm", None),
}


def gyration(positions):
    return (positions - positions.mean(1, keepdim=True)).pow(2).sum(-1).mean(1).sqrt()


@pytest.fixture(scope="module")
def start():
    return read_pdb(ALANINE_PDB)[1]


@pytest.fixture(scope="module")
def topology():
    return Topology.from_pdb(ALANINE_PDB)


@pytest.fixture(scope="module")
def frames(start):
    """[6, N, 3]: thermal noise, turned and moved."""
    rng = np.random.default_rng(3)
    turned = [Rotation.random(rng=rng).apply(start + rng.normal(0, 0.02, start.shape)) for _ in range(6)]
    return torch.tensor(np.array(turned) + rng.normal(0, 1, (6, 1, 3)))


@pytest.fixture(params=SPECS)
def case(request, topology, start):
    spec, unit, period = SPECS[request.param]
    return VARIABLES.build(spec, topology=topology, start=start), unit, period


def value_and_gradient(variable):
    def function(inputs):
        x = inputs[0].detach().requires_grad_()
        value = variable(x)
        return value, torch.autograd.grad(value.sum(), x)[0]

    return function


def test_every_kind_is_tested():
    assert {spec["kind"] for spec, _, _ in SPECS.values()} >= set(VARIABLES.names())


@pytest.mark.parametrize("kind", ["distance", "angle", "dihedral", "rmsd", "coordination", "position"])
def test_example_in_the_docstring(kind):
    result = doctest.testmod(importlib.import_module(f"uqbias.variables.{kind}"))
    assert (result.failed, result.attempted > 3) == (0, True)


def test_unit_period_and_shape(case, frames):
    variable, unit, period = case
    assert isinstance(variable, CollectiveVariable)
    assert (variable.unit, variable.period) == (unit, period)
    for dtype in (torch.float64, torch.float32):
        found = variable(frames.to(dtype))
        assert found.shape == (6,)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), variable(frames), rtol=3e-5, atol=0)


def test_batch_equals_singles(case, frames):
    variable, _, _ = case
    singles = torch.cat([variable(frame[None]) for frame in frames])
    torch.testing.assert_close(variable(frames), singles, rtol=1e-12, atol=1e-12)


def test_invariant_under_motion(case, frames):
    variable, _, _ = case
    if not variable.invariant:
        moved = variable(frames + 0.7) - variable(frames)
        torch.testing.assert_close(moved, torch.full_like(moved, 0.7))
        return
    turn = torch.tensor(Rotation.from_rotvec([0.4, -1.1, 2.0]).as_matrix())
    torch.testing.assert_close(variable(frames @ turn.T + 0.7), variable(frames), rtol=1e-9, atol=1e-9)
    # A mirror image is another molecule to a signed angle and to a superposition, and to nothing else.
    mirrored = variable(frames * torch.tensor([1.0, 1.0, -1.0]))
    if variable.kind == "dihedral":
        torch.testing.assert_close(mirrored, -variable(frames))
    elif variable.kind == "rmsd":
        assert (mirrored > variable(frames) + 0.02).all()
    else:
        torch.testing.assert_close(mirrored, variable(frames))


def test_gradient_against_central_differences(case, frames):
    variable, _, _ = case
    x = frames[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(variable(x).sum(), x)
    assert gradient.norm() > 1e-2
    step = 1e-5
    for atom in (1, 4, 5, 6, 8, 14, 16, 18):
        for axis in range(3):
            shift = torch.zeros_like(frames[:2])
            shift[:, atom, axis] = step
            ahead, behind = variable(frames[:2] + shift), variable(frames[:2] - shift)
            slope = (ahead - behind) / (2 * step)
            torch.testing.assert_close(gradient[:, atom, axis], slope, rtol=1e-5, atol=1e-6)


def test_rebuilt_from_json(case, frames):
    variable, unit, period = case
    twin = VARIABLES.restore(json.loads(json.dumps(variable.describe())))
    assert (twin.kind, twin.unit, twin.period) == (variable.kind, unit, period)
    torch.testing.assert_close(twin(frames), variable(frames), rtol=0, atol=0)
    assert twin.describe() == variable.describe()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("runner", ["eager", "torchscript"])
def test_compiled(case, frames, runner, dtype):
    """Traced at one geometry, evaluated at others; torch.export, the way to aoti, takes the same graph."""
    variable, _, _ = case
    x, others = frames[:3].to(dtype).contiguous(), frames[3:].to(dtype).contiguous()
    function = value_and_gradient(variable)
    compiled = compile_function(function, [x], runner=runner)
    for found, expected in zip(compiled([others]), function([others]), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_exported_without_a_scatter(case, frames):
    """What AOTInductor is given has no operation that it may put in the wrong order; see `base.take`."""
    variable, _, _ = case
    function = value_and_gradient(variable)
    graph = flatten(function, [frames[:3]])
    assert not [word for word in ("index_add", "index_put", "scatter_add", "scatter(") if word in graph.code]
    program = torch.export.export(graph, (frames[:3],), strict=False)
    for found, expected in zip(program.module()(frames[3:]), function([frames[3:]]), strict=True):
        torch.testing.assert_close(found, expected.detach())


def test_finite_where_atoms_coincide_or_are_collinear(case):
    variable, _, _ = case
    line = torch.zeros(22, 3, dtype=torch.float64)
    line[:, 0] = torch.arange(22) * 0.1
    geometries = torch.stack([line, torch.zeros_like(line), line.roll(1, 1) * 1e6])
    for dtype in (torch.float32, torch.float64):
        x = geometries.to(dtype).requires_grad_()
        value = variable(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert torch.isfinite(value).all()
        if variable.kind != f"{__name__}:gyration":
            assert torch.isfinite(gradient).all()


def trajectory(frames, topology):
    return mdtraj.Trajectory(frames.numpy(), topology.to_mdtraj())


def test_values_of_distance_angle_dihedral(topology, frames):
    of_mdtraj = trajectory(frames, topology)
    for kind, atoms, function in (
        ("distance", [8, 5], mdtraj.compute_distances),
        ("angle", [4, 6, 8], mdtraj.compute_angles),
        ("dihedral", [4, 6, 8, 14], mdtraj.compute_dihedrals),
    ):
        found = VARIABLES.build({"kind": kind, "atoms": atoms}, topology=topology)(frames)
        np.testing.assert_allclose(found, function(of_mdtraj, [atoms])[:, 0], atol=3e-6)
    by_name = VARIABLES.build({"kind": "dihedral", "atoms": PHI}, topology=topology)(frames)
    np.testing.assert_allclose(by_name, dihedral_angles(frames.numpy(), [[4, 6, 8, 14]])[:, 0], atol=1e-6)
    np.testing.assert_allclose(by_name, mdtraj.compute_phi(of_mdtraj)[1][:, 0], atol=3e-6)


def test_dihedral_over_the_whole_circle(topology):
    angles = torch.linspace(-3.1, 3.1, 63, dtype=torch.float64)
    x = torch.zeros(63, 4, 3, dtype=torch.float64)
    x[:, 0, 0], x[:, 2, 2], x[:, 3, 2] = 0.1, 0.15, 0.15
    x[:, 3, 0], x[:, 3, 1] = 0.1 * angles.cos(), 0.1 * angles.sin()
    found = VARIABLES.build({"kind": "dihedral", "atoms": [0, 1, 2, 3]}, topology=topology)(x)
    torch.testing.assert_close(found, angles, rtol=0, atol=1e-6)


def test_value_between_centres_of_mass(topology, frames):
    spec, _, _ = SPECS["centres"]
    masses = topology.masses()
    centres = [
        np.average(frames[:, group].numpy(), axis=1, weights=masses[group]) for group in ([4, 5, 6], [16, 18, 17])
    ]
    expected = np.linalg.norm(centres[0] - centres[1], axis=-1)
    np.testing.assert_allclose(VARIABLES.build(spec, topology=topology)(frames), expected, atol=1e-7)


@pytest.mark.parametrize("atoms", ["heavy", "all", [10, 4, 8, 1], [4, 5]])
def test_rmsd_is_that_of_mdtraj(topology, start, frames, atoms):
    variable = VARIABLES.build({"kind": "rmsd", "atoms": atoms}, topology=topology, start=start)
    # mdtraj wants centred coordinates for its single precision to be worth something.
    centred = frames - frames.mean(1, keepdim=True)
    chosen = ordered_atoms(topology, atoms, "")
    reference = trajectory(torch.tensor(start - start.mean(0))[None], topology)
    expected = mdtraj.rmsd(trajectory(centred, topology), reference, atom_indices=chosen)
    # Single precision loses digits of the square, (Σ|x|² + Σ|y|² - 2 λ)/A; the next test has none to lose.
    np.testing.assert_allclose(variable(frames) ** 2, expected**2, atol=2e-6)


def test_rmsd_is_a_minimum_over_rotations(topology, start):
    """Far from the reference too, where a search from below may find another stationary rotation."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.2, (40, 22, 3))
    found = VARIABLES.build({"kind": "rmsd", "atoms": "all"}, topology=topology, start=start)(torch.tensor(x)).numpy()
    y = start - start.mean(0)
    for geometry, value in zip(x - x.mean(1, keepdims=True), found, strict=True):
        residual = Rotation.align_vectors(y, geometry)[1]
        assert value == pytest.approx(math.sqrt(residual**2 / 22 + 1e-8), rel=1e-9)


def test_rmsd_near_the_reference(topology, start):
    variable = VARIABLES.build({"kind": "rmsd", "atoms": "all"}, topology=topology, start=start)
    rng = np.random.default_rng(1)
    direction = rng.normal(0, 1, start.shape)
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor(start, dtype=dtype)[None].requires_grad_()
        value = variable(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.item() == pytest.approx(1e-4, rel=1e-3)
        assert gradient.abs().max() < 1e-2
    for scale in (1e-6, 1e-5, 1e-4, 1e-3):
        x = torch.tensor(start + scale * direction)[None].requires_grad_()
        assert torch.autograd.gradcheck(variable, (x,), eps=1e-8, atol=1e-5, rtol=1e-4)


def test_rmsd_of_linear_molecules(start):
    """Two eigenvalues of the key matrix coincide, the rotation is not unique, the RMSD is."""
    dioxide = Topology((8, 6, 8), ((0, 1), (1, 2)))
    straight = [[-0.116, 0, 0], [0, 0, 0], [0.116, 0, 0]]
    variable = VARIABLES.build({"kind": "rmsd", "atoms": "all", "reference": straight}, topology=dioxide)
    stretched = torch.tensor([[[0, -0.126, 0], [0, 0, 0], [0, 0.126, 0]]], dtype=torch.float64, requires_grad=True)
    value = variable(stretched)
    assert value.item() == pytest.approx(math.sqrt(2 / 3 * 0.01**2 + 1e-8), rel=1e-9)
    (gradient,) = torch.autograd.grad(value.sum(), stretched)
    assert gradient[0, 2].tolist() == pytest.approx([0, 0.01 / 3 / value.item(), 0], abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(6, 12), (6, 10), (5, 9), (1, 2), (12, 24)])
def test_coordination_is_the_rational_function(topology, frames, n, m):
    spec = {"kind": "coordination", "group_a": [4, 6], "group_b": [6, 8, 14, 21], "r0": 0.27, "n": n, "m": m}
    pairs = [(4, 6), (4, 8), (4, 14), (4, 21), (6, 8), (6, 14), (6, 21)]
    first, second = np.array(pairs).T
    ratio = np.linalg.norm(frames[:, first].numpy() - frames[:, second].numpy(), axis=-1) / 0.27
    expected = ((1 - ratio**n) / (1 - ratio**m)).sum(1)
    np.testing.assert_allclose(VARIABLES.build(spec, topology=topology)(frames), expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(6, 12), (5, 9)])
def test_coordination_at_r0(n, m):
    """The quotient is 0/0 at r0; its value is n/m and its slope n (n - m)/(2 m r0)."""
    pair = Topology((8, 1), ((0, 1),))
    options = {"group_a": [0], "group_b": [1], "r0": 0.25, "n": n, "m": m}
    x = torch.tensor([[[0.0, 0, 0], [0.25, 0, 0]]], dtype=torch.float64, requires_grad=True)
    value = VARIABLES.build({"kind": "coordination", **options}, topology=pair)(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.item() == pytest.approx(n / m, rel=1e-6)
    assert gradient[0, 1, 0].item() == pytest.approx(n * (n - m) / (2 * m * 0.25), rel=1e-6)


def test_straight_angle():
    chain = Topology((8, 6, 8), ((0, 1), (1, 2)))
    bend = VARIABLES.build({"kind": "angle", "atoms": [0, 1, 2]}, topology=chain)
    for degrees in (0.5, 30.0, 120.0, 179.5):
        radians = math.radians(degrees)
        end = [0.12 * math.cos(radians), 0.12 * math.sin(radians), 0.0]
        x = torch.tensor([[[0.15, 0, 0], [0, 0, 0], end]], dtype=torch.float64)
        assert bend(x).item() == pytest.approx(radians, abs=2e-7)
    x = torch.tensor([[[0.15, 0, 0], [0, 0, 0], [-0.12, 0, 0]]], dtype=torch.float64, requires_grad=True)
    value = bend(x)
    assert value.item() == pytest.approx(math.pi, abs=1e-4)
    # That of a bent angle is 1/0.12.
    assert torch.autograd.grad(value.sum(), x)[0].abs().max() < 1e-3


@pytest.mark.plumed
def test_values_and_gradients_of_plumed(topology, start, frames, tmp_path):
    try:
        make_plumed(find_kernel())
    except UqbiasError as error:
        pytest.skip(f"no PLUMED kernel ({error})")
    heavy = [i + 1 for i, number in enumerate(topology.numbers) if number > 1]
    atoms = "".join(
        f"ATOM  {i:5d}  X   XXX A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  1.00\n"
        for i, (x, y, z) in ((i, start[i - 1] * 10) for i in heavy)
    )
    (tmp_path / "reference.pdb").write_text(atoms + "END\n")
    numbers = ",".join(map(str, heavy))
    lines = {
        "distance": "DISTANCE NOPBC ATOMS=9,6",
        "angle": "ANGLE NOPBC ATOMS=5,7,9",
        "dihedral": "TORSION NOPBC ATOMS=5,7,9,15",
        "rmsd": f"RMSD NOPBC TYPE=OPTIMAL REFERENCE={tmp_path}/reference.pdb",
        "within": f"COORDINATION NOPBC GROUPA={','.join(str(i + 1) for i in CARBONS)} R_0=0.25 NN=5 MM=9",
        "coordination": f"COORDINATION NOPBC GROUPA={numbers} GROUPB=1-22 R_0=0.3",
    }
    for name, line in lines.items():
        variable = VARIABLES.build(SPECS[name][0], topology=topology, start=np.round(start, 4))
        engine = make_plumed(find_kernel())
        engine.cmd("setNatoms", 22)
        engine.cmd("setMDEngine", "test")
        engine.cmd("setTimestep", 0.001)
        engine.cmd("setLogFile", str(tmp_path / "log"))
        engine.cmd("init")
        engine.cmd("readInputLine", f"x: {line}")
        # The bias is x itself, so that the forces are -dx/dpositions.
        engine.cmd("readInputLine", "b: RESTRAINT ARG=x AT=0 SLOPE=1 KAPPA=0")
        for frame in frames[:3]:
            x = np.ascontiguousarray(frame.numpy())
            forces, bias, masses = np.zeros((22, 3)), np.zeros(1), topology.masses()
            engine.cmd("setStep", 0)
            engine.cmd("setMasses", masses)
            engine.cmd("setPositions", x)
            engine.cmd("setForces", forces)
            engine.cmd("setVirial", np.zeros((3, 3)))
            engine.cmd("calc")
            engine.cmd("getBias", bias)
            value, gradient = value_and_gradient(variable)([frame[None]])
            # PLUMED stretches its switching function to be 0 where the rational one is 1e-5.
            pairs = int(variable.counted.sum()) if variable.kind == "coordination" else 0
            expected = (value.item() - 1e-5 * pairs) / (1 - 1e-5 * bool(pairs))
            assert bias[0] == pytest.approx(expected, abs=1e-6)
            np.testing.assert_allclose(-forces * (1 - 1e-5 * bool(pairs)), gradient[0], atol=2e-5)
        engine.finalize()


def test_lookup_keeps_the_order(topology):
    assert ordered_atoms(topology, [9, "CA", 0], "") == (9, 8, 0)
    assert ordered_atoms(topology, ["C"], "") == (4, 14, 18)
    assert ordered_atoms(topology, "all", "") == tuple(range(22))
    assert fixed_atoms(topology, ["CB", "NME3:N"], 2, "") == (10, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("distanse", "unknown variable 'distanse'; did you mean 'distance'"),
        ({"atoms": [0, 1]}, "has no kind"),
        ("distance", "needs atoms or groups"),
        ({"kind": "distance", "atoms": [0, 1], "groups": [[0], [1]]}, "needs atoms or groups"),
        ({"kind": "distance", "atoms": [0, 1, 2]}, r"atoms \[0, 1, 2\]; list should have at most 2"),
        ({"kind": "distance", "atoms": "heavy"}, "'heavy'; input should be a valid list"),
        (
            {"kind": "distance", "groups": [[0], [1], [2]]},
            r"groups \[\[0\], \[1\], \[2\]\]; list should have at most 2",
        ),
        ({"kind": "distance", "groups": [[0], []]}, "chooses no atom"),
        ({"kind": "distance", "atoms": [3, 3]}, r"atom 3 \(ACE1:H3\) twice"),
        ({"kind": "distance", "atoms": [0, 22]}, "22 in a molecule of 22 atoms; atoms are numbered from 0"),
        ({"kind": "distance", "atoms": [-1, 2]}, "-1 in a molecule"),
        ({"kind": "distance", "atoms": [True, 2]}, r"\[True, 2\]; input should be a valid integer"),
        ({"kind": "distance", "atoms": ["CAA", 2]}, "no atom is called 'CAA'; did you mean 'CA'"),
        ({"kind": "distance", "atoms": ["ALA1:CA", 2]}, "did you mean 'ALA2:CA'"),
        ({"kind": "distance", "atoms": ["C", 2]}, "'C' is the name of 3 atoms; say which: ACE1:C, ALA2:C, NME3:C"),
        ({"kind": "angle", "atoms": [0, 1]}, "at least 3 items"),
        ({"kind": "angle"}, "variable 'angle' without atoms"),
        ({"kind": "angle", "atom": [0, 1, 2]}, "unknown option 'atom'.*did you mean 'atoms'"),
        ({"kind": "dihedral", "atoms": [0, 1, 2]}, "at least 4 items"),
        ({"kind": "rmsd"}, "without reference"),
        ({"kind": "rmsd", "atoms": [1], "reference": np.zeros((22, 3))}, "rmsd of 1 atom"),
        ({"kind": "rmsd", "atoms": "light", "reference": np.zeros((22, 3))}, "'light'"),
        ({"kind": "rmsd", "reference": np.zeros((21, 3))}, r"shape \(21, 3\).*all 22 atoms"),
        ({"kind": "rmsd", "reference": np.full((22, 3), np.nan)}, "finite number"),
        ({"kind": "coordination", "group_a": [0, 1]}, "without r0"),
        ({"kind": "coordination", "group_a": [0, 1], "r0": -1}, "r0 -1"),
        ({"kind": "coordination", "group_a": [0, 1], "r0": 1, "n": 6, "m": 6}, "0 < n < m"),
        ({"kind": "coordination", "group_a": [0, 1], "r0": 1, "n": 2.5}, "n 2.5; input should be a valid integer"),
        ({"kind": "coordination", "group_a": [0], "group_b": [0], "r0": 1}, "an atom with itself"),
        ("os:system", "'os:system' is not a variable"),
        ("json:JSONDecoder", "is not a variable"),
        ("nowhere.at.all:f", "cannot be imported"),
        (f"{__name__}:per_atom", r"gave \(2, 22\) for 2 geometries"),
        ({"kind": f"{__name__}:gyration", "units": "nm"}, "did you mean 'unit'"),
    ],
)
def test_bad_input(topology, spec, message):
    with pytest.raises(UqbiasError, match=message):
        VARIABLES.build(spec, topology=topology)


def per_atom(positions):
    return positions.sum(-1)


def test_molecule_without_names():
    water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    with pytest.raises(UqbiasError, match="no atom is called 'O'; this molecule has no atom names"):
        VARIABLES.build({"kind": "distance", "atoms": ["O", 1]}, topology=water)
    with pytest.raises(UqbiasError, match=r"atom 1 \(1\) twice"):
        VARIABLES.build({"kind": "distance", "atoms": [1, 1]}, topology=water)


class Mean(CollectiveVariable):
    """A third party's class."""

    def __init__(self, atoms):
        super().__init__()
        self.atoms = list(atoms)

    @classmethod
    def build(cls, topology, *, atoms):
        return cls(ordered_atoms(topology, atoms, "atoms of mean"))

    def options(self):
        return {"atoms": self.atoms}

    def forward(self, positions):
        return positions[:, self.atoms].pow(2).sum((1, 2))


def test_class_and_function_by_path(topology, frames):
    made = VARIABLES.build({"kind": f"{__name__}:Mean", "atoms": ["CA"]}, topology=topology)
    torch.testing.assert_close(VARIABLES.restore(made.describe())(frames), frames[:, 8].pow(2).sum(-1))
    turn = VARIABLES.build({"kind": f"{__name__}:gyration", "period": 3, "unit": "rad"}, topology=topology)
    twin = VARIABLES.restore(turn.describe())
    assert (twin.period, twin.unit) == (3.0, "rad")
    torch.testing.assert_close(twin(frames), gyration(frames))
