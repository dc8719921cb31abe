"""Colour augmentation of images on the device: jitter and blur, as DACS and its successors have them.

Brightness, contrast, saturation and hue change in random order, for 80 % of the images; half of the images are blurred.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

STRENGTH = 0.2  # brightness, contrast and saturation are multiplied by 0.8..1.2; hue moves by -0.2..0.2 of the circle
JITTER_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.5
SMALLEST_SIGMA, LARGEST_SIGMA = 0.15, 1.15  # of the blur, in pixels
NUMBERS = 11  # that the change of one image takes
KERNEL = 11  # pixels: more than four times the largest sigma to each side of the centre

_ADJUSTMENTS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    F.adjust_brightness,
    F.adjust_contrast,
    F.adjust_saturation,
    F.adjust_hue,
)


class ColorChange(NamedTuple):
    """What is done to one image."""

    factors: tuple[float, float, float, float] | None  # of brightness, contrast, saturation; shift of the hue
    order: tuple[int, ...]  # of these four
    sigma: float | None  # of the blur, in pixels


def color_changes(draws: np.ndarray) -> list[ColorChange]:
    """The changes that follow from uniform random numbers, float64 [B, ``NUMBERS``] in 0..1."""
    changes = []
    for jitter, blur, width, *numbers in draws.tolist():
        brightness, contrast, saturation, hue = (STRENGTH * (2 * value - 1) for value in numbers[:4])
        factors = (1 + brightness, 1 + contrast, 1 + saturation, hue)
        order = sorted(range(4), key=numbers[4:].__getitem__)
        sigma = SMALLEST_SIGMA + (LARGEST_SIGMA - SMALLEST_SIGMA) * width
        jittered = factors if jitter < JITTER_PROBABILITY else None
        changes.append(ColorChange(jittered, tuple(order), sigma if blur < BLUR_PROBABILITY else None))
    return changes


def change_colors(image: Tensor, change: ColorChange) -> Tensor:
    """The changed image, uint8 [3, H, W]; ``image`` of the same shape and type. Each side has at least 6 pixels."""
    if change.factors is not None:
        for number in change.order:
            image = _ADJUSTMENTS[number](image, change.factors[number])
    if change.sigma is not None:
        image = F.gaussian_blur(image, [KERNEL, KERNEL], [change.sigma, change.sigma])
    return image
