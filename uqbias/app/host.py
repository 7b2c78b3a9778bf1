"""Checks of the user's System and Simulation, and what a run has to know of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from uqbias.app.external import is_force
from uqbias.bias.base import Array, Bias, BiasSum
from uqbias.bias.gamd import GaMD
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.md.loop import check_pace
from uqbias.md.stack import choose_backend
from uqbias.variables.names import OF_MODEL, is_of_model, is_of_torch, is_taken

#: Steps between observations where no bias has a pace.
PACE = 50
#: What to do about a molecule that broke.
BROKEN = "put a wall on the variable, use lower hills or shorter steps, or train the model on such geometries"
ALL_GROUPS = frozenset(range(32))
#: Name of the openmm.Force of a `Sampling`.
FORCE_NAME = "uqbias"


def value(quantity: Any) -> Any:
    """A number or array in OpenMM's units (nm, ps, kJ/mol, K) from a Quantity, or as it is."""
    from openmm import unit

    return quantity.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(quantity) else quantity


def choose_paces(bias: BiasSum, pace: int | None, stride: int | None) -> tuple[int, int]:
    """Steps between observations, and between rows of COLVAR.

    Raises
    ------
    UqbiasError
        If they miss updates of a bias, or do not divide.
    """
    wanted = (bias.pace or PACE) if pace is None else pace
    if not (wanted >= 1 and float(wanted).is_integer()):
        raise UqbiasError(f"pace {pace}", "give a whole number of steps, 1 or more")
    chosen = int(wanted)
    check_pace(bias, chosen)
    if stride is not None and (stride < 1 or stride % chosen):
        raise UqbiasError(f"stride {stride} with pace {chosen}", "give a multiple of the pace")
    return chosen, chosen if stride is None else int(stride)


def choose_snapshot(path: str | Path | None, every: int | None, pace: int) -> tuple[Path, int] | None:
    """File and steps between snapshots, or None for no snapshots."""
    if path is None and every is None:
        return None
    if path is None or every is None:
        raise UqbiasError(f"snapshot {path} with snapshot_every {every}", "give both or none")
    if every < 1 or every % pace:
        raise UqbiasError(f"snapshot_every {every} with pace {pace}", "give a multiple of the pace")
    return Path(path), int(every)


def check_restart(restart: Any, hills: Sequence[Any]) -> None:
    """Raise UqbiasError if it is no such word, or there are no HILLS to begin with."""
    if restart not in (True, False, "cut"):
        raise UqbiasError(f"restart={restart!r}", "give True, False or 'cut'")
    if restart and not hills:
        raise UqbiasError("restart=True without a metadynamics bias and its HILLS", "load a snapshot instead")


def check_temperatures(bias: BiasSum, temperature: float) -> None:
    """Raise UqbiasError if a bias is for another temperature."""
    if not 0 < temperature < math.inf:
        raise UqbiasError(f"temperature {temperature}", "give a finite one in K, > 0")
    for part in bias.biases:
        part_temperature = getattr(part, "temperature", None)
        if part_temperature is not None and not math.isclose(part_temperature, temperature, rel_tol=1e-6):
            raise UqbiasError(
                f"{part.kind} for {part_temperature:g} K in a run at {temperature:g} K",
                "give both the same temperature",
            )


def check_boosts(bias: BiasSum, drive: str) -> None:
    """Raise UqbiasError if a bias is to boost the model's energy where another energy drives."""
    for part in bias.biases:
        if part.boosts and part.variables == ("energy",) and drive != "model":
            raise UqbiasError(
                f"{part.kind} boosts the model's energy, but the System's own forces drive (drive='bias')",
                "give drive='model', or the energy that drives: "
                f"{type(part).__name__}(variables=['V']) with variables={{'V': system}}",
            )


