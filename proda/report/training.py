"""The report's sections about training itself: how a run went, and how to repeat it.

Functions return plain values for the template.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from proda.report.charts import Chart, line_chart
from proda.report.curves import Curve, Point, chosen, rates
from proda.report.runs import Group, Run, changed_flags
from proda.report.texts import full_title, plain
from proda.run.record import PACKAGES
from proda.utils.errors import UserError
from proda.utils.words import duration


def running(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Charts and facts of every run."""
    return [
        {
            "title": full_title(groups, group, run),
            "open": run is group.result,
            "charts": running_charts(run),
            "facts": running_facts(run),
            "missing": running_gaps(run),
        }
        for group in groups
        for run in group.runs
    ]


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


def repeating(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Command, changed flags, versions and inputs of every run."""
    return [
        {"title": full_title(groups, group, run), "open": run is group.result, **_recipe(run)}
        for group in groups
        for run in group.runs
    ]


def _recipe(run: Run) -> dict[str, Any]:
    provenance = run.provenance
    command, experiment = provenance.get("command", []), provenance.get("experiment", "")
    file = next((word for word in command if Path(word).stem == experiment), f"experiments/{experiment}.py")
    again = ["python", "run.py", file, f"--config={run.folder / 'config.json'}", f"--output=runs/{run.name}_again"]
    try:
        changed, unknown = changed_flags(run), ""
    except UserError as error:
        changed, unknown = {}, f"The flags cannot be compared with a preset: {error}"
    return {
        "command": shlex.join(["python", *command]) if command else "",
        "again": shlex.join(again),
        "preset": run.config.get("preset", ""),
        "changed": [(f"--{name}", plain(now), plain(then)) for name, (now, then) in changed.items()],
        "unknown": unknown,
        "versions": {name: provenance[name] for name in ("python", *PACKAGES) if name in provenance},
        "commit": provenance.get("git_commit", ""),
        "files": {f"--{flag}": digest[:12] for flag, digest in provenance.get("files", {}).items()},
        "data": {name: digest[:12] for name, digest in provenance.get("data", {}).items() if name != "classes"},
    }


def _percent(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: [Point(p.step, 100 * p.value, p.time) for p in curve] for name, curve in curves.items()}
