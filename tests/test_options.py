"""One description of an option: annotations make the section, the checks and the template."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from annotated_types import Gt
from pydantic import BaseModel, ValidationError
from typing_extensions import Doc

from uqbias.errors import UqbiasError, fault_text
from uqbias.options import Count, InputFile, OfKind, Positive, of_kind, options_of
from uqbias.potentials.power_spectrum import PowerSpectrum
from uqbias.registry import Part, Registry
from uqbias.uncertainty.features.torsions import Torsions
from uqbias.uncertainty.kernel_density import KernelDensity

if TYPE_CHECKING:
    from uqbias.molecule.topology import Topology


class Shape:
    """Base of the parts of this file."""


class Ball(Shape):
    """A ball of some size. More is said here."""

    def __init__(
        self,
        colour: str = "grey",
        *,
        radius: Annotated[float, Gt(0), Doc("nm")] = 1.0,
        coats: Annotated[Count | None, Doc("layers of paint")] = None,
        finish: Annotated[Literal["matt", "gloss"], Doc("surface")] = "matt",
        picture: Annotated[str | None, InputFile(), Doc("file")] = None,
        seed: int = 0,
    ) -> None:
        self.colour, self.radius, self.coats, self.finish, self.seed = colour, radius, coats, finish, seed


class Box(Shape):
    """A box around a shape."""

    @classmethod
    def build(
        cls,
        *,
        inner: Annotated[str | dict, OfKind("shape", "ball"), Doc("what is in it")],
        width: Annotated[Positive, Doc("nm")] = 2.0,
    ) -> Box:
        self = cls()
        self.inner, self.width = SHAPES.build(inner), width
        return self

    @staticmethod
    def check_options(options):
        if options["width"] > 100:
            raise UqbiasError(f"width {options['width']}", "give a smaller one")


class BoxOfBalls(Shape):
    """A box around a ball."""

    @classmethod
    def build(cls, *, inner: Annotated[str, OfKind("shape"), Doc("what is in it")] = "ball") -> BoxOfBalls:
        self = cls()
        self.inner = SHAPES.build(inner)
        return self


class Crate(Box):
    """A box with a lid."""

    def __init__(self, *, lid: Annotated[bool, Doc("whether it has one")] = True) -> None:
        self.lid = lid

    @classmethod
    def build(
        cls,
        *,
        inner: Annotated[str | dict, OfKind("shape"), Doc("what is in it")] = "ball",
        width: Annotated[Positive, Doc("nm")] = 2.0,
        **options,
    ):
        return cls(**options)


HERE = __name__
SHAPES = Registry(
    "shape",
    {"ball": f"{HERE}:Ball", "box": f"{HERE}:Box", "box_of_balls": f"{HERE}:BoxOfBalls", "crate": f"{HERE}:Crate"},
    f"{HERE}:Shape",
    given=("seed",),
)


class Scene(BaseModel):
    shape: Annotated[object, of_kind(SHAPES, "ball")]


def test_options_are_what_the_program_does_not_give():
    options = options_of(Ball, SHAPES.given)
    assert list(options) == ["radius", "coats", "finish", "picture"]
    assert options["radius"].description == "nm"
    assert InputFile() in options["picture"].marks()
    assert InputFile() not in options["radius"].marks()


def test_options_handed_on_to_the_constructor_are_options_too():
    assert list(options_of(Crate)) == ["inner", "width", "lid"]
    assert not SHAPES.build("crate", {"lid": False}).lid


def test_build_gives_a_part_what_it_takes():
    ball = SHAPES.build("ball", {"radius": 2.0}, seed=7, other="is left out")
    assert (ball.radius, ball.seed) == (2.0, 7)
    assert SHAPES.build({"kind": "box", "inner": {"kind": "ball", "radius": 0.5}}).inner.radius == 0.5


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("bal", {}, "unknown shape 'bal'; did you mean 'ball'"),
        ("ball", {"radus": 1.0}, "unknown option 'radus' of shape 'ball'; did you mean 'radius'"),
        ("ball", {"radius": -1.0}, "shape 'ball' with radius -1.0; input should be greater than 0"),
        ("ball", {"finish": "mat"}, "with finish 'mat'; input should be 'matt' or 'gloss'"),
        ("ball", {"coats": 0}, "with coats 0; input should be greater than or equal to 1"),
        ("ball", {"seed": 1}, "unknown option 'seed'"),
        ("box", {}, "shape 'box' without inner; give inner: what is in it"),
        ("pathlib:Path", {}, "'pathlib:Path' is not a shape"),
    ],
)
def test_bad_options_are_one_line(kind, options, expected):
    with pytest.raises(UqbiasError) as error:
        SHAPES.build(kind, options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_section_is_made_from_the_class():
    section = Scene.model_validate({"shape": {"radius": 3.0}}).shape
    assert section.model_dump() == {"kind": "ball", "radius": 3.0, "coats": None, "finish": "matt", "picture": None}
    assert type(section).model_fields["kind"].description == "A ball of some size"
    assert SHAPES.build(section).radius == 3.0
    assert pickle.loads(pickle.dumps(section)) == section
    boxed = Scene.model_validate({"shape": {"kind": "box", "inner": "ball"}}).shape
    assert boxed.arguments()["inner"] == section.model_dump() | {"radius": 1.0}
    assert Scene.model_validate({"shape": "box_of_balls"}).model_dump()["shape"]["inner"]["radius"] == 1.0
    assert pickle.loads(pickle.dumps(boxed)) == boxed


@pytest.mark.parametrize(
    ("value", "where", "expected"),
    [
        ({"kind": "bal"}, ("shape",), "did you mean 'ball'"),
        ({"radus": 1.0}, ("shape",), "did you mean 'radius'"),
        ({"radius": 0.0}, ("shape", "radius"), "greater than 0"),
        ({"kind": "box", "inner": {"radius": 0.0}}, ("shape", "inner", "radius"), "greater than 0"),
        ({"kind": "box", "inner": "ball", "width": 101.0}, ("shape",), "give a smaller one"),
        ({"kind": "box"}, ("shape", "inner"), "required"),
    ],
)
def test_bad_sections_name_the_key(value, where, expected):
    with pytest.raises(ValidationError) as error:
        Scene.model_validate({"shape": value})
    (fault,) = error.value.errors()
    assert fault["loc"] == where
    assert expected in fault["msg"]


class Slab(Part):
    """A part whose constructor is called as it is."""

    kind = "slab"

    def __init__(
        self, *, thickness: Annotated[Positive, Doc("nm")], layers: Count = 1, topology: Topology | None = None
    ) -> None:
        self.thickness, self.layers = thickness, layers

    @classmethod
    def check_options(cls, options):
        if options["layers"] > 10 * options["thickness"]:
            raise UqbiasError(f"{cls.kind} with {options['layers']} layers", "give fewer")


def torsions():
    return Torsions([(0, 1, 2, 3)], 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Slab(thickness=0.0), r"slab with thickness 0\.0; input should be greater than 0"),
        (lambda: Slab(thickness=1.0, layers=11), "slab with 11 layers; give fewer"),
        (lambda: PowerSpectrum((8, 1), cutoff=-1.0), r"power_spectrum with cutoff -1\.0"),
        (lambda: PowerSpectrum((8, 1), hidden=()), r"power_spectrum with hidden \(\)"),
        (lambda: KernelDensity(torsions(), kappa=-1), "kernel_density with kappa -1; input should be greater than 0"),
        (lambda: KernelDensity(torsions(), kernel="box"), "kernel_density with kernel 'box'"),
    ],
)
def test_a_constructor_called_as_it_is_checks_too(make, message):
    with pytest.raises(UqbiasError, match=message):
        make()


@pytest.mark.parametrize("part", [Slab(thickness=1.0), KernelDensity(torsions(), kappa=2), PowerSpectrum((8, 1))])
def test_copies_of_a_part(part):
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert twin.options() == part.options()


def test_a_missing_argument_is_told_as_python_does():
    with pytest.raises(TypeError, match="thickness"):
        Slab()


def test_what_scripts_hand_over():
    """Whole numbers that were computed, sets and arrays; a choice that is misspelt or was renamed has a hint."""
    assert SHAPES.build("ball", {"coats": 2.0}).coats == 2.0
    with pytest.raises(UqbiasError, match=r"coats 2\.5"):
        SHAPES.build("ball", {"coats": 2.5})
    with pytest.raises(UqbiasError, match="'matt' or 'gloss'; did you mean 'matt'"):
        SHAPES.build("ball", {"finish": "mat"})
    with pytest.raises(ValidationError) as error:
        Scene.model_validate({"shape": {"finish": "glos"}})
    assert fault_text(error.value.errors()[0]) == "input should be 'matt' or 'gloss'; did you mean 'gloss'?"
