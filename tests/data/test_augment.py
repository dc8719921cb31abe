from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from proda.data.augment import (
    FILL,
    OPERATIONS,
    ImageOperation,
    draw_strong_view,
    draw_weak_view,
    strong_view_of_image,
    weak_view_of_image,
    weak_view_of_labels,
)
from proda.method.views import Operation, StrongView, WeakView, warp_to_strong_view
from proda.utils.errors import UserError

SMALL = {"mean_width": 275, "crop_height": 64, "crop_width": 112}  # the embedded images are 256 x 128


def weak(height, width, top, left, crop_height, crop_width, flipped=False) -> WeakView:
    return WeakView(*map(torch.tensor, (height, width, top, left, crop_height, crop_width, flipped)))


def strong(flipped=False, cutout=(-1, -1, -1, -1)) -> StrongView:
    return StrongView(torch.tensor(flipped), torch.zeros(2, dtype=torch.int64), torch.zeros(2), torch.tensor(cutout))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_weak_views_stay_inside_and_cover_the_published_range():
    rng = np.random.default_rng(0)
    views = [draw_weak_view(rng, (1024, 2048)) for _ in range(4000)]
    widths = np.array([int(v.resized_width) for v in views])
    assert widths.min() >= 1100 and widths.max() < 3300
    assert abs(widths.mean() - 2200) < 40 and abs(widths.std() - 2200 / 12**0.5) < 20  # of a uniform distribution
    assert all(v.resized_height == int(v.resized_width) // 2 for v in views)
    assert all(v.top + v.height <= v.resized_height and v.left + v.width <= v.resized_width for v in views)
    assert abs(np.mean([bool(v.flipped) for v in views]) - 0.5) < 0.04
    free = np.array([int(v.left) / (int(v.resized_width) - 896) for v in views])
    assert free.min() < 0.01 and free.max() > 0.99 and abs(free.mean() - 0.5) < 0.02


def test_every_position_of_a_crop_is_drawn_the_last_included():
    rng = np.random.default_rng(0)
    assert [field.dtype for field in draw_weak_view(rng, (128, 256), **SMALL)] == [torch.int64] * 6 + [torch.bool]
    views = [draw_weak_view(rng, (60, 100), mean_width=100, crop_height=30, crop_width=50) for _ in range(3000)]
    smallest = [v for v in views if v.resized_width < 53]
    assert {int(v.resized_width) - 50 - int(v.left) for v in smallest} == {0, 1, 2}


def test_the_same_generator_draws_the_same_views():
    one, two = np.random.default_rng((2, 7)), np.random.default_rng((2, 7))
    assert draw_weak_view(one, (128, 256), **SMALL) == draw_weak_view(two, (128, 256), **SMALL)
    (operations, view), (again, view_again) = draw_strong_view(one, (64, 112)), draw_strong_view(two, (64, 112))
    assert operations == again and all(map(torch.equal, view, view_again))


def test_a_crop_that_would_not_always_fit_is_refused_with_the_flags():
    for seed in range(5):  # the least possible width counts, not the one drawn
        with pytest.raises(ValueError, match=r"--mean_width=275 shrinks .* 256x128 to .* 137x68.*--crop_width=896"):
            draw_weak_view(np.random.default_rng(seed), (128, 256), mean_width=275)


@pytest.mark.parametrize(
    ("mean_width", "crop", "jitter"),
    [(480, (320, 240), "0.33"), (480, (480, 360), "0.0"), (480, (160, 240), "0.33"), (100, (10, 8), "0.88")],
)
def test_where_the_jitter_alone_is_too_large_the_message_names_one_that_fits(mean_width, crop, jitter):
    sides = {"mean_width": mean_width, "crop_width": crop[0], "crop_height": crop[1]}
    with pytest.raises(UserError, match=rf"; training takes them with --width_jitter={jitter} or less$"):
        draw_weak_view(np.random.default_rng(0), (360, 480), **sides, jitter=0.9)
    draw_weak_view(np.random.default_rng(0), (360, 480), **sides, jitter=float(jitter))
    with pytest.raises(UserError, match="shrinks images"):
        draw_weak_view(np.random.default_rng(0), (360, 480), **sides, jitter=float(jitter) + 0.01)


@pytest.mark.parametrize(("width", "corner", "flipped"), [(1100, 0, False), (1637, 1, True), (3299, 1, False)])
def test_the_weak_view_of_an_image_is_that_of_resizing_it_all(width, corner, flipped):
    image, height = picture(1024, 2048), width // 2
    top, left = corner * (height - 512), corner * (width - 896)
    whole = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 896, top + 512))
    whole = ImageOps.mirror(whole) if flipped else whole
    crop = weak_view_of_image(image, weak(height, width, top, left, 512, 896, flipped))
    assert crop.size == (896, 512)
    difference = np.abs(np.asarray(crop, int) - np.asarray(whole, int))
    assert difference.max() <= 2 and (difference > 0).mean() < 0.005  # Pillow keeps the box in float32


@pytest.mark.parametrize(("width", "flipped"), [(137, False), (300, True), (412, False)])
def test_the_weak_view_of_labels_is_that_of_resizing_them_all(width, flipped):
    labels = np.random.default_rng(0).integers(0, 19, (128, 256)).astype(np.uint8)
    height = width // 2
    top, left = height - 64, (width - 112) // 3
    whole = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    whole = np.asarray(whole.crop((left, top, left + 112, top + 64)))
    whole = whole[:, ::-1] if flipped else whole
    for kind in (torch.uint8, torch.float16):  # labels, confidence
        view = weak(height, width, top, left, 64, 112, flipped)
        crop = weak_view_of_labels(torch.from_numpy(labels).to(kind), view)
        assert crop.dtype == kind and (crop.numpy() == whole).all()


