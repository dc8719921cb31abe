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
    """One row a stage: mean IoU in %, gain over the row before (the oracle's: over source-only), seconds."""
    rows, before = [], None
    for name, summary in stages.items():
        miou = 100 * summary["miou"]
        reference = 100 * stages["source_only"]["miou"] if name == "oracle" else before
        gain = "" if reference is None else f"{miou - reference:+.1f}"
        rows.append([name, f"{miou:.1f}", gain, f"{100 * summary['best_miou']:.1f}", f"{summary['seconds']:.0f}"])
        before = miou
    return markdown_table(["stage", "mIoU", "gain", "best", "seconds"], rows)
