import pytest
import torch
import torch.nn.functional as F

from proda.method import IGNORE
from proda.method.views import (
    Operation,
    StrongView,
    WeakView,
    crop_soft_labels,
    downscale_labels,
    warp_to_strong_view,
    warp_to_weak_view,
)

NO_CUTOUT = (-1, -1, -1, -1)


def strong_view(*moves, flipped=False, cutout=NO_CUTOUT):
    """A batch of one; ``moves``: pairs of operation and value."""
    operations, values = zip(*moves or [(Operation.NONE, 0.0)], strict=True)
    return StrongView(
        torch.tensor([flipped]),
        torch.tensor([operations]),
        torch.tensor([values], dtype=torch.float64),
        torch.tensor([cutout]),
    )


def numbered(h, w):
    return torch.arange(h * w).reshape(1, 1, h, w)


def test_weak_view_is_resize_then_crop_then_flip():
    maps = torch.randn(2, 3, 20, 40)
    view = WeakView(
        resized_height=torch.tensor([101, 64]),
        resized_width=torch.tensor([203, 128]),
        top=torch.tensor([10, 0]),
        left=torch.tensor([21, 63]),
        height=torch.tensor([48, 48]),
        width=torch.tensor([64, 64]),
        flipped=torch.tensor([True, False]),
    )
    first = F.interpolate(maps[:1], (25, 50), mode="bilinear", align_corners=True)[:, :, 2:14, 5:21].flip(3)
    second = F.interpolate(maps[1:], (16, 32), mode="bilinear", align_corners=True)[:, :, 0:12, 15:31]
    for moved in (warp_to_weak_view(maps, view), warp_to_weak_view(maps, view, size=(48, 64))):
        torch.testing.assert_close(moved, torch.cat((first, second)), atol=1e-5, rtol=0)
    assert warp_to_weak_view(maps.bfloat16(), view).dtype == torch.float32


@pytest.mark.parametrize("flipped", [False, True])
def test_cropped_soft_labels_lie_where_the_four_steps_of_the_released_code_bring_them(flipped):
    # A ramp tells positions, and bilinear steps pass it on unchanged, however many there are.
    h, w, full = 17, 33, (128, 256)
    ramps = torch.stack(torch.meshgrid(torch.arange(h) / 16, torch.arange(w) / 32, indexing="ij"))
    view = WeakView(*map(torch.tensor, (150, 300, 31, 57, 64, 112, flipped)))

    def resize(maps, size):
        return F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]

    expected = resize(resize(resize(ramps, full), (150, 300))[:, 31:95, 57:169], (16, 28))
    expected = expected.flip(2) if flipped else expected
    torch.testing.assert_close(crop_soft_labels(ramps, view), expected, atol=1e-5, rtol=0)
    stored = crop_soft_labels(torch.randn(19, h, w).softmax(0).half(), view)  # stay probabilities, in float32
    torch.testing.assert_close(stored.sum(0), torch.ones(16, 28), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("width", "flipped"), [(1100, False), (1713, True)])
def test_one_sampling_of_soft_labels_agrees_with_the_released_route_at_the_published_sizes(width, flipped):
    """That route enlarges to the image, resizes, crops, mirrors, and reduces to a quarter."""
    coarse = torch.randn(1, 19, 17, 33, generator=torch.Generator().manual_seed(width))
    soft = (3 * F.interpolate(coarse, size=(129, 257), mode="bicubic")).softmax(1)
    height, top, left = width // 2, (width // 2 - 512) // 3, (width - 896) // 2
    maps = soft
    for size in ((1024, 2048), (height, width)):
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    maps = maps[..., top : top + 512, left : left + 896]
    maps = F.interpolate(maps.flip(-1) if flipped else maps, size=(128, 224), mode="bilinear", align_corners=True)[0]
    ours = crop_soft_labels(soft[0], WeakView(*map(torch.tensor, (height, width, top, left, 512, 896, flipped))))
    assert (ours.argmax(0) == maps.argmax(0)).float().mean() >= 0.995
    assert (ours - maps).abs().max() < 0.03


def test_labels_are_downscaled_to_every_fourth_row_and_column():
    assert downscale_labels(numbered(8, 8)[0]).tolist() == [[[0, 4], [32, 36]]]
    assert downscale_labels(numbered(6, 6)[0], scale=3).tolist() == [[[0, 3], [18, 21]]]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_replay_of_nothing_is_the_identity_for_every_type(released, dtype):
    maps = numbered(8, 12).to(dtype)
    moved, valid = warp_to_strong_view(maps, strong_view(), released=released)
    assert torch.equal(moved, maps)
    assert moved.dtype == dtype
    assert valid.shape == (1, 1, 8, 12)
    assert valid.all()


def test_translation_shows_what_lies_value_pixels_to_the_right_and_below():
    moved, valid = warp_to_strong_view(numbered(3, 5), strong_view((Operation.TRANSLATE_X, 8.0)))
    assert moved[0, 0, 0].tolist() == [2, 3, 4, IGNORE, IGNORE]
    assert valid[0, 0, 0].tolist() == [True, True, True, False, False]
    moved, _ = warp_to_strong_view(numbered(3, 5), strong_view((Operation.TRANSLATE_Y, -4.0)), padding=99)
    assert moved[0, 0, :, 0].tolist() == [99, 0, 5]


