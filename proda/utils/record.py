"""What a stored thing was made from. The record is kept with the thing, and compared before the thing is used again.

Weights of a run, its checkpoints and its summary (config.json), pseudo labels (manifest.json), prototypes and the
drawn data sets each have such a record: a dict of JSON values.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from proda.utils.errors import UserError


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as it will be read back: tuples become lists."""
    return json.loads(json.dumps(dict(record)))


def check_format(found: Any, newest: int, place: object) -> None:
    """Raises UserError if ``found``, the format of the file ``place``, is newer than this version reads."""
    if isinstance(found, int) and found > newest:
        raise UserError(
            f"{place}: written by a newer version of proda (format {found}, this one reads {newest}); use that version"
        )


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One text for each name that has other values in the two records: ``NAME: found A, expected B``.

    Dicts are compared name by name. Checksums are shortened; of lists of names, the first difference is shown.
    """
    texts = []
    for name in dict.fromkeys((*expected, *found)):
        old, new = found.get(name), expected.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            texts += differences(old, new)
        elif isinstance(old, list) and isinstance(new, list) and any(isinstance(item, str) for item in (*old, *new)):
            one, other = next(((a, b) for a, b in zip(old, new, strict=False) if a != b), ("the end", "the end"))
            first = f"first difference {_spelled(one, other)} and {_spelled(other, one)}"
            texts.append(f"{name}: found {len(old)}, expected {len(new)}, {first}")
        else:
            texts.append(f"{name}: found {_shown(old)}, expected {_shown(new)}")
    return texts


def shortened(texts: list[str], most: int = 3) -> str:
    """The texts separated by commas; of many, the first ones."""
    more = f" and {len(texts) - most} more changes" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _spelled(name: Any, other: Any) -> str:
    """A name in quotes; with escapes if it looks like the other name but differs in its Unicode form."""
    alike = isinstance(name, str) and isinstance(other, str) and normalize("NFC", name) == normalize("NFC", other)
    return ascii(name) if alike else repr(name)


def _shown(value: Any) -> str:
    checksum = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"SHA-256 {value[:12]}" if checksum else repr(value)
