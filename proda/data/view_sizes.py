"""How large views are: the proportions of the publication, applied to images of any size."""

import math
from collections.abc import Collection, Iterable
from statistics import median
from typing import NamedTuple

from proda.data.augment import smallest_resize

LARGEST_SIDE = 2048  # pixels, the width of Cityscapes; larger images are treated as if they were reduced to it
MULTIPLE = 8  # of the sides of crops: networks and stored soft labels have an eighth of the resolution


class ViewSizes(NamedTuple):
    """Of the views of a training run, in pixels; the names are those of the flags."""

    mean_width: int  # to which images are resized on average
    crop_width: int
    crop_height: int


PUBLISHED = ViewSizes(2200, 896, 512)  # for the images of Cityscapes, 2048 x 1024


def fitting_views(
    target: Collection[tuple[int, int]],
    source: Iterable[tuple[int, int]] = (),
    *,
    mean_width: int = 0,
    source_width: int = 0,
    jitter: float = 0.5,
) -> ViewSizes:
    """Views that are to the target's images what those of the publication are to Cityscapes.

    The typical image has the median width and the median height. Crops have its aspect, about the published area at
    most, and sides that are multiples of 8. They fit into the smallest resize of every image, of the source as well.

    Args:
        target: (width, height) of the target's images, at least one.
        source: those of the source's images.
        mean_width: if it is given already, crops follow from it.
        source_width: mean width of the source's images; 0: that of the target's.
        jitter: relative range of the random resize.
    """
    width, height = (median(sides) for sides in zip(*target, strict=True))
    reduced = width * min(1.0, LARGEST_SIDE / max(width, height))
    mean = mean_width or max(1, round(reduced * PUBLISHED.mean_width / 2048))
    crop_width = mean * PUBLISHED.crop_width / PUBLISHED.mean_width
    crop_height = mean * height / width * PUBLISHED.crop_height / (PUBLISHED.mean_width / 2)
    shrink = min(1.0, math.sqrt(PUBLISHED.crop_width * PUBLISHED.crop_height / (crop_width * crop_height)))
    smallest = [smallest_resize((h, w), mean, jitter) for w, h in set(target)]
    smallest += [smallest_resize((h, w), source_width or mean, jitter) for w, h in set(source)]
    width_limit, height_limit = (min(sides) for sides in zip(*smallest, strict=True))
    return ViewSizes(mean, _side(shrink * crop_width, width_limit), _side(shrink * crop_height, height_limit))


def _side(wanted: float, limit: int) -> int:
    """The multiple nearest to ``wanted`` that does not exceed ``limit``; the smallest multiple if none does."""
    return max(MULTIPLE, min(round(wanted / MULTIPLE), limit // MULTIPLE) * MULTIPLE)


def fitting_size(size: tuple[int, int]) -> tuple[int, int]:
    """``size`` (width, height), reduced to sides of at most ``LARGEST_SIDE``: what a description's ``size`` may say."""
    scale = min(1.0, LARGEST_SIDE / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))