def sort_variables(
    bias: BiasSum, variables: Mapping[str, Any], *, with_model: bool
) -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    """Those that the biases act on: modules for the graph, and OpenMM Forces.

    Raises
    ------
    UqbiasError
        If a bias acts on something that nobody gives, or does not know the period of a variable; if the name of a
        variable is taken; if a bias is to adapt to forces that it does not see.
    """
    given = {*variables, *(one.name for one in bias.extended)}
    # Which parts a driver has is known, and checked, where the model is.
    given |= {name for name in (*OF_MODEL, *bias.variables) if with_model and is_of_model(name)}
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UqbiasError(f"a variable called '{name}'", "choose another name, of letters, digits and underscores")
        if is_taken(name):
            raise UqbiasError(
                f"a variable called '{name}', as the model, COLVAR or HILLS has something else",
                "choose another name, such as phi",
            )
    used = {name for part in bias.biases for name in part.variables}
    for part in bias.biases:
        for name in part.variables:
            if name not in given:
                model = " (there is no model)" if is_of_model(name) else ""
                raise UqbiasError(
                    f"{part.kind} acts on '{name}', a variable that nobody defines{model}",
                    did_you_mean(name, given) + "; or define it among the variables",
                )
    modules: dict[str, torch.nn.Module] = {}
    forces: dict[str, Any] = {}
    for name, one in variables.items():
        if not isinstance(one, torch.nn.Module) and not is_force(one):
            raise UqbiasError(
                f"variable '{name}' is a {type(one).__name__}", "give a CollectiveVariable or openmm.Force"
            )
        if isinstance(one, torch.nn.Module) and is_of_torch(name):
            raise UqbiasError(f"a variable called '{name}', a name that torch takes", "choose another name")
        if name in used:
            (modules if isinstance(one, torch.nn.Module) else forces)[name] = one
    _check_periods(bias, modules)
    _check_adapted(bias, modules)
    return modules, forces


def _check_periods(bias: BiasSum, modules: Mapping[str, torch.nn.Module]) -> None:
    for part in bias.biases:
        known = getattr(part, "periods", None)
        if known is None:
            continue
        for name, period in zip(part.variables, known, strict=True):
            variable_period = getattr(modules.get(name), "period", None)
            if variable_period is not None and (
                period is None or not math.isclose(variable_period, period, rel_tol=1e-6)
            ):
                raise UqbiasError(
                    f"{part.kind} on '{name}' with period {period}; the variable has the period {variable_period:.6g}",
                    f"give the bias periods with {variable_period!r} for '{name}'",
                )


def _check_adapted(bias: BiasSum, modules: Mapping[str, torch.nn.Module]) -> None:
    for part in bias.biases:
        name = part.variables[0]
        # A probe sees the forces on the model's atoms only, of which a variable from outside has none.
        if part.feels_atoms(part.options()) and not part.frozen and name not in modules and not is_of_model(name):
            raise UqbiasError(
                f"{part.kind} with an adapted tau on '{name}', whose forces on the atoms it cannot see",
                "give it a fixed tau, or a variable of the model or a CollectiveVariable",
            )


class Use(NamedTuple):
    """What a `Sampling` does to a System."""

    system: int
    biases: tuple[Bias, ...]
    paths: frozenset[Path]
    model_drives: bool


#: Of each computation whose force lives.
USES: WeakKeyDictionary[Any, Use] = WeakKeyDictionary()


def use_once(system: Any, biases: Sequence[Bias], paths: Sequence[Path], drive: str) -> Use:
    """What to enter in `USES`, unless a force that is in the System already does part of it.

    Where the user has taken one such force out again, nobody knows which is left, and nothing is refused.

    Raises
    ------
    UqbiasError
        If a bias, a file or the model's energy would be there twice.
    """
    use = Use(int(system.this), tuple(biases), frozenset(path.absolute() for path in paths), drive == "model")
    others = [other for other in USES.values() if other.system == use.system]
    if len(others) > sum(force.getName() == FORCE_NAME for force in system.getForces()):
        return use
    for other in others:
        for part in biases:
            if any(part is one for one in other.biases):
                raise UqbiasError(f"this {part.kind} is already among the biases of this System", "make it a new one")
        for path in use.paths & other.paths:
            raise UqbiasError(
                f"{path} is that of another bias on this System",
                "give each bias files of its own (hills=, colvar=), or make a new System for a new run",
            )
        if use.model_drives and other.model_drives:
            raise UqbiasError("drive='model' a second time on this System", "give drive='bias' to all but one")
    return use


