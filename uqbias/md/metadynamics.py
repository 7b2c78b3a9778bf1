"""Metadynamics on the uncertainty in an existing OpenMM script: three added lines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.bias.base import Array, Bias, BiasSum
from uqbias.bias.metadynamics import Metadynamics as MetadynamicsBias
from uqbias.bias.walls import UpperWall
from uqbias.compile.fused import FusedEvaluator
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.md.force import make_force, python_force
from uqbias.md.reporters import ColvarFiles, HillsFile, read_hills
from uqbias.md.stack import check_torchforce_as_variable, choose_backend
from uqbias.model import UncertaintyModel

DRIVES = ("model", "bias")
#: Times in a HILLS file are read in this step (fs) until the simulation's own is known.
FINE_STEP = 1e-6


class Metadynamics:
    """A bias on the uncertainty of one molecule in an ``openmm.app.Simulation``; itself a reporter.

    ::

        bias = uqbias.md.metadynamics.Metadynamics("model.uqb", temperature=300, height=1.0, sigma=1.0, pace=50)
        system.addForce(bias.force())            # before the Simulation is made
        simulation.reporters.append(bias)        # deposits the hills, writes HILLS and COLVAR

    Every ``pace`` steps the reporter asks OpenMM for the forces, which makes an evaluation at the current positions
    that the integrator's next step uses again: nothing is evaluated twice. Hills act from the next step on.

    Parameters
    ----------
    model : the model, or the path of its file.
    temperature : K, of the well-tempered rule; use the thermostat's.
    height : kJ/mol.
    sigma : width of the hills in units of the driver u.
    biasfactor : γ > 1, or None for untempered metadynamics.
    kernel : ``gaussian``, or ``stretched-gaussian`` for the same bias as PLUMED's METAD.
    pace : steps between hills.
    wall : value of u where an upper wall begins; None for no wall.
    wall_kappa : kJ/mol per squared unit of u, see `UpperWall`.
    drive : ``"model"``: the force holds the model's energy and the bias, on a System without other forces on these
        atoms. ``"bias"``: only the bias, on top of the user's own force field.
    hills, colvar : files in PLUMED's format, None to write none.
    restart : begin with the hills of the file ``hills`` and append to the files.
    backend, runner, dtype, device, cache_dir : see `make_force` and `FusedEvaluator`.

    Attributes
    ----------
    metadynamics : the bias: ``hills``, ``value``, ``free_energy``, ``checkpoint``, ``restore``.
    evaluator : the fused evaluation; ``evaluator.last`` holds E, u and V of the last one.

    Raises
    ------
    UqbiasError
        If a parameter or the model file is bad.
    """

    def __init__(
        self,
        model: torch.nn.Module | str | Path,
        *,
        temperature: float,
        height: float = 1.0,
        sigma: float = 1.0,
        biasfactor: float | None = 10.0,
        pace: int = 50,
        kernel: str = "gaussian",
        wall: float | None = None,
        wall_kappa: float = 20.0,
        drive: str = "model",
        hills: str | Path | None = "HILLS",
        colvar: str | Path | None = "COLVAR",
        restart: bool = False,
        backend: str = "auto",
        runner: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        cache_dir: Path | None = None,
    ) -> None:
        if drive not in DRIVES:
            raise UqbiasError(f"unknown drive '{drive}'", did_you_mean(drive, DRIVES))
        self.metadynamics = MetadynamicsBias(
            height=height, sigma=sigma, pace=pace, biasfactor=biasfactor, temperature=temperature, kernel=kernel
        )
        walls = [] if wall is None else [UpperWall(at=wall, kappa=wall_kappa)]
        self.bias = BiasSum([self.metadynamics, *walls])
        self.pace, self.backend = int(pace), backend
        self._hills, self._colvar, self._restart = hills, colvar, restart
        self._files: tuple[HillsFile | None, ColvarFiles | None] | None = None
        self._atoms: list[int] | None = None
        self._checked = False
        if restart and hills is not None:
            self.metadynamics.load_hills(read_hills(hills, FINE_STEP))
        self.evaluator = FusedEvaluator(
            _loaded(model),
            self.bias,
            1,
            runner=runner,
            dtype=dtype,
            device=device,
            cache_dir=cache_dir,
            include_energy=drive == "model",
        )

    def force(self, atoms: Sequence[int] | None = None) -> Any:
        """The force to add to the System.

        Parameters
        ----------
        atoms : indices of the model's atoms in the System, in the model's order; all particles if None.

        Returns
        -------
        openmm.Force
        """
        self._atoms = None if atoms is None else [int(atom) for atom in atoms]
        return make_force(self.evaluator, self.backend, self._atoms)

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802
        """Called by OpenMM: the forces are needed at the next multiple of ``pace``.

        Raises
        ------
        UqbiasError
            If the elements of the simulation's atoms are not the model's.
        """
        if not self._checked:
            self._check(simulation)
        return {"steps": self.pace - simulation.currentStep % self.pace, "periodic": None, "include": ["forces"]}

    def report(self, simulation: Any, state: Any) -> None:
        """Called by OpenMM every ``pace`` steps: deposit a hill, write a row of COLVAR.

        Raises
        ------
        UqbiasError
            If the force is not part of the simulation, or the molecule broke since the last report.
        """
        last = self.evaluator.last
        if last is None:
            raise UqbiasError(
                "the bias is a reporter, but its force is not in the simulation's System",
                "system.addForce(bias.force()) before the Simulation is made",
            )
        energy, cv, uncertainty, bias = (
            values.detach().cpu().numpy().astype(np.float64)
            for values in (last.energy, last.cv, last.uncertainty, last.bias)
        )
        if self.evaluator.broken.any():
            raise UqbiasError(
                f"in the {self.pace} steps up to step {simulation.currentStep} the molecule left what the model "
                f"describes: energy {energy[0]:.6g} kJ/mol, u {cv[0]:.4g}",
                "put a wall on u, use lower hills, or train the model on such geometries",
            )
        hills, colvar = self._files or self._open(simulation)
        self.metadynamics.update(simulation.currentStep, cv[:, None])
        if hills is not None:
            hills()
        if colvar is not None:
            colvar.row(0, state.getTime()._value, [cv[0], energy[0], uncertainty[0], bias[0]], [], restarted=False)
        self.evaluator.arm_memo()

    def free_energy(self, u: NDArray[Any] | None = None) -> tuple[Array, Array]:
        """Free energy along u, kJ/mol; see `uqbias.bias.metadynamics.Metadynamics.free_energy`."""
        return self.metadynamics.free_energy(u)

    def _open(self, simulation: Any) -> tuple[HillsFile | None, ColvarFiles | None]:
        """Open the files, now that the timestep is known; hills in the bias are those of the earlier run."""
        timestep_fs = simulation.integrator.getStepSize()._value * 1e3
        hills = None if self._hills is None else Path(self._hills)
        loaded = self.metadynamics.hills
        loaded["step"] = np.rint(loaded["step"] * (FINE_STEP / timestep_fs))
        self._files = (
            None if hills is None else HillsFile(hills, self.metadynamics, timestep_fs, append=self._restart),
            None if self._colvar is None else ColvarFiles(self._colvar, 1, append=self._restart),
        )
        return self._files

    def _check(self, simulation: Any) -> None:
        atoms = list(simulation.topology.atoms())
        chosen = range(len(atoms)) if self._atoms is None else self._atoms
        found = tuple(atoms[index].element.atomic_number if atoms[index].element else 0 for index in chosen)
        if found != self.evaluator.numbers:
            raise UqbiasError(
                f"the simulation's atoms have elements {found}, the model's {self.evaluator.numbers}",
                "give bias.force(atoms=...) the model's atoms in its order",
            )
        # A minimisation before the first step may have tried geometries that nobody will simulate.
        self.evaluator.broken[:] = False
        self._checked = True


class _Itself(Bias):
    """V = u: the driver as an energy."""

    kind = "itself"

    def energy(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return x[:, 0].clone()


# OpenMM copies the forces inside a CustomCVForce by serialising them, which for a PythonForce means pickling its
# function: that function holds a number, and the evaluator stays here for the life of the process.
_evaluators: dict[int, FusedEvaluator] = {}
_handles = itertools.count()


class _ByHandle:
    """Energy and forces of an evaluator, pickled as a number within the process."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.handle not in _evaluators:
            raise UqbiasError("a force on the uncertainty was read in another process", "make it there again")
        return _evaluators[self.handle].evaluate_for_host(positions)


