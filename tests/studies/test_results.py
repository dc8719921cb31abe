"""Results over rows and seeds: files, comparisons and the tables that show them."""

import json
from dataclasses import asdict, replace

import pytest

from proda.studies.results import Difference, GapShare, Results, ResultTable, findings, read_results
from proda.studies.rows import PARTS, TABLES
from proda.studies.tables import caption, classes_table, findings_table, gains_table, rows_table
from proda.utils.errors import UserError

SEEDS = [0, 1, 2]
LOW, MIDDLE, HIGH = [0.40, 0.42, 0.44], [0.50, 0.52, 0.545], [0.60, 0.62, 0.64]


def results(**rows: list[float]) -> Results:
    seconds = {row: [10.0, 30.0, 20.0] for row in rows}
    return Results("parts", "python run.py experiments/ablation.py", "a" * 40, "2026-12-01", SEEDS, rows, seconds)


def some() -> Results:
    return results(low=LOW, middle=MIDDLE, high=HIGH)


def table(*differences: Difference, shares: tuple[GapShare, ...] = ()) -> ResultTable:
    return ResultTable({"low": "the low row", "middle": "the middle row", "high": "the high row"}, differences, shares)


def test_results_are_the_same_after_a_file(tmp_path):
    some().save(tmp_path / "some.json")
    assert read_results(tmp_path / "some.json") == some()
    assert json.loads((tmp_path / "some.json").read_text())["rows"]["low"] == LOW  # fractions


def test_files_may_have_the_iou_of_each_class(tmp_path):
    iou = {row: {"road": [0.5, 0.6, 0.7], "train": [None, None, 0.25], "bus": [None] * 3} for row in ("low", "high")}
    found = replace(some(), iou=iou)
    found.save(tmp_path / "some.json")
    assert read_results(tmp_path / "some.json") == found
    header, _, *lines = classes_table(found, ResultTable({"low": "low", "high": "high"})).splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["", "", "road", "train", "bus", ""]
    assert [cell.strip() for cell in lines[1].split("|")] == ["", "high", "60.0", "25.0", "", ""]
    content = json.loads((tmp_path / "some.json").read_text())
    del content["iou"]  # of an older version
    (tmp_path / "some.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "some.json") == some()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": {"low": LOW[:2]}}, "row low: expected one mIoU from 0 to 1 for each of the seeds"),
        ({"rows": {"low": [40.0, 42.0, 44.0]}}, "row low: expected one mIoU from 0 to 1"),
        ({"rows": {"low": [None, 0.4, 0.4]}}, "row low: expected one mIoU from 0 to 1"),
        ({"more": 1}, "expected a JSON object with the keys command, commit, date, rows, seconds, seeds, table"),
    ],
)
def test_files_that_hold_no_results_are_refused(tmp_path, change, words):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(asdict(some()) | change))
    with pytest.raises(UserError, match=words):
        read_results(file)
    file.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_results(file)
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("expected", "points", "interval", "met"),
    [
        ("above", 0, False, True),
        ("at least", 10, False, True),
        ("at least", 10.2, False, False),
        ("within", 11, False, True),
        ("within", 10, False, False),
        ("at least", 10, True, True),
        ("", 0, False, True),
    ],
)
def test_a_difference_is_held_against_what_was_expected(expected, points, interval, met):
    pair = Difference("middle", "low", expected, points, interval_above_zero=interval)
    (found,) = findings(some(), table(pair))
    assert found.interval.mean == pytest.approx(10.1666667)  # points of 10.0, 10.0 and 10.5
    assert found.interval.low == pytest.approx(10.1666667 - 4.302653 * 0.2886751 / 3**0.5, abs=1e-5)
    assert found.met == met


def test_a_difference_is_not_enough_where_the_interval_has_to_lie_above_zero():
    wide = results(low=LOW, middle=[0.40, 0.42, 0.60], high=HIGH)  # 5.3 points on average, all from one seed
    pairs = [Difference("middle", "low", "at least", 2, interval_above_zero=strict) for strict in (False, True)]
    loose, strict = findings(wide, table(*pairs))
    assert loose.met and not strict.met and strict.expected == "at least 2, interval above 0"


