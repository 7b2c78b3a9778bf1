"""The contract of an uncertainty, and making one from a campaign file or a model file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uqbias.errors import UqbiasError
from uqbias.molecule.seen import TOLERANCE, Memory, invariants
from uqbias.molecule.topology import Topology
from uqbias.potentials.prediction import Readouts
from uqbias.registry import FEATURES, UNCERTAINTIES, Part
from uqbias.uncertainty.features.base import Features

#: Log-weight of an empty place in a buffer of fixed size: never seen, yet finite in float32.
PADDING = -1e9
#: Frames per evaluation while fitting, to bound the memory.
CHUNK = 512
#: nats; a geometry of a larger u of a density of one or two torsions is broken, not unknown.
WALL = 14.0


class Sample(NamedTuple):
    """Frames of one system that an uncertainty is fitted to: arguments of `Uncertainty.fit`."""

    #: The uncertainty of the system's atoms, see `Uncertainty.with_topology`.
    part: Uncertainty
    positions: Tensor
    energy: Tensor
    latents: Tensor
    forces: Tensor | None = None
    #: Forces [K, n, N, 3] kJ/mol/nm of readouts in some of the frames; None outside the fit of a model.
    forces_of: Callable[[Readouts, NDArray[np.intp]], Tensor] | None = None

    def values(self, function: Callable[..., Tensor]) -> NDArray[np.float64]:
        """A function of part, positions, energy, latents and forces, [n, ...], a chunk of frames at a time."""
        return self.part._in_chunks(partial(function, self.part), *self[1:5])


class Uncertainty(Part, Memory, nn.Module, ABC):
    """A smooth scalar u of a geometry that grows where the training set has nothing.

    All that `fit` changes is in floating-point buffers whose shapes follow from the options, so that a compiled graph
    stays valid over retraining. ``forward`` is finite for any finite geometry.

    Parameters
    ----------
    features : feature space of a density; None for a kind that has none.

    Attributes
    ----------
    kind : name in the registry and in the model file.
    unit : unit of u before calibration.
    default_members : committee size of a potential that is made for this kind, where the user gives none.
    fewest_members, most_members : committee sizes that make sense; None for no upper limit.
    statistic : what u is like, for the calibration: ``deviation`` (of an error, up to a factor), ``variance`` or
        ``log_density``.
    hill_width : width of a hill that suits u as driver, in its unit; None where that depends on the system.
    wall : value of u, in its unit, beyond which a geometry is taken for broken: where a wall begins, a walker is
        stopped and a frame is not worth a label; None where that depends on the system. An instance may know better
        than its kind.
    bootstrap : whether each committee member is to be trained on its own resample of the frames.
    part_names : descriptions of K parts of the molecule (``"torsion C5-N7"``) that have an uncertainty each, which
        `local` gives in this order; fixed at construction. Empty for a kind that is one number.
    """

    kind: str
    unit: str = "nats"
    statistic: ClassVar[str] = "log_density"
    default_members: ClassVar[int] = 1
    fewest_members: ClassVar[int] = 1
    most_members: ClassVar[int | None] = None
    hill_width: ClassVar[float | None] = None
    wall: float | None = None
    bootstrap: bool = False
    part_names: tuple[str, ...] = ()
    features: Features | None

    def __init__(self, features: Features | None = None) -> None:
        super().__init__()
        self.features = features

    @classmethod
    @abstractmethod
    def build(cls, topology: Topology, n_latents: int, *_: Any, **options: Any) -> Uncertainty:
        """Make an unfitted uncertainty of one molecule from the options of a campaign file.

        Parameters
        ----------
        topology : bond graph of the molecule.
        n_latents : latent features per atom of the potential, F.
        """

    def describe(self) -> dict[str, Any]:
        """Description for the manifest of a model file; inverse of `rebuild_uncertainty`."""
        return super().describe() | {"unit": self.unit}

    def with_topology(self, topology: Topology) -> Self:
        """A twin for the atoms of another system; both have the same weights and statistics, whichever is fitted.

        Raises
        ------
        UqbiasError
            If this kind, or an option of it, is of one molecule, or it knows no such element.
        """
        options = self.options() | self._placed(topology)
        tensors = [tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.is_floating_point()]
        twin = type(self)(**options).to(tensors[0] if tensors else torch.zeros(()))
        share_state(self, twin)
        twin.seen = self.seen
        return twin.train(self.training)

    def _placed(self, topology: Topology) -> dict[str, Any]:
        """Those arguments of the constructor that follow from the atoms, for the atoms of ``topology``."""
        raise self.of_one_molecule(self.kind)

    @staticmethod
    def of_one_molecule(kind: str) -> UqbiasError:
        """The error of a kind that other systems are asked of."""
        return UqbiasError(
            f"uncertainty '{kind}' is of one molecule",
            "choose committee, gmm, distance, llpr, mve, evidential or shallow_ensemble for several systems",
        )

    @property
    def requires_latents(self) -> bool:
        """Whether the potential's latents are used."""
        return self.features is not None and self.features.requires_latents

    @property
    def requires_forces(self) -> bool:
        """Whether `forward` is to be given the forces of every committee member, or of the `readouts`."""
        return self.readouts is not None

    @property
    def readouts(self) -> Readouts | None:
        """Readouts whose forces [K, W, N, 3] take the place of the members'; None for a kind without."""
        return None

    @property
    def labelled(self) -> bool:
        """Whether u tells like atoms apart, as features of the bond graph do."""
        return self.features is not None and self.features.labelled

    def check_members(self, n_members: int, *, most: bool = True) -> None:
        """Refuse a potential whose committee size makes no sense for this kind or its features.

        More than `most_members` are not refused where ``most`` is False, as of a frozen committee: a kind of single
        models takes the latents of its first member, and the errors of the mean.
        """
        member = getattr(self.features, "member", 0)
        if member >= n_members:
            raise UqbiasError(
                f"features of member {member} of a potential of {n_members} member(s)", "members are numbered from 0"
            )
        if n_members < self.fewest_members:
            raise UqbiasError(
                f"uncertainty '{self.kind}' with a potential of {n_members} member(s)",
                f"set potential.n_members (--members) to {self.fewest_members} or more, or leave it out",
            )
        if most and self.most_members is not None and n_members > self.most_members:
            raise UqbiasError(
                f"uncertainty '{self.kind}' with a committee of {n_members}",
                f"set potential.n_members (--members) to {self.most_members}, or choose a committee",
            )

    def prepare(self, positions: Tensor) -> None:
        """Set what the features learn from the start frames [n, N, 3] nm; once per campaign, before `fit`."""
        if self.features is not None:
            self.features.prepare(positions)

    def loss(self, energy_error: Tensor, force_error: Tensor, latents: Tensor) -> Tensor | None:
        """Loss, [], of the weights that this kind trains together with the potential; None for a kind without weights.

        Parameters
        ----------
        energy_error : [M, n] predicted minus labelled energies, in units of `energy_unit` times the force below.
        force_error : [M, n, N, 3] predicted minus labelled forces, in units of the root mean square force component
            of the training set.
        latents : [M, n, N, F].

        Kinds that are of any system take ``present`` beside them, [M, n, N]: 0 for empty places of frames that are
        padded to one number of atoms, else 1.
        """
        return None

    def set_force_unit(self, force: float) -> None:
        """Tell the unit of `loss`: the root mean square force component of the training set, kJ/mol/nm."""

    @abstractmethod
    def fit(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None, *, seed: int
    ) -> None:
        """Set the buffers from the training set.

        The features are prepared with these frames if `prepare` was not called before.

        Parameters
        ----------
        positions : [n, N, 3] nm.
        energy : [M, n] kJ/mol, from the potential's ``energy_shift``.
        latents : [M, n, N, F].
        forces : [M, n, N, 3] kJ/mol/nm of each member; given where `requires_forces`.
        seed : seed of every random choice.

        Raises
        ------
        UqbiasError
            If the frames are too few, all the same or not finite, or the fit fails.
        """

    def fit_systems(self, samples: Sequence[Sample], *, seed: int) -> None:
        """`fit` to frames of several systems; afterwards all ``samples[...].part`` are fitted, and this too.

        Raises
        ------
        UqbiasError
            Where `fit` does, or if this kind is of one molecule.
        """
        if len(samples) > 1:
            raise self.of_one_molecule(self.kind)
        samples[0].part.fit(*samples[0][1:5], seed=seed)

    @abstractmethod
    def forward(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Uncertainty of W walkers, [W].

        Parameters
        ----------
        positions : [W, N, 3] nm.
        energy : [M, W] kJ/mol, from the potential's ``energy_shift``.
        latents : [M, W, N, F].
        forces : [M, W, N, 3] kJ/mol/nm of each member; given where `requires_forces`.
        """

    def local(self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None) -> Tensor:
        """Uncertainty of each of the K `part_names`, [W, K] in `unit`; arguments as of `forward`."""
        return positions.new_zeros(len(positions), 0)

    def with_local(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` and `local`, from one evaluation."""
        arguments = positions, energy, latents, forces
        return self(*arguments), self.local(*arguments)

    def per_atom(
        self, positions: Tensor, energy: Tensor, latents: Tensor, forces: Tensor | None = None
    ) -> Tensor | None:
        """Uncertainty of each atom [W, N], 0 for atoms without a value; None where there are no per-atom values."""
        return None

    def _training_features(self, positions: Tensor, latents: Tensor) -> NDArray[np.float64]:
        """Features of the training frames, [n, D] or [n, A, D], checked."""
        if len(positions) < 2:
            raise UqbiasError(f"{len(positions)} training frames for the uncertainty '{self.kind}'", "give 2 or more")
        if not np.ptp(invariants(positions.detach().cpu().numpy()), axis=0).max() > TOLERANCE:
            raise UqbiasError(
                f"{len(positions)} training frames for the uncertainty '{self.kind}' are one geometry, moved or turned",
                "give frames that differ",
            )
        return self._finite_features(positions, latents)

    def _finite_features(self, positions: Tensor, latents: Tensor) -> NDArray[np.float64]:
        features = self.features
        assert features is not None
        if not features.is_prepared:
            features.prepare(positions)
        values = self._in_chunks(features, positions, latents)
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            raise UqbiasError(
                f"features '{features.kind}' of training frame {int(np.argmin(finite))} are not finite",
                "remove that frame, or train the potential again",
            )
        return values

    def _in_chunks(
        self, function: Callable[..., Tensor], positions: Tensor, *members: Tensor | None
    ) -> NDArray[np.float64]:
        """``function`` of positions [n, N, 3] and of members' values [M, n, ...], [n, ...], a chunk at a time."""
        dtype = self._dtype()
        with torch.no_grad():
            chunks = []
            for at in range(0, len(positions), CHUNK):
                parts = [None if values is None else values[:, at : at + CHUNK].to(dtype) for values in members]
                chunks.append(function(positions[at : at + CHUNK].to(dtype), *parts))
        values: NDArray[np.float64] = torch.cat(chunks).cpu().numpy().astype(np.float64)
        return values

    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(tensor.dtype for tensor in self.state_dict().values() if tensor.is_floating_point())
        return dtype


def rebuild_uncertainty(manifest: Mapping[str, Any]) -> Uncertainty:
    """Make an uncertainty from the ``{"kind", "options"}`` of a model file; its buffers still have to be loaded."""
    options = dict(manifest["options"])
    if "features" in options:
        options["features"] = FEATURES.restore(options["features"])
    uncertainty: Uncertainty = UNCERTAINTIES.restore({"kind": manifest["kind"], "options": options})
    return uncertainty


def at_wall(value: Any, driver: Uncertainty) -> Any:
    """A setting of a campaign, with a number for ``wall``: the driver's, `WALL` where its kind has none."""
    if not (isinstance(value, str) and value == "wall"):
        return value
    return WALL if driver.wall is None else driver.wall


def energy_unit(n_atoms: int) -> float:
    """Energy error that counts as much as a force error of 1 in training, nm: 0.1 √N."""
    return 0.1 * math.sqrt(n_atoms)


def share_state(source: nn.Module, twin: nn.Module) -> None:
    """Let ``twin``, of the same make, have the weights and the buffers of ``source`` that are stored in files."""
    modules = dict(source.named_modules())
    for name, module in twin.named_modules():
        stored = module._buffers.keys() - module._non_persistent_buffers_set
        module._parameters.update(modules[name]._parameters)
        module._buffers.update({key: modules[name]._buffers[key] for key in stored})


def set_buffers(module: nn.Module, **values: Any) -> None:
    """Copy arrays or numbers into the buffers of the same names, in place, so that shapes and dtypes stay."""
    with torch.no_grad():
        for name, value in values.items():
            buffer = module.get_buffer(name)
            buffer.copy_(torch.as_tensor(value, dtype=torch.float64).to(buffer.dtype))
