"""Imports run one way: method, models and data, engines, handlers, experiment, report."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWN = {
    "method": {"method"},
    "utils": {"utils"},
    "models": {"method", "utils", "models"},
    "data": {"method", "utils", "data"},
    "streets": {"method", "utils", "data", "streets"},
    "export": {"utils", "models", "data", "streets", "export"},
    "engines": {"method", "utils", "models", "data", "engines", "metrics"},
    "experiment": {
        *("method", "utils", "models", "data", "streets", "engines", "handlers", "experiment", "metrics"),
        "visualization",
    },
    "handlers": {"method", "utils", "models", "data", "engines", "handlers", "metrics", "visualization"},
}


def imports(file: Path) -> set[str]:
    """The modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return plain | {f"proda.{name}" if module == "proda" else module for module, name in parts}


@pytest.mark.parametrize("package", KNOWN)
def test_a_package_imports_none_that_builds_on_it(package):
    for file in (ROOT / "proda" / package).rglob("*.py"):
        ours = {name for name in imports(file) if name.startswith("proda.") and not name.endswith("__")}
        assert {name.split(".")[1] for name in ours} <= KNOWN[package], file


def test_the_method_needs_torch_alone():
    for file in (ROOT / "proda/method").glob("*.py"):
        outside = {name.split(".")[0] for name in imports(file)}
        assert outside <= {"torch", "proda", "math", "typing", "collections", "dataclasses", "enum"}, file


def test_the_package_imports_no_experiment_file():
    for file in (ROOT / "proda").rglob("*.py"):
        assert "experiments" not in {name.split(".")[0] for name in imports(file)}, file