def test_a_share_of_the_gap_is_in_percent():
    shares = (GapShare("middle", "low", "high", 1 / 2), GapShare("middle", "low", "high", 2 / 3))
    half, more = findings(some(), table(shares=shares))
    assert half.interval.mean == pytest.approx(50.8333333) and half.met and not more.met
    assert (half.unit, half.compared_with, more.expected) == ("%", "gap the low row to the high row", "at least 67 %")


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_rows_show_percent_and_every_seed():
    header, _, *rows = cells(rows_table(some(), table()))
    assert header == ["", "mIoU", "deviation", "each seed"]
    assert rows[1] == ["the middle row", "52.2", "2.3", "50.0 52.0 54.5"]


def test_findings_show_intervals_and_name_what_is_not_met():
    shares = (GapShare("middle", "low", "high", 2 / 3),)
    text = findings_table(some(), table(Difference("middle", "low", "above", 0), shares=shares))
    _, _, first, second = cells(text)
    assert first == ["the middle row", "the low row", "+10.2", "+9.4 to +10.9", "above 0", "above 0", "yes"]
    assert second[2:] == ["50.8 %", "47.2 to 54.4 %", "above 0", "at least 67 %", "**no**"]
    assert text.endswith(
        "These expectations are not met:\n\n* the middle row, compared with gap the low row to the high row: expected "
        "at least 67 %; found 50.8 %, interval 47.2 to 54.4 %"
    )
    assert findings_table(some(), table(Difference("middle", "low", "above", 0))).endswith("All expectations are met.")
    assert "expect" not in findings_table(some(), table(Difference("middle", "low")))


def test_one_seed_has_no_interval_and_meets_none():
    one = replace(some(), seeds=[0], rows={row: scores[:1] for row, scores in some().rows.items()})
    pairs = Difference("middle", "low", "above", 0), Difference("middle", "low", "above", 0, interval_above_zero=True)
    _, _, *lines = cells(findings_table(one, table(*pairs)))
    assert [line[2:5] for line in lines] == [["+10.0", "", ""]] * 2
    assert [line[6] for line in lines] == ["yes", "**no**"]
    assert cells(rows_table(one, table()))[2] == ["the low row", "40.0", "", "40.0"]


def test_gains_name_their_row_unless_it_is_the_one_above():
    pairs = Difference("middle", "low"), Difference("high", "low"), Difference("high", "middle")
    header, _, *rows = cells(gains_table(some(), table(*pairs)))
    assert header == ["stage", "mIoU", "deviation", "gain", "each seed", "seconds"]
    assert [row[3] for row in rows] == ["", "+10.2", "+20.0 over the low row"]
    assert rows[0][5] == "20"  # the median
    assert cells(gains_table(some(), table(*pairs), details=False))[3] == ["the middle row", "52.2", "+10.2"]


def test_the_caption_says_how_the_results_were_made():
    found = replace(some(), commit=f"{'a' * 40}, {'b' * 40}")
    words = (
        "Measured on 2026-12-01 at commit aaaaaaa, bbbbbbb by `python run.py experiments/ablation.py` (seeds 0, 1, 2)."
    )
    assert caption(found).replace("\n", " ") == words


def test_the_parts_of_the_method_in_order_meet_all_expectations():
    steps = {"source_only": 0, "warmup": 8, "control": 8.5, "self_training": 10, "symmetric": 10, "oracle": 32}
    steps |= {"fixed_prototypes": 13, "moving_prototypes": 13.5, "structure": 14, "distillation": 16}
    steps["second_distillation"] = 17
    rows = {row: [0.4 + steps[row] / 100 + seed / 1000 for seed in SEEDS] for row in PARTS.rows}
    assert all(finding.met for finding in findings(results(**rows), PARTS))
    rows["control"] = [score + 0.05 for score in rows["control"]]
    missed = {(f.row, f.compared_with) for f in findings(results(**rows), PARTS) if not f.met}
    titles = PARTS.rows
    assert missed == {
        (titles["control"], titles["warmup"]),
        (titles["self_training"], titles["control"]),
        (titles["moving_prototypes"], titles["control"]),
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_table_compares_rows_that_it_shows(name):
    shown = TABLES[name]
    named = {row for pair in shown.differences for row in (pair.row, pair.reference)}
    named |= {row for share in shown.shares for row in (share.row, share.low, share.high)}
    assert named <= shown.rows.keys() and len(set(shown.rows.values())) == len(shown.rows)
