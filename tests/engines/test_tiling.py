"""Tiles of large images, and the blending of their predictions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proda.engines.tiling import automatic_tile, blended_rows, ramps, spans


@given(st.integers(1, 3000), st.integers(32, 700))
def test_tiles_cover_everything_overlap_only_their_neighbours_and_have_weights_that_add_up_to_one(length, tile):
    starts, side = spans(length, tile)
    assert starts[0] == 0 and starts[-1] + side == length and side <= tile
    assert all(before + side - after >= tile // 4 for before, after in pairwise(starts))
    assert all(after >= before + side for before, after in zip(starts, starts[2:], strict=False))
    total, weights = torch.zeros(length), ramps(spans(length, tile))
    for start, weight in zip(starts, weights, strict=True):
        assert weight.min() > 0
        total[start : start + side] += weight
    assert torch.allclose(total, torch.ones(length), atol=1e-6)


def test_what_fits_is_one_tile_and_what_is_a_little_larger_costs_little_more():
    assert spans(2048, 2200) == ([0], 2048) and spans(2200, 2200) == ([0], 2200)
    starts, side = spans(2201, 2200)
    assert len(starts) == 2 and 2 * side < 1.3 * 2201
    with pytest.raises(ValueError, match="tiles of 3 pixels"):
        spans(10, 3)


def test_the_automatic_tile_holds_a_whole_cityscapes_image():
    assert automatic_tile(0) == 2200 and automatic_tile(275) == 275


def pixelwise(image: torch.Tensor) -> torch.Tensor:
    """Scores of each pixel by itself: tiles cannot change them."""
    return torch.cat([image.mean(1, keepdim=True), image[:, :1] - image[:, 1:2]], dim=1)


@pytest.mark.parametrize("size", [(40, 50), (90, 50), (40, 200), (131, 217)])
def test_scores_of_single_pixels_are_those_of_the_whole_image(size):
    image = torch.rand(2, 3, *size)
    rows = list(blended_rows(pixelwise, image, tile=64))
    assert len(rows) == len(spans(size[0], 64).starts)
    assert torch.allclose(torch.cat(rows, dim=2), pixelwise(image), atol=1e-6)


def test_an_image_that_fits_is_given_whole():
    image, seen = torch.rand(1, 3, 64, 64), []
    (row,) = blended_rows(lambda part: seen.append(part) or pixelwise(part), image, tile=64)
    assert seen[0] is image and torch.equal(row, pixelwise(image))


def test_at_seams_the_scores_change_by_no_more_than_the_stated_bound():
    """Each tile predicts a constant of its own: along an axis, 1 / (n + 1) of the difference of two tiles."""
    values = iter([0.0, 1.0, 1.0, 0.0])
    image = torch.zeros(1, 3, 100, 100)
    rows = list(blended_rows(lambda part: torch.full((1, 1, *part.shape[2:]), next(values)), image, tile=64))
    scores = torch.cat(rows, dim=2)[0, 0]
    (first, second), side = spans(100, 64)
    bound = 1 / (first + side - second + 1) + 1e-6
    assert scores.diff(dim=0).abs().max() <= bound and scores.diff(dim=1).abs().max() <= bound
    assert scores.min() == 0 and scores.max() == 1 and scores[0, 0] == scores[-1, -1] == 0
