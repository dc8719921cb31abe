"""Results over rows and seeds: their JSON format, and what they say about pairs of rows.

A file of results is JSON::

    {
      "table": "parts",                                  the table of experiments/ablation.py that it belongs to
      "command": "python run.py experiments/ablation.py --seeds=2",
      "commit": "51a92ab...",                            of the runs; several are separated by commas
      "date": "2026-11-24",                              on which the last run began
      "seeds": [0, 1],
      "rows": {"warmup": [0.4451, 0.4389], ...},         mIoU of the last model, a fraction, in the order of the seeds
      "seconds": {"warmup": [57.1, 56.8], ...},          duration of the run
      "iou": {"warmup": {"road": [0.801, 0.797], ...}}   IoU of each class; not in older files
    }

IoU is null where the validation images have no pixel of a class. Scores are fractions in files and in code, and
percentages in tables.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from proda.studies.statistics import MeanInterval, paired_difference, share_of_gap
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_json


@dataclass(frozen=True)
class Results:
    """The content of a file of results; see the top of this module."""

    table: str
    command: str
    commit: str
    date: str
    seeds: list[int]
    rows: dict[str, list[float]]
    seconds: dict[str, list[float]]
    iou: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the results as JSON."""
        save_json(asdict(self), Path(path))


@dataclass(frozen=True)
class Difference:
    """Two rows to be compared, and what is expected of the mean of ``row - reference``."""

    row: str
    reference: str
    expected: Literal["", "above", "at least", "within"] = ""  # empty: nothing; within: not further from 0
    points: float = 0.0  # of mIoU, in hundredths
    interval_above_zero: bool = False  # the whole interval is expected above zero, too


@dataclass(frozen=True)
class GapShare:
    """How much of the gap between the rows ``low`` and ``high`` a row is expected to close."""

    row: str
    low: str
    high: str
    at_least: float  # fraction of the gap


@dataclass(frozen=True)
class Finding:
    """What the results say about a :class:`Difference`, in points, or a :class:`GapShare`, in % of the gap."""

    row: str
    compared_with: str
    unit: Literal["", "%"]
    interval: MeanInterval
    expected: str  # in words; empty: nothing was expected
    met: bool


@dataclass(frozen=True)
class ResultTable:
    """What a table of results shows: its rows, name -> title, and how they are compared."""

    rows: dict[str, str]
    differences: Sequence[Difference] = ()
    shares: Sequence[GapShare] = ()


def findings(results: Results, table: ResultTable) -> list[Finding]:
    """Every comparison of a table, over all seeds of the results."""
    points = {row: [100 * score for score in scores] for row, scores in results.rows.items()}
    found = []
    for pair in table.differences:
        interval = paired_difference(points[pair.row], points[pair.reference])
        words = f"{pair.expected} {pair.points:g}" if pair.expected else ""
        if pair.interval_above_zero:
            words += ", interval above 0"
        met = _met(pair, interval.mean) and (interval.above_zero or not pair.interval_above_zero)
        found.append(Finding(table.rows[pair.row], table.rows[pair.reference], "", interval, words, met))
    for share in table.shares:
        closed = share_of_gap(*(points[row] for row in (share.row, share.low, share.high)))
        percent = MeanInterval(100 * closed.mean, 100 * closed.low, 100 * closed.high)
        gap = f"gap {table.rows[share.low]} to {table.rows[share.high]}"
        words, met = f"at least {100 * share.at_least:.0f} %", closed.mean >= share.at_least
        found.append(Finding(table.rows[share.row], gap, "%", percent, words, met))
    return found


def _met(pair: Difference, difference: float) -> bool:
    tests = {"": True, "above": difference > pair.points, "at least": difference >= pair.points}
    return {**tests, "within": abs(difference) <= pair.points}[pair.expected]


def read_results(path: str | Path) -> Results:
    """Reads a file of results.

    Raises:
        UserError: the file is missing or damaged, or a row lacks the score of a seed.
    """
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected results written by experiments/ablation.py") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    names = {field.name for field in fields(Results)}
    required = {field.name for field in fields(Results) if field.default_factory is MISSING}
    if not isinstance(content, dict) or not required <= content.keys() <= names:
        raise UserError(f"{path}: expected a JSON object with the keys {', '.join(sorted(required))}")
    results = Results(**content)
    for row, scores in results.rows.items():
        known = [score for score in scores if isinstance(score, float) and 0 <= score <= 1]
        if not len(known) == len(scores) == len(results.seeds):
            raise UserError(f"{path}: row {row}: expected one mIoU from 0 to 1 for each of the seeds")
    return results
