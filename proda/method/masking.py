"""Masked image consistency: MIC (arXiv:2212.01322)."""

import torch
from torch import Tensor


def block_mask(draws: Tensor, size: tuple[int, int], *, block: int, ratio: float) -> Tensor:
    """Which pixels are masked, bool [B, H, W]: squares of ``block`` pixels, each with the probability ``ratio``.

    ``draws`` [B, ceil(H / block), ceil(W / block)], uniform in 0..1; ``size`` is H, W. Squares at the right and the
    lower edge may be cut off.
    """
    mask = (draws < ratio).repeat_interleave(block, 1).repeat_interleave(block, 2)
    return mask[:, : size[0], : size[1]]


def mask_grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Number of squares from top to bottom and from left to right."""
    return -(-size[0] // block), -(-size[1] // block)


def masked(images: Tensor, mask: Tensor, color: Tensor) -> Tensor:
    """``images`` [B, 3, H, W] with ``color`` [3] where ``mask`` bool [B, H, W] is set."""
    return torch.where(mask.unsqueeze(1), color[:, None, None], images)
