"""Scores of a run."""

import math

import pytest
import torch

from proda.data.labels import class_names
from proda.metrics import LabelFreeScore, flatten, report

CLASSES = ["road", "sky", "train"]
CONFUSION = torch.tensor([[8, 0, 0], [2, 8, 0], [0, 0, 0]], dtype=torch.float64)  # the last class is absent


def test_an_absent_class_is_no_zero():
    result = report(CONFUSION, CLASSES)
    assert result["iou"]["road"] == 8 / 10 and result["iou"]["sky"] == 8 / 10
    assert math.isnan(result["iou"]["train"])
    assert result["miou"] == pytest.approx(0.8)


def test_sixteen_classes_have_a_thirteen_class_score_beside_them():
    matrix = torch.eye(16, dtype=torch.float64)
    matrix[3, 3], matrix[3, 0] = 0, 1  # wall is wrong: it is not among the thirteen, but takes half of road
    result = report(matrix, class_names(16))
    assert result["miou"] == pytest.approx((14 + 0.5) / 16)
    assert result["miou_13"] == pytest.approx((12 + 0.5) / 13)
    assert "miou_13" not in report(torch.eye(3), CLASSES)


def test_flat_scores_leave_out_what_is_undefined():
    flat = flatten({"miou": 0.5, "label_free": math.nan, "iou": {"road": 0.0, "train": math.nan}})
    assert flat == {"miou": 0.5, "iou/road": 0.0}
    assert flatten({}) == {}


def test_the_label_free_score_is_that_of_all_images_together_however_they_are_batched():
    probabilities = torch.randn(5, 3, 2, 4).softmax(1)
    found = []
    for sizes in ([5], [1, 4], [2, 2, 1]):
        score = LabelFreeScore()
        for part in probabilities.split(sizes):
            score.update((part, None))
        found.append(score.compute())
    mean = probabilities.double().mean((0, 2, 3))
    entropy = -(probabilities.double() * probabilities.double().log()).sum(1).mean()
    assert found == pytest.approx([(-(mean * mean.log()).sum() - entropy).item()] * 3, abs=1e-6)
