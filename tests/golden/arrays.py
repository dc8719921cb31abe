"""Golden arrays as tensors: read, compared, and a record of those that no test has looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


class GoldenArrays:
    """``golden[key]`` is the array as a tensor (a list, if it holds strings)."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.arrays = dict(np.load(DATA / file))
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(key)
        array = self.arrays[key]
        return array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array.copy())

    def assert_all_used(self, config: pytest.Config) -> None:
        """To be called by the last test of a module; says nothing when only a part of the module was selected."""
        if config.option.keyword or any("::" in argument for argument in config.args):
            pytest.skip("only a part of the module ran")
        assert sorted(self.arrays.keys() - self.used) == [], f"arrays of {self.file} that no test has read"


def assert_golden(computation: str, actual: Tensor, expected: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Equal shapes, and values within ``atol`` + ``rtol`` * expected; NaN equals NaN.

    Prints a row of the README's table: ``pytest tests/golden -s | grep '^| '``.
    """
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs()
    tolerance = " + ".join(f"{kind} {value:g}" for kind, value in (("abs", atol), ("rel", rtol)) if value)
    print(f"\n| {computation} | {difference.nan_to_num(0).max():.1e} | {tolerance or 'equal'} |")
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, equal_nan=True, check_dtype=False)
