from pathlib import Path

import numpy as np
import pytest
import yaml

from uqbias.errors import UqbiasError
from uqbias.molecule.surface import ReferenceSurface, in_box, reached
from uqbias.molecule.topology import Topology, backbone_dihedrals

SYSTEM = Path(__file__).parents[2] / "systems/alanine_dipeptide"
BASINS = yaml.safe_load((SYSTEM / "campaign.yaml").read_text())["score"]["basins"]


@pytest.fixture
def surface():
    """4 x 4 bins of 90°; two accessible."""
    values = np.full((4, 4), 20.0)
    values[0, 3], values[2, 1], values[1, 1] = 0.0, 9.5, np.inf
    return ReferenceSurface(values)


def test_bins_run_from_minus_180_and_wrap(surface):
    assert surface.centres.tolist() == [-135, -45, 45, 135]
    assert surface.bins([-180, 180, 179.9, -0.1], [0, 0, 0, 360]).tolist() == [[0, 2], [0, 2], [3, 2], [1, 2]]


def test_coverage_counts_accessible_bins_only(surface):
    assert surface.accessible().sum() == 2
    assert surface.coverage([-100, -100, 50], [100, 110, 100]) == 0.5
    assert surface.coverage([-100, 50], [100, -50]) == 1.0
    assert surface.coverage([], []) == 0.0
    assert surface.at([-100], [100]).tolist() == [0.0]


def test_file_round_trip(surface, tmp_path):
    surface.save(tmp_path / "surface.csv", ("phi", "psi"), ["made by hand"])
    text = (tmp_path / "surface.csv").read_text()
    assert text.startswith("# made by hand\nphi,psi,F\n-135,-135,20.0000\n")
    np.testing.assert_array_equal(ReferenceSurface.load(tmp_path / "surface.csv").free_energy, surface.free_energy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phi,psi,F\n-90,-90,0\n-90,90,1\n90,90,2\n", "1 of 2x2 bins"),
        ("phi,psi,F\n-90,-90\n", "not a table"),
        ("", "not a table"),
    ],
)
def test_broken_file_is_refused(tmp_path, text, message):
    (tmp_path / "broken.csv").write_text(text)
    with pytest.raises(UqbiasError, match=message):
        ReferenceSurface.load(tmp_path / "broken.csv")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UqbiasError, match=r"absent\.csv"):
        ReferenceSurface.load(tmp_path / "absent.csv")


def test_box_goes_through_180_degrees():
    box = {"phi": [170, -120], "psi": [120, -160]}
    angles = {"phi": [-150, 175, -190, -100, 160], "psi": [150, -170, 170, 150, 150]}
    assert in_box(angles, box).tolist() == [True, True, True, False, False]
    assert in_box({"phi": [0.0], "psi": [123.0]}, {"phi": [-10, 10], "psi": [-180, 180]}).all()


def test_basins_by_name():
    def names(phi, psi):
        return reached({"phi": phi, "psi": psi}, BASINS)

    assert names([-80, 67, 55], [75, -37, 40]) == ["C7eq", "C7ax", "alphaL"]
    assert names([-155], [160]) == ["C5"]
    assert names([], []) == []
    assert reached({"phi": [1.0], "psi": [1.0]}, {"origin": {"phi": [-5, 5], "psi": [-5, 5]}}) == ["origin"]


def test_box_on_one_of_the_angles_leaves_the_wrap_around_out():
    angles = {"phi": [-170, 0, 15.1, 67, 134, 170], "psi": [0] * 6}
    assert in_box(angles, {"phi": [15, 135]}).tolist() == [False, False, True, True, True, False]


def test_molecule_without_backbone_has_no_phi():
    with pytest.raises(UqbiasError, match="no residue"):
        backbone_dihedrals(Topology((6, 6, 6), ((0, 1), (1, 2))))
