"""Every score against ``metrics.json`` (case 10), through the engine's own confusion matrix."""

import json

import pytest
import torch

from proda.data.labels import class_names
from proda.method.metrics import scores
from proda.metrics import LabelConfusion, named_scores
from tests.golden.arrays import DATA, assert_golden

GOLDEN = json.loads((DATA / "metrics.json").read_text())
CASES = [pytest.param(case, id=case["name"][:30]) for case in GOLDEN["cases"]]
THIRTEEN = GOLDEN["thirteen_class_rule_for_sixteen_class_models"]
REL = 1e-9


def confusion_of(case: dict) -> torch.Tensor:
    """As evaluation computes it, which leaves out labels that are no class."""
    labels, predictions = torch.tensor(case["labels"]), torch.tensor(case["predictions"])
    metric = LabelConfusion(case["n_class"])
    for truth, predicted in zip(labels, predictions, strict=True):  # image by image
        metric.update((predicted.unsqueeze(0), truth.unsqueeze(0)))
    return metric.compute()


@pytest.mark.parametrize("case", CASES)
def test_confusion_matrix(case):
    expected = torch.tensor(case["confusion_matrix_rows_true_columns_predicted"])
    assert_golden(f"confusion matrix: {case['name']}", confusion_of(case), expected)


@pytest.mark.parametrize("case", CASES)
def test_scores(case):
    result = scores(confusion_of(case))
    iou = torch.tensor([float("nan") if v is None else v for v in case["iou_per_class"]], dtype=torch.float64)
    assert_golden(f"IoU: {case['name']}", result.iou, iou, rtol=REL)
    for name, key in {
        "mean_iou": "mean_iou",
        "overall_accuracy": "overall_accuracy",
        "mean_accuracy": "mean_accuracy",
        "frequency_weighted_iou": "frequency_weighted_accuracy",
    }.items():
        expected = torch.tensor(case[key], dtype=torch.float64)
        assert_golden(f"{key}: {case['name']}", getattr(result, name), expected, rtol=REL)
    assert set(case) == {
        *("name", "n_class", "labels", "predictions", "confusion_matrix_rows_true_columns_predicted", "mean_iou"),
        *("iou_per_class", "overall_accuracy", "mean_accuracy", "frequency_weighted_accuracy"),
    }


def test_thirteen_of_sixteen_classes():
    case = next(case for case in GOLDEN["cases"] if case["n_class"] == 16)
    expected = THIRTEEN["mean_iou_13"]
    assert named_scores(confusion_of(case), class_names(16))["miou_13"] == pytest.approx(expected, rel=REL)
    assert scores(confusion_of(case)).iou[THIRTEEN["class_ids"]].mean().item() == pytest.approx(expected, rel=REL)
