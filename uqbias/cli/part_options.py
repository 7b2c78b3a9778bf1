"""Options of the command line made from the options of a part: type, description and default stand where the part is.

A parameter of a command whose default is `options_from` a part is one option of the command line for each option named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import cache, reduce, wraps
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer

from uqbias.options import Option, options_of
from uqbias.registry import trusted_files

Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Import what the file or run folder names as module:attribute, or open a pickle: it is mine."
    ),
]


class _Group(NamedTuple):
    """Options of one part: parameter of the command line to option of the part, and defaults that differ."""

    part: Any
    keys: dict[str, str]
    defaults: dict[str, Any]


def options_from(part: Any, *names: str, defaults: Any = None, **renamed: str) -> Any:
    """Stand for the options of a part, as the default of a command's parameter, which gets a dict by their names.

    Parameters
    ----------
    part : class whose options are annotated, or section of the campaign file.
    names : options that are called as those of the part.
    defaults : dict by name of the part's option, where the command has another default.
    renamed : name on the command line to name of the part's option.
    """
    return _Group(part, {name: name for name in names} | renamed, defaults or {})


def command(function: Callable[..., Any], *, trusting: bool = False) -> Callable[..., Any]:
    """Give Typer a function with a parameter for each option of the groups that ``function`` has.

    Parameters
    ----------
    trusting : add ``--trust``, for commands that read model files or run folders.
    """
    signature = inspect.signature(function, eval_str=True)
    groups = {name: one.default for name, one in signature.parameters.items() if isinstance(one.default, _Group)}
    parameters = []
    for name, parameter in signature.parameters.items():
        parameters += _parameters(groups[name]) if name in groups else [parameter]
    if trusting:
        parameters.append(inspect.Parameter("trust", parameters[0].kind, default=False, annotation=Trust))

    @wraps(function)
    def called(**values: Any) -> Any:
        trust = trusted_files() if values.pop("trust", False) else nullcontext()
        for name, group in groups.items():
            values[name] = {
                key: _read(_options(group.part)[key].annotation, values.pop(flag)) for flag, key in group.keys.items()
            }
        with trust:
            return function(**values)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def option(part: Any, name: str, *declarations: str) -> Any:
    """Describe an option of the command line by the option ``name`` of a part, which checks its range.

    Parameters
    ----------
    part : class whose options are annotated, or section of the campaign file.
    declarations : flags, such as ``--timestep``; by default made from the name of the parameter.
    """
    text = _options(part)[name].description.replace("null:", "left out:")
    return typer.Option(*declarations, help=f"{text[:1].upper()}{text[1:]}.")


@cache
def _options(part: Any) -> dict[str, Option]:
    return options_of(part)


def _parameters(group: _Group) -> list[inspect.Parameter]:
    parameters = []
    for flag, key in group.keys.items():
        described = _options(group.part)[key]
        default = group.defaults.get(key, described.default)
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        kind = _plain(described.annotation)
        kind = kind | None if default is None else kind
        flags = (f"--{flag}",) if kind is bool else ()  # without a --no-...
        annotation = Annotated[kind, option(group.part, key, *flags)]  # type: ignore[valid-type] # made at run time
        parameters.append(
            inspect.Parameter(flag, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
        )
    return parameters


def _plain(annotation: Any) -> Any:
    """Type of a value on the command line: without ranges and choices, which the part checks."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inner[0])
    if origin is Literal:
        return type(inner[0])
    if origin is Sequence:
        return str
    if origin not in (Union, UnionType):
        return annotation
    kinds = {_plain(one) for one in inner}
    return str if len(kinds - {NoneType}) > 1 else reduce(or_, kinds)


def _read(annotation: Any, value: Any) -> Any:
    """Value as the part takes it: of a list the words between commas, ``none`` for an empty one; numbers as such."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if not isinstance(value, str) or annotation is str:
        return value
    if get_origin(annotation) is Sequence:
        return [] if value in ("", "none") else [_word(word.strip()) for word in value.split(",")]
    return _word(value) if {int, float} & {_plain(one) for one in get_args(annotation)} else value


def _word(text: str) -> str | int | float:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text