def test_strong_views_draw_every_operation_alike_and_apply_half_of_them():
    rng, draws = np.random.default_rng(0), 6000
    views = [draw_strong_view(rng, (512, 896)) for _ in range(draws)]
    counts = Counter(operation.name for operations, _ in views for operation in operations)
    assert set(counts) == set(OPERATIONS) and len(OPERATIONS) == 14
    expected = draws * 2 * 0.5 / 14
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    lengths = Counter(len(operations) for operations, _ in views)
    assert all(abs(lengths[n] / draws - share) < 0.03 for n, share in enumerate((0.25, 0.5, 0.25)))
    assert any(len(o) == 2 and o[0].name == o[1].name for o, _ in views)  # with replacement
    assert abs(np.mean([bool(view.flipped) for _, view in views]) - 0.5) < 0.03


def test_strong_views_draw_levels_1_to_9_and_both_signs_alike():
    rng = np.random.default_rng(0)
    drawn = [o for _ in range(8000) for o in draw_strong_view(rng, (512, 896))[0]]
    values = {name: Counter(o.value for o in drawn if o.name == name) for name in OPERATIONS}
    levels = range(1, 10)
    assert set(values["Identity"]) == set(values["Equalize"]) == set(values["AutoContrast"]) == {None}
    assert sorted(values["Brightness"]) == pytest.approx([0.09 * v + 0.05 for v in levels])
    assert sorted(values["Posterize"]) == [4, 5, 6, 7]
    assert sorted(values["Solarize"]) == sorted(256 - int(25.6 * v) for v in levels)
    assert sorted(values["Rotate"]) == [3 * v for v in range(-9, 10) if v]
    assert sorted(values["ShearX"]) == pytest.approx([0.03 * v for v in range(-9, 10) if v])
    assert sorted(values["TranslateX"]) == sorted(s * int(0.03 * v * 896) for v in levels for s in (-1, 1))
    assert sorted(values["TranslateY"]) == sorted(s * int(0.03 * v * 512) for v in levels for s in (-1, 1))
    for value, count in values["Rotate"].items():
        assert abs(count - len(drawn) / 14 / 18) < 5 * count**0.5, value


def test_the_geometry_of_a_strong_view_is_what_is_done_to_the_image_in_that_order():
    rng = np.random.default_rng(0)
    codes = {"ShearX": 1, "ShearY": 2, "TranslateX": 3, "TranslateY": 4, "Rotate": 5}
    for _ in range(300):
        operations, view = draw_strong_view(rng, (64, 112))
        assert [t.shape for t in view] == [(), (2,), (2,), (4,)]
        assert [t.dtype for t in view] == [torch.bool, torch.int64, torch.float64, torch.int64]
        moves = [(codes[o.name], o.value) for o in operations if o.name in codes]
        kept = view.operations != Operation.NONE
        assert view.operations[kept].tolist() == [code for code, _ in moves]
        assert view.values[kept].tolist() == pytest.approx([value for _, value in moves])
        assert (view.values[~kept] == 0).all()


def test_cutouts_are_a_third_of_the_shorter_side_and_cut_at_the_edges():
    rng = np.random.default_rng(0)
    boxes = np.array([draw_strong_view(rng, (60, 100))[1].cutout.tolist() for _ in range(3000)])
    assert (boxes[:, :2] >= 0).all() and boxes[:, 2].max() == 100 and boxes[:, 3].max() == 60
    inside = (boxes[:, 0] > 0) & (boxes[:, 2] < 100)
    assert (boxes[inside, 2] - boxes[inside, 0] == 20).all()
    assert abs((boxes[:, 0] == 0).mean() - 0.11) < 0.03  # the point lies left of 11 in 100
    assert abs((boxes[:, 2] == 100).mean() - 0.1) < 0.03


def test_the_flip_of_a_strong_view_comes_before_its_operations():
    image = picture(16, 24)
    shift = ImageOperation("TranslateX", 4)
    before = np.array(image)
    view = np.asarray(strong_view_of_image(image, [shift], strong(flipped=True, cutout=(30, 30, 31, 31))))
    assert (view[:, :20] == np.asarray(image)[:, ::-1][:, 4:]).all() and (view[:, 20:] == FILL).all()
    assert (np.asarray(image) == before).all()  # the weak view stays


@pytest.mark.parametrize("seed", range(5))
def test_labels_replayed_from_the_geometry_move_with_the_image(seed):
    """A picture of labels, blocks of grey, goes through the image operations; its map goes through the replay."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 4, (8, 14)) * 40 + 20, np.ones((32, 32))).astype(np.uint8)
    operations, view = draw_strong_view(rng, blocks.shape)
    moves = [o for o in operations if o.name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")]
    image = strong_view_of_image(Image.fromarray(np.repeat(blocks[..., None], 3, 2)), moves, view).getchannel(0)
    flat = np.asarray(image.filter(ImageFilter.MaxFilter(9))) == np.asarray(image.filter(ImageFilter.MinFilter(9)))
    quarter = torch.from_numpy(blocks[2::4, 2::4].copy())[None, None]
    moved, valid = warp_to_strong_view(quarter, StrongView(*(field[None] for field in view)), padding=FILL[0])
    assert (moved[~valid] == FILL[0]).all() and (~valid).any()
    wrong = np.asarray(image)[2::4, 2::4] != moved[0, 0].numpy()
    assert flat.mean() > 0.4 and wrong[flat[2::4, 2::4]].mean() < 0.005  # seams aside: they are bilinear in the image
