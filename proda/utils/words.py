"""Words for messages."""

from itertools import pairwise

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2,975 images``: a number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in its two largest units: ``40 s``, ``1 min 40 s``, ``2 h 5 min`` or ``3 d 4 h``."""
    whole = round(seconds)
    for (size, name), (small_size, small_name) in pairwise(UNITS):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small_size} {small_name}"
    return f"{whole} s"


def printable(text: str) -> str:
    """Text on one line: as it is, or quoted with escapes if it holds characters that are not printable."""
    return text if text.isprintable() else ascii(text)
