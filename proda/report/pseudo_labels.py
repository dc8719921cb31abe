"""The report's section about pseudo labels: whether denoising works.

Functions return plain values for the template. Figures are in %, as TensorBoard has them.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from proda.report.charts import line_chart
from proda.report.curves import chosen
from proda.report.runs import Group, Run
from proda.report.texts import full_title, listed, points

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
SAME = 0.5  # points of mIoU; smaller differences of labels are not called better or worse


def denoising(groups: Sequence[Group]) -> dict[str, Any]:
    """What is known about the labels of every run that trains on pseudo labels."""
    blocks, without, unwatched = [], [], []
    several = len(groups) > 1
    for group in groups:
        for run in group.runs:
            title = full_title(groups, group, run)
            if "label_report_every" not in run.config:
                without.append(title)
            elif "labels_percent/kept" not in run.curves:
                unwatched.append(title)
            else:
                blocks.append(_labels_of(run, title))
    rectifying = [block for block in blocks if block["rectifies"]]
    for block in (rectifying if several else rectifying[-1:]) or blocks[-1:]:
        block["open"] = True
    return {"blocks": blocks, "without": listed(without), "unwatched": listed(unwatched)}


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
    # Before and after rectification on all pixels; the labels lack those below the threshold.
    before, after, labels_ = (late.get(f"truth_percent/miou_{name}") for name in ("before", "rectified", "labels"))
    if labels_ is None:
        found.append(
            "The target's training images have no ground truth, so nothing here can say whether the labels are right; "
            "the curves without ground truth show whether they are sure, stable and complete."
        )
    elif before is None or after is None:
        found.append(f"{over}: the labels that the student is trained on reach {labels_:.1f} % mIoU.")
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
    if kept < 99.95:
        reached = f"; these labels reach {labels_:.1f} % mIoU" if labels_ is not None and before is not None else ""
        found.append(f"{kept:.1f} % of the pixels keep a label{reached}.")
    else:
        found.append("All pixels keep a label.")
    student = late.get("truth_percent/miou_student")
    if student is not None and labels_ is not None:
        gap = student - labels_
        found.append(
            f"In training the student itself has {student:.1f} %, {abs(gap):.1f} points "
            f"{'above' if gap >= 0 else 'below'} its labels."
        )
    return found
