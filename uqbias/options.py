"""Options of a part, described once: in the annotations of the constructor, or of ``build``, that takes them.

    class Torsion(Bias):
        def __init__(self, *, height: Annotated[float, Gt(0), Doc("height of a new hill, kJ/mol")] = 1.0) -> None: ...

Range, default and description of ``height`` stand there and nowhere else. The campaign file's section, ``uqbias
template``, its ``--kinds`` and the checks of `Registry.build` are made from them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import Doc

from uqbias.errors import UqbiasError, did_you_mean, fault_text
from uqbias.units import seconds_of

#: Registries by what they register, for parts among the options of a part; each enters itself.
REGISTRIES: dict[str, PartRegistry] = {}


class PartRegistry(Protocol):
    """The part of `uqbias.registry.Registry` that options need."""

    kind: str
    given: tuple[str, ...]

    def names(self) -> list[str]:
        """Valid names."""

    def part(self, name: str) -> Any:
        """Class or function that makes the part of a name."""

    def section(self, kind: str) -> type[KindSection]:
        """Section of a kind."""


Positive = Annotated[float, Gt(0), Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Ge(0), Field(allow_inf_nan=False)]
#: A whole number of at least one.
Count = Annotated[int, Ge(1)]
#: A time in s; text has the form of schedulers, h:mm:ss or d-hh:mm:ss. YAML reads 1:30:00 as 5400 by itself.
Duration = Annotated[float, BeforeValidator(seconds_of), Gt(0), Field(allow_inf_nan=False)]
Runner = Literal["auto", "aoti", "torchscript", "eager"]


@dataclass(frozen=True)
class InputFile:
    """Marks an option that names a file, relative to the campaign file; ``unless`` knows names that are no file."""

    unless: Callable[[str], bool] = lambda _: False


@dataclass(frozen=True)
class OfKind:
    """Marks an option that is a part itself, ``{kind: ..., options}`` or the kind alone, of the registry named."""

    registry: str
    default: str | None = None


@dataclass(frozen=True)
class Option:
    """One option of a part.

    Attributes
    ----------
    name : key in the campaign file.
    annotation : type with its marks, as the constructor has it.
    default : value if left out; ``inspect.Parameter.empty`` where it must be given.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def description(self) -> str:
        """Content of its ``Doc``."""
        return next((mark.documentation for mark in self.marks() if isinstance(mark, Doc)), "")

    def marks(self) -> tuple[Any, ...]:
        """What stands beside the type in ``Annotated``."""
        return _marks(self.annotation)

    def is_part(self) -> bool:
        """Whether it is a part itself."""
        return any(isinstance(mark, OfKind) for mark in self.marks())


def factory_of(part: Any) -> Callable[..., Any]:
    """What makes a part from its options: its ``build`` where it has one, else the part itself."""
    factory: Callable[..., Any] = getattr(part, "build", part)
    return factory


def options_of(part: Any, given: Collection[str] = (), *, constructor: bool = False) -> dict[str, Option]:
    """The options that a part takes from its user: the keyword parameters of its factory that are not ``given``.

    Where the factory hands ``**options`` on, from ``build`` to the constructor or from there to the constructor of a
    base class, the keyword parameters of the next one are options too.

    Parameters
    ----------
    part : class or function; of a section of the campaign file the keys.
    given : names of the parameters that the program fills in.
    constructor : ask the constructor of a class that has a ``build``.
    """
    if isinstance(part, type) and issubclass(part, BaseModel):
        return {
            name: Option(
                name,
                Annotated[(field.annotation, *field.metadata, Doc(field.description or ""))],
                inspect.Parameter.empty if field.is_required() else field.default,
            )
            for name, field in part.model_fields.items()
            if name not in given
        }
    # The constructor of a dataclass repeats what stands in the modules of its bases.
    fields = get_type_hints(part, include_extras=True) if factory_of(part) is part and is_dataclass(part) else {}
    options = {}
    for name, (parameter, scope) in parameters_of(part, constructor=constructor).items():
        if name in given or parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        annotation = fields.get(name, parameter.annotation)
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, scope)
            except NameError:  # a type that is imported for type checkers alone, so no user's option
                if not constructor:
                    raise
                annotation = Any
        annotation = Any if annotation is parameter.empty else annotation
        options[name] = Option(name, annotation, parameter.default)
    return options


