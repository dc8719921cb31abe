"""Large images in overlapping tiles: where the tiles lie, and how their predictions are blended.

Along each axis the tiles have one size and overlap their neighbours only. Within an overlap of n pixels the weight of
the one tile falls and that of the other rises by 1 / (n + 1) per pixel, so that a seam cannot show: from one pixel to
the next, no probability changes by more than it does within the two tiles plus ``1 / (n + 1)`` of the difference
between the tiles. An image that fits into one tile is predicted whole.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

USUAL_TILE = 2200  # pixels: the mean width of images in training as published
SMALLEST_TILE = 32


class Spans(NamedTuple):
    """The tiles along one axis."""

    starts: list[int]
    side: int  # pixels of each tile


def automatic_tile(mean_width: int) -> int:
    """The largest side of a tile for a network that was trained on images of this mean width; 0: it is unknown."""
    return mean_width or USUAL_TILE


def spans(length: int, tile: int) -> Spans:
    """The fewest tiles of at most ``tile`` pixels that cover ``length`` and overlap by a quarter of ``tile`` or more.

    The tiles are as small as they can be then, so that an image a little larger than one tile costs little more.
    ``ValueError`` for tiles of less than 4 pixels.
    """
    if tile < 4:
        raise ValueError(f"tiles of {tile} pixels, expected at least 4")
    if length <= tile:
        return Spans([0], length)
    overlap = tile // 4
    count = math.ceil((length - overlap) / (tile - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    return Spans([round(number * (length - side) / (count - 1)) for number in range(count)], side)


def ramps(found: Spans, device: torch.device | None = None) -> Tensor:
    """The weight of each pixel of each tile along one axis, float32 [tiles, side]; they add up to 1 at every pixel."""
    weights = torch.ones(len(found.starts), found.side, device=device)
    for number, (start, following) in enumerate(pairwise(found.starts)):
        shared = start + found.side - following
        rising = torch.arange(1, shared + 1, device=device) / (shared + 1)
        weights[number, found.side - shared :] *= 1 - rising
        weights[number + 1, :shared] *= rising
    return weights


def blended_rows(scores: Callable[[Tensor], Tensor], image: Tensor, tile: int) -> Iterator[Tensor]:
    """Scores of an image in strips from top to bottom, of the image's width; together they cover it once.

    A strip at a time is in memory, not the scores of the whole image.

    Args:
        scores: from images [B, 3, h, w] to float scores [B, K, h, w], for instance class probabilities.
        image: [B, 3, H, W].
        tile: largest side of a tile; an image that fits into one gives a single strip, ``scores(image)``.
    """
    height, width = image.shape[-2:]
    down, across = spans(height, tile), spans(width, tile)
    if len(down.starts) == len(across.starts) == 1:
        yield scores(image)
        return
    falling, sideways = ramps(down, image.device), ramps(across, image.device)
    ends = [*down.starts[1:], height]
    unfinished: Tensor | None = None  # of the row of tiles above: what the next one overlaps
    for top, end, weights in zip(down.starts, ends, falling, strict=True):
        row: Tensor | None = None
        for left, column_weights in zip(across.starts, sideways, strict=True):
            found = scores(image[..., top : top + down.side, left : left + across.side])
            if row is None:
                row = found.new_zeros(*found.shape[:2], down.side, width)
            row[..., left : left + across.side] += found * weights[:, None] * column_weights
        assert row is not None
        if unfinished is not None:
            row[..., : unfinished.shape[-2], :] += unfinished
        yield row[..., : end - top, :]
        unfinished = row[..., end - top :, :]
