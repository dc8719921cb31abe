"""What each section of the report says, as plain values for the template. Scores are fractions, charts have %."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from proda.experiment.job import PACKAGES
from proda.experiment.tables import CONTROL
from proda.report.charts import Chart, line_chart
from proda.report.curves import Curve, Point, rates
from proda.report.runs import Group, Run, changed_flags, differing_flags
from proda.utils.errors import UserError

COLUMNS = {  # of the table of scores: title -> score in summary.json; those that no run has are left out
    "mIoU": "miou",
    "of 13 classes": "miou_13",
    "best": "best_miou",
    "label-free choice": "label_free_miou",
}
# Charts of the section on denoising: title -> name of the curve -> its tag in TensorBoard
WITH_TRUTH = {
    "mIoU against ground truth (%)": {
        "labels before rectification": "truth_percent/miou_before",
        "labels": "truth_percent/miou_labels",
        "student": "truth_percent/miou_student",
        "teacher": "truth_percent/miou_teacher",
    },
    "Of the pixels that are changed (%)": {
        "become right": "truth_percent/changed_to_right",
        "were right before": "truth_percent/changed_to_wrong",
    },
}
WITHOUT_TRUTH = {
    "Share of the pixels (%)": {
        "kept: label above the threshold": "labels_percent/kept",
        "changed by rectification": "labels_percent/changed",
        "largest prototype weight": "labels_percent/prototype_weight",
    },
    "Confidence (%)": {
        "labels before rectification": "labels_percent/confidence_before",
        "labels": "labels_percent/confidence_labels",
        "student": "labels_percent/confidence_student",
        "teacher": "labels_percent/confidence_teacher",
    },
    "Pixels of the same class (%)": {
        "student and labels": "agreement_percent/student_labels",
        "teacher and labels": "agreement_percent/teacher_labels",
        "student and teacher": "agreement_percent/student_teacher",
    },
    "Prototypes: mean distance of features": {
        "to the nearest other one": "prototypes/mean/nearest",
        "moved since the start": "prototypes/mean/moved",
    },
}
NONE = "\N{EN DASH}"  # in place of a value that there is not
SAME = 0.5  # points of mIoU; smaller differences of labels are not called better or worse


# How good


def scores(groups: Sequence[Group]) -> dict[str, Any]:
    """Columns of the table of scores, and its rows by group."""
    runs = [run for group in groups for run in group.runs]
    columns = {title: key for title, key in COLUMNS.items() if any(run.summary.get(key) is not None for run in runs)}
    return {
        "columns": list(columns),
        "groups": [
            {"name": group.name, "rows": [_score_row(group, run, columns) for run in group.runs]} for group in groups
        ],
        "class_counts": sorted({len(run.class_names) for run in runs if run.class_names}),
        "has_gain": any(
            (other := group.reference(run)) and difference(run, other) is not None
            for group in groups
            for run in group.runs
        ),
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


def difference(run: Run, reference: Run) -> float | None:
    """The mIoU of ``run`` minus that of ``reference``; None if one of them has none."""
    one, other = run.summary.get("miou"), reference.summary.get("miou")
    return None if one is None or other is None else one - other


def headline(groups: Sequence[Group]) -> str:
    """The answer to "how good" in a sentence or two."""
    return _result(groups[0]) if len(groups) == 1 else _comparison(groups)


def _result(group: Group) -> str:
    run, summary = group.result, group.result.summary
    name, score = _upper(run.title), summary.get("miou")
    if score is None and summary.get("label_free") is None:
        return f"{name} has {'neither a mIoU nor a label-free score' if run.finished else 'no scores yet'}."
    if score is None:
        reason = "because the validation images have no labels"
        return f"{name} has no mIoU, {reason}; its label-free score is {summary['label_free']:.2f}."
    places = []
    for other in group.runs:
        gap = difference(run, other)
        if other is not run and gap is not None and (other.name in ("source_only", "warmup") or other.is_oracle):
            places.append(f"{100 * abs(gap):.1f} points {'above' if gap >= 0 else 'below'} {_spoken(other)}")
    text = f"{name} {'ends' if run.finished else 'is'} at {percent(score)} % mIoU over {len(run.class_names)} classes"
    text += f": {_listed(places)}." if places else "."
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
    return f"mIoU: {_listed(parts)}."


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
            found.append((points(gap), f"points of mIoU against {_spoken(other)}"))
    times = [run.summary["seconds"] for run in group.runs if run.summary.get("seconds") is not None]
    if times:
        found.append((duration(sum(times)), "training time" + (f", {len(times)} runs" if len(times) > 1 else "")))
    return found


# What differs


def differences(groups: Sequence[Group]) -> dict[str, Any]:
    """What differs between the runs of several groups, stage by stage where they have stages of one name."""
    shared = [run.name for run in groups[0].runs if all(run.name in {r.name for r in g.runs} for g in groups)]
    if all(len(group.runs) == 1 for group in groups):
        pairs = {"": [group.result for group in groups]}
    elif shared:
        pairs = {name: [next(r for r in group.runs if r.name == name) for group in groups] for name in shared}
    else:
        pairs = {"": [group.result for group in groups]}
    blocks = []
    for runs in pairs.values():
        rows = [(f"--{name}", [plain(v) for v in values]) for name, values in differing_flags(runs).items()]
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
    return f"{name}: {run.title}" if len(group.runs) > 1 else name


# Which classes


def classes(groups: Sequence[Group]) -> dict[str, Any]:
    """IoU of every class in every run (one group) or in the result of every group, the worst class first."""
    if len(groups) == 1:
        group = groups[0]
        runs, names = group.runs, [run.title for run in group.runs]
        result = group.result
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
    place = {run.folder: k for k, (run, _) in enumerate(shown)}
    cards = []
    for class_name in every:
        bars = [
            {
                "name": name,
                "value": run.summary["iou"].get(class_name),
                "kind": _bar_kind(groups, run, result, place[run.folder]),
            }
            for run, name in shown
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


# Is denoising working


def denoising(groups: Sequence[Group]) -> dict[str, Any]:
    """What is known about the labels of every run that trains on pseudo labels."""
    blocks, without, unwatched = [], [], []
    several = len(groups) > 1
    for group in groups:
        for run in group.runs:
            title = full_title(groups, group, run)
            if "watch_every" not in run.config:
                without.append(title)
            elif "labels_percent/kept" not in run.curves:
                unwatched.append(title)
            else:
                blocks.append(_labels_of(run, title))
    rectifying = [block for block in blocks if block["rectifies"]]
    for block in (rectifying if several else rectifying[-1:]) or blocks[-1:]:
        block["open"] = True
    return {"blocks": blocks, "without": _listed(without), "unwatched": _listed(unwatched)}


def _labels_of(run: Run, title: str) -> dict[str, Any]:
    truth, other = (
        [chart for name, tags in charts.items() if (chart := line_chart(name, chosen(run.curves, tags)))]
        for charts in (WITH_TRUTH, WITHOUT_TRUTH)
    )
    quality = run.summary.get("label_quality", {})
    by_class: dict[str, dict[str, float]] = quality.get("classes", {})
    return {
        "title": title,
        "open": False,
        "rectifies": run.config.get("rectification") is True,
        "sentences": label_sentences(run),
        "truth": truth,
        "other": other,
        "columns": [c for c in ("first", "labels", "student", "source") if any(c in v for v in by_class.values())],
        "distances": [c for c in ("moved", "nearest") if any(c in v for v in by_class.values())],
        "classes": by_class,
        "died_out": [entry["class"] for entry in quality.get("died_out", [])],
    }


def label_sentences(run: Run) -> list[str]:
    """Whether denoising works in a run, in words."""
    late = {tag: fmean(point.value for point in curve[-max(1, len(curve) // 4) :]) for tag, curve in run.curves.items()}
    reports = max(1, len(run.curves["labels_percent/kept"]) // 4)
    over = f"Mean of the last {reports} reports" if reports > 1 else "In the last report"
    found = []
    before, after = late.get("truth_percent/miou_before"), late.get("truth_percent/miou_labels")
    if after is None:
        found.append(
            "The target's training images have no ground truth, so nothing here can say whether the labels are right; "
            "the curves without ground truth show whether they are sure, stable and complete."
        )
    elif before is None:
        found.append(f"{over}: the labels that the student is trained on have a mIoU of {after:.1f} %.")
    else:
        gain = after - before
        verdict = "Rectification hardly changes how good the labels are"
        if abs(gain) >= SAME:
            verdict = f"Rectification makes the labels {'better' if gain > 0 else 'worse'}"
        change = f"mIoU {before:.1f} % before, {after:.1f} % after it ({points(gain / 100)} points)"
        if run.config.get("rectification") is False:
            verdict, change = "The labels are not rectified in this run", f"mIoU {after:.1f} %"
        found.append(f"{verdict}. {over}: {change}.")
    changed, right, wrong = (
        late.get(tag)
        for tag in ("labels_percent/changed", "truth_percent/changed_to_right", "truth_percent/changed_to_wrong")
    )
    if changed is not None and changed > 0:
        text = f"It changes the class of {changed:.1f} % of the pixels"
        if right is not None and wrong is not None:
            text += f"; of these, {right:.1f} % become right, and {wrong:.1f} % were right before"
        found.append(f"{text}.")
    kept = late["labels_percent/kept"]
    found.append(f"{kept:.1f} % of the pixels keep a label." if kept < 99.95 else "All pixels keep a label.")
    student, labels_ = late.get("truth_percent/miou_student"), late.get("truth_percent/miou_labels")
    if student is not None and labels_ is not None:
        gap = student - labels_
        found.append(
            f"In training the student itself has {student:.1f} %, {abs(gap):.1f} points "
            f"{'above' if gap >= 0 else 'below'} its labels."
        )
    return found


# How it ran


def running(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Charts and facts of every run."""
    blocks = []
    for group in groups:
        for run in group.runs:
            blocks.append(
                {
                    "title": full_title(groups, group, run),
                    "open": run is group.result,
                    "charts": running_charts(run),
                    "facts": running_facts(run),
                    "missing": running_gaps(run),
                }
            )
    return blocks


