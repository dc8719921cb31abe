"""Means over seeds, their intervals, and the t distribution behind them."""

import math

import pytest
import torch

from proda.studies.statistics import mean_interval, paired_difference, share_of_gap, t_quantile

# NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2: 0.975 quantiles by degrees of freedom
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 30: 2.042, 100: 1.984}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_printed_table(degrees):
    assert t_quantile(degrees) == pytest.approx(TABLE[degrees], abs=5.1e-4)


def test_quantiles_with_one_and_two_degrees_of_freedom_have_closed_forms():
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)


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
    margin = t_quantile(4) * samples.std(1) / math.sqrt(5)
    assert (samples.mean(1).abs() <= margin).double().mean().item() == pytest.approx(0.95, abs=0.01)
