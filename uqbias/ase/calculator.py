"""The model, its uncertainty and a bias on it as an ASE calculator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from uqbias.bias.base import Bias, BiasSum
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError
from uqbias.model.model import UncertaintyModel
from uqbias.model.reference import in_a_cell
from uqbias.molecule.cells import EVERYWHERE, ISOLATED, check_cell, volume
from uqbias.molecule.structure import made_whole
from uqbias.potentials.prediction import geometry_for
from uqbias.units import ANGSTROM, EV, EV_PER_ANGSTROM


class UncertaintyCalculator(Calculator):  # type: ignore[misc] # ASE is not typed throughout
    """Energy E + V(u) of a model and a bias on its uncertainty, for ASE's dynamics and optimisers.

    Results are in ASE's units (eV, Å). ``energy``, ``forces`` and, in a cell, ``stress`` are of E + V. There are also
    ``model_energy`` (E) and ``bias_energy`` (V), eV; ``driver``, u in its own unit; ``uncertainty``, the calibrated
    judge of the structure, eV/Å. ``uncertainties``, that of each atom [N], costs an evaluation more, and is there where
    it is asked for: ``calculator.get_property("uncertainties", atoms)``, or always with ``per_atom``.

    >>> from ase.md.langevin import Langevin
    >>> from uqbias.ase import UncertaintyCalculator
    >>> from uqbias.bias import MetaD
    >>> bias = MetaD(temperature=300.0, height=2.0, sigma=1.0, pace=50)  # kJ/mol, unit of the driver
    >>> atoms.calc = UncertaintyCalculator("model.uqb", bias)  # doctest: +SKIP
    >>> dynamics = Langevin(atoms, timestep, temperature_K=300, friction=friction)  # doctest: +SKIP
    >>> atoms.calc.attach(dynamics)  # hills from now on  # doctest: +SKIP

    Parameters
    ----------
    model : the model, or its file.
    bias : one bias or several, which act on the driver or on ``variables``; their numbers are in nm, kJ/mol and K. None
        for the model alone.
    variables : further collective variables by name, see `uqbias.variables`.
    per_atom : compute ``uncertainties`` each time.
    runner, dtype, device, skin, cache_dir : see `uqbias.compile.fused.FusedEvaluator`.

    Attributes
    ----------
    bias : sum of the biases; ``bias.frozen = True`` stops all updates.
    evaluator : what computes; None before the first calculation.

    Raises
    ------
    UqbiasError
        If a bias brings an extended variable, which ASE does not integrate, or acts on a variable that is not there; in
        a calculation, if the atoms are others than the model's, repeat otherwise, or are where no force is finite.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "forces", "stress"),
        *("model_energy", "bias_energy", "driver", "uncertainty", "uncertainties"),
    ]

    def __init__(
        self,
        model: UncertaintyModel | str | Path,
        bias: Bias | Sequence[Bias] | None = None,
        *,
        variables: Mapping[str, torch.nn.Module] | None = None,
        per_atom: bool = False,
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        skin: float | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self.model = UncertaintyModel.load(model) if isinstance(model, str | Path) else model
        self.bias = BiasSum([] if bias is None else [bias] if isinstance(bias, Bias) else list(bias))
        if self.bias.extended:
            raise UqbiasError(
                f"a bias with the extended variable '{self.bias.extended[0].name}', which ASE does not integrate",
                "choose metadynamics, opes or a fixed bias",
            )
        self.results: dict[str, Any] = {}
        self.per_atom = per_atom
        self.evaluator: FusedEvaluator | None = None
        self._variables, self._updates = dict(variables or {}), 0
        self._options: dict[str, Any] = {"runner": runner, "dtype": dtype, "device": device, "skin": skin}
        self._options["cache_dir"] = cache_dir
        self._evaluator_for(ISOLATED if not in_a_cell(self.model) else None, None)

    def _evaluator_for(self, periodic: tuple[bool, bool, bool] | None, box: Any) -> FusedEvaluator | None:
        """The evaluator of atoms that repeat along these vectors; another where they came to do so otherwise."""
        if periodic is None:
            return None
        now = self.evaluator
        if now is None or (now.box is None) != (box is None) or (box is not None and now.periodic != periodic):
            kept = self.bias if self.bias.biases else None
            along = EVERYWHERE if box is None else periodic
            now = FusedEvaluator(
                self.model, kept, 1, variables=self._variables, box=box, periodic=along, **self._options
            )
            self.evaluator = now
            if now.input_names:
                raise UqbiasError(
                    f"a bias acts on '{now.input_names[0]}', which is no variable here",
                    "give it in variables, or choose driver, judge or energy",
                )
        return now

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all results at once; the step of ASE that is called where they are asked for."""
        super().calculate(atoms, properties, system_changes)
        if (atoms := self.atoms) is None:
            raise UqbiasError("a calculation without atoms", "give them: get_property(name, atoms)")
        if tuple(atoms.numbers.tolist()) != self.model.numbers:
            raise UqbiasError(
                f"the atoms are {atoms.get_chemical_formula(mode='all')[:80]}, the model's "
                f"{Atoms(self.model.numbers).get_chemical_formula(mode='all')[:80]}",
                "give the atoms in the order of the model, or model.with_topology(topology)",
            )
        a, b, c = (bool(repeats) for repeats in atoms.pbc)
        periodic, box, x = (a, b, c), None, atoms.positions[None] * ANGSTROM
        if not np.isfinite(x).all():
            raise UqbiasError("the positions of the atoms are not finite", "shorten the step of the dynamics")
        if any(periodic):
            box = check_cell(atoms.cell.array * ANGSTROM, periodic, "the atoms")
            x = made_whole(self.model.topology, x, box[None], periodic)
        elif in_a_cell(self.model):
            raise UqbiasError("a model of atoms in a cell, and atoms with pbc False", "set atoms.pbc and atoms.cell")
        evaluator = self._evaluator_for(periodic, box)
        assert evaluator is not None
        positions = torch.from_numpy(x)
        one = evaluator.evaluate(positions, box=None if box is None else torch.from_numpy(box))
        if evaluator.broken.any():
            evaluator.broken[:] = False
            raise UqbiasError(
                f"no finite energy and forces below 1e6 kJ/mol/nm at these positions (energy {float(one.energy):.6g} "
                "kJ/mol)",
                "begin at another geometry, or shorten the step of the dynamics",
            )
        total = float(one.energy + one.bias) / EV
        self.results = {
            "energy": total,
            "free_energy": total,
            "forces": one.forces[0].double().cpu().numpy() / EV_PER_ANGSTROM,
            "model_energy": float(one.energy) / EV,
            "bias_energy": float(one.bias) / EV,
            "driver": float(one.driver),
            "uncertainty": float(one.judge) / EV_PER_ANGSTROM,
        }
        if box is not None:
            stress = one.virial[0].double().cpu().numpy() / float(volume(box)) / EV * ANGSTROM**3
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        if self.per_atom or "uncertainties" in properties:
            weights = next(self.model.parameters())
            at = positions.to(weights)
            geometry = geometry_for(self.model.potential, at, None if box is None else box[None], periodic)
            each = self.model.atom_uncertainties(at, geometry)[0].detach()
            self.results["uncertainties"] = each.double().cpu().numpy() / EV_PER_ANGSTROM

    def update(self) -> None:
        """Let the bias take note of the last calculation, such as by a hill: call it once in each ``bias.pace`` steps.

        ``results`` stay those of this step; what ASE asks for next is computed anew, with the new hill.

        Raises
        ------
        UqbiasError
            If nothing has been calculated yet.
        """
        if self.evaluator is None or self.evaluator.last is None:
            raise UqbiasError("update of a bias before any calculation", "call it from an observer of the dynamics")
        if (pace := self.bias.pace) is None or self.bias.frozen:
            return
        self._updates += 1
        x = self.evaluator.last.variables.double().cpu().numpy()
        self.bias.update(self._updates * pace, x, self.evaluator.probe)
        self.atoms = None  # so that ASE computes anew; observers still see the results of this step

    def attach(self, dynamics: Any) -> None:
        """Have an ASE dynamics call `update` every ``bias.pace`` steps; a bias that never changes needs no call."""
        if self.bias.pace is not None:
            # Observers are called before the first step too.
            dynamics.attach(lambda: self.update() if dynamics.nsteps else None, interval=self.bias.pace)

    def export_properties(self) -> Properties:
        """Those of the results that ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})