def running_charts(run: Run) -> list[Chart]:
    """Validations, losses, learning rates, throughput and memory, as far as they were recorded."""
    curves = run.curves
    validation = {"model": "val/miou", "teacher": "val/teacher_miou"}
    label_free = {"model": "val/label_free", "teacher": "val/teacher_label_free"}
    loss_tags = sorted((tag for tag in curves if tag.startswith("train/loss")), key=lambda tag: tag != "train/loss")
    loss_names = {tag.removeprefix("train/loss").strip("_") or "total": tag for tag in loss_tags}
    charts = [
        line_chart("mIoU on validation images (%)", _percent(chosen(curves, validation)), least_span=10),
        line_chart("Label-free score", chosen(curves, label_free), least_span=0.1),
        line_chart("Losses", chosen(curves, loss_names)),
    ]
    for optimizer in dict.fromkeys(tag.split("/")[0] for tag in curves if "/lr/" in tag):
        tags = [tag for tag in curves if tag.startswith(f"{optimizer}/lr/")]
        names = {f"group {k}" if len(tags) > 1 else optimizer: tag for k, tag in enumerate(tags)}
        charts.append(line_chart(f"Learning rate, {optimizer}", chosen(curves, names), from_zero=True))
    speed = rates(curves.get("train/loss", []))
    charts.append(
        line_chart("Iterations per second, with validations", {"speed": speed} if speed else {}, from_zero=True)
    )
    memory = chosen(curves, {"peak": "train/gpu_memory_gib"})
    charts.append(line_chart("GPU memory (GiB)", memory, from_zero=True))
    return [chart for chart in charts if chart]


