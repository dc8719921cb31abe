"""Shared fixtures."""

from pathlib import Path

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