def accepted(part: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that the factory of a part has parameters for."""
    parameters = parameters_of(part)
    return {name: value for name, value in given.items() if name in parameters}


def parameters_of(part: Any, *, constructor: bool = False) -> dict[str, tuple[inspect.Parameter, dict[str, Any]]]:
    """Parameters of what makes a part, and the names that its annotations are read with.

    Parameters
    ----------
    constructor : ask the constructor of a class that has a ``build``.
    """
    factory = part if constructor else factory_of(part)
    functions: list[Any] = [] if isinstance(factory, type) else [factory]
    if isinstance(part, type):
        functions += [vars(cls)["__init__"] for cls in part.__mro__[:-1] if "__init__" in vars(cls)]
    parameters: dict[str, tuple[inspect.Parameter, dict[str, Any]]] = {}
    for function in map(inspect.unwrap, functions):
        scope = getattr(getattr(function, "__func__", function), "__globals__", {})
        signature = inspect.signature(function).parameters
        for name, parameter in signature.items():
            if name != "self":
                parameters.setdefault(name, (parameter, scope))
        if not any(one.kind is one.VAR_KEYWORD for one in signature.values()):
            break
    return parameters


class Section(BaseModel):
    """A mapping of the campaign file; unknown keys are refused with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and cls.model_config["extra"] == "forbid":
            for key in value:
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields) if cls.model_fields else "it takes no options"
                    raise PydanticCustomError(
                        "unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": hint}
                    )
        return value


class KindSection(Section):
    """A section whose ``kind`` chooses a part by name; the other keys are that part's options."""

    kind: str

    def arguments(self) -> dict[str, Any]:
        """Options of the part: every key but ``kind``."""
        return self.model_dump(exclude={"kind"})

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so that pickle cannot find it by name.
        return _section_again, (self.model_config["title"], self.model_dump())


def section_of(registry: PartRegistry, kind: str, base: type[KindSection] = KindSection) -> type[KindSection]:
    """The campaign file's section for a kind, made from the options of its class."""
    part = registry.part(kind)
    fields: dict[str, Any] = {}
    for option in options_of(part, registry.given).values():
        default = ... if option.required else option.default
        if isinstance(default, tuple):
            default = list(default)
        elif isinstance(default, Mapping):
            default = dict(default)
        # A part among the options has its kind as default, which becomes a section.
        field = Field(default=default, description=option.description, validate_default=True)
        fields[option.name] = (_field_type(option.annotation), field)
    fields["kind"] = (Literal[kind], Field(default=kind, description=summary_of(part)))
    validators: Any = {"_fit": model_validator(mode="after")(_fit(part))}
    name = f"{registry.kind}_{kind}"
    section: type[KindSection] = create_model(name, __base__=base, __validators__=validators, **fields)
    section.model_config["title"] = registry.kind
    return section


@dataclass(frozen=True)
class of_kind:  # noqa: N801 - reads as a word in `Annotated[KindSection, of_kind(BIASES)]`
    """Turns ``{kind: ..., options}``, or the kind alone, into the section of that kind.

    Names that are not in the registry are refused with the nearest one; ``module:attribute`` is imported.

    Attributes
    ----------
    registry : registry of the kinds.
    default : kind where none is given; None if one must be given.
    only : whether ``default`` is the only kind that may be given.
    """

    registry: PartRegistry
    default: str | None = None
    only: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        # A section is written out by its own class, not by the base that the field is declared with.
        everything = core_schema.simple_ser_schema("any")
        return core_schema.no_info_before_validator_function(self.choose, handler(source), serialization=everything)

    def choose(self, value: Any) -> Any:
        """Section of a value of the campaign file; other things than names and mappings as they are."""
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            return value
        kind = value.get("kind", self.default)
        names = [str(self.default)] if self.only else self.registry.names()
        if kind not in names and (self.only or ":" not in str(kind)):
            hint = did_you_mean(str(kind), names)
            raise PydanticCustomError(
                "unknown_kind", "unknown kind '{kind}'; {hint}", {"kind": str(kind), "hint": hint}
            )
        try:
            return self.registry.section(str(kind)).model_validate({**value, "kind": kind})
        except UqbiasError as error:
            raise ValueError(f"{error.what}; {error.cure}") from None


