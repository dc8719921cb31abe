"""Golden arrays as tensors, with a record of those that a test has read."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


class GoldenArrays:
    """``golden[key]`` is the array as a tensor (or NumPy array of strings); ``unused()`` are the keys never read."""

    def __init__(self, file: str) -> None:
        self.arrays = dict(np.load(DATA / file))
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(key)
        array = self.arrays[key]
        return array if array.dtype.kind == "U" else torch.from_numpy(array.copy())

    def unused(self) -> list[str]:
        return sorted(self.arrays.keys() - self.used)