def uncertainty_cv_force(
    model: torch.nn.Module | str | Path,
    atoms: Sequence[int] | None = None,
    *,
    backend: str = "auto",
    runner: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cache_dir: Path | None = None,
) -> Any:
    """A force whose energy, in kJ/mol, is the driver u: a collective variable for OpenMM's own classes.

    It may go into a ``CustomCVForce`` or an ``openmm.app.BiasVariable`` of ``openmm.app.Metadynamics``. That way costs
    a second evaluation each step; `Metadynamics` in this module does not.

    Parameters
    ----------
    model : the model, or the path of its file.
    atoms : indices of the model's atoms in the System; all particles if None.
    backend, runner, dtype, device, cache_dir : see `make_force` and `FusedEvaluator`.

    Returns
    -------
    openmm.Force

    Raises
    ------
    UqbiasError
        For backend ``torchforce`` with OpenMM 8.6 or later, where copying a TorchForce, as CustomCVForce does, kills
        the process: openmmtorch 1.5 is compiled against OpenMM 8.4.
    """
    chosen = choose_backend(backend)
    if chosen == "torchforce":
        check_torchforce_as_variable()
    evaluator = FusedEvaluator(
        _loaded(model),
        _Itself(),
        1,
        runner=runner,
        dtype=dtype,
        device=device,
        cache_dir=cache_dir,
        include_energy=False,
    )
    if chosen == "torchforce":
        return make_force(evaluator, chosen, atoms)
    handle = next(_handles)
    _evaluators[handle] = evaluator
    if atoms is not None and len(atoms) != evaluator.n_atoms:
        raise UqbiasError(f"{len(atoms)} atoms for a model of {evaluator.n_atoms}", "give one index per model atom")
    return python_force(_ByHandle(handle), None if atoms is None else [int(atom) for atom in atoms])


def _loaded(model: torch.nn.Module | str | Path) -> torch.nn.Module:
    return UncertaintyModel.load(model) if isinstance(model, str | Path) else model