def check_values(owner: str, part: Any, values: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Refuse values that the annotations of a part's options do not allow.

    Parameters
    ----------
    owner : for the message, such as ``metadynamics``.
    values : options by name.

    Raises
    ------
    UqbiasError
        For an option that the part does not have, one that is missing, or a value out of range.
    """
    options = options_of(part, given)
    for name in values:
        if name not in options:
            cure = did_you_mean(name, options) if options else "it takes no options"
            raise UqbiasError(f"unknown option '{name}' of {owner}", cure)
    for name, option in options.items():
        if name not in values:
            if option.required:
                raise UqbiasError(f"{owner} without {name}", f"give {name}: {option.description}")
        else:
            check_value(owner, name, option.annotation, values[name])
    check_together(part, {name: option.default for name, option in options.items()} | dict(values))


def check_value(owner: str, name: str, annotation: Any, value: Any) -> None:
    """Refuse a value that an annotation, such as that of an option, does not allow.

    Raises
    ------
    UqbiasError
        In one line, with the value.
    """
    try:
        _adapter(annotation).validate_python(plain(value))
    except ValidationError as error:
        # Of a union, such as one number or a list, the fault of the branch that fits best.
        fault = max(error.errors(), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
        if fault["type"] == "int_type" and isinstance(value, float) and value.is_integer():
            return check_value(owner, name, annotation, int(value))
        shown = " ".join(repr(value).split())
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        raise UqbiasError(f"{owner} with {name} {shown}", fault_text(fault)) from None


def check_together(part: Any, values: Mapping[str, Any]) -> None:
    """Refuse options, each of them in its range, that do not fit each other: the part's own ``check_options``."""
    check = getattr(part, "check_options", None)
    if check is not None:
        check(values)


def summary_of(part: Any) -> str:
    """First sentence of a part's docstring."""
    text = " ".join((inspect.getdoc(part) or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


def infinite(value: Any) -> Any:
    """Let ``inf`` through as YAML writes it and as people do; for ``BeforeValidator``."""
    return math.inf if value in ("inf", ".inf") else value


def _field_type(annotation: Any) -> Any:
    """Annotation of a section's field: a part among the options becomes its section."""
    for mark in _marks(annotation):
        if isinstance(mark, OfKind):
            inner = Annotated[KindSection, of_kind(REGISTRIES[mark.registry], mark.default)]
            optional = type(None) in get_args(get_args(annotation)[0])
            return inner | None if optional else inner
    return _with_lists(annotation)


def _marks(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _with_lists(annotation: Any) -> Any:
    """An annotation with ``list`` for ``Sequence``: that is what a campaign file has."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_with_lists(inner[0]), *inner[1:])]
    if origin is Sequence:
        return list[_with_lists(inner[0])]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return Union[tuple(_with_lists(one) for one in inner)]  # noqa: UP007 - made at run time
    return annotation


def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    if any(isinstance(mark, OfKind) for mark in _marks(annotation)):
        return TypeAdapter(_field_type(annotation))  # a section, which has a configuration of its own
    config = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
    return TypeAdapter(_field_type(annotation), config=config)


def plain(value: Any) -> Any:
    """A value as a campaign file would have it: arrays and tuples as lists, paths as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    listed = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return [plain(one) for one in value] if listed else value


def _fit(part: Any) -> Callable[[Any], Any]:
    """Validator of a whole section by `check_together`."""

    def fit(section: Any) -> Any:
        try:
            check_together(part, section.arguments())
        except UqbiasError as error:
            raise ValueError(f"{error.what}; {error.cure}") from None
        return section

    return fit


def _section_again(registry: str, values: dict[str, Any]) -> KindSection:
    return REGISTRIES[registry].section(values["kind"]).model_validate(values)
