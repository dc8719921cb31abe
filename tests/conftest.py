"""Shared fixtures."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

# Threads that wait by spinning make two processes on two cores slower than one after the other. Torch reads this when
# it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from tests import small_runs


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with eight small images of each domain."""
    return small_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A weights file of a tiny network that was never trained."""
    return small_runs.write_weights(tmp_path_factory.mktemp("weights") / "before.pt")


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """The terminal on which progress is shown; what is written to it."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("proda.utils.progress.sys", SimpleNamespace(stderr=screen))  # pytest itself replaces sys.stderr
    return screen
