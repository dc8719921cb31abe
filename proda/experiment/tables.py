"""Tables of results, for a terminal or a Markdown page."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any


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
    score remains. The gain is relative to the row before; that of the oracle is relative to source-only.

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
        before = summary
    scores = {title: key for title, key in scores.items() if any(s.get(key) is not None for s in judged.values())}

    def percent(key: str, value: float | None) -> str:
        return "" if value is None else f"{100 * value:{'+' if key == 'gain' else ''}.1f}"

    rows = [
        [name, *(percent(key, s.get(key)) for key in scores.values()), f"{s['label_free']:.2f}", f"{s['seconds']:.0f}"]
        for name, s in judged.items()
    ]
    return markdown_table(["stage", *scores, "label-free score", "seconds"], rows)


def compare(runs: dict[str, list[dict[str, Any]]], *, control: str) -> dict[str, Any]:
    """Mean scores of the rows of an ablation, and the rows that do not improve on the row before as in the paper.

    Args:
        runs: for each row, in the paper's order, the content of ``summary.json`` of its runs, one per seed. Rows
            without runs are left out.
        control: a row that is not in the paper. Other rows are not compared with it.

    Returns:
        ``rows``: for each row ``miou`` (mean), ``deviation`` (standard deviation, None for a single run), ``each``
        (mIoU of every run) and ``iou`` (mean of each class), all as fractions;
        ``other_order_than_paper``: for each row that does not improve, ``row``, ``before``, ``change`` (mean over the
        seeds), ``rising`` (number of seeds in which it improves) and ``seeds``.
    """
    rows = {}
    for row, summaries in runs.items():
        if summaries:
            scores = [summary["miou"] for summary in summaries]
            deviation = stdev(scores) if len(scores) > 1 else None
            rows[row] = {"miou": mean(scores), "deviation": deviation, "each": scores, "iou": _mean_iou(summaries)}
    falls = []
    order = [row for row in rows if row != control]
    for before, row in pairwise(order):
        pairs = list(zip(rows[before]["each"], rows[row]["each"], strict=False))  # runs of the same seed
        change = mean(new - old for old, new in pairs)
        if change <= 0:
            rising = sum(new > old for old, new in pairs)
            falls.append({"row": row, "before": before, "change": change, "rising": rising, "seeds": len(pairs)})
    return {"rows": rows, "other_order_than_paper": falls}


def _mean_iou(summaries: list[dict[str, Any]]) -> dict[str, float]:
    """Mean IoU of each class over the runs in which the class occurs."""
    found = {name: [s["iou"][name] for s in summaries if s["iou"][name] is not None] for name in summaries[0]["iou"]}
    return {name: mean(values) for name, values in found.items() if values}


def comparison_page(summary: dict[str, Any], titles: dict[str, str], *, control: str, note: str) -> str:
    """The result of :func:`compare` as Markdown: a table, a note, and the rows that do not improve as in the paper.

    Args:
        summary: the result of :func:`compare`.
        titles: the title of each row.
        control: the row that is left out when gains are computed.
        note: text below the table.
    """
    lines: list[list[str]] = []
    before: float | None = None
    for row, result in summary["rows"].items():
        value, deviation = 100 * result["miou"], result["deviation"]
        gain = "" if before is None else f"{value - before:+.1f}"
        spread = "" if deviation is None else f"{100 * deviation:.1f}"
        lines.append([titles[row], f"{value:.1f}", spread, gain, " ".join(f"{100 * s:.1f}" for s in result["each"])])
        before = before if row == control else value
    text = markdown_table(["", "mIoU", "deviation", "gain", "each seed"], lines) + f"\n\n{note}\n"
    if not summary["other_order_than_paper"]:
        return text + "\nEach row improves on the one above, as in the paper.\n"
    text += "\nIn the paper each row improves on the one above. On Streets these rows do not:\n\n"
    for fall in summary["other_order_than_paper"]:
        row, earlier = titles[fall["row"]], titles[fall["before"]]
        text += f"* {row}: {100 * fall['change']:+.1f} compared with {earlier}, better in {fall['rising']} of "
        text += f"{fall['seeds']} seeds\n"
    return text
