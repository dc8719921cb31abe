"""Imports of an experiment only what its flags need: neither ``--help`` nor a wrong flag waits for PyTorch.

An experiment file imports all that its ``run`` uses, which takes seconds. Its ``Config`` and ``PRESETS`` need little of
that. Within ``settings_only``, an experiment is imported without the statements that neither of them refers to.
"""

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any

WANTED = frozenset({"Config", "PRESETS", "POSITIONAL", "run"})  # of run only the signature
CALLED = "problems"  # the method of Config that checks its values
Find = Callable[[str, Any], ModuleSpec | None]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


@contextlib.contextmanager
def settings_only(find: Find) -> Iterator[None]:
    """Within the block, modules that ``find`` knows are imported with their settings only, and forgotten afterwards.

    The import of a module that does more than the names in its statements tell may fail, for instance if it calls a
    function of its own. The caller then imports it in the ordinary way.

    Args:
        find: name of a module and path of its package -> where it is; None for modules to import as usual.
    """
    finder = _Finder(find)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.found:
            sys.modules.pop(name, None)
            package, _, module = name.rpartition(".")
            if package in sys.modules:
                vars(sys.modules[package]).pop(module, None)


class _Finder:
    def __init__(self, find: Find) -> None:
        self.find = find
        self.found: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = self.find(name, path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        self.found.append(name)
        spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Without the files of bytecode, which hold the whole module."""
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(needed_by_settings(tree), self.path, "exec", dont_inherit=True)


def needed_by_settings(tree: ast.Module) -> ast.Module:
    """The statements of a module that define ``WANTED``, and those that these need.

    Bodies of functions do not count, as they run later; that of ``problems`` does. Statements that are neither imports
    nor definitions are kept if they mention anything needed, because they may change it.
    """
    needed: set[str] = set(WANTED)
    while True:
        kept = [statement for statement in tree.body if _keep(statement, needed)]
        more = needed.union(*map(_uses, kept))
        if more == needed:
            return ast.Module([_narrowed(statement, needed) for statement in kept], type_ignores=[])
        needed = more


def _keep(statement: ast.stmt, needed: set[str]) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True  # the docstring
    if isinstance(statement, Function | ast.ClassDef):
        return statement.name in needed
    return any(_mentions(node, needed) for node in ast.walk(statement))


def _mentions(node: ast.AST, needed: set[str]) -> bool:
    """Whether a node defines or uses one of the names; one of a future import or of ``import *`` always counts."""
    if isinstance(node, Import):
        return _is_future(node) or any(_is_needed(alias, needed) for alias in node.names)
    if isinstance(node, Function | ast.ClassDef):
        return node.name in needed
    return isinstance(node, ast.Name) and node.id in needed


def _is_future(statement: ast.AST) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_needed(alias: ast.alias, needed: set[str]) -> bool:
    return alias.name == "*" or (alias.asname or alias.name.partition(".")[0]) in needed


def _narrowed(statement: ast.stmt, needed: set[str]) -> ast.stmt:
    """An import without the names that nothing needs; other statements as they are."""
    if isinstance(statement, Import) and not _is_future(statement):
        statement.names = [alias for alias in statement.names if _is_needed(alias, needed)]
    return statement


def _uses(node: ast.AST) -> set[str]:
    """The names in a statement, without those in bodies of functions that run later."""
    if isinstance(node, Function) and node.name != CALLED:
        return set().union(*map(_uses, [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]))
    names = {node.id} if isinstance(node, ast.Name) else set()
    return names.union(*map(_uses, ast.iter_child_nodes(node)))
