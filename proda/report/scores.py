"""The report's sections about scores: how good the runs are, what differs between them, and which classes are hard.

Functions return plain values for the template. Scores are fractions.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proda.report.runs import Group, Run, differing_flags
from proda.report.texts import (
    difference,
    full_title,
    labels,
    listed,
    percent,
    plain,
    points,
    spoken,
    upper,
)
from proda.run.record import PACKAGES
from proda.studies.tables import CONTROL
from proda.utils.words import duration

COLUMNS = {  # of the table of scores: title -> score in summary.json; those that no run has are left out
    "mIoU": "miou",
    "of 13 classes": "miou_13",
    "best": "best_miou",
    "label-free choice": "label_free_miou",
}


def scores(groups: Sequence[Group]) -> dict[str, Any]:
    """Columns of the table of scores, and its rows by group."""
    runs = [run for group in groups for run in group.runs]
    columns = {title: key for title, key in COLUMNS.items() if any(run.summary.get(key) is not None for run in runs)}
    rows = [[_score_row(group, run, columns) for run in group.runs] for group in groups]
    return {
        "columns": list(columns),
        "groups": [{"name": group.name, "rows": of} for group, of in zip(groups, rows, strict=True)],
        "class_counts": sorted({len(run.class_names) for run in runs if run.class_names}),
        "has_gain": any(row["gain"] is not None for of_group in rows for row in of_group),
        "unfinished": [run.title for run in runs if not run.finished],
        "has_control": any(run.name == CONTROL for run in runs),
        "has_oracle": any(run.is_oracle for run in runs),
        "seeds": sorted({run.config["seed"] for run in runs if "seed" in run.config}),
    }


def _score_row(group: Group, run: Run, columns: Mapping[str, str]) -> dict[str, Any]:
    reference = group.reference(run)
    return {
        "title": run.title,
        "is_result": run is group.result and len(group.runs) > 1,
        "is_aside": run.name == CONTROL or run.is_oracle,
        "scores": [run.summary.get(key) for key in columns.values()],
        "gain": difference(run, reference) if reference else None,
        "over": reference.title if reference else "",
        "label_free": run.summary.get("label_free"),
        "iterations": run.summary.get("iterations"),
        "seconds": run.summary.get("seconds"),
        "finished": run.finished,
    }


def headline(groups: Sequence[Group]) -> str:
    """The answer to "how good" in a sentence or two."""
    return _result(groups[0]) if len(groups) == 1 else _comparison(groups)


def _result(group: Group) -> str:
    run, summary = group.result, group.result.summary
    name, score = upper(run.title), summary.get("miou")
    if score is None and summary.get("label_free") is None:
        return f"{name} has {'neither mIoU nor label-free score' if run.finished else 'no scores yet'}."
    if score is None:
        reason = "because the validation images have no labels"
        return f"{name} has no mIoU, {reason}; its label-free score is {summary['label_free']:.2f}."
    places = []
    for other in group.runs:
        gap = difference(run, other)
        if other is not run and gap is not None and (other.name in ("source_only", "warmup") or other.is_oracle):
            places.append(f"{100 * abs(gap):.1f} points {'above' if gap >= 0 else 'below'} {spoken(other)}")
    text = f"{name} {'ends' if run.finished else 'is'} at {percent(score)} % mIoU over {len(run.class_names)} classes"
    text += f": {listed(places)}." if places else "."
    if summary.get("best_miou", 0) - score >= 0.0005:
        text += f" The best validation, which only labels can tell, had {percent(summary['best_miou'])} %."
    return text


def _comparison(groups: Sequence[Group]) -> str:
    first, parts = groups[0].result, []
    for group in groups:
        score, gap = group.result.summary.get("miou"), difference(group.result, first)
        text = f"{full_title(groups, group, group.result)} has " + (
            "no mIoU" if score is None else f"{percent(score)} %"
        )
        parts.append(text if group is groups[0] or gap is None else f"{text} ({points(gap)} points)")
    return f"mIoU: {listed(parts)}."


def tiles(group: Group) -> list[tuple[str, str]]:
    """The most important numbers of one group: value and what it is."""
    run = group.result
    if run.summary.get("miou") is None:
        return []
    found = [(f"{100 * run.summary['miou']:.1f} %", "mIoU of the last model")]
    if run.summary.get("miou_13") is not None:
        found.append((f"{100 * run.summary['miou_13']:.1f} %", "mIoU over 13 classes"))
    for other in group.runs:
        gap = difference(run, other)
        if other is not run and gap is not None and (other.name == "source_only" or other.is_oracle):
            found.append((points(gap), f"points of mIoU against {spoken(other)}"))
    times = [run.summary["seconds"] for run in group.runs if run.summary.get("seconds") is not None]
    if times:
        found.append((duration(sum(times)), "training time" + (f", {len(times)} runs" if len(times) > 1 else "")))
    return found


def differences(groups: Sequence[Group]) -> dict[str, Any]:
    """What differs between the runs of several groups, stage by stage where they have stages of one name."""
    shared = [run.name for run in groups[0].runs if all(run.name in {r.name for r in g.runs} for g in groups)]
    if all(len(group.runs) == 1 for group in groups):
        shared = []
    if shared:
        pairs = {name: [next(r for r in group.runs if r.name == name) for group in groups] for name in shared}
    else:
        pairs = {"": [group.result for group in groups]}
    blocks = []
    for runs in pairs.values():
        rows = [
            (f"--{name}", [plain(value) for value in values])
            for name, values in differing_flags(runs).items()
            if not _is_one_stage(values, shared)
        ]
        for name in ("experiment", "git_commit", "python", *PACKAGES, "device", "processes"):
            values = [plain(run.provenance.get(name)) for run in runs]
            if len(set(values)) > 1:
                rows.append((name.replace("_", " "), values))
        data = [run.provenance.get("data", {}) for run in runs]
        for name in dict.fromkeys(name for recorded in data for name in recorded):
            values = [str(recorded.get(name, "")) for recorded in data]
            if len(set(values)) > 1:
                rows.append((name, [value[:12] for value in values]))
        blocks.append({"title": runs[0].title if len(pairs) > 1 else "", "rows": rows})
    return {"names": labels(groups), "blocks": blocks}


def _is_one_stage(values: Sequence[Any], stages: Sequence[str]) -> bool:
    """Whether all values are files of one name of the same stage, each in the folder of its own group."""
    places = {Path(value).parts[-2:] if isinstance(value, str) else () for value in values}
    place = places.pop()
    return not places and len(place) == 2 and place[0] in stages


def classes(groups: Sequence[Group]) -> dict[str, Any]:
    """IoU of every class in every run (one group) or in the result of every group, the worst class first."""
    if len(groups) == 1:
        runs, names, result = groups[0].runs, [run.title for run in groups[0].runs], groups[0].result
    else:
        runs, names = [group.result for group in groups], labels(groups)
        result = runs[-1]
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if run.summary.get("iou")]
    if not shown:
        return {"cards": [], "runs": []}
    if not result.summary.get("iou"):
        result = shown[-1][0]
    result_name = next(name for run, name in shown if run is result)
    compared = len(groups) > 1 and len(shown) == 2
    every = list(dict.fromkeys(name for run, _ in shown for name in run.summary["iou"]))
    cards = []
    for class_name in every:
        bars = [
            {"name": name, "value": run.summary["iou"].get(class_name), "kind": _bar_kind(groups, run, result, place)}
            for place, (run, name) in enumerate(shown)
        ]
        final = result.summary["iou"].get(class_name)
        first = shown[0][0].summary["iou"].get(class_name)
        change = final - first if compared and final is not None and first is not None else None
        cards.append({"name": class_name, "value": final, "bars": bars, "change": change})
    cards.sort(key=lambda card: math.inf if card["value"] is None else card["value"])
    return {"cards": cards, "runs": [name for _, name in shown], "result": result_name, "has_change": compared}


def _bar_kind(groups: Sequence[Group], run: Run, result: Run, place: int) -> str:
    if len(groups) > 1:
        return f"c{place % 6 + 1}"
    if run is result:
        return "c1"
    return "aside" if run.name == CONTROL or run.is_oracle else "before"
