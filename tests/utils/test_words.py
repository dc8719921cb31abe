"""Words for messages."""

import pytest

from proda.utils.words import counted, duration, printable


def test_one_is_singular_and_thousands_are_separated():
    found = [counted(number, "image") for number in (0, 1, 2, 2975)]
    assert found == ["0 images", "1 image", "2 images", "2,975 images"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (100, "1 min 40 s"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 5 * 3600 - 1, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_text_of_several_lines_is_escaped():
    assert [printable(text) for text in ("straße", "a\nb")] == ["straße", r"'a\nb'"]
