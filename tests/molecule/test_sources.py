import sys

import numpy as np
import pytest
from molecules import ALANINE_PDB, PEROXIDE, peroxide, write_pdb

from uqbias.errors import UqbiasError
from uqbias.molecule.frames import Frames, write_frames
from uqbias.molecule.sources import open_source

METHANOL_MOL2 = """\
@<TRIPOS>MOLECULE
methanol
 6 5 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
 1 C1 -0.3600 0.0100 0.0200 C.3 1 MOL 0
 2 O1 0.9000 -0.6100 0.0000 O.3 1 MOL 0
 3 H1 -0.9200 -0.2900 0.9000 H 1 MOL 0
 4 H2 -0.9200 -0.2900 -0.8800 H 1 MOL 0
 5 H3 -0.2600 1.1000 0.0200 H 1 MOL 0
 6 H4 1.5400 0.1000 0.0000 H 1 MOL 0
@<TRIPOS>BOND
 1 1 2 1
 2 1 3 1
 3 1 4 1
 4 1 5 1
 5 2 6 1
"""
WATER_TOP = """\
[ defaults ]
1 2 yes 0.5 0.8333
[ atomtypes ]
OW 8 16.0 -0.834 A 0.315 0.636
HW 1 1.008 0.417 A 0.0 0.0
[ moleculetype ]
SOL 2
[ atoms ]
1 OW 1 SOL OW 1 -0.834 16.0
2 HW 1 SOL HW1 1 0.417 1.008
3 HW 1 SOL HW2 1 0.417 1.008
[ bonds ]
1 2 1 0.09572 502416.0
1 3 1 0.09572 502416.0
[ system ]
water
[ molecules ]
SOL 1
"""
WATER_GRO = """\
water
    3
    1SOL     OW    1   0.000   0.000   0.000
    1SOL    HW1    2   0.096   0.000   0.000
    1SOL    HW2    3  -0.024   0.093   0.000
   2.00000   2.00000   2.00000
"""
WATER_PSF = """\
PSF

       1 !NTITLE
 REMARKS water

       3 !NATOM
       1 WAT  1    TIP3 OH2  OT    -0.834000       15.9994           0
       2 WAT  1    TIP3 H1   HT     0.417000        1.0080           0
       3 WAT  1    TIP3 H2   HT     0.417000        1.0080           0

       2 !NBOND: bonds
       1       2       1       3

       0 !NTHETA: angles


       0 !NPHI: dihedrals


       0 !NIMPHI: impropers


       0 !NDON: donors


       0 !NACC: acceptors


       0 !NNB

       0       0       0

       1       0 !NGRP NST2
       0       0       0

"""
WATER_PDB = """\
ATOM      1  OH2 TIP3    1       0.000   0.000   0.000  1.00  0.00           O
ATOM      2  H1  TIP3    1       0.957   0.000   0.000  1.00  0.00           H
ATOM      3  H2  TIP3    1      -0.240   0.927   0.000  1.00  0.00           H
END
"""


def refused(*given):
    with pytest.raises(UqbiasError) as caught:
        open_source([str(one) for one in given])
    assert caught.value.cure
    return str(caught.value)


def test_a_pdb_file_with_bonds():
    source = open_source([str(ALANINE_PDB)])
    assert len(source.structure.topology) == 22
    assert (source.name, source.charge, source.notes) == ("structure", None, [])


def test_a_pdb_file_without_conect_says_that_bonds_are_guessed(tmp_path):
    path = tmp_path / "bare.pdb"
    write_pdb(path, PEROXIDE, peroxide())
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("CONECT")))
    source = open_source([str(path)])
    assert source.structure.topology.bonds == PEROXIDE.bonds
    assert "guessed from distances" in source.notes[0]


def test_files_of_many(tmp_path):
    frames = np.stack([peroxide(1.0), peroxide(2.0)])
    write_frames(tmp_path / "two.xyz", Frames(np.array(PEROXIDE.numbers), frames))
    assert "two.xyz holds 2 geometries" in refused(tmp_path / "two.xyz")
    write_pdb(tmp_path / "one.pdb", PEROXIDE, peroxide())
    atoms = [line for line in (tmp_path / "one.pdb").read_text().splitlines() if line.startswith("HETATM")]
    models = [line for model in "12" for line in (f"MODEL        {model}", *atoms, "ENDMDL")]
    (tmp_path / "two.pdb").write_text("\n".join([*models, "END", ""]))
    assert "two.pdb holds 2 models" in refused(tmp_path / "two.pdb")


