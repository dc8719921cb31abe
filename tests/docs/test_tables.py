"""The tables of README and docs/ are made from docs/results/ by docs/tables.py."""

import importlib.util
import re
import shutil

import pytest

from proda.studies.results import Results
from proda.studies.rows import FILES, TABLES
from proda.utils.errors import UserError
from tests.small_runs import ROOT

_spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs/tables.py")
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)

APPENDICES = ("results/settings", "successors", "photographs")  # pages that have tables, too
PAGE = "# A page\n\n<!-- results: ablation rows -->\n| old |\n<!-- end of results -->\n\nThe end.\n"


def save(folder, table: str = "parts") -> Results:
    """Made-up results: the first row has 40 and 42 %, each other row a point more than the one before."""
    rows = {row: [0.40 + k / 100, 0.42 + k / 100] for k, row in enumerate(TABLES[table].rows)}
    seconds = {row: [60.0, 62.0] for row in rows}
    results = Results(table, "python run.py experiments/ablation.py", "c" * 40, "2026-12-01", [0, 1], rows, seconds)
    results.save(folder / f"{FILES.get(table, table)}.json")
    return results


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_the_pages_show_the_committed_results(page):
    assert tables.rewritten(page, ROOT / "docs/results") == page.read_text(), "run: python docs/tables.py"


def test_a_table_is_rewritten_where_its_results_exist_and_kept_where_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert tables.rewritten(page, tmp_path) == PAGE
    save(tmp_path)
    text = tables.rewritten(page, tmp_path)
    assert "| old |" not in text and text.startswith("# A page\n\n<!-- results: ablation rows -->\n| ")
    assert text.endswith("|\n<!-- end of results -->\n\nThe end.\n") and "| oracle " in text and "| 41.0 " in text
    page.write_text(text)
    assert tables.rewritten(page, tmp_path) == text


def test_readme_and_results_page_have_places_for_every_table_and_quote_the_same_numbers(tmp_path):
    for table in TABLES:
        save(tmp_path, table)
    readme, page = (tables.rewritten(ROOT / name, tmp_path) for name in ("README.md", "docs/results.md"))
    pages = page + "".join(tables.rewritten(ROOT / f"docs/{name}.md", tmp_path) for name in APPENDICES)
    assert "Not measured yet" not in pages
    for name, table in TABLES.items():
        assert f"<!-- results: {FILES.get(name, name)} caption -->\nMeasured on 2026-12-01 at commit ccccccc" in pages
        assert all(f"| {title} " in pages for title in table.rows.values())
    assert re.search(r"\| stage 1: denoised pseudo labels +\| 44\.0 \| +\+2\.0 over warm-up \|", readme)
    assert "| oracle, trained on target labels" in page and "+6.0 over source only" in page
    assert "These expectations are not met:" in page  # a second distillation of +1 does not close half of the gap


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (PAGE.replace("<!-- end of results -->", ""), "ablation rows --> without <!-- end of results -->"),
        (
            PAGE.replace(" rows ", " curves "),
            "expected one of the views caption, rows, gains, short, classes, findings",
        ),
        (PAGE.replace("| old |\n", "<!-- results: ablation gains -->\n"), "ablation rows --> without"),
    ],
)
def test_a_table_that_is_marked_wrongly_is_named(tmp_path, page, words):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(UserError, match=words):
        tables.rewritten(tmp_path / "page.md", tmp_path)


def test_the_command_checks_and_rewrites(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs/results").mkdir(parents=True)
    for name in ("README.md", "docs/results.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [tmp_path / "README.md", tmp_path / "docs/results.md"])
    assert tables.main(["--check"]) == 0
    save(tmp_path / "docs/results", "quickstart")
    before = (tmp_path / "README.md").read_text()
    assert tables.main(["--check"]) == 1 and (tmp_path / "README.md").read_text() == before
    assert capsys.readouterr().out == "README.md\ndocs/results.md\n"
    assert tables.main([]) == 0 and (tmp_path / "README.md").read_text() != before
    assert tables.main(["--check"]) == 0