def test_shears_are_anchored_at_the_top_left_corner():
    # Row i, at height 4i + 2, is shifted by 4i + 2 pixels, that is i + 1/2 cells, and the half is rounded up.
    moved, _ = warp_to_strong_view(numbered(3, 5), strong_view((Operation.SHEAR_X, 1.0)))
    assert moved[0, 0].tolist() == [[1, 2, 3, 4, 250], [7, 8, 9, 250, 250], [13, 14, 250, 250, 250]]
    moved, _ = warp_to_strong_view(numbered(3, 3), strong_view((Operation.SHEAR_Y, 1.0)))
    assert moved[0, 0].tolist() == [[3, 7, 250], [6, 250, 250], [250, 250, 250]]


def test_cutout_covers_both_of_its_corners_and_the_released_one_does_not():
    cutout = (4, 4, 10, 6)  # the centres of columns 1 and 2, at 6 and 10; of row 1, at 6
    _, valid = warp_to_strong_view(numbered(4, 4), strong_view(cutout=cutout))
    assert (~valid[0, 0]).nonzero().tolist() == [[1, 1], [1, 2]]
    _, valid = warp_to_strong_view(numbered(4, 4), strong_view(cutout=(4, 4, 10, 8)), released=True)
    assert (~valid[0, 0]).nonzero().tolist() == [[1, 1]]


def test_the_released_replay_knows_one_order_and_the_last_value_only():
    first, second = (Operation.TRANSLATE_X, 4.0), (Operation.ROTATE, 30.0)
    maps = numbered(16, 16)
    one_way = warp_to_strong_view(maps, strong_view(first, second), released=True)[0]
    other_way = warp_to_strong_view(maps, strong_view(second, first), released=True)[0]
    assert torch.equal(one_way, other_way)
    twice = warp_to_strong_view(maps, strong_view((Operation.ROTATE, -9.0), second), released=True)[0]
    assert torch.equal(twice, warp_to_strong_view(maps, strong_view(second), released=True)[0])

    assert not torch.equal(
        warp_to_strong_view(maps, strong_view(first, second))[0],
        warp_to_strong_view(maps, strong_view(second, first))[0],
    )


def test_released_replay_of_a_tie_does_not_depend_on_the_processor():
    """Row 12, column 5 of a 24 x 40 map: the one pixel that was once found to differ from the released system.

    The translation leads to column 22, from where the shear leads to x = 0.125 + 0.072 / 24 + 0.072 = 0.2 in
    coordinates of -1..1: column 23.5, a tie between columns 23 and 24 (16 and 15 before the flip). In float32 the sum
    comes out one unit in the last place below 0.2 (column 23.5 again, and the even column 24 is taken) when each
    product and sum is rounded, but two units below it (column 23.499998, so 23) when the matrix product inside
    ``affine_grid`` fuses them. Libraries and processors differ in that. The released system showed what the separately
    rounded sum gives: the pixel of column 15, which was ignored (250). Here positions are never fused.
    """
    moves = (Operation.SHEAR_X, 0.12), (Operation.TRANSLATE_X, 43.0)
    moved, _ = warp_to_strong_view(
        numbered(24, 40), strong_view(*moves, flipped=True, cutout=(108, 0, 140, 32)), released=True
    )
    assert divmod(int(moved[0, 0, 12, 5]), 40) == (12, 15)


@pytest.mark.parametrize(("shear", "row", "column", "source_row"), [(0.12, 1, 37, 6), (-0.12, 7, 37, 2)])
def test_released_matrices_are_computed_in_float64(shear, row, column, source_row):
    """Ties in which the released code decides by digits that the shear loses in float32."""
    moved, _ = warp_to_strong_view(numbered(24, 40), strong_view((Operation.SHEAR_Y, shear)), released=True)
    assert divmod(int(moved[0, 0, row, column]), 40) == (source_row, column)


def test_samples_of_a_batch_move_independently_and_channels_together():
    views = [
        strong_view((Operation.ROTATE, 20.0), (Operation.SHEAR_X, 0.2), cutout=(0, 0, 9, 9)),
        strong_view((Operation.NONE, 0.0), (Operation.TRANSLATE_Y, -12.0), flipped=True),
    ]
    batch = StrongView(*(torch.cat(fields) for fields in zip(*views, strict=True)))
    maps = torch.randn(2, 3, 16, 24)
    for released in (False, True):
        moved, valid = warp_to_strong_view(maps, batch, released=released)
        for i, view in enumerate(views):
            for c in range(3):
                alone, alone_valid = warp_to_strong_view(maps[i : i + 1, c : c + 1], view, released=released)
                assert torch.equal(moved[i, c], alone[0, 0])
                assert torch.equal(valid[i], alone_valid[0])


@pytest.mark.parametrize("released", [False, True])
def test_replay_mirrors_left_and_right(released):
    moved, valid = warp_to_strong_view(numbered(4, 8), strong_view(flipped=True), released=released)
    assert torch.equal(moved, numbered(4, 8).flip(3)) and valid.all()


def test_gradients_flow_to_the_pixels_that_are_shown():
    maps = torch.zeros(1, 1, 3, 5, requires_grad=True)
    warp_to_strong_view(maps, strong_view((Operation.TRANSLATE_X, 8.0)))[0].sum().backward()
    assert maps.grad[0, 0, 0].tolist() == [0, 0, 1, 1, 1]