def test_what_is_not_there(tmp_path):
    assert "nothing.pdb is neither a file nor a SMILES" in refused("nothing.pdb")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "a.prmtop").write_text("")
    assert "1 file(s)" in refused(tmp_path / "a.prmtop")
    (tmp_path / "a.inpcrd").write_text("")
    assert "cannot be read" in refused(tmp_path / "a.prmtop", tmp_path / "a.inpcrd")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # OpenMM leaves a .top file open
@pytest.mark.parametrize(
    ("topology", "coordinates"),
    [({"w.top": WATER_TOP}, {"w.gro": WATER_GRO}), ({"w.psf": WATER_PSF}, {"w.pdb": WATER_PDB})],
    ids=["gromacs", "charmm"],
)
def test_force_field_files(tmp_path, topology, coordinates):
    for name, text in (topology | coordinates).items():
        (tmp_path / name).write_text(text)
    source = open_source([str(tmp_path / name) for name in (*topology, *coordinates)])
    assert source.structure.topology.numbers == (8, 1, 1)
    assert source.structure.topology.bonds == ((0, 1), (0, 2))
    assert source.structure.positions[1, 0] == pytest.approx(0.0957, abs=4e-4)


def test_without_rdkit_the_cure_is_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert "pip install 'uqbias[smiles]'" in refused("CCO")


class TestRDKit:
    @pytest.fixture(autouse=True)
    def _rdkit(self):
        pytest.importorskip("rdkit")

    def test_smiles(self):
        source = open_source(["C[NH3+]"])
        assert (source.name, source.charge, source.radicals) == ("CH6N", 1, 0)
        assert sorted(source.structure.topology.numbers) == [1] * 6 + [6, 7]
        apart = np.linalg.norm(source.structure.positions[0] - source.structure.positions[1])
        assert 0.13 < apart < 0.17
        again = open_source(["C[NH3+]"])
        np.testing.assert_array_equal(source.structure.positions, again.structure.positions)

    def test_what_smiles_leaves_open_is_told(self):
        assert any(note.startswith("stereocentre C2") for note in open_source(["CC(O)F"]).notes)
        assert any(note.startswith("double bond C2=C3") for note in open_source(["CC=CC"]).notes)
        assert open_source(["C[C@H](O)F"]).notes == []

    def test_radicals(self):
        assert open_source(["[CH3]"]).radicals == 1
        assert open_source(["[CH2]"]).radicals == 2

    def test_bad_smiles(self):
        assert "'xx' is neither a file nor a SMILES" in refused("xx")
        assert "valence" in refused("CC(C)(C)(C)C")
        assert "no 3D structure" in refused("C1#CC1")
        assert "2 molecules" in refused("O.O")

    def test_mol2_and_sdf(self, tmp_path):
        from rdkit import Chem

        (tmp_path / "m.mol2").write_text(METHANOL_MOL2)
        source = open_source([str(tmp_path / "m.mol2")])
        assert source.structure.topology.numbers == (6, 8, 1, 1, 1, 1)
        assert source.structure.positions[1, 0] == pytest.approx(0.09)
        (tmp_path / "two.mol2").write_text(2 * METHANOL_MOL2)
        assert "two.mol2 holds 2 molecules" in refused(tmp_path / "two.mol2")
        block = Chem.MolToMolBlock(Chem.MolFromSmiles("CO"))
        (tmp_path / "two.sdf").write_text(2 * f"{block}$$$$\n")
        assert "two.sdf holds 2 molecules" in refused(tmp_path / "two.sdf")
        (tmp_path / "flat.sdf").write_text(f"{block}$$$$\n")
        source = open_source([str(tmp_path / "flat.sdf")])
        assert len(source.structure.topology) == 6
        assert len(source.notes) == 2
        (tmp_path / "broken.sdf").write_text("nothing\n")
        assert "no molecule that RDKit reads" in refused(tmp_path / "broken.sdf")
