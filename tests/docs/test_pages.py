"""README, CONTRIBUTING and docs/: what can be checked without running their commands."""

import re

import pytest

from tests.small_runs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_to_files(page):
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    paths = re.findall(r"(?<![\w/.])((?:proda|experiments|tests|benchmarks|docs|\.ci)/[\w/]*\w(?:\.\w+)?)", text)
    missing = [target for target in links if not (page.parent / target).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def table(page: str, header: str) -> list[list[str]]:
    """Cells of the rows of the first table whose header line begins with ``header``."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header)) + 2
    end = next(i for i, line in enumerate(lines[start:], start) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def test_the_readme_quotes_the_results_page():
    quoted = [[miou, *gain.split()[:1]] for _, miou, gain in table("README.md", "| stage ")]
    results = [[miou, *gain.split()[:1]] for _, miou, _, gain, *_ in table("docs/results.md", "| stage ")]
    assert quoted == results
