"""Scores of a segmentation."""

import math

import pytest
import torch

from proda.method.metrics import mutual_information, rank_correlation, scores


def test_scores_of_two_classes_by_hand():
    result = scores(torch.tensor([[6, 2], [1, 3]]))
    assert result.iou.tolist() == pytest.approx([6 / 9, 3 / 6])
    assert result.mean_iou.item() == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.overall_accuracy.item() == pytest.approx(9 / 12)
    assert result.mean_accuracy.item() == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert result.frequency_weighted_iou.item() == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)


def test_a_class_in_neither_labels_nor_predictions_has_no_score_and_no_weight_in_the_mean():
    result = scores(torch.tensor([[1, 0, 0], [1, 2, 0], [0, 0, 0]]))
    assert math.isnan(result.iou[2])
    assert result.mean_iou.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.frequency_weighted_iou.item() == pytest.approx(1 / 4 * 1 / 2 + 3 / 4 * 2 / 3)


def test_a_class_that_is_predicted_but_never_true_counts_as_zero():
    assert scores(torch.tensor([[1, 1], [0, 0]])).mean_iou.item() == pytest.approx((1 / 2 + 0) / 2)


def test_no_pixel_at_all_is_nan_in_every_score():
    result = scores(torch.zeros(3, 3))
    assert all(value.isnan().all() for value in result)


def test_scores_are_those_of_a_slow_count():
    labels, predicted = torch.randint(0, 4, (500,)), torch.randint(0, 4, (500,))
    confusion = torch.zeros(4, 4)
    for true, found in zip(labels, predicted, strict=True):
        confusion[true, found] += 1
    for k, iou in enumerate(scores(confusion).iou):
        both, either = (labels == k) & (predicted == k), (labels == k) | (predicted == k)
        assert iou.item() == pytest.approx((both.sum() / either.sum()).item())


def label_free(probabilities: torch.Tensor) -> float:
    mean, entropy = mutual_information(probabilities)
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
    parts = [mutual_information(image.unsqueeze(0)) for image in images]
    whole = mutual_information(images)
    for i in range(2):
        torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i])


def test_the_terms_of_the_score_by_hand_and_in_float64_whatever_the_input():
    probabilities = torch.tensor([0.5, 1.0, 0.25, 0.5]).reshape(1, 1, 1, 4)  # of the first of two classes
    probabilities = torch.cat([probabilities, 1 - probabilities], 1).bfloat16()  # exact in bfloat16
    mean, entropy = mutual_information(probabilities)
    assert mean.tolist() == [0.5625, 0.4375]
    pixels = [math.log(2), 0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75), math.log(2)]
    assert entropy.item() == pytest.approx(sum(pixels) / 4, rel=1e-6)
    assert mean.dtype == entropy.dtype == torch.float64


def test_rank_correlation_without_ties_is_spearmans_formula():
    x, y = torch.randperm(9), torch.randperm(9)
    expected = 1 - 6 * (x - y).square().sum().item() / (9 * (81 - 1))
    assert rank_correlation(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(("change", "expected"), [(torch.exp, 1), (lambda x: -(x**3), -1)])
def test_rank_correlation_sees_the_order_alone(change, expected):
    x = torch.randn(20)
    assert rank_correlation(x, change(x)) == pytest.approx(expected)


def test_equal_numbers_share_their_ranks():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: deviations -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5.
    found = rank_correlation(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_rank_correlation_with_a_constant_or_of_one_pair_is_undefined():
    assert math.isnan(rank_correlation(torch.ones(3), torch.arange(3)))
    assert math.isnan(rank_correlation(torch.ones(1), torch.ones(1)))
