"""The formulas of online self-training."""

import math

import pytest
import torch

from proda.method import IGNORE
from proda.method.online import confident_fraction, pixel_weights, student_weight, weighted_cross_entropy


def test_quality_is_the_share_of_pixels_from_the_threshold_on():
    confidence = torch.tensor([[[0.968, 0.9679], [0.5, 1.0]], [[0.1, 0.1], [0.1, 0.1]]])
    assert confident_fraction(confidence).tolist() == [0.5, 0.0]
    assert confident_fraction(confidence, 0.6).tolist() == [0.75, 0.0]


def test_weights_are_the_quality_except_in_the_rows_at_both_ends():
    weights = pixel_weights(torch.tensor([0.25, 1.0]), (6, 3), ignore_top=1, ignore_bottom=2)
    assert weights.shape == (2, 6, 3)
    assert weights[:, :, 0].tolist() == [[0, 0.25, 0.25, 0.25, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert (weights == weights[:, :, :1]).all()
    assert not pixel_weights(torch.ones(1), (4, 2), ignore_top=3, ignore_bottom=3).any()


def test_the_loss_is_a_mean_over_all_pixels_of_which_ignored_ones_have_no_gradient():
    logits = torch.zeros(1, 4, 1, 4, requires_grad=True)  # the cross entropy is log 4 wherever there is a label
    labels, weights = torch.tensor([[[0, 3, IGNORE, 1]]]), torch.tensor([[[1.0, 0.5, 1.0, 0.0]]])
    loss = weighted_cross_entropy(logits, labels, weights)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4) * 1.5 / 4)
    assert logits.grad[..., :2].all() and not logits.grad[..., 2:].any()


def test_the_teacher_is_at_first_the_mean_of_all_students():
    students, teacher = torch.randn(8, dtype=torch.float64), None
    teacher = students[0]
    for step in range(1, 8):
        weight = student_weight(step, 0.001)
        teacher = (1 - weight) * teacher + weight * students[step]
        assert teacher == pytest.approx(students[: step + 1].mean())
    assert student_weight(999, 0.001) == 0.001 == student_weight(10**6, 0.001)
    assert student_weight(998, 0.001) > 0.001
