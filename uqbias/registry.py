"""Names to classes: each kind of part (potential, features, uncertainty, bias, variable, distortion space,
oracle, sampler) has one registry.

Built-in entries (`uqbias.kinds`) are ``"module:attribute"`` strings, imported when first asked for. Third parties add
theirs through the entry-point group ``uqbias.<kind>``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from importlib import import_module
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any, ClassVar, Self

from uqbias import kinds
from uqbias.errors import UqbiasError, did_you_mean
from uqbias.options import (
    REGISTRIES,
    KindSection,
    accepted,
    check_together,
    check_value,
    check_values,
    factory_of,
    options_of,
    parameters_of,
    plain,
    section_of,
)

#: Import paths that the user's campaign file, command or code has named in this process: those may stand in files.
named_paths: set[str] = set()
_OF_FILE: ContextVar[bool] = ContextVar("names come from a file that may be another's", default=False)
_trusted: list[bool] = []


@contextmanager
def names_of_file(trust: bool = False) -> Iterator[None]:
    """Let registries import nothing by path: the names come from a model file or a run folder.

    Parameters
    ----------
    trust : whether the user answers for the file.
    """
    token = _OF_FILE.set(not (trust or _trusted))
    try:
        yield
    finally:
        _OF_FILE.reset(token)


@contextmanager
def trusted_files() -> Iterator[None]:
    """Import what model files and run folders name, in every thread: the user answers for them."""
    _trusted.append(True)
    try:
        yield
    finally:
        _trusted.pop()


def are_trusted() -> bool:
    """Whether the user answers for files, see `trusted_files`."""
    return bool(_trusted)


class Part:
    """A part that a file describes by its kind and the arguments of its constructor.

    Making one refuses arguments that the annotations of the constructor do not allow. These annotations describe the
    options; a class's docstring names an option only where there is more to say. The constructor keeps each
    argument, or what became of it, in an attribute of the same name, but for the ``unrecorded``. That is how
    scikit-learn does it; a part that cannot do so has an ``options`` of its own.

    Attributes
    ----------
    kind : name in the registry and in the file.
    unrecorded : arguments that only help to work out others.
    """

    kind: str
    unrecorded: ClassVar[tuple[str, ...]] = ("topology", "members_needed")

    #: Arguments by name.
    _given: dict[str, Any]
    #: Options kept as attributes, as the constructor that describes each left it.
    _kept: dict[str, Any]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__init__" in vars(cls):
            cls.__init__ = _watched(cls, cls.__init__)  # type: ignore[method-assign]

    def __new__(cls, *positional: Any, **arguments: Any) -> Self:
        options = options_of(cls, constructor=True)
        owner = getattr(cls, "kind", cls.__name__)
        # A part among the arguments has checked itself; where one is missing, Python says so.
        for name in [name for name in arguments if name in options and not options[name].is_part()]:
            check_value(owner, name, options[name].annotation, arguments[name])
        described: set[str] = set()
        for base in cls.__mro__:
            described |= _parameters(base)
            for name in sorted((options.keys() & vars(base).keys()) - described):
                if not hasattr(vars(base)[name], "__get__"):
                    raise UqbiasError(f"{base.__name__} sets the option '{name}' in its class body", _redeclare(name))
        values = {name: option.default for name, option in options.items()} | arguments
        if factory_of(cls) is cls and not any(value is inspect.Parameter.empty for value in values.values()):
            check_together(cls, values)
        part = super().__new__(cls)
        vars(part).update(_given=dict(zip(parameters_of(cls), positional, strict=False)) | arguments, _kept={})
        return part

    def options(self) -> dict[str, Any]:
        """JSON-able arguments of the constructor; ``type(self)(**options)`` makes a twin that has learned nothing."""
        values = {}
        for name, (parameter, _) in parameters_of(type(self), constructor=True).items():
            if name in self.unrecorded or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if not hasattr(self, name):
                raise UqbiasError(
                    f"{type(self).__name__} keeps no attribute '{name}'", "keep the argument of its constructor there"
                )
            values[name] = _json(getattr(self, name))
        return values

    def describe(self) -> dict[str, Any]:
        """Description of the part in a file."""
        return {"kind": self.kind, "options": self.options()}


def _parameters(part: type) -> set[str]:
    """Names of the parameters of a class's own constructor; none where it inherits its base's."""
    return set(inspect.signature(vars(part)["__init__"]).parameters) if "__init__" in vars(part) else set()


def _redeclare(name: str) -> str:
    return f"declare {name} as a parameter of its constructor, and hand it on"


def _watched(owner: type[Part], constructor: Callable[..., None]) -> Callable[..., None]:
    """Refuse an option that a subclass gives another value than the one that it was made with.

    Files hold the arguments, and sections of campaign files the defaults: both are those of the class that describes
    the option, and a subclass that changes either unseen would be made again as something else.
    """
    described = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }

    @wraps(constructor)
    def watched(self: Part, *arguments: Any, **options: Any) -> None:
        cls = type(self)
        redescribed = map(_parameters, cls.__mro__[: cls.__mro__.index(owner)])
        names = (described.keys() & parameters_of(cls, constructor=True).keys()).difference(*redescribed)
        changes = [(name, self._given.get(name, described[name]), options.get(name, described[name])) for name in names]
        constructor(self, *arguments, **options)
        changes += [(name, before, vars(self).get(name)) for name, before in self._kept.items()]
        for name, before, after in changes:
            if before is not after and plain(before) != plain(after):
                fault = f"{cls.__name__} changes its option {name} from {before} to {after}"
                raise UqbiasError(fault, _redeclare(name))
        self._kept |= {name: vars(self)[name] for name in names if name in vars(self)}

    return watched


def _json(value: Any) -> Any:
    """Argument as JSON has it."""
    if isinstance(value, Part):
        return value.describe()
    if isinstance(value, Mapping):
        return {name: _json(entry) for name, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_json(entry) for entry in value]
    return value


class Registry:
    """Lazy mapping from a name to a part, extended by entry points; makes the parts too.

    Parameters
    ----------
    kind : what is registered, for messages and for the entry-point group.
    builtin : name to ``module:attribute``.
    base : ``module:attribute`` of the class that everything imported by path must derive from; None for no such rule.
    given : parameters of the parts that the program fills in; all others are the user's options.
    section_base : ``module:attribute`` of the class of its sections in the campaign file, where they have keys that are
        not options of the part.
    functions : ``module:attribute`` of the class that makes a part of a plain function, which its ``build`` gets as
        ``function``, with the name as ``kind``; None if a function cannot be a part.
    """

    def __init__(
        self,
        kind: str,
        builtin: dict[str, str],
        base: str | None = None,
        *,
        given: tuple[str, ...] = (),
        functions: str | None = None,
        section_base: str = "uqbias.options:KindSection",
    ) -> None:
        self.kind = kind
        self.builtin = builtin
        self.base = base
        self.given = given
        self.functions = functions
        self.section_base = section_base
        self._sections: dict[str, type[KindSection]] = {}
        REGISTRIES[kind] = self

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
            return import_path(self.kind, name, partial(self._checked, name))
        raise UqbiasError(f"unknown {self.kind} '{name}'", did_you_mean(name, self.names()))

    def part(self, name: str) -> Any:
        """Factory of a part: `get`, or in place of a function the class for such."""
        entry = self.get(name)
        return import_attribute(self.functions) if self.functions and isinstance(entry, FunctionType) else entry

    def section(self, kind: str) -> type[KindSection]:
        """The campaign file's section for a kind, made from the annotations of its options."""
        if kind not in self._sections:
            self._sections[kind] = section_of(self, kind, import_attribute(self.section_base))
        return self._sections[kind]

    def build(self, kind: Any, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
        """Make a part.

        Parameters
        ----------
        kind : its name, a mapping with ``kind`` and options, or the section of a campaign file.
        options : of that kind, where ``kind`` is the name alone.
        given : what the program has for parts of this registry (`given`); a part gets what it has parameters for.

        Raises
        ------
        UqbiasError
            For an unknown kind or option, a missing option, or a value out of range.
        """
        if isinstance(kind, KindSection):
            kind = {"kind": kind.kind, **kind.arguments()}
        values = {"kind": kind} if isinstance(kind, str) else dict(kind)
        values.update(options or {})
        name = values.pop("kind", None)
        if not isinstance(name, str):
            raise UqbiasError(f"{self.kind} {kind!r} has no kind", did_you_mean("", self.names()))
        part = self.part(name)
        check_values(f"{self.kind} '{name}'", part, values, self.given)
        for missing in self.given:
            parameter = parameters_of(part).get(missing)
            if parameter is not None and parameter[0].default is inspect.Parameter.empty and missing not in given:
                raise UqbiasError(f"{self.kind} '{name}' without {missing}", f"give {missing}")
        if self.functions is not None:
            given |= {"kind": name, "function": self.get(name)}
        result = factory_of(part)(**{**accepted(part, given), **values})
        chosen = isinstance(part, type) and not isinstance(result, part)  # a part that is of another kind
        if (isinstance(result, Part) or ":" in name) and not chosen:
            result.kind = name  # the name by which it is found again
        return result

    def rebuild(self, kind: str, options: Mapping[str, Any]) -> Any:
        """Make a part from all options that it states itself, what the program gave it included.

        Raises
        ------
        UqbiasError
            As `build` does.
        """
        given = {name: options[name] for name in self.given if name in options}
        return self.build(kind, {name: value for name, value in options.items() if name not in given}, **given)

    def restore(self, description: Mapping[str, Any]) -> Any:
        """Make a part by its constructor from what `Part.describe` says of it, without what it has learned."""
        kind = description["kind"]
        entry = self.get(kind)
        given = {"kind": kind, "function": entry} if isinstance(entry, FunctionType) else {}
        part = self.part(kind)(**given, **description["options"])
        part.kind = kind
        return part

    def _checked(self, name: str, entry: Any) -> Any:
        """Nothing but a class of the right family, or a function where one will do."""
        if self.functions and isinstance(entry, FunctionType):
            return entry
        if self.base is not None:
            base = import_attribute(self.base)
            if not (isinstance(entry, type) and issubclass(entry, base)):
                raise UqbiasError(f"'{name}' is not a {self.kind}", f"name a subclass of {self.base.replace(':', '.')}")
        return entry

    def _entry_points(self) -> Any:
        return entry_points(group=f"uqbias.{self.kind}")


def import_path(kind: str, name: str, check: Callable[[Any], Any] = lambda entry: entry) -> Any:
    """`import_attribute` and ``check`` it, unless ``name`` stands in a file that may be another's."""
    if _OF_FILE.get() and name not in named_paths:
        raise UqbiasError(
            f"{kind} '{name}' is an import path, and this file may be another's: nothing is imported",
            "give --trust (trust=True in Python, training.trust in a campaign) if it is yours, or register the kind",
        )
    entry = check(import_attribute(name))
    named_paths.add(name)
    return entry


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
        value: Any = import_module(module)
    except Exception as error:  # a third party's module may fail in any way
        raise UqbiasError(
            f"module '{module}' cannot be imported ({error})",
            f"install the package that provides it in this environment (pip install {module.partition('.')[0]}?)",
        ) from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise UqbiasError(f"module '{module}' has no '{attribute}'", "check the import path")
        value = getattr(value, name)
    return value


POTENTIALS = Registry(
    "potential",
    kinds.POTENTIALS,
    "uqbias.potentials.base:Potential",
    given=("numbers", "elements", "topology", "seed", "members_needed"),
)
FEATURES = Registry(
    "features",
    kinds.FEATURES,
    "uqbias.uncertainty.features.base:Features",
    given=("topology", "n_latents"),
    functions="uqbias.uncertainty.features.base:CallableFeatures",
)
UNCERTAINTIES = Registry(
    "uncertainty", kinds.UNCERTAINTIES, "uqbias.uncertainty.base:Uncertainty", given=("topology", "n_latents")
)
BIASES = Registry("bias", kinds.BIASES, "uqbias.bias.base:Bias", given=("temperature", "periods"))
VARIABLES = Registry(
    "variable",
    kinds.VARIABLES,
    "uqbias.variables.base:CollectiveVariable",
    given=("topology", "start"),
    functions="uqbias.variables.base:CallableVariable",
)
ORACLES = Registry(
    "oracle",
    kinds.ORACLES,
    "uqbias.oracles.base:Oracle",
    given=("structure", "numbers", "pbc", "charge", "spin", "energy_key", "forces_key", "stress_key"),
    section_base="uqbias.settings.oracle_section:OracleSection",
)
SPACES = Registry(
    "space",
    kinds.SPACES,
    "uqbias.attacks.base:DistortionSpace",
    given=("topology", "reference", "collective_variables"),
)
SAMPLERS = Registry("sampler", kinds.SAMPLERS, "uqbias.campaign.samplers.base:Sampler")
EXECUTORS = Registry(
    "executor", kinds.EXECUTORS, "uqbias.campaign.executors.base:TaskExecutor", given=("work", "home", "longest")
)
