"""Images and maps as the networks and the formulas take them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 [B, 3, H, W] to float32 in 0..1, the networks' input range (no mean or deviation is applied)."""
    return images.float() / 255


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes [B, C, h, w] to float32 [B, C, *size], bilinearly with aligned corners, as everywhere in the method."""
    maps = maps.float()
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
