"""What the annotation of an option allows."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from proda.settings.options import (
    LIMIT,
    Bounds,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    option_types,
)
from proda.utils.errors import UserError

Factor = Annotated[float, Bounds(0.1, 10)]
Below = Annotated[float, Bounds(high=3)]
Under = Annotated[float, Bounds(0, below=1)]


def option(annotation):
    @dataclass
    class One:
        field: annotation = None

    return option_types(One)["field"]


@pytest.mark.parametrize(
    ("annotation", "value", "read"),
    [
        (str, "1e3", "1e3"),
        (str, "", ""),
        (int, "12", 12),
        (float, "1e3", 1000.0),
        (float, 2, 2.0),
        (bool, "False", False),
        (bool, "true", True),
        (int | None, "None", None),
        (int | None, None, None),
        (PositiveInt | None, "3", 3),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], "2", 2),
        (PositiveInt, 1, 1),
        (NonNegativeInt, 0, 0),
        (PositiveFloat, 1e-9, 1e-9),
        (NonNegativeFloat, 0.0, 0.0),
        (Fraction, 1, 1.0),
        (Factor, "0.1", 0.1),
        (PathText, Path("a/b"), "a/b"),
    ],
)
def test_values_that_an_option_holds(annotation, value, read):
    found = option(annotation).read(value)
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (str, True, "expected text"),
        (str, None, "expected text"),
        (str, ["a"], "expected text"),
        (int, "1.0", "expected a whole number"),
        (int, True, "expected a whole number"),
        (float, True, "expected a number"),
        (float, "nan", "expected a finite number"),
        (NonNegativeFloat, "inf", "expected a finite number"),
        (bool, 0, "expected True or False"),
        (int | None, "x", "expected a whole number, or None"),
        (Literal["a", "b"], "c", "expected one of 'a', 'b'"),
        (Literal[0, 1], True, "expected one of 0, 1"),
        (PositiveInt, 0, "expected a whole number above 0"),
        (NonNegativeInt, -1, "expected a whole number of at least 0"),
        (PositiveFloat, 0.0, "expected a number above 0"),
        (Fraction, 1.01, "expected a number from 0 to 1"),
        (Factor, 0.0, "expected a number from 0.1 to 10"),
        (Below, 4.0, "expected a number of at most 3"),
        (Under, 1, "expected a number of at least 0 and below 1"),
        (PositiveFloat, "1e30", "expected a number above 0, 1000000000 at most"),
        (NonNegativeInt, 10**30, "expected a whole number of at least 0, 1000000000 at most"),
    ],
)
def test_values_that_it_does_not(annotation, value, message):
    with pytest.raises(ValueError) as error:
        option(annotation).read(value)
    assert str(error.value) == message


@pytest.mark.parametrize("annotation", [Path, list[str], tuple[int, ...], dict, int | str, Literal[1, "a"], bytes])
def test_a_type_that_no_option_can_have_is_one_line(annotation):
    with pytest.raises(UserError) as error:
        option(annotation)
    assert f"{__file__}: " in str(error.value) and ".field: no option can be" in str(error.value)
    assert "PathText" in str(error.value) and "\n" not in str(error.value)


def test_class_variables_are_no_options():
    @dataclass
    class WithConstant:
        size: ClassVar[list] = [1]
        width: int = 1

    assert option_types(WithConstant).keys() == {"width"}


@dataclass
class Base:
    temperature: float = 1.0
    name: str = ""


def test_a_field_of_a_base_keeps_its_type():
    @dataclass
    class Narrower(Base):
        temperature: PositiveFloat = 2.0
        name: Literal["a", "b"] = "a"

    assert option_types(Narrower)["temperature"].bounds == Bounds(above=0, high=LIMIT)

    @dataclass
    class OtherDefaults(Narrower):
        temperature: float = 3.0
        name: str = "b"

    assert option_types(OtherDefaults) == option_types(Narrower)
    for other in (str, float | None):

        @dataclass
        class Other(Base):
            temperature: other = None

        with pytest.raises(UserError, match=r"Other\.temperature is .*, but in Base it is a number: give the field an"):
            option_types(Other)


def test_annotations_may_be_text(tmp_path, monkeypatch):
    (tmp_path / "annotated_later.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from proda.settings.options import PositiveInt\n"
        "@dataclass\n"
        "class Good:\n"
        "    a: PositiveInt | None = None\n"
        "@dataclass\n"
        "class Bad:\n"
        "    a: Unknown = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("annotated_later")
    assert option_types(module.Good)["a"].bounds == Bounds(above=0, high=LIMIT)
    with pytest.raises(UserError, match=r"annotated_later.py: Bad: a field's type is unknown \(name 'Unknown' is not"):
        option_types(module.Bad)
