"""Means over seeds with their confidence intervals, paired by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

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
    middle, n = mean(values), len(values)
    margin = t_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
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


def t_quantile(degrees: int) -> float:
    """The bound that Student's t exceeds, up or down, with a probability of 5 % in all; ``degrees`` of freedom >= 1."""
    low, high = 0.0, 16.0  # 12.7 with one degree of freedom; the bound falls towards 1.96 with more
    for _ in range(60):  # bisection: 16 / 2**60 is below the resolution of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _central_probability(t: float, degrees: int) -> float:
    """P(-t <= T <= t) of Student's t, for t >= 0.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, equations 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for k in range(2 + odd, degrees + 1, 2):  # powers of the cosine up to degrees - 2
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
