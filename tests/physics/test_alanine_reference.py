"""The committed reference of alanine dipeptide: handedness, labels, surface and spread of the test set."""

import copy
from collections import Counter

import numpy as np
import pytest
import yaml
from molecules import ALANINE, ALANINE_PDB

from uqbias.molecule.frames import read_frames
from uqbias.molecule.measures import chirality, dihedral_angles
from uqbias.molecule.surface import ReferenceSurface, in_box, reached
from uqbias.molecule.topology import Topology, backbone_dihedrals, read_pdb
from uqbias.oracles.openmm import OpenMMOracle

SCORE = yaml.safe_load((ALANINE / "campaign.yaml").read_text())["score"]
START, TEST_SET = ALANINE / "start.xyz", ALANINE / "reference/test_set.xyz"


@pytest.fixture(scope="module")
def topology():
    return Topology.from_pdb(ALANINE_PDB)


@pytest.fixture(scope="module")
def surface():
    return ReferenceSurface.load(ALANINE / "reference/surface.csv")


@pytest.fixture(scope="module")
def oracle():
    return OpenMMOracle(ALANINE_PDB)


@pytest.fixture(scope="module", params=[START, TEST_SET], ids=["start", "test_set"])
def frames(request):
    return read_frames(request.param)


def angles_of(positions, topology):
    return np.degrees(dihedral_angles(positions, backbone_dihedrals(topology))).T


def basins(phi, psi):
    return set(reached({"phi": phi, "psi": psi}, SCORE["basins"]))


def phi_positive(phi):
    return in_box({"phi": phi}, SCORE["regions"]["phi_positive"])


def test_structure_is_l_alanine_by_the_corn_rule(topology):
    """Seen from the hydrogen, CO, R and N follow clockwise in an L amino acid."""
    atom = {(residue, name): i for i, (residue, name) in enumerate(zip(topology.residues, topology.names, strict=True))}
    x = read_pdb(ALANINE_PDB)[1]
    alpha = x[atom["ALA2", "CA"]]
    hydrogen, carbonyl, side, nitrogen = (x[atom["ALA2", name]] - alpha for name in ("HA", "C", "CB", "N"))
    for first, second in ((carbonyl, side), (side, nitrogen), (nitrogen, carbonyl)):
        assert hydrogen @ np.cross(first, second) < 0  # clockwise against the line of sight


def test_backbone_dihedrals_are_phi_and_psi(topology):
    names = [f"{topology.residues[i]}:{topology.names[i]}" for i in (4, 6, 8, 14, 16)]
    assert names == ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C", "NME3:N"]
    assert backbone_dihedrals(topology) == ((4, 6, 8, 14), (6, 8, 14, 16))
    phi, psi = angles_of(read_pdb(ALANINE_PDB)[1][None], topology)
    assert basins(phi, psi) == {"C7eq"}


def test_minimum_energy_is_at_negative_phi(topology, oracle):
    """A D-alanine structure would have its lowest minimum at φ > 0."""
    import openmm

    positions = read_pdb(ALANINE_PDB)[1]
    mirror = positions * [1, 1, -1]
    assert chirality(positions[None], topology.chiral_centres())[0, 0] == -1
    assert chirality(mirror[None], topology.chiral_centres())[0, 0] == 1
    system = oracle.system
    relaxed = {}
    for name, target in (("C7eq", (-80.0, 70.0)), ("C7ax", (65.0, -40.0))):
        restrained = copy.deepcopy(system)
        restraint = openmm.CustomTorsionForce("k*(1-cos(theta-t)); k=5000")
        restraint.addPerTorsionParameter("t")
        for quadruple, angle in zip(backbone_dihedrals(topology), target, strict=True):
            restraint.addTorsion(*quadruple, [np.radians(angle)])
        restrained.addForce(restraint)
        positions = read_pdb(ALANINE_PDB)[1]
        for minimised in (restrained, system):
            context = openmm.Context(
                minimised, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
            )
            context.setPositions(positions)
            openmm.LocalEnergyMinimizer.minimize(context, 1e-2)
            positions = context.getState(positions=True).getPositions(asNumpy=True)._value
        phi, psi = angles_of(positions[None], topology)
        assert basins(phi, psi) == {name}
        relaxed[name] = oracle.label(positions).energy
    assert relaxed["C7eq"] + 3 < relaxed["C7ax"]


