"""Weak-view mapping and the released replay of strong views, against ``geometry.npz`` (case 6)."""

import pytest
import torch
import torch.nn.functional as F

from proda.method.views import Operation, StrongView, WeakView, downscale_labels, warp_to_strong_view, warp_to_weak_view
from tests.golden.arrays import GoldenArrays, assert_golden

GOLDEN = GoldenArrays("geometry.npz")
OPERATIONS = {
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateX": Operation.TRANSLATE_X,
    "TranslateY": Operation.TRANSLATE_Y,
    "Rotate": Operation.ROTATE,
}
NOT_APPLIED = 10000


def strong_view(golden: GoldenArrays, case: int | None = None, prefix: str = "geometry") -> StrongView:
    """The recorded geometry of a batch of strong views; ``case`` picks one where there are several."""

    def recorded(name: str) -> torch.Tensor:
        array = golden[f"{prefix}_{name}"]
        return array if case is None else array[case]

    values = torch.stack([recorded(name) for name in OPERATIONS], 1)
    applied = values != NOT_APPLIED
    cutout = recorded("CutoutAbs").long()
    if case is not None and not recorded("has_cutout"):
        cutout = torch.full_like(cutout, -1)
    return StrongView(
        flipped=recorded("Hflip"),
        operations=torch.tensor(list(OPERATIONS.values())).where(applied, Operation.NONE),
        values=values.where(applied, 0),
        cutout=cutout,
    )


def test_features_move_to_the_weak_view():
    top, bottom, left, right = GOLDEN["weak_crop_y1_y2_x1_x2"].long().unbind(1)
    view = WeakView(
        resized_height=GOLDEN["weak_resized_height"].long(),
        resized_width=GOLDEN["weak_resized_width"].long(),
        top=top,
        left=left,
        height=bottom - top,
        width=right - left,
        flipped=GOLDEN["weak_flipped"],
    )
    quarter = (GOLDEN["full_image_size"] // 4).tolist()
    features = F.interpolate(GOLDEN["full_features_stride8"], quarter, mode="bilinear", align_corners=True)
    assert_golden("full_features_quarter", features, GOLDEN["full_features_quarter"], atol=1e-5)

    size = tuple(GOLDEN["crop_size"].tolist())
    expected = GOLDEN["weak_features"]
    assert_golden("weak_features", warp_to_weak_view(features, view, size=size), expected, atol=1e-5)
    assert_golden("weak_features", warp_to_weak_view(features, view), expected, atol=1e-5)


@pytest.mark.parametrize("case", range(15))
def test_released_replay_of_label_maps_and_float_maps(case):
    name = GOLDEN["case_names"][case]
    view = strong_view(GOLDEN, case)
    labels, _ = warp_to_strong_view(GOLDEN["label_map"], view, released=True)
    assert_golden(f"label map, {name}", labels, GOLDEN["label_map_transformed"][case])

    maps, valid = warp_to_strong_view(GOLDEN["float_map"], view, released=True)
    expected = GOLDEN["float_map_transformed"][case]
    assert_golden(f"float map, {name}", maps, expected, atol=1e-5)
    assert torch.equal(valid.expand_as(maps), expected != 250)


def test_labels_are_subsampled_to_a_quarter():
    assert torch.equal(downscale_labels(GOLDEN["label_full_crop"]), GOLDEN["label_quarter"])


def test_every_array_was_read(pytestconfig):
    GOLDEN.assert_all_used(pytestconfig)
