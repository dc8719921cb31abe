"""Views that fit images: the published proportions, and crops that fit into every resize."""

import numpy as np
import pytest

from proda.data.augment import draw_weak_view
from proda.data.view_sizes import PUBLISHED, fitting_size, fitting_views


@pytest.mark.parametrize(
    ("size", "views"),
    [
        ((2048, 1024), (2200, 896, 512)),
        ((480, 360), (516, 208, 184)),
        ((1914, 1052), (2056, 840, 528)),
        ((4000, 3000), (2200, 728, 624)),
        ((3000, 4000), (1650, 552, 840)),
        ((4000, 500), (2200, 896, 128)),
        ((256, 128), (275, 112, 64)),
        ((64, 48), (69, 32, 24)),
    ],
)
def test_views_have_the_published_proportions(size, views):
    assert fitting_views([size]) == views


SIZES = [(480, 360), (360, 480), (4000, 3000), (1914, 1052), (4000, 500), (64, 48), (97, 61)]


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("target", SIZES)
def test_crops_fit_into_the_smallest_resize_of_every_image(target, source, jitter):
    mixed = [target] * 3 + [(target[0] + 7, target[1] - 3), (30 * target[1] // 20, target[1])]
    found = fitting_views(mixed, [source], jitter=jitter)
    for width, height in (*mixed, source):
        if fits_at_all(width, height, found.mean_width, jitter):
            draw_weak_view(np.random.default_rng(0), (height, width), **found._asdict(), jitter=jitter)
    assert found.crop_width % 8 == found.crop_height % 8 == 0
    assert found.crop_width * found.crop_height <= 1.03 * 896 * 512


def fits_at_all(width: int, height: int, mean: int, jitter: float) -> bool:
    """Whether the smallest crop, 8 x 8, does."""
    smallest = int((1 - jitter) * mean)
    return min(smallest, int(smallest / (width / height))) >= 8


def test_the_typical_image_is_the_median():
    assert fitting_views([(480, 360)] * 5 + [(500, 380)] * 2 + [(4000, 3000)]).mean_width == 516
    assert fitting_views([(100, 50), (2048, 1024), (4000, 3000)]).mean_width == PUBLISHED.mean_width


def test_crops_follow_from_a_given_mean_width_and_the_sources_own():
    assert fitting_views([(2048, 1024)], mean_width=1100) == (1100, 448, 256)
    assert fitting_views([(480, 360)], [(1000, 250)]).crop_height == 64
    assert fitting_views([(480, 360)], [(1000, 250)], source_width=1000).crop_height == 120


@pytest.mark.parametrize(
    ("size", "fitting"),
    [((4000, 3000), (2048, 1536)), ((3000, 4000), (1536, 2048)), ((480, 360), (480, 360)), ((2048, 1024),) * 2],
)
def test_large_images_are_reduced_to_the_width_of_cityscapes(size, fitting):
    assert fitting_size(size) == fitting
