"""Sense of frames that come in: geometries against bonds, energies against forces.

A file in bohr, cut molecules or gradients in the place of forces have the right form and train a wrong model. What is
refused here is far outside what a molecule does; where data cannot tell, nothing is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uqbias.errors import UqbiasError
from uqbias.molecule.cells import EVERYWHERE, Periodic, moves, volume
from uqbias.molecule.frames import Frames
from uqbias.molecule.labels import likely_units
from uqbias.molecule.measures import distances
from uqbias.molecule.protons import with_mobile_protons
from uqbias.molecule.structure import from_distances, made_whole
from uqbias.molecule.topology import Topology
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM

Array = NDArray[np.float64]
#: H, B, C, N, O, F, Si, P, S, Cl, Br, I: atoms that are rarely without a bond.
COVALENT = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
#: Distance to the nearest atom, in sums of covalent radii (1 where all is well), to what the file then is in: if too
#: short, in most frames; if too long, in all but the share of `SHORTEST`, since bonds are stretched, but not always.
LENGTH_UNITS = {
    (0.08, 0.13): "the positions are in nm",
    (0.45, 0.62): "the positions were converted from bohr twice",
    (1.4, 2.2): "the positions are in bohr",
    (8.0, 13.0): "the positions are 10 times too long, Å taken for nm",
    (80.0, 130.0): "the positions are in pm",
}
SHORTEST = 0.05
#: Atoms closer than this are in one place; up to the second they are surely bonded, beyond the last surely not.
OVERLAP, BONDED, BROKEN = 0.35, 1.15, 2.5
#: Step between lengths of a bond, in sums of covalent radii, that no scan makes.
GAP = 0.4
#: A bond longer than this in nearly every frame is none; bonds of hydrogen are short, and vibrate and jump more.
NEVER, NEVER_HYDROGEN = 1.45, 1.6
#: In a cell nothing is looked for beyond so many sums of covalent radii.
FAR = 2.2
#: Share of the frames that is nearly all.
NEARLY_ALL = 0.95
#: Spread of the energies, eV an atom, that no geometry explains: bonds are worth 3 to 5.
ABSURD_SPREAD = 15.0
#: Frames that are compared with each other; distances that are measured together.
COMPARED, ENTRIES = 1000, 2_000_000
#: Cells that differ by less strain do no work.
SAME_CELL = 1e-7
#: Å: largest move of an atom between frames whose energies are compared, and between frames that are surely near.
NEAR, NEAREST = 0.4, 0.15
#: Pairs of near frames that a slope needs, and its correlation; the same of frames for a force constant.
FEWEST_PAIRS, SURE_SLOPE = 6, 0.92
#: Surely near pairs, the spread of their work in eV, and the correlation below which labels do not belong together.
FEWEST_NEAREST, ENOUGH_WORK, UNRELATED = 10, 0.01, 0.7
FEWEST_FRAMES, SURE_BOND = 10, 0.85
CUT = "the molecule is cut by the edge of a periodic box, or has come apart"
WHOLE = "make the molecules whole, or leave such frames out"


def check_molecule(frames: Frames, numbers: Sequence[int], owner: str) -> None:
    """Refuse frames of another molecule than ``owner``, which has the atomic ``numbers`` [N].

    Raises
    ------
    UqbiasError
        If the atoms, or their order, differ.
    """
    there, wanted = frames.numbers.tolist(), [int(number) for number in numbers]
    if there != wanted:
        order = ", the same in another order" if sorted(there) == sorted(wanted) else ""
        raise UqbiasError(
            f"{frames.source} has atoms {there}, {owner} {wanted}{order}",
            "use the same molecule, in the same order of atoms, in both",
        )


def check_sense(frames: Frames, topology: Topology | None = None, owner: str = "the structure") -> None:
    """Refuse frames of another molecule, or whose geometries or labels make no sense.

    Parameters
    ----------
    topology : bond graph; if None, that of the distances in the first frame.
    owner : what has this bond graph, for messages.

    Raises
    ------
    UqbiasError
        With atoms and lengths, or the energies and forces, and what they most likely are.
    """
    if topology is not None:
        check_molecule(frames, topology.numbers, owner)
    cell = (frames.cells, frames.periodic)
    check_geometries(frames.positions, frames.numbers.tolist(), topology, frames.source, *cell)
    check_labels(frames)


def check_geometries(
    positions: Array,
    numbers: Sequence[int],
    topology: Topology | None = None,
    source: str = "frames",
    cells: Array | None = None,
    periodic: Periodic = EVERYWHERE,
) -> None:
    """Compare distances with covalent radii and bonds.

    Parameters
    ----------
    positions : [n, N, 3] nm, finite.
    numbers : [N] atomic numbers.
    topology : bond graph; if None, that of the distances in the first frame.
    source : the file, for messages.
    cells : [n, 3, 3] nm; None in vacuum.
    periodic : whether they repeat along each lattice vector.

    Raises
    ------
    UqbiasError
        For positions in another unit, atoms in one place, bonds that are none, and molecules that are cut.
    """
    from ase.data import covalent_radii

    if not len(positions) or (len(numbers) < 2 and cells is None):
        return
    radii = covalent_radii[list(numbers)] * ANGSTROM
    if cells is None:
        close, bonded = _near(positions, radii)
    else:
        close, bonded = _near_in_cells(positions, radii, cells, periodic)
    covalent = np.isin(numbers, COVALENT)
    if covalent.any() and (topology is None or topology.bonds or topology.network):
        middle = float(np.median(close[:, covalent]))
        shortest = float(np.median(np.quantile(close[:, covalent], SHORTEST, axis=0)))
        for (low, high), unit in LENGTH_UNITS.items():
            typical = middle if high < 1 else shortest
            if low < typical < high:
                raise UqbiasError(
                    f"{source}: the nearest atoms are {typical:.2g} bond lengths apart; most likely {unit}",
                    "write them in Å (ase.io.write does)",
                )
    frame, i = np.unravel_index(close.argmin(), close.shape)
    if close[frame, i] < OVERLAP:
        j, apart = _nearest(positions[frame], int(i), None if cells is None else cells[frame], periodic)
        raise UqbiasError(
            f"{source}: atoms {i} and {j} are {apart / ANGSTROM:.2f} Å apart in frame {frame}",
            "leave that frame out, or check how it was made",
        )
    if topology is None:
        graph = from_distances(numbers, positions[0], None if cells is None else cells[0], periodic)
        topology = with_mobile_protons(graph, positions)
    _check_bonds(positions, topology, close, source)
    always = np.triu(bonded >= NEARLY_ALL * len(positions)) & covalent & covalent[:, None]
    bonds = topology.either_side().bonds
    missing = [(i, j) for i, j in np.argwhere(always).tolist() if (i, j) not in bonds and not topology.network & {i, j}]
    if missing:
        length = float(np.median(distances(positions, np.array(missing[:1])))) / ANGSTROM
        raise UqbiasError(
            f"{source}: atoms {_names(topology, *missing[0])} are {length:.2f} Å apart and not bonded in the structure",
            "check its bonds (CONECT), and that its atoms have the order of the frames; without a structure the first "
            "frame gives the bonds",
        )


def _near(positions: Array, radii: Array) -> tuple[Array, NDArray[np.int64]]:
    """Distances [n, N] to the nearest atom, in sums of covalent ``radii`` [N], and how often each pair is bonded."""
    n_atoms = len(radii)
    sums = radii[:, None] + radii
    close, bonded = np.empty((len(positions), n_atoms)), np.zeros((n_atoms, n_atoms), dtype=np.int64)
    block = max(1, ENTRIES // n_atoms**2)
    for start in range(0, len(positions), block):
        x = positions[start : start + block]
        ratio = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) / sums
        ratio[:, range(n_atoms), range(n_atoms)] = np.inf
        close[start : start + block] = ratio.min(axis=2)
        bonded += (ratio < BONDED).sum(axis=0)
    return close, bonded


def _near_in_cells(positions: Array, radii: Array, cells: Array, periodic: Periodic) -> tuple[Array, NDArray[np.int64]]:
    """The same with images; infinite where no atom is within `FAR` sums."""
    from uqbias.molecule.neighbours import pairs_by_tree

    n_atoms, reach = len(radii), 2 * FAR * float(radii.max())
    close, bonded = np.full((len(positions), n_atoms), np.inf), np.zeros((n_atoms, n_atoms), dtype=np.int64)
    for frame, (x, cell) in enumerate(zip(positions, cells, strict=True)):
        _, i, j, shifts = pairs_by_tree(x[None], cell[None], periodic, reach)
        ratio = np.linalg.norm(x[j] - x[i] + shifts @ cell, axis=1) / (radii[i] + radii[j])
        np.minimum.at(close[frame], i, ratio)
        near = np.zeros_like(bonded, dtype=bool)
        near[i[ratio < BONDED], j[ratio < BONDED]] = True
        bonded += near
    return close, bonded


def _nearest(x: Array, i: int, cell: Array | None, periodic: Periodic) -> tuple[int, float]:
    """The atom, which may be an image, that is nearest to atom ``i`` of positions [N, 3], and how far it is, nm."""
    steps = [range(-1, 2) if repeats and cell is not None else (0,) for repeats in periodic]
    images = np.array(list(itertools.product(*steps))) @ (np.eye(3) if cell is None else cell)
    apart = np.linalg.norm(x + images[:, None] - x[i], axis=-1)
    apart[len(images) // 2, i] = np.inf
    j = int(apart.min(axis=0).argmin())
    return j, float(apart[:, j].min())


def _check_bonds(positions: Array, topology: Topology, close: Array, source: str) -> None:
    from ase.data import covalent_radii

    if not topology.bonds:
        return
    bonds, elements = np.array(topology.bonds), np.array(topology.numbers)
    lengths = distances(positions, bonds)
    for place, (_, h, a) in zip(topology.mobile_bonds(), topology.mobile, strict=True):
        lengths[:, place] = np.minimum(lengths[:, place], distances(positions, np.array([(a, h)]))[:, 0])
    ratio = lengths / (covalent_radii[elements[bonds]] * ANGSTROM).sum(axis=1)
    hydrogen = elements[bonds] == 1
    usual = np.quantile(ratio, 1 - NEARLY_ALL, axis=0)
    never = usual > np.where(hydrogen.any(axis=1), NEVER_HYDROGEN, NEVER)
    # A hydrogen that has a neighbour at its usual distance has moved there.
    jumped = (hydrogen & (close[:, bonds] < NEVER)).any(axis=2)
    # A bond that is stretched bit by bit has all lengths, one that is cut has a gap.
    steps = np.diff(np.sort(np.vstack([np.ones(len(bonds)), ratio]), axis=0), axis=0)
    apart = (ratio > BROKEN) & ~jumped & (steps.max(axis=0) > GAP)
    if never.any():
        worst = int(np.where(never, usual, 0).argmax())
        frame = 0
        elsewhere = (close[:, bonds[worst]] < NEVER).mean() > 0.5
        likely = "the frames have their atoms in another order than the structure" if elsewhere else CUT
        count = f", as {int(never.sum()) - 1} more of {len(bonds)} bonds" if never.sum() > 1 else ""
        cure = "write both in the same order of atoms" if elsewhere else WHOLE
    elif apart.any():
        frame, worst = (int(index) for index in np.unravel_index(np.where(apart, ratio, 0).argmax(), apart.shape))
        many = int(apart.any(axis=1).sum())
        likely, cure, count = CUT, WHOLE, f"; {many} of {len(positions)} frame(s) have such a bond" if many > 1 else ""
    else:
        return
    raise UqbiasError(
        f"{source}: bond {_names(topology, *bonds[worst].tolist())} of the structure is "
        f"{lengths[frame, worst] / ANGSTROM:.2f} Å long in frame {frame}{count}; most likely {likely}",
        cure,
    )


def _names(topology: Topology, i: int, j: int) -> str:
    from ase.data import chemical_symbols

    names = [topology.names[k] or chemical_symbols[topology.numbers[k]] for k in (i, j)]
    return f"{names[0]}-{names[1]} (atoms {i} and {j})"


def check_labels(frames: Frames, beside: Frames | None = None) -> None:
    """Compare energies and forces with each other and with what bonds of hydrogen need.

    Between near frames a and b the energies differ by E_b - E_a = -(F_a + F_b)/2 · (x_b - x_a), exactly so in a
    harmonic potential. A bond of hydrogen has a force constant of 17 to 60 eV/Å² whatever the method.

    Parameters
    ----------
    beside : labelled frames that are known to be right, which these are compared with too.

    Raises
    ------
    UqbiasError
        For forces that are zero, energies that are equal or absurdly far apart, and units or signs that do not fit.
    """
    energies, source = frames.energies, frames.source
    if energies is None or not len(energies):
        return
    slope = fault = None
    if frames.forces is not None and len(frames.numbers) > 1:
        zero = np.flatnonzero(~frames.forces.any(axis=(1, 2)))
        # A minimum may have forces of zero; two frames, or one that is not the lowest, have not. Perfect crystals have.
        several = len(zero) > 1 or (len(zero) and zero[0] != energies.argmin())
        if several and (frames.cells is None or len(zero) == len(frames)):
            raise UqbiasError(
                f"{source}: the forces of {len(zero)} of {len(frames)} frames, the first of them frame {zero[0]}, are "
                "all zero; most likely they were not computed",
                "compute them, or leave these frames out",
            )
        both = frames if beside is None else Frames.concatenate([frames, beside])
        e, f = both.labels()[0] / EV, both.labels()[1] / EV_PER_ANGSTROM
        first = None if frames.cells is None else frames.cells[0]
        graph = from_distances(frames.numbers.tolist(), frames.positions[0], first, frames.periodic)
        x = made_whole(graph, both.positions, both.cells, frames.periodic) / ANGSTROM
        work, rise, moved = _work(x, e, f) if frames.cells is None else _work_in_cells(both)
        n = len(frames)
        slope = _slope(work[:n], rise[:n], moved[:n])
        fault = likely_units(slope, _stiffness(graph, x[:n], f[:n]), len(frames.numbers))
    if beside is None:
        apart, whose = float(np.ptp(energies)), f"frames {energies.argmin()} and {energies.argmax()} are"
    else:  # what a model proposes may have any energy, but not all of it
        apart = abs(float(np.median(energies) - np.median(beside.labels()[0])))
        whose = "most frames and of those before are"
    if apart / EV > ABSURD_SPREAD * len(frames.numbers) and (fault is None or slope == 0):
        raise UqbiasError(
            f"{source}: the energies of {whose} {apart / EV:.6g} eV apart; most likely in two units or by two methods",
            "keep energies of one method, in eV, in one file",
        )
    if fault is not None:
        raise UqbiasError(f"{source}: {fault.what}", fault.cure)


def _work(x: Array, e: Array, f: Array) -> tuple[Array, Array, Array]:
    """Work [n] and rise of the energy [n] eV from each frame to one that is near, and the largest move [n] Å.

    Parameters
    ----------
    x, e, f : positions [n, N, 3] Å, energies [n] eV, forces [n, N, 3] eV/Å.
    """
    x, e, f = x[:COMPARED], e[:COMPARED], f[:COMPARED]
    n, n_atoms, _ = x.shape
    if n < 2:
        return np.empty(0), np.empty(0), np.empty(0)
    references = np.unique(np.linspace(0, n_atoms - 1, 6).astype(int))
    shapes = np.linalg.norm(x[:, :, None] - x[:, None, references], axis=-1).reshape(n, -1)
    other = _nearest_frame(shapes)
    a, b = x - x.mean(axis=1, keepdims=True), x[other] - x[other].mean(axis=1, keepdims=True)
    # Best superposition of b on a (Kabsch, Acta Cryst. A 32, 922 (1976)).
    left, _, right = np.linalg.svd(b.swapaxes(1, 2) @ a)
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    turn = left @ right
    move, force = b @ turn - a, (f + f[other] @ turn) / 2
    return -(force * move).sum(axis=(1, 2)), e[other] - e, np.linalg.norm(move, axis=-1).max(axis=1)


def _work_in_cells(frames: Frames) -> tuple[Array, Array, Array]:
    """The same of periodic frames: moves through the boundaries, and the work of the stress where cells differ."""
    frames = frames[:COMPARED]
    assert frames.cells is not None
    if len(frames) < 2:
        return np.empty(0), np.empty(0), np.empty(0)
    energies, forces = frames.labels()
    cells, x, e, f = frames.cells / ANGSTROM, frames.positions / ANGSTROM, energies / EV, forces / EV_PER_ANGSTROM
    places = x @ np.linalg.inv(cells)
    other = _nearest_frame((moves(places, places[0], frames.periodic) @ cells.mean(axis=0)).reshape(len(x), -1))
    move = moves(places[other], places, frames.periodic) @ ((cells + cells[other]) / 2)
    strain = np.linalg.inv(cells) @ cells[other] - np.eye(3)
    work = -((f + f[other]) / 2 * move).sum(axis=(1, 2))
    moved = np.linalg.norm(move, axis=-1).max(axis=1)
    if frames.stresses is None:
        moved[np.abs(strain).max(axis=(1, 2)) > SAME_CELL] = np.inf
    else:
        stress = (frames.stresses + frames.stresses[other]) / 2 / EV * ANGSTROM**3
        work += volume(cells) * (stress * strain).sum(axis=(1, 2))
    return work, e[other] - e, moved


def _nearest_frame(shapes: Array) -> NDArray[np.int64]:
    """For each frame the one with the nearest row of ``shapes`` [n, D], [n]."""
    squares = np.square(shapes).sum(axis=1)
    apart = squares[:, None] + squares - 2 * shapes @ shapes.T
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart.argmin(axis=1))


def _slope(work: Array, rise: Array, moved: Array) -> float | None:
    """Slope of energy differences against work, over pairs of near frames; 0 where they have nothing to do with each
    other, None where the frames do not tell. For the parameters see `_work`.
    """
    for limit, fewest in ((NEAR, FEWEST_PAIRS), (NEAREST, FEWEST_NEAREST)):
        w, d = work[moved < limit], rise[moved < limit]
        square = float(w @ w)
        if len(w) < fewest or square <= 0:
            return None
        correlation = float(w @ d) / np.sqrt(square * float(d @ d)) if d.any() else 0.0
        if abs(correlation) > SURE_SLOPE:
            return float(w @ d) / square
    return 0.0 if abs(correlation) < UNRELATED and w.std() > ENOUGH_WORK else None


def _stiffness(graph: Topology, x: Array, f: Array) -> float | None:
    """Median force constant of bonds with hydrogen, eV/Å²; None where the frames do not tell."""
    if len(x) < FEWEST_FRAMES:
        return None
    constants = []
    numbers = np.array(graph.numbers)
    for i, j in graph.bonds:
        if (numbers[[i, j]] == 1).sum() != 1:
            continue
        hydrogen, heavy = (i, j) if numbers[i] == 1 else (j, i)
        bond = x[:, hydrogen] - x[:, heavy]
        length = np.linalg.norm(bond, axis=-1)
        pull = (f[:, hydrogen] * bond).sum(axis=-1) / length
        if 0.01 < length.std() < 0.15 and pull.any():
            correlation = np.corrcoef(length, pull)[0, 1]
            if abs(correlation) > SURE_BOND:
                constants.append(-correlation * pull.std() / length.std())
    return float(np.median(constants)) if constants else None
