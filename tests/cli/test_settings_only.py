"""Experiments that are imported with their settings only, for ``--help``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from proda.cli.flags import help_text
from proda.cli.launch import ROOT, load_experiment, main
from proda.cli.settings_only import needed_by_settings

EXPERIMENTS = sorted(path.stem for path in ROOT.glob("experiments/[a-z]*.py"))


def kept(source: str) -> str:
    return ast.unparse(needed_by_settings(ast.parse(source)))


def test_help_imports_neither_torch_nor_another_large_library():
    code = (
        "import sys; from proda.cli.launch import main\n"
        f"for name in {EXPERIMENTS}: main([name, '--help'])\n"
        "main(['--help']); sys.exit(', '.join({'torch', 'ignite', 'torchvision', 'numpy'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_wrong_flag_is_refused_before_torch_is_imported():
    code = (
        "import sys; from proda.cli.launch import main\n"
        f"for name in {EXPERIMENTS}: assert main([name, '--dvice=cpu']) == 2\n"
        "assert main(['stage1_denoise', '--threshold=2']) == 2\n"
        "assert main(['stage1_denoise', '--class_statistics=x']) == 2\n"  # found by Config.problems
        "assert main(['report', 'one', '--runs=two']) == 2\n"
        "sys.exit(', '.join({'torch', 'ignite', 'torchvision', 'numpy'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == len(EXPERIMENTS) + 3 and all(line.startswith("error: ") for line in lines)
    assert "--threshold=2: expected" in lines[-3] and "--class_statistics has no effect" in lines[-2]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_is_that_of_the_whole_file(experiment, capsys):
    assert main([experiment, "--help"]) == 0
    module = load_experiment(experiment)
    whole = help_text(module.Config, module.__doc__, getattr(module, "PRESETS", None))
    assert capsys.readouterr().out == whole + "\n"


def test_an_experiment_is_whole_after_its_help(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "stage3_distill", "mine.py"]) == 0
    for name in list(sys.modules):
        if name.startswith("experiments."):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(sys.modules["experiments"], name.split(".")[1], raising=False)
    assert main(["mine.py", "--help"]) == 0 and main(["quickstart", "--help"]) == 0
    assert load_experiment("mine.py").run.__globals__["load_teacher"]
    assert load_experiment("quickstart").pipeline.run_if_outdated


OWN = '''\
{first}
"""What it does."""
from dataclasses import dataclass
from proda.settings.config import RunConfig
{before}
@dataclass
class Config(RunConfig):
    depth: int = {depth}  # layers
{after}
def run(local_rank: int, config: Config):
    return elsewhere()
'''


def own(path: Path, *, first: str = "", before: str = "", depth: str = "3", after: str = "") -> str:
    path.write_text(OWN.format(first=first, before=before, depth=depth, after=after))
    return str(path)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"before": "import torch", "depth": "torch.tensor(3).item()"}, "--depth=3"),  # what Config needs is imported
        ({"before": "import not_installed"}, "--depth=3"),
        (
            {"before": "def deep():\n    return len(W)\nW = ['a', 'b']", "depth": "deep()"},
            "--depth=2",
        ),  # imported whole
        ({"after": "PRESETS = {}\nfor name in 'ab':\n    PRESETS[name] = {}"}, "presets: a, b"),
        ({"after": "PRESETS = {'x': {}}; PRESETS |= {'y': {}}", "first": "from __future__ import annotations"}, "x, y"),
        (
            {"before": "if True:\n    from os import sep as SEP\nelse:\n    SEP = ''", "depth": "len(SEP)"},
            "--depth=1",
        ),
    ],
)
def test_the_help_of_an_experiment_of_a_users_own(parts, text, tmp_path, capsys):
    assert main([own(tmp_path / "mine.py", **parts), "--help"]) == 0
    assert text in capsys.readouterr().out


def test_a_mistake_in_a_file_is_that_of_the_whole_file(tmp_path):
    with pytest.raises(NameError, match="nowhere"):
        main([own(tmp_path / "mine.py", depth="nowhere"), "--help"])


WHOLE = """\
'''Words.'''
from dataclasses import dataclass, fields
import torch, math
from a import b, c as d
from e import *
LENGTH = math.pi
OTHER = torch.ones(1)

class Base:
    x: int = LENGTH

    def method(self) -> d:
        return torch.zeros(1)

class Unused(torch.nn.Module):
    pass

@dataclass
class Config(Base):
    pass

@torch.no_grad()
def helper():
    return fields(Config)

def run(local_rank: int, config: Config):
    return helper()
"""
NEEDED = '''\
"""Words."""
from dataclasses import dataclass
import math
from a import c as d
from e import *
LENGTH = math.pi

class Base:
    x: int = LENGTH

    def method(self) -> d:
        return torch.zeros(1)

@dataclass
class Config(Base):
    pass

def run(local_rank: int, config: Config):
    return helper()'''


def test_only_what_the_settings_need_is_kept():
    assert kept(WHOLE) == NEEDED


def test_a_statement_that_may_change_the_settings_is_kept():
    source = (
        "PRESETS = {}\nmore = {}\nPRESETS.update(more)\ntry:\n    import late as Config\nexcept ImportError:\n    pass"
    )
    assert kept(source) == source
