"""What a folder of images does not hold: the results that commands have written below it."""

import json

import pytest

from proda.data.listing import list_files
from proda.utils.run_files import results_among

RUN, STORE, STRANGE = {"images": "photos", "run": {"experiment": "predict"}}, {"format": 2, "kind": "hard"}, {"a": 1}


@pytest.fixture
def photos(tmp_path):
    """A photograph, and below it the results of a prediction, a store of labels, and predictions of ``evaluate``."""
    names = ["a.png", "run/legend.png", "run/mine.png", "run/labels/a.png", "run/overlays/a.jpg", "run/videos/a.mp4"]
    names += ["store/confidence/a.png", "made/a_pred_labelIds.png", "labels/b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run/config.json").write_text(json.dumps(RUN))
    (tmp_path / "store/manifest.json").write_text(json.dumps(STORE))
    (tmp_path / "labels/config.json").write_text(json.dumps(STRANGE))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        (".", ["a", "labels/b", "run/mine"]),
        ("**/*.png", ["a", "labels/b", "run/mine"]),
        ("run", ["mine"]),
        ("*/*.png", ["labels/b", "made/a_pred_labelIds", "run/mine"]),
        ("*/*/*.png", []),
        ("run/overlays", ["a"]),  # a place that is named
        ("*/labels/*.png", ["run/a"]),
        ("**/labels/*.png", ["b", "run/a"]),
        ("*/legend.png", ["run"]),
        ("made", ["a_pred_labelIds"]),
    ],
)
def test_results_are_left_out_unless_their_folder_is_named(photos, place, keys):
    assert sorted(list_files(photos, place)) == keys


def test_results_that_are_left_out_are_counted(photos):
    (line,) = [line for line in list_files(photos, ".").left_out if line.startswith("results")]
    assert line == f"results of a command (6, such as {photos}/made/a_pred_labelIds.png)"


@pytest.mark.parametrize("content", ["", "[]", '{"run', '{"model_type": "bert"}', "\udcff"])
def test_a_folder_with_another_record_holds_no_results(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert results_among(["config.json", "labels"], tmp_path) == set()
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    assert results_among(["config.json", "labels", "more"], tmp_path) == {"labels"}
