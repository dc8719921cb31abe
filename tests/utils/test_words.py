"""Words for messages."""

from proda.utils.words import counted


def test_one_is_singular_and_thousands_are_separated():
    found = [counted(number, "image") for number in (0, 1, 2, 2975)]
    assert found == ["0 images", "1 image", "2 images", "2,975 images"]