def test_files_hold_the_oracles_labels(frames, oracle):
    assert tuple(frames.numbers) == oracle.numbers
    energies, forces = frames.labels()
    for index in range(0, len(frames), 7):
        label = oracle.label(frames.positions[index])
        assert energies[index] == pytest.approx(label.energy, abs=1e-4)
        np.testing.assert_allclose(forces[index], label.forces, atol=0.01)


def test_frames_are_physical(frames, topology):
    x = frames.positions
    assert (chirality(x, topology.chiral_centres()) == -1).all()
    omega = np.degrees(dihedral_angles(x, [(1, 4, 6, 8), (8, 14, 16, 18)]))
    assert (np.abs(omega) > 120).all()
    i, j = np.array(topology.bonds).T
    rest = read_pdb(ALANINE_PDB)[1]
    stretch = np.linalg.norm(x[:, i] - x[:, j], axis=-1) / np.linalg.norm(rest[i] - rest[j], axis=-1)
    assert 0.75 < stretch.min() < stretch.max() < 1.25
    energies, forces = frames.labels()
    # 60 harmonic degrees of freedom hold 30 kT = 75 kJ/mol above the minimum of -91, and F up to 10 kT comes on top.
    assert -60 < energies.min() < energies.max() < 110
    assert np.abs(forces).max() < 15000


def test_start_frames_stay_in_their_basin(topology):
    phi, psi = angles_of(read_frames(START).positions, topology)
    assert len(phi) == 100
    assert (phi < 0).all()
    assert basins(phi, psi) >= {"C7eq", "C5"}
    assert basins(phi, psi).isdisjoint({"C7ax", "alphaL"})
    # Decorrelated: neighbours in the file are no more alike than a random pair.
    neighbours = np.cos(np.radians(np.diff(psi))).mean()
    everyone = np.cos(np.radians(psi[:, None] - psi[None])).mean()
    assert abs(neighbours - everyone) < 0.25


def test_test_set_is_spread_evenly_over_the_accessible_bins(topology, surface):
    phi, psi = angles_of(read_frames(TEST_SET).positions, topology)
    assert len(phi) >= 1000
    assert surface.coverage(phi, psi) == 1.0
    assert (surface.at(phi, psi) <= 10.0).mean() > 0.99
    counts = Counter(map(tuple, surface.bins(phi, psi).tolist()))
    assert max(counts.values()) - min(counts.values()) <= 2  # rounding moves a frame over an edge now and then
    assert phi_positive(phi).sum() > 200
    assert basins(phi, psi) >= {"C7eq", "C5", "C7ax", "alphaR", "alphaL"}


def test_start_covers_little_of_the_map(topology, surface):
    phi, psi = angles_of(read_frames(START).positions, topology)
    assert 0.05 < surface.coverage(phi, psi) < 0.35


def test_surface_has_the_known_basins(surface):
    """C7ax lies about 2.9 kT above C7eq."""
    row, column = np.unravel_index(surface.free_energy.argmin(), surface.free_energy.shape)
    phi, psi = surface.centres[row], surface.centres[column]
    assert basins([phi], [psi]) <= {"C7eq", "C5"}
    assert phi < 0
    positive = np.where(phi_positive(surface.centres)[:, None], surface.free_energy, np.inf)
    row, column = np.unravel_index(positive.argmin(), positive.shape)
    assert basins([surface.centres[row]], [surface.centres[column]]) == {"C7ax"}
    assert positive.min() == pytest.approx(2.9, abs=0.5)
    assert 170 <= surface.accessible().sum() <= 200
