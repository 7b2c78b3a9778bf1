"""Frames and their files: labels and cells stay through reading, writing, slicing and joining."""

import dataclasses

import numpy as np
import pytest

from uqbias.attacks.usable_frames import usable_frames
from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, read_frames, write_frames
from uqbias.testing import molecule

CELL = np.array([[1.0, 0.0, 0.0], [0.2, 1.1, 0.0], [0.1, 0.3, 1.2]])


@pytest.fixture
def periodic():
    plain = molecule.frames(4, seed=1)
    return dataclasses.replace(plain, cells=CELL * np.linspace(1.0, 1.1, 4)[:, None, None])


def test_cells_stay_through_files_slices_and_joins(periodic, tmp_path):
    write_frames(tmp_path / "crystal.xyz", Frames.concatenate([periodic[2:], periodic[[0, 1]]]))
    again = read_frames(tmp_path / "crystal.xyz", periodic=True)
    order = [2, 3, 0, 1]
    np.testing.assert_allclose(again.cells, periodic.cells[order], atol=1e-8)
    np.testing.assert_allclose(again.positions, periodic.positions[order], atol=1e-8)
    np.testing.assert_allclose(again.forces, periodic.forces[order], rtol=1e-5, atol=1e-4)


def test_frames_in_vacuum_have_no_cells(tmp_path):
    write_frames(tmp_path / "plain.xyz", molecule.frames(2))
    assert 'pbc="F F F"' in (tmp_path / "plain.xyz").read_text()
    assert read_frames(tmp_path / "plain.xyz").cells is None
    assert read_frames(tmp_path / "plain.xyz", periodic=True).cells is None
    boxed = (tmp_path / "plain.xyz").read_text().replace('pbc="F', 'Lattice="9 0 0 0 9 0 0 0 9" pbc="F')
    (tmp_path / "boxed.xyz").write_text(boxed)
    assert read_frames(tmp_path / "boxed.xyz").cells is None


def test_a_cell_is_refused_where_none_is_expected(periodic, tmp_path):
    write_frames(tmp_path / "crystal.xyz", periodic)
    with pytest.raises(UqbiasError, match="frame 0 is periodic; give a molecule in vacuum"):
        read_frames(tmp_path / "crystal.xyz")
    write_frames(tmp_path / "plain.xyz", molecule.frames(1))
    both = tmp_path / "both.xyz"
    both.write_text((tmp_path / "plain.xyz").read_text() + (tmp_path / "crystal.xyz").read_text())
    with pytest.raises(UqbiasError, match=r"frame 1 is periodic \(pbc \[True, True, True\]\), others are not"):
        read_frames(both, periodic=True)
    frames = usable_frames(both, molecule.topology())
    assert frames.index.tolist() == [0]
    assert frames.skipped[0] == (1, "a periodic cell")
    with pytest.raises(UqbiasError, match="frames with a cell and frames without"):
        Frames.concatenate([periodic, molecule.frames(1)])
