"""What stands in for a DFT code and its queue: GFN2-xTB on part of the geometries, beside what came back before.

python label.py run/to_label.xyz run/labelled.xyz [MOST]
"""

import sys
from pathlib import Path

import ase.io
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from tblite.ase import TBLite

source, target = map(Path, sys.argv[1:3])
most = int(sys.argv[3]) if len(sys.argv) > 3 else 5
frames = ase.io.read(target, ":") if target.is_file() else []
known = {atoms.info["request"] for atoms in frames}
wanted = [atoms for atoms in ase.io.read(source, ":") if atoms.info["request"] not in known]
for atoms in wanted[:most]:
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    try:
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    except CalculationFailed as error:
        atoms.calc, atoms.info["failed"] = None, str(error)
    frames.append(atoms)
# To another name first: a campaign never sees half of a file.
draft = target.with_suffix(".draft.xyz")
ase.io.write(draft, frames, format="extxyz")
draft.replace(target)
print(f"{min(most, len(wanted))} of {len(wanted)} geometries labelled")
