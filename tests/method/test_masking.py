"""Masks of squares."""

import pytest
import torch

from proda.method.masking import block_mask, mask_grid, masked


@pytest.mark.parametrize("size, grid", [((4, 6), (2, 3)), ((5, 7), (3, 4)), ((1, 1), (1, 1))])
def test_squares_cover_the_image_and_are_cut_at_its_edge(size, grid):
    assert mask_grid(size, 2) == grid
    mask = block_mask(torch.rand(3, *grid), size, block=2, ratio=0.5)
    assert mask.shape == (3, *size)
    for y in range(size[0]):
        for x in range(size[1]):
            assert mask[:, y, x].equal(mask[:, y // 2 * 2, x // 2 * 2])


def test_a_square_is_masked_where_its_number_is_below_the_ratio():
    mask = block_mask(torch.tensor([[[0.0, 0.69, 0.7, 0.99]]]), (1, 4), block=1, ratio=0.7)
    assert mask.tolist() == [[[True, True, False, False]]]
    assert not block_mask(torch.zeros(1, 1, 1), (1, 1), block=1, ratio=0.0).any()
    assert block_mask(torch.rand(1, 9, 9), (9, 9), block=1, ratio=1.0).all()


def test_masked_pixels_have_the_colour_and_others_stay():
    images, color = torch.rand(1, 3, 1, 2), torch.tensor([0.1, 0.2, 0.3])
    result = masked(images, torch.tensor([[[True, False]]]), color)
    assert result[0, :, 0, 0].equal(color) and result[..., 1].equal(images[..., 1])