def refuse_going_back(bias: BiasSum, before: int, step: int) -> None:
    """Raise UqbiasError where a bias that counts its stages in steps would begin anew without a word."""
    for part in () if bias.frozen else bias.biases:
        if step < before and isinstance(part, GaMD) and not part.frozen and part.parameters["samples"]:
            raise UqbiasError(
                f"gamd after step {before} in a Simulation at step {step}: it would lose its statistics and begin anew",
                "go on with the same step count, freeze it (.frozen = True), or call its reset()",
            )


def choose_atoms(system: Any, atoms: Sequence[int] | None, count: int | None) -> tuple[int, ...] | None:
    """Indices of the model's atoms; None for all particles.

    Raises
    ------
    UqbiasError
        If one is not in the System or given twice, or they are not as many as the model has.
    """
    particles = system.getNumParticles()
    if atoms is None:
        if count is not None and count != particles:
            raise UqbiasError(
                f"a model of {count} atoms for a System of {particles} particles", "name its atoms: atoms=[...]"
            )
        return None
    chosen = tuple(int(atom) for atom in atoms)
    outside = [atom for atom in chosen if not 0 <= atom < particles]
    if outside:
        raise UqbiasError(f"atom {outside[0]} in a System of {particles} particles", "they are numbered from 0")
    if len(set(chosen)) < len(chosen):
        raise UqbiasError(f"atoms {list(chosen)[:20]} name one twice", "give each atom once")
    if count is not None and len(chosen) != count:
        raise UqbiasError(f"{len(chosen)} atoms for a model of {count}", "give one index per model atom")
    return chosen


def choose_backend_for(backend: str, *, periodic: bool, external: bool) -> str:
    """`choose_backend`, without TorchForce where it would not be told what it needs to know."""
    chosen = choose_backend(backend)
    if chosen == "torchforce" and (periodic or external):
        raise UqbiasError(
            "backend 'torchforce' with " + ("a Force as variable" if external else "periodic boundaries"),
            "use backend 'pythonforce'",
        )
    return chosen


def has_cell(system: Any) -> bool:
    """Whether a System has a cell: a force uses it, or its box vectors are not the 2 nm that OpenMM gives every one."""
    return bool(system.usesPeriodicBoundaryConditions()) or not np.array_equal(default_box(system), 2.0 * np.eye(3))


def default_box(system: Any) -> Array:
    """Default box vectors of a System, [3, 3] nm."""
    return np.array([list(vector._value) for vector in system.getDefaultPeriodicBoxVectors()], dtype=np.float64)


def free_group(system: Any) -> int:
    """The highest force group that no force has, as openmm.app.Metadynamics takes it; 0 if there is none."""
    return max(ALL_GROUPS - {force.getForceGroup() for force in system.getForces()}, default=0)


def atomic_numbers(simulation: Any) -> list[int]:
    """Atomic numbers of all particles; 0 for one without an element."""
    numbers = [atom.element.atomic_number if atom.element else 0 for atom in simulation.topology.atoms()]
    return numbers + [0] * (simulation.system.getNumParticles() - len(numbers))


def check_elements(simulation: Any, atoms: Sequence[int] | None, numbers: Sequence[int]) -> None:
    """Raise UqbiasError unless the atoms are those of the model; 0 there stands for any element."""
    elements = atomic_numbers(simulation)
    chosen = elements[: len(numbers)] if atoms is None else [elements[atom] for atom in atoms]
    if any(number and number != other for number, other in zip(numbers, chosen, strict=True)):
        raise UqbiasError(
            f"the simulation's atoms have elements {tuple(chosen)}, the model's {tuple(numbers)}",
            "give atoms=[...] the model's atoms in its order",
        )
