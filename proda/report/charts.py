"""Line charts as numbers for a template: places in a drawing of WIDTH x HEIGHT units, and texts.

The template draws them as inline SVG whose colours are CSS variables, so that one page serves light and dark screens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from proda.report.curves import Curve, thinned

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 22  # margins for the numbers of the axes
MOST_POINTS = 150  # of a line; more would not be seen
MARKED_POINTS = 12  # a line of so few points shows each of them


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Line:
    name: str
    points: list[tuple[float, float]]
    marked: bool  # each point is shown
    last: str  # its last value, as text


@dataclass(frozen=True)
class Chart:
    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    averaged: int  # logged values that a point stands for; 1 if all are shown


def line_chart(
    title: str, curves: Mapping[str, Curve], *, from_zero: bool = False, least_span: float = 0.0
) -> Chart | None:
    """A chart of named curves over the iterations; None if there are no curves.

    Curves of more than ``MOST_POINTS`` points are averaged over neighbours. With ``from_zero``, the axis of values
    includes zero; it covers at least ``least_span``, so that small changes do not look large.
    """
    if not curves:
        return None
    averaged = max(-(-len(curve) // MOST_POINTS) for curve in curves.values())
    drawn = {name: thinned(curve, MOST_POINTS) for name, curve in curves.items()}
    values = [point.value for curve in drawn.values() for point in curve] + [0.0] * from_zero
    steps = [point.step for curve in drawn.values() for point in curve]
    missing = max(0.0, least_span - (max(values) - min(values))) / 2
    y_ticks = nice_ticks(min(values) - missing, max(values) + missing)
    low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    first, last = min(0, *steps), max(1, *steps)
    x_ticks = [tick for tick in nice_ticks(first, last, most=5) if first <= tick <= last and tick == round(tick)]

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for name, curve in drawn.items():
        points = [(x(point.step), y(point.value)) for point in curve]
        lines.append(Line(name, points, len(curve) <= MARKED_POINTS, number(curves[name][-1].value)))
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    places_x = [Tick(x(tick), f"{tick:,.0f}") for tick in x_ticks]
    places_y = [Tick(y(tick), tick_text(tick, digits)) for tick in y_ticks]
    return Chart(title, lines, places_x, places_y, averaged)


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers in even steps of 1, 2 or 5 times a power of ten, from at most ``low`` to at least ``high``.

    At least two; ``most`` may be exceeded by one or two at the ends.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, decimals: int) -> str:
    if decimals > 4 and value:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.{min(decimals, 4)}f}"


def number(value: float) -> str:
    """A value in about three digits."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
