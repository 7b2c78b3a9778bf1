import numpy as np
import pytest
from molecules import AMMONIA, PEROXIDE

from uqbias.errors import UqbiasError
from uqbias.molecule.electrons import electrons_of, lewis
from uqbias.molecule.topology import Topology


def of(text, bonds):
    """Bond graph from symbols such as 'C O O'."""
    from ase.data import atomic_numbers

    return Topology(tuple(atomic_numbers[name] for name in text.split()), bonds)


AMMONIUM = of("N H H H H", ((0, 1), (0, 2), (0, 3), (0, 4)))
ACETATE = of("C C O O H H H", ((0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (0, 6)))
NITROMETHANE = of("C N O O H H H", ((0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (0, 6)))
GLYCINE = of("N C C O O H H H H H", ((0, 1), (1, 2), (2, 3), (2, 4), (0, 5), (0, 6), (0, 7), (1, 8), (1, 9)))
SULFATE = of("S O O O O", ((0, 1), (0, 2), (0, 3), (0, 4)))
METHYL = of("C H H H", ((0, 1), (0, 2), (0, 3)))


@pytest.mark.parametrize(
    ("graph", "charge"),
    [(PEROXIDE, 0), (AMMONIA, 0), (AMMONIUM, 1), (ACETATE, -1), (NITROMETHANE, 0), (GLYCINE, 0), (SULFATE, -2)],
)
def test_charge_by_the_bonds(graph, charge):
    assert lewis(graph).charge == charge
    assert lewis(graph).unsaturated == ()


def test_zwitterion_has_charged_atoms_that_cancel():
    assert set(lewis(GLYCINE).charged) >= {0}
    assert electrons_of(GLYCINE).charge == 0


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (AMMONIUM, {}, r"by its bonds it is \+1 \(N1\); give --charge 1"),
        (METHYL, {}, "C1 of .* too few bonds"),
        (METHYL, {"charge": 0}, "9 electrons at charge 0, an odd number.*give --spin"),
        (METHYL, {"spin": 1}, "spin 1 with 9 electrons .*; give an even multiplicity"),
        (METHYL, {"stated": 0, "radicals": 1}, "an odd number"),
        (of("O O", ((0, 1),)), {}, "a triplet"),
        (of("Fe H H", ((0, 1), (0, 2))), {}, "Fe1 may have unpaired electrons"),
        (PEROXIDE, {"stated": 0, "radicals": 2}, "2 unpaired electrons"),
        (PEROXIDE, {"charge": 1, "stated": 0}, "--charge 1, but the structure has a charge of 0"),
        (of("H H", ((0, 1),)), {"charge": 2, "spin": 3}, "spin 3 with 0 electrons"),
    ],
)
def test_what_is_open_is_asked_for(graph, options, message):
    with pytest.raises(UqbiasError, match=message):
        electrons_of(graph, **options)


def test_what_is_said_is_taken():
    assert electrons_of(METHYL, spin=2)[:2] == (0, 2)
    assert electrons_of(METHYL, charge=1)[:2] == (1, 1)
    assert electrons_of(AMMONIUM, stated=1)[:2] == (1, 1)
    assert electrons_of(of("O O", ((0, 1),)), spin=3)[:2] == (0, 3)


def test_charge_of_every_atom_renumbered():
    order = np.random.default_rng(0).permutation(len(ACETATE))
    place = np.argsort(order)
    graph = Topology(
        tuple(ACETATE.numbers[i] for i in order), tuple((int(place[i]), int(place[j])) for i, j in ACETATE.bonds)
    )
    assert lewis(graph).charge == -1
