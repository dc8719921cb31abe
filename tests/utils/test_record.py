"""Records of what a stored thing was made from, and how two of them differ."""

import pytest

from proda.utils.errors import UserError
from proda.utils.record import check_format, differences, plain, shortened


@pytest.mark.parametrize(
    ("found", "expected", "texts"),
    [
        ({"a": 1, "b": [1]}, {"b": [1], "a": 1}, []),
        ({"amp": "off"}, {"amp": "bf16"}, ["amp: found 'off', expected 'bf16'"]),
        ({}, {"size": 8}, ["size: found None, expected 8"]),
        ({"size": 8}, {}, ["size: found 8, expected None"]),
        (
            {"weights": "ab" * 32},
            {"weights": "cd" * 32},
            ["weights: found SHA-256 abababababab, expected SHA-256 cd"],
        ),
        ({"settings": {"flip": True, "amp": "off"}}, {"settings": {"amp": "off"}}, ["flip: found True, expected None"]),
        ({"images": ["a", "b"]}, {"images": ["a", "c"]}, ["images: found 2, expected 2, first difference 'b' and 'c'"]),
        ({"images": ["a"]}, {"images": ["a", "b"]}, ["images: found 1, expected 2"]),
        # an u with an umlaut as one character and as two, which look alike
        ({"images": ["\u00fc"]}, {"images": ["u\u0308"]}, [r"first difference '\xfc' and 'u\u0308'"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a: found 1, expected 2", "b: found 1, expected 2"]),
    ],
)
def test_differences_name_what_was_found_and_expected(found, expected, texts):
    given = differences(found, expected)
    assert len(given) == len(texts) and all(text in line for text, line in zip(texts, given, strict=True)), given


def test_a_record_is_compared_as_it_is_read_back():
    record = {"size": (8, 16), "settings": {"scales": (0.75, 1.0)}}
    assert differences(record, plain(record)) and not differences(plain(record), plain(plain(record)))


@pytest.mark.parametrize(("found", "fits"), [(3, True), (2, True), (None, True), ("4", True), (4, False)])
def test_a_format_that_is_newer_is_refused(found, fits):
    if fits:
        check_format(found, 3, "a.json")
        return
    with pytest.raises(UserError, match=r"a\.json: written by a newer version of proda \(format 4, this one reads 3\)"):
        check_format(found, 3, "a.json")


def test_many_changes_are_one_line():
    texts = [*"abcde"]
    assert [shortened(texts[:n]) for n in (0, 1, 3, 5)] == ["", "a", "a, b, c", "a, b, c and 2 more changes"]
