"""Prints the tables of docs/watching.md from the runs of the ablation, as Markdown.

    python docs/label_quality.py runs/ablation

First how the labels develop in the row ``structure``, as means over the seeds. Then how well each figure that needs no
labels goes with true quality: Spearman's rank correlation over the rows and seeds of stage 1, and over the reports
within a run (the median of the runs).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proda.studies.tables import markdown_table  # noqa: E402

STAGE1 = ("self_training", "symmetric", "fixed_prototypes", "moving_prototypes", "structure")
DEVELOPMENT = {
    "changed": "changed",
    "changed_to_right": "of these right",
    "changed_to_wrong": "wrong",
    "miou_before": "before",
    "miou_labels": "labels",
    "miou_student": "student",
    "miou_teacher": "teacher",
}
MOST_LINES = 8  # of the first table
LAST = 4  # reports at the end of a run whose mean describes it


def history(folder: Path, row: str) -> list[list[dict[str, float]]]:
    """For every seed, the reports of a run of ``row``."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed_*/{row}/summary.json"))]
    return [summary["label_quality"]["history"] for summary in summaries]


def means(reports: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure over reports, without those that are missing or NaN."""
    names = dict.fromkeys(name for report in reports for name in report)
    known = {name: [r[name] for r in reports if r.get(name) is not None and r[name] == r[name]] for name in names}
    return {name: fmean(values) for name, values in known.items() if values}


def development(folder: Path, row: str) -> str:
    """The figures against ground truth over the iterations, in percent: means over seeds and consecutive reports."""
    seeds = history(folder, row)
    reports, lines = len(seeds[0]), []
    parts = max(number for number in range(1, MOST_LINES + 1) if reports % number == 0)
    length = reports // parts
    for part in range(parts):
        chosen = [report for seed in seeds for report in seed[part * length : (part + 1) * length]]
        found = means(chosen)
        cells = [f"{100 * found[name]:.1f}" for name in DEVELOPMENT]
        lines.append([f"{int(seeds[0][(part + 1) * length - 1]['iteration'])}", *cells])
    return markdown_table(["iteration", *DEVELOPMENT.values()], lines)


def correlations(rows: list[dict[str, float]], quality: str = "miou") -> dict[str, float]:
    """Spearman's rank correlation of each other figure with ``quality`` over the rows that have both.

    NaN for fewer than two rows, and where one of the two is constant.
    """
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != quality):
        pairs = np.array([(row.get(name), row.get(quality)) for row in rows], float)
        pairs = pairs[~np.isnan(pairs).any(1)]
        ranks = (pairs < pairs[:, None]).sum(1) + (pairs == pairs[:, None]).sum(1) / 2  # equal ones share their mean
        with np.errstate(all="ignore"):
            result[name] = float(np.corrcoef(ranks.T)[0, 1]) if len(ranks) > 1 else float("nan")
    return result


def across(folder: Path) -> dict[str, float]:
    """Correlation of each figure with the mIoU on the validation images, over rows and seeds of stage 1."""
    runs = []
    for path in sorted(path for row in STAGE1 for path in folder.glob(f"seed_*/{row}/summary.json")):
        summary = json.loads(path.read_text())
        quality = summary["label_quality"]
        scores = {name: summary[name] for name in ("miou", "label_free") if name in summary}
        runs.append({**quality.get("last", {}), **scores, **means(quality["history"][-LAST:])})
    return correlations(runs)


def within(folder: Path, quality: str) -> dict[str, float]:
    """Median over the runs of stage 1 of the correlation of each figure with ``quality`` over the reports of a run."""
    found = [correlations(reports, quality) for row in STAGE1 for reports in history(folder, row)]
    names = dict.fromkeys(name for run in found for name in run)
    values = {name: [run[name] for run in found if run.get(name, float("nan")) == run.get(name)] for name in names}
    return {name: median(known) for name, known in values.items() if known}


def correlation_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """One line per figure, those that go best with the first column's quality first."""
    first = next(iter(columns.values()))
    hidden = {"iteration", "miou", *(name for name in first if name.startswith(("miou_", "changed_to")))}
    names = [name for name in first if name not in hidden and first[name] == first[name]]
    lines = [
        [f"`{name}`", *(f"{column[name]:+.2f}" if name in column else "" for column in columns.values())]
        for name in sorted(names, key=lambda name: -abs(first[name]))
    ]
    return markdown_table(["figure", *columns], lines)


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    print(development(runs, "structure"), end="\n\n")
    columns = {
        "mIoU over rows and seeds": across(runs),
        "labels within a run": within(runs, "miou_labels"),
        "student within a run": within(runs, "miou_student"),
    }
    print(correlation_table(columns))
