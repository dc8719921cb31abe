"""Means over seeds with their confidence intervals, paired by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from proda.utils.errors import UserError

CONFIDENCE = 0.95  # of every interval, two-sided


@dataclass(frozen=True)
class MeanInterval:
    """A mean and its 95 % confidence interval, in the unit of the values."""

    mean: float
    low: float  # -inf for a single value
    high: float  # inf for a single value

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """The mean of n values and its t interval: mean +- t(n - 1) s / sqrt(n), where s is the standard deviation.

    A single value has an unbounded interval. Raises ValueError without values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    middle, n, margin = mean(values), len(values), math.inf
    if n > 1:
        margin = float(students_t().ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return MeanInterval(middle, middle - margin, middle + margin)


def paired_difference(new: Sequence[float], old: Sequence[float]) -> MeanInterval:
    """The mean of ``new - old`` over the seeds, which both lists have in the same order, and its interval.

    Raises ValueError if the lists are empty or of different lengths.
    """
    return mean_interval([a - b for a, b in zip(new, old, strict=True)])


def share_of_gap(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> MeanInterval:
    """The share of the gap between ``low`` and ``high`` that is closed: (value - low) / (high - low) of each seed.

    0: none of it, 1: all of it. All three numbers are NaN if there is a seed without a gap (high <= low).
    Raises ValueError if the lists are empty or of different lengths.
    """
    seeds = list(zip(values, low, high, strict=True))
    if any(top <= bottom for _, bottom, top in seeds):
        return MeanInterval(math.nan, math.nan, math.nan)
    return mean_interval([(value - bottom) / (top - bottom) for value, bottom, top in seeds])


def students_t() -> Any:
    """The distribution ``scipy.stats.t``. UserError that says how to install scipy; only these intervals need it."""
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError(
            'confidence intervals over seeds need scipy, which is not installed: pip install -e ".[ablation]"'
        ) from None
    return t