def running_facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of what is known about the run as a whole."""
    summary, provenance = run.summary, run.provenance
    speed = [point.value for point in rates(run.curves.get("train/loss", []))]
    memory = run.curves.get("train/gpu_memory_gib")
    facts = {
        "iterations": None if summary.get("iterations") is None else f"{summary['iterations']:,}",
        "time": None if summary.get("seconds") is None else duration(summary["seconds"]),
        "images per second": summary.get("images_per_second"),
        "iterations per second": f"{median(speed):.2f} (median)" if speed else None,
        "peak GPU memory": f"{max(point.value for point in memory):.1f} GiB" if memory else None,
        "device": provenance.get("device"),
        "processes": provenance.get("processes"),
        "mixed precision": run.config.get("amp"),
        "started": provenance.get("started"),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def running_gaps(run: Run) -> list[str]:
    """What was not recorded, in sentences."""
    found = []
    if not run.finished:
        found.append("The run has not finished: there is no summary.json, and scores are those of its last validation.")
    if "train/loss" not in run.curves:
        found.append(
            "Losses, learning rates and throughput are not known: they are not in TensorBoard files of the run."
        )
    if "train/gpu_memory_gib" not in run.curves:
        found.append("Memory was not recorded: runs record that of a GPU only.")
    return found


# How to repeat it


def repeating(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Command, changed flags, versions and inputs of every run."""
    blocks = []
    for group in groups:
        for run in group.runs:
            provenance = run.provenance
            command = provenance.get("command")
            experiment = provenance.get("experiment", "")
            own = (word for word in command or () if Path(word).stem == experiment)
            file = next(own, f"experiments/{experiment}.py")
            try:
                changed, unknown = changed_flags(run), ""
            except UserError as error:
                changed, unknown = {}, f"The flags cannot be compared with a preset: {error}"
            versions = {name: provenance[name] for name in ("python", *PACKAGES) if name in provenance}
            blocks.append(
                {
                    "title": full_title(groups, group, run),
                    "open": run is group.result,
                    "command": shlex.join(["python", *command]) if command else "",
                    "again": shlex.join(
                        [
                            *("python", "run.py", file),
                            *(f"--config={run.folder / 'config.json'}", f"--output=runs/{run.name}_again"),
                        ]
                    ),
                    "preset": run.config.get("preset", ""),
                    "changed": [(f"--{name}", plain(now), plain(then)) for name, (now, then) in changed.items()],
                    "unknown": unknown,
                    "versions": versions,
                    "commit": provenance.get("git_commit", ""),
                    "files": {f"--{flag}": digest[:12] for flag, digest in provenance.get("files", {}).items()},
                    "data": {n: digest[:12] for n, digest in provenance.get("data", {}).items() if n != "classes"},
                }
            )
    return blocks


# Texts


def chosen(curves: Mapping[str, Curve], tags: Mapping[str, str]) -> dict[str, Curve]:
    """Name -> curve, for those of ``tags`` (name -> tag) that there are."""
    return {name: curves[tag] for name, tag in tags.items() if tag in curves}


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in %, without the sign; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of fractions in points, with its sign unless it is rounded to zero; a dash for None."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Time in the two largest units: ``45 s``, ``2 min 58 s``, ``3 h 05 min``, ``2 d 04 h``."""
    whole = round(seconds)
    for size, unit, part, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02d} {name}"
    return f"{whole} s"


def plain(value: Any) -> str:
    """A value of a flag as text; a flag that a run does not have is a dash."""
    if value is None:
        return NONE
    return '""' if value == "" else str(value)


def _percent(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: [Point(p.step, 100 * p.value, p.time) for p in curve] for name, curve in curves.items()}


def _spoken(run: Run) -> str:
    return {"source_only": "source only", "warmup": "the warm-up"}.get(run.name, f"the {run.title}")


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
