"""Check that an uncertainty of one molecule holds for other molecules of the same elements."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.molecule.topology import Topology
from uqbias.testing import molecule
from uqbias.testing.case import Case, evaluate
from uqbias.testing.measuring import change, changed, largest
from uqbias.testing.report import Report

#: Change of a value with the atoms around which it is computed, relative to the largest.
ROUNDING = 1e-9
#: Atoms of a part of the molecule that lacks one of its elements.
FRAGMENT = (11, 3, 1, 9, 5, 10, 4)
#: nm from one molecule to the other: none of its atoms is within a cutoff.
APART = 20.0


def check_systems(case: Case) -> Report:
    """`UncertaintyModel.with_topology`: values of other systems are those of a model that was made for them.

    Of the same atoms in another order, u is the same and per-atom values go with the atoms; an atom's value stays when
    there is another molecule far away, and when that is of fewer elements. A model of another system that is saved and
    loaded gives the same bits, and refitting either changes both. A kind that is of one molecule says so by name.

    Raises
    ------
    ContractError
        If a clause is violated.
    """
    report, model = case.report(), case.model
    x = torch.tensor(case.held_out.positions[:4])
    order = np.random.default_rng(0).permutation(x.shape[1]).tolist()
    try:
        turned = model.with_topology(_part(order))
    except UqbiasError as error:
        names = (model.judge.kind, getattr(model.judge.features, "kind", model.judge.kind))
        unnamed = not any(name in str(error) for name in names)
        report.add("systems: refused without its name", int(unnamed), 0, str(error))
        return report.verified()
    here, moved = evaluate(model, x), evaluate(turned, x[:, order])
    for name, value, same in (("u", here.raw, moved.raw), ("calibrated u", here.calibrated, moved.calibrated)):
        report.add(f"systems: {name} in another order of atoms", change(same, value), ROUNDING)
    values = _of_atoms(model, x)
    change_of_order = largest(_of_atoms(turned, x[:, order]) - values[..., order])
    report.add("systems: values of atoms in another order", change_of_order, _limit(values))
    fragment = model.with_topology(_part(FRAGMENT))
    both = model.with_topology(_joined(model.topology, fragment.topology))
    piece = x[:, FRAGMENT]
    together = _of_atoms(both, torch.cat([x, piece + APART], dim=1))
    for name, part, alone in (
        ("beside another", together[..., : x.shape[1]], values),
        ("of fewer elements", together[..., x.shape[1] :], _of_atoms(fragment, piece)),
    ):
        report.add(f"systems: values of a molecule {name}", largest(part - alone), _limit(values))
    with tempfile.TemporaryDirectory() as folder:
        fragment.save(Path(folder) / "model.uqb")
        loaded = UncertaintyModel.load(Path(folder) / "model.uqb", trust=True)
    before, after = evaluate(fragment, piece), evaluate(loaded, piece)
    report.add("systems: values changed by saving", len(changed(before._asdict(), after._asdict())), 0)
    there = fragment.judge.state_dict(keep_vars=True)
    apart = [name for name, tensor in model.judge.state_dict(keep_vars=True).items() if there[name] is not tensor]
    report.add("systems: state that is not shared", len(apart), 0, ", ".join(apart))
    return report.verified()


def _limit(values: Tensor) -> float:
    return ROUNDING * max(1e-30, float(values.abs().max()) if values.numel() else 0.0)


def _of_atoms(model: UncertaintyModel, x: Tensor) -> Tensor:
    """Values of atoms before and after calibration, [2, n, N]; [2, n, 0] for a kind without."""
    with torch.no_grad():
        raw = model.judge.per_atom(x, *model.terms(x))
        if raw is None:
            return x.new_zeros(2, len(x), x.shape[1])
        return torch.stack([raw, model.calibration.per_atom(raw)])


def _part(atoms: Sequence[int]) -> Topology:
    """Some atoms of the molecule, in this order, with the bonds among them."""
    whole, place = molecule.topology(), {atom: at for at, atom in enumerate(atoms)}
    bonds = [(place[i], place[j]) for i, j in whole.bonds if i in place and j in place]
    return Topology(tuple(whole.numbers[atom] for atom in place), tuple(bonds))


def _joined(one: Topology, other: Topology) -> Topology:
    bonds = one.bonds + tuple((i + len(one), j + len(one)) for i, j in other.bonds)
    return Topology(one.numbers + other.numbers, bonds)
