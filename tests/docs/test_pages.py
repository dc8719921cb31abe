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
