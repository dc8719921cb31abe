"""Rewrites the tables of README.md and of docs/ from the results in docs/results/.

    python docs/tables.py            # rewrites the pages and names those that changed
    python docs/tables.py --check    # only names them; exit status 1 if there are any

A table stands between two comments, where NAME is a file docs/results/NAME.json and VIEW one of VIEWS::

    <!-- results: NAME VIEW -->
    <!-- end of results -->

Text between the comments stays as it is while the file does not exist.
"""

import re
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proda.studies.results import read_results  # noqa: E402
from proda.studies.rows import TABLES  # noqa: E402
from proda.studies.tables import caption, classes_table, findings_table, gains_table, rows_table  # noqa: E402
from proda.utils.errors import UserError  # noqa: E402
from proda.utils.files import atomic_write  # noqa: E402

BEGIN, END = re.compile(r"<!-- results: (\S+) (\S+) -->\n"), "<!-- end of results -->"
VIEWS = {
    "caption": lambda results, table: caption(results),
    "rows": rows_table,  # each row with every seed
    "gains": gains_table,  # each row with its gain, every seed and the time
    "short": partial(gains_table, details=False),  # each row with its gain
    "classes": classes_table,  # each row with the IoU of every class
    "findings": findings_table,  # comparisons of rows
}


def pages(root: Path = ROOT) -> list[Path]:
    """The pages that may hold tables of results."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rewritten(page: Path, folder: Path) -> str:
    """The text of a page with the tables of the results in ``folder``.

    Raises:
        UserError: a table has no end or another one within, its view is unknown, or its results are damaged.
    """
    before, *parts = BEGIN.split(page.read_text())
    text = before
    for name, view, rest in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        begin = f"<!-- results: {name} {view} -->\n"
        old, end, after = rest.partition(END)
        if not end:
            raise UserError(f"{page}: {begin.strip()} without {END}")
        if view not in VIEWS:
            raise UserError(f"{page}: {begin.strip()}: expected one of the views {', '.join(VIEWS)}")
        file = folder / f"{name}.json"
        if file.exists():
            results = read_results(file)
            old = VIEWS[view](results, TABLES[results.table]) + "\n"
        text += begin + old + END + after
    return text


def main(arguments: list[str]) -> int:
    """Rewrites or checks the pages; returns the exit status."""
    changed = {page: text for page in pages() if (text := rewritten(page, ROOT / "docs/results")) != page.read_text()}
    for page, text in changed.items():
        print(page.relative_to(ROOT))
        if "--check" not in arguments:
            with atomic_write(page) as path:
                path.write_text(text)
    return int(bool(changed) and "--check" in arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
