"""Means over seeds and their intervals."""

import math
import sys

import pytest
import torch

from proda.studies.statistics import mean_interval, paired_difference, share_of_gap
from proda.utils.errors import UserError


def test_the_interval_of_two_values_is_known():
    found = mean_interval([1.0, 3.0])  # mean 2, standard error 1
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - 12.7062, 2.0 + 12.7062), abs=1e-4)
    assert not found.above_zero and not found.below_zero


def test_equal_values_have_an_interval_without_width_and_one_value_an_unbounded_one():
    found = mean_interval([0.5] * 5)
    assert found.low == found.mean == found.high == 0.5 and found.above_zero
    single = mean_interval([0.5])
    assert (single.low, single.mean, single.high) == (-math.inf, 0.5, math.inf) and not single.above_zero
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_differences_are_taken_seed_by_seed():
    old = [0.40, 0.50, 0.60]  # far apart, but each gains nearly the same
    found = paired_difference([0.42, 0.52, 0.63], old)
    assert found.mean == pytest.approx(0.07 / 3) and found.above_zero
    assert paired_difference(old, [0.42, 0.52, 0.63]).below_zero
    with pytest.raises(ValueError):
        paired_difference([0.1], old)


def test_the_share_of_the_gap_is_that_of_each_seed():
    found = share_of_gap([0.5, 0.5], low=[0.4, 0.2], high=[0.6, 0.6])  # one half and three quarters
    assert found.mean == pytest.approx(0.625)
    assert math.isnan(share_of_gap([0.5, 0.5], low=[0.4, 0.6], high=[0.6, 0.6]).mean)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    samples = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).double()
    intervals = [mean_interval(sample) for sample in samples.tolist()]
    assert sum(found.low <= 0 <= found.high for found in intervals) / 4000 == pytest.approx(0.95, abs=0.01)


def test_without_scipy_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert mean_interval([0.5]).high == math.inf
    with pytest.raises(UserError, match=r"need scipy, .*\[ablation\]"):
        mean_interval([0.5, 0.6])
