"""Of each system that it was trained on, a model knows whether it is in a cell."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.molecules import emt_frames
from uqbias.errors import UqbiasError
from uqbias.model.fit import fit_model
from uqbias.model.model import UncertaintyModel
from uqbias.model.reference import in_a_cell
from uqbias.molecule.topology import Topology

SETTINGS = {
    "potential": {"n_radial": 6, "n_channels": 4, "hidden": [16, 12]},
    "training": {"steps": 5, "runner": "eager", "batch_size": 8},
}


def in_box(frames, edge=2.0, periodic=(True, True, True)):
    return replace(frames, cells=np.tile(edge * np.eye(3), (len(frames), 1, 1)), periodic=periodic)


def fitted(**sets):
    return fit_model(sets, None, SETTINGS)[0]


def models_of_each(model, path):
    model.save(path)
    loaded = UncertaintyModel.load(path)
    return {name: loaded.with_topology(graph) for name, graph in loaded.systems.items()}


@pytest.mark.parametrize("first", ["water", "methanol"])
def test_each_system_has_its_own_cell(first, tmp_path):
    water, methanol = emt_frames("H2O", 60, seed=1), in_box(emt_frames("CH3OH", 60, seed=1))
    sets = {"water": water, "methanol": methanol}
    model = fitted(**dict(sorted(sets.items(), key=lambda item: item[0] != first)))
    assert in_a_cell(model) == (first == "methanol")
    each = models_of_each(model, tmp_path / "model.uqb")
    assert [in_a_cell(each[name]) for name in sets] == [False, True]
    assert in_a_cell(each["water"].with_topology(each["methanol"].topology))
    assert np.shape(each["water"].provenance["reference_positions_nm"]) == (3, 3)
    assert "reference_cell_nm" not in each["water"].provenance
    np.testing.assert_array_equal(each["methanol"].provenance["reference_cell_nm"], 2.0 * np.eye(3))
    unknown = model.with_topology(Topology((8, 1), ((0, 1),)))
    with pytest.raises(UqbiasError, match="for a system that is none of those"):
        in_a_cell(unknown)


def test_a_new_system_is_like_the_others_where_these_agree(tmp_path):
    slab = (True, True, False)
    sets = [in_box(emt_frames(formula, 60, seed=1), periodic=slab) for formula in ("H2O", "CH3OH")]
    model = fitted(water=sets[0], methanol=sets[1])
    unknown = model.with_topology(Topology((8, 1), ((0, 1),)))
    assert unknown.provenance["reference_periodic"] == list(slab)
    assert "reference_positions_nm" not in unknown.provenance


def test_systems_that_differ_in_the_cell_alone_are_refused():
    water = emt_frames("H2O", 60, seed=1)
    with pytest.raises(UqbiasError, match="'a' and 'b' have the same atoms and bonds"):
        fitted(a=water, b=in_box(emt_frames("H2O", 60, seed=2)))
