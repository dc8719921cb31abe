"""Words and numbers that several sections of the report share. Scores are fractions; the texts show %."""

import math
from collections.abc import Sequence
from typing import Any

from proda.report.runs import Group, Run

NONE = "\N{EN DASH}"  # in place of a value that there is not


def labels(groups: Sequence[Group]) -> list[str]:
    """A short name for each group, with the folder above it where names are equal."""
    names = [group.name for group in groups]
    return [
        f"{group.folder.parent.name}/{group.name}" if names.count(group.name) > 1 else group.name for group in groups
    ]


def full_title(groups: Sequence[Group], group: Group, run: Run) -> str:
    """The title of a run, with the name of its group where there are several groups."""
    if len(groups) == 1:
        return run.title
    name = dict(zip(map(id, groups), labels(groups), strict=True))[id(group)]
    return f"{name} ({run.title})" if len(group.runs) > 1 else name


def difference(run: Run, reference: Run) -> float | None:
    """The mIoU of ``run`` minus that of ``reference``; None if one of them has none."""
    one, other = run.summary.get("miou"), reference.summary.get("miou")
    return None if one is None or other is None else one - other


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in %, without the sign; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of fractions in points, with its sign unless it is rounded to zero; a dash for None."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def plain(value: Any) -> str:
    """A value of a flag as text; a flag that a run does not have is a dash."""
    if value is None:
        return NONE
    return '""' if value == "" else str(value)


def spoken(run: Run) -> str:
    return {"source_only": "source only", "warmup": "the warm-up"}.get(run.name, f"the {run.title}")


def listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
