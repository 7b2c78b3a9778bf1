"""Names to classes: each kind of part (potential, features, uncertainty, bias, variable, distortion space,
oracle, sampler) has one registry.

Built-in entries are ``"module:attribute"`` strings, imported when first asked for. Third parties add theirs
through the entry-point group ``uqbias.<kind>``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from uqbias.errors import UqbiasError, did_you_mean


class Registry:
    """Lazy mapping from a name to a class, extended by entry points.

    Parameters
    ----------
    kind : what is registered, for messages and for the entry-point group.
    builtin : name to ``module:attribute``.
    base : ``module:attribute`` of the class that everything imported by path must derive from; None for no such rule.
    """

    def __init__(self, kind: str, builtin: dict[str, str], base: str | None = None) -> None:
        self.kind = kind
        self.builtin = builtin
        self.base = base

    def names(self) -> list[str]:
        """Valid names, built-in and third-party."""
        return sorted({*self.builtin, *(entry.name for entry in self._entry_points())})

    def get(self, name: str) -> Any:
        """Return the class called ``name``, or what ``name`` imports where it is ``module:attribute``.

        Raises
        ------
        UqbiasError
            If there is no such name; the message lists the valid ones and the nearest.
        """
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            return getattr(import_module(module), attribute)
        for entry in self._entry_points():
            if entry.name == name:
                return entry.load()
        if ":" in name:
            return self._checked(name, import_attribute(name))
        raise UqbiasError(f"unknown {self.kind} '{name}'", did_you_mean(name, self.names()))

    def _checked(self, name: str, found: Any) -> Any:
        """Names come from model files too: nothing but a class of the right family may be called for them."""
        if self.base is not None:
            base = import_attribute(self.base)
            if not (isinstance(found, type) and issubclass(found, base)):
                raise UqbiasError(f"'{name}' is not a {self.kind}", f"name a subclass of {self.base.replace(':', '.')}")
        return found

    def _entry_points(self) -> Any:
        return entry_points(group=f"uqbias.{self.kind}")


def import_attribute(path: str) -> Any:
    """Import what ``module:attribute`` or ``module.attribute`` names.

    Raises
    ------
    UqbiasError
        If the module or the attribute is not there.
    """
    module, separator, attribute = path.partition(":")
    if not separator:
        module, _, attribute = path.rpartition(".")
    if not module or not attribute:
        raise UqbiasError(f"'{path}' is not an import path", "write module:attribute, such as tblite.ase:TBLite")
    try:
        found: Any = import_module(module)
    except Exception as error:  # a third party's module may fail in any way
        raise UqbiasError(
            f"module '{module}' cannot be imported ({error})",
            f"install the package that provides it in this environment (pip install {module.partition('.')[0]}?)",
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UqbiasError(f"module '{module}' has no '{attribute}'", "check the import path")
        found = getattr(found, name)
    return found


POTENTIALS = Registry(
    "potential",
    {
        "power_spectrum": "uqbias.potentials.power_spectrum:PowerSpectrum",
        "coordinates": "uqbias.potentials.coordinates:Coordinates",
    },
    "uqbias.potentials.base:Potential",
)
FEATURES = Registry(
    "features",
    {
        "latents": "uqbias.uncertainty.features.latents:Latents",
        "torsions": "uqbias.uncertainty.features.torsions:Torsions",
        "pair_distances": "uqbias.uncertainty.features.pair_distances:PairDistances",
        "concatenated": "uqbias.uncertainty.features.concatenated:Concatenated",
    },
)
UNCERTAINTIES = Registry(
    "uncertainty",
    {
        "gmm": "uqbias.uncertainty.gmm:GaussianMixture",
        "kernel_density": "uqbias.uncertainty.kernel_density:KernelDensity",
        "committee": "uqbias.uncertainty.committee:Committee",
        "shallow_ensemble": "uqbias.uncertainty.shallow_ensemble:ShallowEnsemble",
        "mve": "uqbias.uncertainty.mve:MeanVarianceEstimation",
        "evidential": "uqbias.uncertainty.evidential:Evidential",
        "llpr": "uqbias.uncertainty.llpr:LastLayerRigidity",
        "distance": "uqbias.uncertainty.latent_distance:LatentDistance",
    },
    "uqbias.uncertainty.base:Uncertainty",
)
BIASES = Registry(
    "bias",
    {
        "metadynamics": "uqbias.bias.metad:MetaD",
        "opes": "uqbias.bias.opes:OPES",
        "eabf": "uqbias.bias.eabf:ExtendedABF",
        "wtm_eabf": "uqbias.bias.eabf:WellTemperedExtendedABF",
        "gamd": "uqbias.bias.gamd:GaMD",
        "linear": "uqbias.bias.linear:Linear",
        "udd": "uqbias.bias.fixed:UDD",
        "upper_wall": "uqbias.bias.fixed:UpperWall",
        "lower_wall": "uqbias.bias.fixed:LowerWall",
        "restraint": "uqbias.bias.fixed:Restraint",
    },
    "uqbias.bias.base:Bias",
)
VARIABLES = Registry(
    "variable",
    {
        "distance": "uqbias.variables.distance:Distance",
        "angle": "uqbias.variables.angle:Angle",
        "dihedral": "uqbias.variables.dihedral:Dihedral",
        "rmsd": "uqbias.variables.rmsd:RMSD",
        "coordination": "uqbias.variables.coordination:Coordination",
        "position": "uqbias.variables.position:Position",
    },
    "uqbias.variables.base:CollectiveVariable",
)
ORACLES = Registry(
    "oracle",
    {
        "openmm": "uqbias.oracles.openmm:OpenMMOracle",
        "ase": "uqbias.oracles.ase:ASEOracle",
        "double_well": "uqbias.oracles.analytic:DoubleWellOracle",
        "pool": "uqbias.oracles.pool:PoolOracle",
    },
)
SPACES = Registry(
    "space",
    {
        "cartesian": "uqbias.attacks.cartesian:Cartesian",
        "internal": "uqbias.attacks.internal:Internal",
        "variables": "uqbias.attacks.variables:Variables",
    },
    "uqbias.attacks.base:DistortionSpace",
)
SAMPLERS = Registry(
    "sampler",
    {
        "metadynamics": "uqbias.campaign.samplers.md:explore",
        "md": "uqbias.campaign.samplers.md:explore",
        "plumed": "uqbias.campaign.samplers.plumed_md:explore_plumed",
        "attack": "uqbias.campaign.samplers.distorting:explore_by_attack",
        "random": "uqbias.campaign.samplers.distorting:explore_at_random",
        "pool": "uqbias.campaign.samplers.distorting:explore_pool",
    },
)


def keywords(build: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the options that a ``build`` class method takes from the user."""
    return tuple(
        name
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def check_options(owner: str, options: Iterable[str], valid: Sequence[str]) -> None:
    """Refuse options that ``owner`` does not have.

    Raises
    ------
    UqbiasError
        With the nearest valid name.
    """
    for name in options:
        if name not in valid:
            cure = did_you_mean(name, valid) if valid else "it takes no options"
            raise UqbiasError(f"unknown option '{name}' of {owner}", cure)
