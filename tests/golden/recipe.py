"""Deterministic weights for golden tests: the "Weight recipe" of ``data/README.md``."""

import zlib

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def fill(model: nn.Module, salt: int = 0, deep: bool = False) -> nn.Module:
    """Fills every entry of the state dict from its key alone, in place, and returns the model.

    ``salt`` gives another draw; ``deep`` tames the residual branches of the full-depth network by 0.2.
    """
    for key, tensor in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(_values(key, tuple(tensor.shape), salt, deep)))
    return model


def _values(key: str, shape: tuple[int, ...], salt: int, deep: bool) -> np.ndarray:
    x = np.random.default_rng(zlib.crc32(key.encode()) + salt).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        x *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        return x * np.float32(0.2) if deep and key.startswith("layer") and key.endswith("conv3.weight") else x
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(x)
    x *= np.float32(0.1)
    return 1 + x if key.endswith("weight") else x
