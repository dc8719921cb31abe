"""Line charts as numbers."""

import pytest

from proda.report import charts
from proda.report.charts import line_chart, nice_ticks, number
from proda.report.curves import Point


def curve(*values: float) -> list[Point]:
    return [Point(step, value, 0.0) for step, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (61.2, 63.9, [61, 62, 63, 64]),
        (0, 0.06, [0, 0.02, 0.04, 0.06]),
        (5, 5, [5, 6]),
        (0, 0, [0, 0.2]),
        (-3, 4, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_points_lie_inside_and_higher_values_are_higher():
    chart = line_chart("loss", {"total": curve(3.0, 1.0, 2.0)})
    assert chart is not None and chart.title == "loss"
    (line,) = chart.lines
    assert line.name == "total" and line.last == "2.00" and line.marked
    for x, y in line.points:
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT and charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    (_, first), (_, second), (_, third) = line.points
    assert first < third < second
    assert chart.y_ticks[0].text == "1.0" and chart.x_ticks[0].text == "0"


def test_an_axis_may_have_to_cover_zero_or_a_span():
    flat = {"miou": curve(63.5, 63.7)}
    assert line_chart("", flat, from_zero=True).y_ticks[0].text == "0"
    texts = [float(tick.text) for tick in line_chart("", flat, least_span=10).y_ticks]
    assert max(texts) - min(texts) >= 10 and min(texts) <= 63.5 <= 63.7 <= max(texts)
    assert line_chart("", {}) is None


def test_long_curves_are_averaged_and_say_so():
    chart = line_chart("", {"a": curve(*map(float, range(1000))), "b": curve(1.0)})
    assert chart.averaged == 7 and len(chart.lines[0].points) <= charts.MOST_POINTS and not chart.lines[0].marked
    assert chart.lines[0].last == "999"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (63.72, "63.7"), (1234.5, "1,234"), (0.3181, "0.318"), (1.9e-5, "1.9e-5"), (-2, "-2.00")],
)
def test_numbers_have_about_three_digits(value, text):
    assert number(value) == text
