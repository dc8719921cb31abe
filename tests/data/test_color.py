"""Colour jitter and blur, as the published definition has them."""

import numpy as np
import pytest
import torch

from proda.data.color import NUMBERS, ColorChange, change_colors, color_changes

NOTHING = ColorChange(None, (0, 1, 2, 3), None)


@pytest.fixture
def image():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 12, 16), dtype=np.uint8))


def draws(**values):
    """Numbers that change nothing, apart from those given: jitter, blur, sigma, factors."""
    row = np.full(NUMBERS, 0.5)
    row[:2] = 0.9
    for place, name in enumerate(("jitter", "blur", "sigma", "brightness", "contrast", "saturation", "hue")):
        row[place] = values.get(name, row[place])
    return row[None]


def test_jitter_and_blur_have_their_probabilities():
    changes = color_changes(np.random.default_rng(0).random((4000, NUMBERS)))
    assert np.mean([change.factors is not None for change in changes]) == pytest.approx(0.8, abs=0.02)
    assert np.mean([change.sigma is not None for change in changes]) == pytest.approx(0.5, abs=0.03)
    factors = np.array([change.factors for change in changes if change.factors])
    assert np.allclose(factors.min(0), [0.8, 0.8, 0.8, -0.2], atol=0.001)
    assert np.allclose(factors.max(0), [1.2, 1.2, 1.2, 0.2], atol=0.001)
    sigmas = [change.sigma for change in changes if change.sigma]
    assert min(sigmas) == pytest.approx(0.15, abs=0.005) and max(sigmas) == pytest.approx(1.15, abs=0.005)
    assert len({change.order for change in changes}) == 24


def test_nothing_may_happen(image):
    assert color_changes(draws()) == [NOTHING]
    assert change_colors(image, NOTHING).equal(image)


def test_brightness_multiplies(image):
    (change,) = color_changes(draws(jitter=0.0, brightness=1.0))
    assert change.factors == pytest.approx((1.2, 1, 1, 0))
    assert (change_colors(image, change).float() - (image.float() * 1.2).clamp(max=255)).abs().max() <= 2


def test_blur_is_a_normalised_gaussian():
    point = torch.zeros(3, 21, 21, dtype=torch.uint8)
    point[:, 10, 10] = 255
    (change,) = color_changes(draws(blur=0.0, sigma=1.0))
    blurred = change_colors(point, change).float()
    offsets = torch.arange(-10, 11.0)
    weights = torch.exp(-(offsets**2) / (2 * 1.15**2))
    expected = 255 * weights[:, None] * weights / weights.sum() ** 2
    assert (blurred - expected).abs().max() <= 1


def test_shape_and_type_stay(image):
    for change in color_changes(np.random.default_rng(1).random((20, NUMBERS))):
        changed = change_colors(image, change)
        assert changed.shape == image.shape and changed.dtype == torch.uint8
