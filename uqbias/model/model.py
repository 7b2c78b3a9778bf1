"""UncertaintyModel: a potential, the driver CV, the judge and its calibration, in one file.

The file is a safetensors file (no pickle): the tensors, and a JSON manifest in its metadata with everything that
rebuilds the modules and says what the numbers mean.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import uqbias
from uqbias.errors import UqbiasError
from uqbias.files import atomic_path, content_of, memory_for
from uqbias.model.manifest import FORMAT_VERSION, REPLACE, digest, read_file
from uqbias.model.reference import facts_for
from uqbias.molecule.geometry import Geometry
from uqbias.molecule.seen import NOTHING, Array, join
from uqbias.molecule.topology import Topology
from uqbias.potentials.base import Potential
from uqbias.potentials.prediction import Readouts, geometry_for, with_member_forces
from uqbias.registry import POTENTIALS, names_of_file
from uqbias.uncertainty.base import Uncertainty, rebuild_uncertainty
from uqbias.uncertainty.calibration import Calibration
from uqbias.variables.names import local_names

UNITS = {"length": "nm", "energy": "kJ/mol", "force": "kJ/mol/nm"}
#: Tensors of the file that are not part of any module: invariants of the frames that the model was made from, and of
#: those that calibrated it.
SEEN, CALIBRATED, OF_POTENTIAL = "record.seen", "record.calibrated", "record.potential"
#: Atoms of a molecule on which a model that is loaded is not tried.
LARGE = 200


class Prediction(NamedTuple):
    """What one evaluation gives for W walkers."""

    #: [W] kJ/mol, mean over the members; in float64, since single precision has steps of 2 at −3·10⁷.
    energy: Tensor
    #: [W] the driver, dimension stated by its kind.
    driver: Tensor
    #: [W] the judge, kJ/mol/nm of expected force error.
    judge: Tensor
    #: [W, K] parts of the driver, see `Uncertainty.part_names`; K is 0 for one that has none.
    local: Tensor


class UncertaintyModel(nn.Module):
    """Potential and uncertainties of the atoms of one system; `with_topology` gives those of another.

    Parameters
    ----------
    potential : the potential.
    judge : the judge, which decides what is harvested and when a campaign ends.
    driver : the driver, which the bias acts on; the judge itself if None.
    topology : bond graph of the molecule.
    calibration : from the judge's raw value to an expected force error; identity if None.
    provenance : JSON-able facts for the manifest (hash of the training set, number of frames, errors).
    """

    def __init__(
        self,
        potential: Potential,
        judge: Uncertainty,
        topology: Topology,
        driver: Uncertainty | None = None,
        calibration: Calibration | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.judge = judge
        self.driver = judge if driver is None else driver
        self.calibration = Calibration() if calibration is None else calibration
        self.topology = topology
        self.provenance = dict(provenance or {})
        self.calibrated_on: Array = NOTHING
        #: Systems that it was trained on, by name; empty for a model of one.
        self.systems: dict[str, Topology] = {}
        if len(topology) != len(potential.numbers):
            raise UqbiasError(
                f"the topology has {len(topology)} atoms, the potential {len(potential.numbers)}",
                "use the same molecule for both",
            )
        for part in (self.judge, self.driver):
            part.check_members(potential.n_members, most=not potential.frozen)
        if self.driver is not self.judge and self.judge.requires_forces and self.driver.requires_forces:
            kinds = {self.judge.kind, self.driver.kind}
            if self.readouts is not None:
                raise UqbiasError(
                    f"judge and driver of {' and '.join(sorted(kinds))} that take different forces",
                    "let the driver be the judge, or choose another driver",
                )

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of the molecule."""
        return self.potential.numbers

    def with_topology(self, topology: Topology) -> UncertaintyModel:
        """A model of another system of the same elements, with the same weights, statistics and calibration.

        Raises
        ------
        UqbiasError
            If an element is unknown, or the potential, the judge or the driver is of one molecule.
        """
        twin = UncertaintyModel(
            self.potential.with_numbers(topology.numbers),
            self.judge.with_topology(topology),
            topology,
            None if self.driver is self.judge else self.driver.with_topology(topology),
            self.calibration.with_numbers(topology.numbers),
            self.provenance if topology == self.topology else facts_for(self.provenance, self.systems, topology),
        )
        twin.calibrated_on, twin.systems = self.calibrated_on, self.systems
        return twin.train(self.training)

    def forward(self, positions: Tensor, geometry: Geometry | None = None, *, judged: bool = True) -> Prediction:
        """Evaluate W walkers at ``positions`` [W, N, 3] in nm, in the ``geometry`` that `Potential.forward` takes.

        Without the judge, NaN then, if not ``judged``.
        """
        return self._prediction(positions, self.terms(positions, geometry, judged=judged), judged=judged)

    def with_atoms(self, positions: Tensor, geometry: Geometry | None = None) -> tuple[Prediction, Tensor]:
        """`forward` and the calibrated uncertainty of each atom [W, N], kJ/mol/nm, from one evaluation.

        Raises
        ------
        UqbiasError
            If the judge has no values per atom.
        """
        terms = self.terms(positions, geometry)
        raw = self.judge.per_atom(positions, *terms)
        if raw is None:
            raise UqbiasError(f"uncertainty '{self.judge.kind}' has no values per atom", "choose another judge")
        return self._prediction(positions, terms), self.calibration.per_atom(raw)

    def atom_uncertainties(self, positions: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Second part of `with_atoms`."""
        return self.with_atoms(positions, geometry)[1]

    def terms(self, positions: Tensor, geometry: Geometry | None = None, *, judged: bool = True) -> tuple[Tensor, ...]:
        """Energy, latents and, where an uncertainty needs them, forces of members or readouts, for `uncertainties`."""
        if self.requires_forces and (judged or not self.judge_apart):
            return with_member_forces(self.potential, positions, geometry, self.readouts)
        return self.potential(positions, geometry)

    def _prediction(self, positions: Tensor, terms: tuple[Tensor, ...], *, judged: bool = True) -> Prediction:
        raw, driver, local = self.uncertainties(positions, *terms, judged=judged)
        shift = self.potential.energy_shift
        energy = terms[0].mean(0).to(shift.dtype) + shift
        return Prediction(energy, driver, self.calibration(raw), local)

    @property
    def local_names(self) -> tuple[str, ...]:
        """Names of the K parts of the driver, as variables."""
        return local_names(len(self.driver.part_names))

    @property
    def requires_forces(self) -> bool:
        """Whether an uncertainty needs the forces of every committee member."""
        return self.judge.requires_forces or self.driver.requires_forces

    @property
    def readouts(self) -> Readouts | None:
        """Readouts whose forces an uncertainty needs, in place of the members'."""
        return self.judge.readouts or self.driver.readouts

    @property
    def judge_apart(self) -> bool:
        """Whether the judge alone needs the members' forces, at several times the cost of all that moves the atoms."""
        return self.judge.requires_forces and not self.driver.requires_forces

    def uncertainties(self, positions: Tensor, *terms: Any, judged: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Uncalibrated judge and driver, [W] each, and the driver's parts [W, K]; ``terms`` as in `Uncertainty`."""
        driver, local = self.driver.with_local(positions, *terms)
        raw = driver if self.driver is self.judge else self.judge(positions, *terms) if judged else driver * torch.nan
        return raw, driver, local

    @property
    def seen(self) -> Array:
        """Record of the frames that potential and judge were made from; see `uqbias.molecule.seen`."""
        return join(self.potential.seen, self.judge.seen)

    def signature(self) -> str:
        """What a compiled graph of this model depends on, beside shapes: two models with the same can share one."""
        potential = {name: value for name, value in self.potential.options().items() if name != "seed"}
        parts = [part.describe() for part in (self.judge, self.driver)]
        for part in parts:
            part["options"].pop("capacity", None)
        calibration = [self.calibration.kind, self.calibration.shape]
        return json.dumps([self.potential.kind, potential, parts, *calibration], sort_keys=True)

    def manifest(self) -> dict[str, Any]:
        """The JSON manifest, without the hash of the tensors."""
        calibrated = self.calibration.meaning if self.calibration.fitted else self.judge.unit
        return {
            "format": "uqbias",
            "format_version": FORMAT_VERSION,
            "atomic_numbers": list(self.numbers),
            "elements": list(self.potential.elements),
            "element_energies": {str(number): e for number, e in self.potential.element_energies.items()},
            "topology": self.topology.to_dict(),
            "systems": [{"name": name, "topology": graph.to_dict()} for name, graph in self.systems.items()],
            "units": UNITS | {"driver": self.driver.unit, "judge": calibrated},
            "dtype": str(next(self.potential.parameters()).dtype).removeprefix("torch."),
            "potential": self.potential.describe(),
            "judge": self.judge.describe(),
            "driver": None if self.driver is self.judge else self.driver.describe(),
            "calibration": self.calibration.describe(),
            "provenance": self.provenance,
            "versions": {
                "uqbias": uqbias.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the model file atomically."""
        from safetensors.torch import save_file

        # The driver may be the judge; safetensors stores a tensor once, so its alias is left out.
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.state_dict().items()
            if not (self.driver is self.judge and name.startswith("driver."))
        }
        tensors[SEEN] = torch.from_numpy(self.seen.copy())
        tensors[CALIBRATED] = torch.from_numpy(self.calibrated_on.copy())
        tensors[OF_POTENTIAL] = torch.from_numpy(self.potential.seen.copy())
        manifest = self.manifest()
        manifest["sha256"] = digest(manifest, tensors)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"manifest": json.dumps(manifest)})

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False) -> UncertaintyModel:
        """Read a model file; nothing is unpickled, and nothing imported but kinds of the registry.

        Parameters
        ----------
        path : the file.
        trust : import kinds that the file names by ``module:attribute`` too, because it is yours.

        Raises
        ------
        UqbiasError
            If the file is missing, cut short, edited, or of another format version, or its parts do not fit.
        """
        path = Path(path)
        manifest, tensors = read_file(path)
        with content_of(path, REPLACE, "does not describe a model"):
            with names_of_file(trust), memory_for(path):
                model = cls._restored(manifest, tensors)
            if len(model.numbers) <= LARGE:
                line = _line(model)
                shapes = [tuple(part.shape) for part in model(line, geometry_for(model.potential, line))]
                if shapes != [(1,), (1,), (1,), (1, len(model.local_names))]:
                    raise UqbiasError(f"it gives {shapes} for one geometry", REPLACE)
        return model

    @classmethod
    def _restored(cls, manifest: Mapping[str, Any], tensors: dict[str, Tensor]) -> UncertaintyModel:
        seen, calibrated_on, of_potential = (tensors.pop(name).numpy() for name in (SEEN, CALIBRATED, OF_POTENTIAL))
        for record in (seen, calibrated_on, of_potential):
            if record.ndim != 2 or record.shape[1:] != NOTHING.shape[1:] or record.dtype != NOTHING.dtype:
                raise UqbiasError(f"a record of frames of shape {record.shape} and type {record.dtype}", REPLACE)
        judge = rebuild_uncertainty(manifest["judge"])
        model = cls(
            potential=POTENTIALS.restore(manifest["potential"]),
            judge=judge,
            topology=Topology.from_dict(manifest["topology"]),
            driver=None if manifest["driver"] is None else rebuild_uncertainty(manifest["driver"]),
            calibration=Calibration.from_description(manifest["calibration"]),
            provenance=manifest["provenance"],
        ).to(getattr(torch, manifest["dtype"]))
        if not tuple(manifest["atomic_numbers"]) == model.numbers == model.topology.numbers:
            raise UqbiasError("potential, topology and manifest are of different molecules", REPLACE)
        if model.driver is model.judge:
            names = [name for name in tensors if name.startswith("judge.")]
            tensors |= {"driver." + name.removeprefix("judge."): tensors[name] for name in names}
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise UqbiasError(f"tensors do not match the manifest ({error})", "save the model again") from error
        bad = [name for name, tensor in model.potential.named_parameters() if not tensor.isfinite().all()]
        if bad:
            raise UqbiasError(f"weights that are not finite numbers ({bad[0]})", "train it again")
        model.judge.seen, model.potential.seen, model.calibrated_on = seen, of_potential, calibrated_on
        # Files of before there were several systems lack both keys.
        energies = manifest.get("element_energies", {})
        model.potential.element_energies = {int(number): float(energy) for number, energy in energies.items()}
        systems = manifest.get("systems", [])
        model.systems = {system["name"]: Topology.from_dict(system["topology"]) for system in systems}
        return model.eval()


def _line(model: UncertaintyModel) -> Tensor:
    """Atoms [1, N, 3] on a helix, 0.15 nm apart: a geometry to try a model on."""
    turn = torch.arange(len(model.numbers), dtype=torch.get_default_dtype())
    positions = torch.stack([0.1 * turn.cos(), 0.1 * turn.sin(), 0.1 * turn], dim=-1)
    return positions.unsqueeze(0).to(next(model.potential.parameters()))
