"""Pairs of views: what they show in common, and what they depend on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from proda.data.labelled_files import Example
from proda.data.loaders import training_batches
from proda.data.samples import SampleIndex
from proda.data.view_pairs import SMALLEST_OVERLAP, Box, FixedViewPairs, ViewPairs, draw_boxes, overlap
from proda.models.contrastive import pool_regions

SIZES = {"mean_width": 200, "crop_height": 48, "crop_width": 80}


class Slopes(Dataset):
    """Images whose red is the column and whose green is the row; the labels must not be used."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Example:
        y, x = np.mgrid[:128, :256]
        pixels = np.stack([x, 2 * y, x * 0 + index], 2).astype(np.uint8)
        return Example(Image.fromarray(pixels), None, f"slope_{index}", (256, 128))


def sample(position: int = 0, iteration: int = 0) -> SampleIndex:
    return SampleIndex(1, (2, 0, 0, iteration, position))


def test_an_item_has_two_views_of_the_crop_size():
    item = ViewPairs(Slopes(), **SIZES)[sample()]
    assert item["views"].shape == (2, 3, 48, 80) and item["views"].dtype == torch.uint8
    assert item["overlap"].shape == (2, 4) and item["overlap"].dtype == torch.float32
    assert item["flipped"].shape == (2,) and item["flipped"].dtype == torch.bool
    assert item["name"] == "slope_1" and not torch.equal(*item["views"])


def test_a_pair_follows_from_its_seed_and_leaves_the_global_generators_alone():
    pairs = ViewPairs(Slopes(), **SIZES)
    first = pairs[sample()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = pairs[sample()]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[key], first[key]) for key in ("views", "overlap", "flipped"))
    others = [pairs[sample(position=1)], pairs[sample(iteration=1)]]
    assert not any(torch.equal(other["overlap"], first["overlap"]) for other in others)


def batches(start: int = 0, workers: int = 0, **processes) -> list[dict]:
    pairs = ViewPairs(Slopes(), **SIZES)
    options = {"batch_size": 2, "iterations": 4, "start_iteration": start, "num_workers": workers, **processes}
    return list(training_batches(pairs, pairs, **options))


def test_batches_do_not_depend_on_workers_processes_or_where_a_run_resumes():
    expected = batches()
    for found in (batches(workers=2), [None, None, *batches(start=2)]):
        for one, other in zip(found, expected, strict=True):
            assert one is None or torch.equal(one["target"]["views"], other["target"]["views"])
    shares = [batches(rank=rank, world_size=2) for rank in range(2)]
    for *parts, whole in zip(*shares, expected, strict=True):
        for key in ("views", "overlap", "flipped"):
            assert torch.equal(torch.cat([part["source"][key] for part in parts]), whole["source"][key])
    assert not torch.equal(expected[0]["source"]["overlap"], expected[0]["target"]["overlap"])


def test_fixed_pairs_are_the_same_each_time_and_differ_between_images():
    fixed = FixedViewPairs(ViewPairs(Slopes(), **SIZES))
    assert len(fixed) == 6
    assert torch.equal(fixed[2]["views"], fixed[2]["views"])
    assert not torch.equal(fixed[2]["overlap"], fixed[3]["overlap"])


def test_regions_of_both_views_show_the_same_places():
    """Red and green are places, so that their means over a region must agree, mirrored views or not."""
    pairs = ViewPairs(Slopes(), **SIZES)
    pairs.colors = v2.Identity()
    mirrored = 0
    for position in range(12):
        item = pairs[sample(position)]
        regions = pool_regions(item["views"].float(), item["overlap"], item["flipped"])[:, :2]
        assert (regions[0] - regions[1]).abs().max() < 4  # of 255; a view covers some 50 columns and rows or more
        assert (regions[:, 0].diff(dim=-1) * (regions[0, 0, 0, -1] - regions[0, 0, 0, 0]).sign() > 0).all()
        assert regions.flatten(2).std(-1).min() > 3
        mirrored += int(item["flipped"][0] != item["flipped"][1])
    assert 0 < mirrored < 12


def test_boxes_overlap_enough_and_have_the_asked_size_and_shape():
    region, drawn = Image.new("RGB", (160, 80)), []
    torch.manual_seed(0)
    for _ in range(100):
        boxes = draw_boxes(region, 0.2)
        for box in boxes:
            assert 0 <= box.top <= 80 - box.height and 0 <= box.left <= 160 - box.width
            assert 0.19 <= box.height * box.width / (160 * 80) <= 1
            assert 1.4 < box.width / box.height < 2.8  # 2 times 3/4 to 4/3, but for rounding
        (left, top, right, bottom), _ = overlap(*boxes, torch.tensor([False, False])).tolist()
        area = (right - left) * (bottom - top) * boxes[0].height * boxes[0].width
        assert area >= SMALLEST_OVERLAP * min(box.height * box.width for box in boxes) - 1e-2
        drawn.append(boxes[0].width)
    assert min(drawn) < 80 < 140 < max(drawn)


def test_the_overlap_is_in_fractions_of_each_view_and_mirrored_with_it():
    one, other = Box(0, 0, 40, 40), Box(20, 10, 20, 40)
    plain = overlap(one, other, torch.tensor([False, False]))
    torch.testing.assert_close(plain, torch.tensor([[0.25, 0.5, 1, 1], [0, 0, 0.75, 1]]))
    mirrored = overlap(one, other, torch.tensor([True, False]))
    torch.testing.assert_close(mirrored, torch.tensor([[0, 0.5, 0.75, 1], [0, 0, 0.75, 1]]))


@pytest.mark.parametrize("strength", [0.0, 2.5])
def test_colors_are_jittered_by_the_strength(strength):
    """Without jitter a pair still loses its colours or its focus now and then."""
    pairs = ViewPairs(Slopes(), **SIZES, color_strength=strength, smallest_view=1.0)
    plain = ViewPairs(Slopes(), **SIZES, smallest_view=1.0)
    plain.colors = v2.Identity()
    same = [torch.equal(pairs[sample(n)]["views"][0], plain[sample(n)]["views"][0]) for n in range(20)]
    assert any(same) and not all(same)
    assert (sum(same) > 4) == (strength == 0)
