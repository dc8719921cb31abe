"""Options whose annotations limit their values: ``batch_size: PositiveInt = 4  # global batch``.

Options are fields of dataclasses that derive from :class:`Options`. A field is ``str``, ``int``, ``float`` or ``bool``,
a ``Literal`` of such values, or one of the aliases below; ``| None`` may be added. Other bounds are written
``Annotated[float, Bounds(0.1, 10)]``. One field may be ``StageFlags``.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from proda.utils.errors import UserError

LIMIT = 10**9  # of numbers without a tighter bound: no field means anything above, and messages need not mention it


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest value of a number, both allowed; ``above`` and ``below`` are limits that are not allowed.

    ``or_zero``: 0 is allowed, too, and means that the value follows from something else.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    or_zero: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.or_zero and value == 0) or (self.low <= value <= self.high and self.above < value < self.below)

    def __str__(self) -> str:
        if self.low > -math.inf and self.high not in (LIMIT, math.inf):
            return f"from {self.low} to {self.high}{', or 0' * self.or_zero}"
        limits: dict[str, float] = {"above": self.above, "of at least": self.low, "below": self.below}
        limits |= {"of at most": self.high} if self.high != LIMIT else {}
        return " and ".join(f"{words} {limit}" for words, limit in limits.items() if math.isfinite(limit))


_PATH = object()  # marks text that names a file or folder

PositiveInt = Annotated[int, Bounds(above=0, high=LIMIT)]
NonNegativeInt = Annotated[int, Bounds(0, LIMIT)]
PositiveFloat = Annotated[float, Bounds(above=0, high=LIMIT)]
NonNegativeFloat = Annotated[float, Bounds(0, LIMIT)]
Fraction = Annotated[float, Bounds(0, 1)]
PositiveFraction = Annotated[float, Bounds(above=0, high=1)]
FractionBelowOne = Annotated[float, Bounds(0, below=1)]  # where 1 would leave nothing
LearningRate = Annotated[float, Bounds(above=0, high=1000)]
Temperature = Annotated[float, Bounds(0.001, 1000)]
ProcessCount = Annotated[int, Bounds(0, 1024)]
SCALES = (0.1, 10)  # lowest and highest factor for the sides of an image
Scale = Annotated[float, Bounds(*SCALES)]  # of the sides of an image
LengthFactor = Annotated[float, Bounds(0.001, 100)]
Pixels = Annotated[int, Bounds(4, 20_000)]  # a side of an image; maps have a quarter of it
PixelsOrZero = Annotated[int, Bounds(4, 20_000, or_zero=True)]
PassCount = Annotated[int, Bounds(1, 100)]  # passes over a data set
PathText = Annotated[str, _PATH]  # a file or folder as text: ``~`` at the start is the home folder
StageFlags = Annotated[dict, "STAGE.FLAG -> value"]  # takes the flags that have a dot in their names

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


class Options:
    """Base of dataclasses of options; may be inherited from more than once."""

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of values. Overriding methods yield from ``super()`` first."""
        yield from ()


@dataclass(frozen=True)
class OptionType:
    """The values that a field may have."""

    kind: type  # str, int, float, bool or dict
    choices: tuple[Any, ...] = ()  # all values allowed; any if empty
    bounds: Bounds = Bounds()
    optional: bool = False  # None is allowed
    is_path: bool = False

    def __str__(self) -> str:
        if self.kind is dict:
            return "flags of stages, as in --stage1.lr=0.1"
        words = f"{_NAMES[self.kind]} {self.bounds}".rstrip()
        if self.choices:
            words = f"one of {', '.join(map(repr, self.choices))}"
        return f"{words}, or None" if self.optional else words

    def read(self, value: Any) -> Any:
        """Checks ``value`` and converts text from a command line to the type of the field.

        Raises:
            ValueError: the value is not allowed; the message says what is expected.
        """
        if self.optional and (value is None or value == "None"):
            return None
        if self.is_path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str):
            value = self._parsed(value)
        elif self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind or (self.choices and value not in self.choices):
            raise ValueError(f"expected {self}")
        number: Any = value
        if self.kind is float and not math.isfinite(number):
            raise ValueError("expected a finite number")
        if self.kind in (int, float) and number not in self.bounds:
            raise ValueError(f"expected {self}" + (f", {LIMIT} at most" if number > self.bounds.high == LIMIT else ""))
        return value

    def _parsed(self, text: str) -> Any:
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower())
        if self.kind is str:
            if text in ("True", "False"):  # a flag without a value
                return None
            return os.path.expanduser(text) if self.is_path else text
        try:
            return self.kind(text)
        except ValueError:
            return None


@cache
def option_types(options: type) -> dict[str, OptionType]:
    """Field name -> allowed values, for a dataclass of options.

    A field that is redefined with a plain type (``lr: float = 0.1``) keeps the limits of its base class.

    Raises:
        UserError: an option cannot have the type of a field, or the type differs from that in a base class.
    """
    where = f"{file_of(options)}: {options.__qualname__}"
    try:
        hints = get_type_hints(options, include_extras=True)
    except NameError as error:
        raise UserError(f"{where}: a field's type is unknown ({error})") from None
    found = {}
    for field in fields(options):
        try:
            found[field.name] = _option_type(hints[field.name])
        except TypeError:
            raise UserError(
                f"{where}.{field.name}: no option can be {_spelling(hints[field.name])}; expected str, int, float, "
                "bool, Literal[...] or a type of proda.settings.options (PathText for files and folders), or one | None"
            ) from None
    for base in options.__mro__[1:]:
        for name, before in option_types(base).items() if is_dataclass(base) else ():
            now = found[name]
            if now.kind is not before.kind or now.optional > before.optional:
                raise UserError(
                    f"{where}.{name} is {_spelling(hints[name])}, but in {base.__qualname__} it is {before}: "
                    "give the field another name"
                )
            if now == OptionType(now.kind):
                found[name] = replace(before, optional=False)
    return found


def file_of(options: type) -> str:
    """The file that defines a class."""
    return getattr(sys.modules.get(options.__module__), "__file__", None) or options.__module__


def _option_type(annotation: Any) -> OptionType:
    """Raises TypeError for an annotation that an option cannot have."""
    if annotation == StageFlags:
        return OptionType(dict)
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        result = _option_type(arguments[0])
        for mark in arguments[1:]:
            if isinstance(mark, Bounds):
                result = replace(result, bounds=mark)
            elif mark is _PATH:
                result = replace(result, is_path=True)
        return result
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        return replace(_option_type(next(a for a in arguments if a is not NoneType)), optional=True)
    if origin is Literal and len({type(choice) for choice in arguments}) == 1:
        return replace(_option_type(type(arguments[0])), choices=arguments)
    if not isinstance(annotation, type) or annotation not in _NAMES:
        raise TypeError(annotation)
    return OptionType(annotation)


def _spelling(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
