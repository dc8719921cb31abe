"""Scores of a segmentation."""

import math

import pytest
import torch

from proda.method import metrics
from proda.method.metrics import mutual_information, scores


def test_scores_by_hand():
    result = scores(torch.tensor([[6, 2], [1, 3]]))
    assert result.iou.tolist() == pytest.approx([6 / 9, 3 / 6])
    assert result.mean_iou.item() == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.overall_accuracy.item() == pytest.approx(9 / 12)
    assert result.mean_accuracy.item() == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert result.frequency_weighted_iou.item() == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)
    # A class in neither labels nor predictions has no score and no weight; one that is only predicted counts as zero.
    absent = scores(torch.tensor([[1, 0, 0], [1, 2, 0], [0, 0, 0]]))
    assert math.isnan(absent.iou[2]) and absent.mean_iou.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert absent.frequency_weighted_iou.item() == pytest.approx(1 / 4 * 1 / 2 + 3 / 4 * 2 / 3)
    assert scores(torch.tensor([[1, 1], [0, 0]])).mean_iou.item() == pytest.approx((1 / 2 + 0) / 2)


def test_no_pixel_at_all_is_nan_in_every_score():
    result = scores(torch.zeros(3, 3))
    assert all(value.isnan().all() for value in result)


def label_free(probabilities: torch.Tensor) -> float:
    mean, entropy = mutual_information(probabilities.log())
    mean, entropy = mean / len(probabilities), entropy / len(probabilities)
    return (-(mean * mean.clamp_min(1e-12).log()).sum() - entropy).item()


def test_sure_and_diverse_predictions_score_log_k_and_anything_else_less():
    half = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # one pixel of each class
    assert label_free(half) == pytest.approx(math.log(2))
    assert label_free(torch.full((1, 2, 1, 2), 0.5)) == pytest.approx(0, abs=1e-6)  # undecided
    assert label_free(torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])) == pytest.approx(0, abs=1e-6)  # one class alone


def test_images_of_different_content_count_together_as_diverse():
    images = torch.tensor([[[[1.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
    assert label_free(images) == pytest.approx(math.log(2))
    parts = [mutual_information(image.unsqueeze(0).log()) for image in images]
    whole = mutual_information(images.log())
    for i in range(2):
        torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i])


def test_the_terms_of_the_score_by_hand_and_in_float64_whatever_the_input():
    logits = torch.tensor([0.0, 200.0, -0.75, 0.0]).reshape(1, 1, 1, 4)  # of the first of two classes
    logits = torch.cat([logits, -logits], 1).bfloat16()  # exact in bfloat16
    mean, entropy = mutual_information(logits)
    first = 1 / (1 + math.exp(1.5))
    assert mean.tolist() == pytest.approx([(2 + first) / 4, (2 - first) / 4], rel=1e-6)
    pixels = [math.log(2), 0, -first * math.log(first) - (1 - first) * math.log(1 - first), math.log(2)]
    assert entropy.item() == pytest.approx(sum(pixels) / 4, rel=1e-6)
    assert mean.dtype == entropy.dtype == torch.float64


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("numbers", [1, 5 * 2 * 32 * 3, 2**19])  # one row at a time, some rows, all at once
def test_slices_of_rows_add_up_to_the_terms_of_the_whole_map(numbers, memory_format, monkeypatch):
    monkeypatch.setattr(metrics, "SLICE", numbers)
    logits = 5 * torch.randn(2, 5, 64, 33)
    mean, entropy = mutual_information(logits.contiguous(memory_format=memory_format))
    log = logits.double().log_softmax(1)
    torch.testing.assert_close(mean, log.exp().mean((2, 3)).sum(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(entropy, -(log.exp() * log).sum(1).mean((1, 2)).sum(), atol=1e-6, rtol=0)


def test_a_class_with_a_logit_of_minus_infinity_is_impossible_and_nan_stays_nan():
    logits = torch.tensor([0.0, 0.0, -math.inf]).reshape(1, 3, 1, 1)
    mean, entropy = mutual_information(logits)
    assert mean.tolist() == pytest.approx([0.5, 0.5, 0]) and entropy.item() == pytest.approx(math.log(2))
    logits[0, 1] = math.nan
    assert all(term.isnan().any() for term in mutual_information(logits))
