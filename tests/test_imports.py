"""Imports run one way: from the rooms that build on others to those others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Room of proda -> the rooms above it in this table that it may import; a room may always import itself.
KNOWN = {
    "utils": set(),
    "settings": {"utils"},
    "method": set(),
    "models": {"utils", "method"},
    "data": {"utils", "method"},
    "metrics": {"method", "data"},
    "visualization": {"data"},
    "streets": {"utils", "method", "data"},
    "engines": {"utils", "settings", "method", "models", "data", "metrics"},
    "handlers": {"utils", "method", "models", "data", "metrics", "visualization", "engines"},
    "run": {"utils", "settings", "method", "models", "data", "streets", "engines", "handlers"},
    "cli": {"utils", "settings", "engines", "handlers", "run"},
    "studies": {"utils", "settings", "run", "cli"},
    "report": {
        *("utils", "settings", "method", "models", "data", "visualization", "engines", "run", "cli", "studies"),
    },
    "export": {"utils", "models", "data", "streets"},
    "trained_model": {"settings", "method", "models", "data", "engines"},
    "__init__": {"trained_model"},
    "__main__": {"cli"},
}


def imports(file: Path) -> set[str]:
    """The modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found = [(node, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not any(node.level for node, _ in found), f"{file}: relative import"
    return plain | {f"proda.{name}" if node.module == "proda" else node.module for node, name in found}


def test_the_table_has_every_room_below_those_that_it_may_import():
    rooms = {path.stem for path in (ROOT / "proda").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert KNOWN.keys() == rooms - {"__pycache__"}
    for number, known in enumerate(KNOWN.values()):
        assert known <= set(list(KNOWN)[:number])


@pytest.mark.parametrize("room", KNOWN)
def test_a_room_imports_none_that_builds_on_it(room):
    place, known = ROOT / "proda" / room, KNOWN[room] | {room}
    for file in [*place.rglob("*.py"), *([place.with_suffix(".py")] if not place.is_dir() else [])]:
        ours = {name.split(".")[1] for name in imports(file) if name.startswith("proda.")}
        assert ours - {"__version__"} <= known, file


def test_the_method_needs_torch_alone():
    for file in (ROOT / "proda/method").glob("*.py"):
        outside = {name.split(".")[0] for name in imports(file)}
        assert outside <= {"torch", "proda", "math", "typing", "collections", "dataclasses", "enum"}, file


def test_the_package_imports_no_experiment_file():
    for file in (ROOT / "proda").rglob("*.py"):
        assert "experiments" not in {name.split(".")[0] for name in imports(file)}, file
