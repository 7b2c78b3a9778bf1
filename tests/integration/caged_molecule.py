"""The tiny model's molecule as a user's own System, beside atoms that the model does not know."""

import numpy as np
import openmm
from openmm import app

#: The model's atoms: after two argon atoms.
ATOMS = [2, 3, 4, 5, 6]


def caged_molecule(model, positions, extra=2, field=True):
    """System, Topology and positions [n, 3] nm of ``extra`` argon atoms and the model's atoms.

    With ``field`` a harmonic cage stands for a force field.
    """
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    system = openmm.System()
    cage = openmm.CustomExternalForce("200*(x^2+y^2+z^2)")
    for number in (18,) * extra + model.numbers:
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
        cage.addParticle(system.addParticle(element.mass))
    if field:
        system.addForce(cage)
    return system, topology, np.concatenate([np.eye(3)[:extra], positions[0].numpy()])
