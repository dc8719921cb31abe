"""Results as text for a terminal or a Markdown page."""

from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left and the others to the right."""
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
    """One row a stage, from its ``summary.json``; scores in %, and only those that some stage has.

    The gain is over the row before, the oracle's over source-only. Own photographs may have no labels to judge by:
    the label-free score alone remains then.
    """
    scores = {"mIoU": "miou", "gain": "gain", "of 13": "miou_13", "best": "best_miou"}
    scores["label-free choice"] = "label_free_miou"
    judged, before = {}, None
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
