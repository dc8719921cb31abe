"""Tables of results, for a terminal or a Markdown page. Scores are fractions in the arguments and % in the tables."""

import math
import textwrap
from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from proda.studies.results import Results, ResultTable, findings
from proda.studies.statistics import MeanInterval

CONTROL = "control"  # row or stage that no other builds on; it is compared with the row that it starts from


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first is left-aligned, the others are right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])


def stage_table(stages: dict[str, dict[str, Any]]) -> str:
    """A table with one row per stage; scores are in %.

    A score that no stage has gets no column: if the target's validation images have no labels, only the label-free
    score remains. The gain is relative to the row before, but that of the oracle to source-only, and that of the row
    after the control to the row before the control.

    Args:
        stages: the content of ``summary.json`` by the name of the stage.
    """
    scores = {"mIoU": "miou", "gain": "gain", "of 13": "miou_13", "best": "best_miou"}
    scores["label-free choice"] = "label_free_miou"
    judged: dict[str, dict[str, Any]] = {}
    before: dict[str, Any] | None = None
    for name, summary in stages.items():
        reference = stages.get("source_only") if name == "oracle" else before
        old, new = (reference or {}).get("miou"), summary.get("miou")
        judged[name] = {**summary, "gain": None if old is None or new is None else new - old}
        before = before if name == CONTROL else summary
    scores = {title: key for title, key in scores.items() if any(s.get(key) is not None for s in judged.values())}

    def percent(key: str, value: float | None) -> str:
        return "" if value is None else f"{100 * value:{'+' if key == 'gain' else ''}.1f}"

    rows = [
        [name, *(percent(key, s.get(key)) for key in scores.values()), f"{s['label_free']:.2f}", f"{s['seconds']:.0f}"]
        for name, s in judged.items()
    ]
    return markdown_table(["stage", *scores, "label-free score", "seconds"], rows)


def control_sentence(stages: dict[str, dict[str, Any]]) -> str:
    """Whether stage 1 ends above its control; empty if one of them is missing or has no score.

    Args:
        stages: the content of ``summary.json`` by the name of the stage.
    """
    score, control = (stages.get(name, {}).get("miou") for name in ("stage1_denoise", CONTROL))
    if score is None or control is None:
        return ""
    points = round(100 * (score - control), 1)
    where = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if points else "at the score of"
    return f"Stage 1 ends {where} its control, which is trained for as long without any loss on the target."


def rows_table(results: Results, table: ResultTable) -> str:
    """A table with one line per row: mean mIoU, standard deviation over the seeds, and the mIoU of each seed."""
    lines = [[title, *_scores(results.rows[row])] for row, title in table.rows.items()]
    return markdown_table(["", "mIoU", "deviation", "each seed"], lines)


def classes_table(results: Results, table: ResultTable) -> str:
    """A table with one line per row: the mean IoU of each class over the seeds."""
    names = list(next(iter(results.iou.values()), ()))
    lines = []
    for row, title in table.rows.items():
        scores = [[score for score in results.iou[row][name] if score is not None] for name in names]
        lines.append([title, *(f"{100 * mean(found):.1f}" if found else "" for found in scores)])
    return markdown_table(["", *names], lines)


def gains_table(results: Results, table: ResultTable, *, details: bool = True) -> str:
    """A table with one line per row and its gain over the row that it is compared with first, named if not above it.

    Args:
        results: scores and durations.
        table: its rows and differences.
        details: also show deviation, each seed and the median of the seconds.
    """
    references = {pair.row: pair.reference for pair in reversed(table.differences)}
    lines, above = [], ""
    for row, title in table.rows.items():
        score, deviation, each = _scores(results.rows[row])
        gain, reference = "", references.get(row)
        if reference is not None:
            gain = f"{100 * (mean(results.rows[row]) - mean(results.rows[reference])):+.1f}"
            gain += f" over {table.rows[reference]}" if reference != above else ""
        seconds = f"{median(results.seconds[row]):.0f}"
        lines.append([title, score, deviation, gain, each, seconds] if details else [title, score, gain])
        above = row
    header = ["stage", "mIoU", "deviation", "gain", "each seed", "seconds"] if details else ["stage", "mIoU", "gain"]
    return markdown_table(header, lines)


def findings_table(results: Results, table: ResultTable) -> str:
    """The comparisons of a table with their intervals, and below it the expectations that are not met.

    Differences are in points of mIoU, shares in % of the gap.
    """
    found = findings(results, table)
    expects = any(finding.expected for finding in found)
    lines = []
    for finding in found:
        line = [finding.row, finding.compared_with, *_difference(finding.interval, finding.unit)]
        verdict = ("yes" if finding.met else "**no**") if finding.expected else ""
        lines.append([*line, finding.expected, verdict] if expects else line)
    header = ["row", "compared with", "difference", "95 % interval", "interval"]
    text = markdown_table([*header, "expected", "met"] if expects else header, lines)
    if not expects:
        return text
    missed = [finding for finding in found if not finding.met]
    if not missed:
        return text + "\n\nAll expectations are met."
    text += "\n\nThese expectations are not met:\n"
    for finding in missed:
        value, interval, _ = _difference(finding.interval, finding.unit)
        text += f"\n* {finding.row}, compared with {finding.compared_with}: expected {finding.expected}; found {value}"
        text += f", interval {interval}" if interval else ""
    return text


def caption(results: Results) -> str:
    """When, at which commit, by which command and with which seeds the results were measured."""
    commits = ", ".join(commit[:7] for commit in results.commit.split(", "))
    seeds = ", ".join(map(str, results.seeds))
    word = "seed" if len(results.seeds) == 1 else "seeds"
    text = f"Measured on {results.date} at commit {commits} by `{results.command}` ({word} {seeds})."
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _scores(scores: Sequence[float]) -> list[str]:
    """Mean, standard deviation (empty for one seed) and each score, in %."""
    spread = f"{100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return [f"{100 * mean(scores):.1f}", spread, " ".join(f"{100 * score:.1f}" for score in scores)]


def _difference(interval: MeanInterval, unit: str) -> list[str]:
    """Mean, interval and place of the interval relative to zero, as text; empty where they are not defined."""
    if math.isnan(interval.mean):
        return ["no gap", "", ""]
    sign, unit = ("", " %") if unit else ("+", "")
    value = f"{interval.mean:{sign}.1f}{unit}"
    if math.isinf(interval.low):  # of a single seed
        return [value, "", ""]
    place = "above 0" if interval.above_zero else "below 0" if interval.below_zero else "contains 0"
    return [value, f"{interval.low:{sign}.1f} to {interval.high:{sign}.1f}{unit}", place]
