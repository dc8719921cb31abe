"""The contrastive loss and the measures of embeddings, against values worked by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from proda.method.contrastive import alignment, matching_accuracy, nt_xent, uniformity

X, Y = [1.0, 0.0], [0.0, 1.0]


def pairs(number: int = 5, dimensions: int = 3) -> Tensor:
    return torch.randn(2, number, dimensions, dtype=torch.float64)


def test_two_pairs_by_hand():
    """Every embedding has its partner at cosine 1 and two negatives at cosine 0."""
    found = nt_xent(torch.tensor([[X, Y], [X, Y]]), 0.5)
    assert found.loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / 0.5)), rel=1e-6)
    assert found.accuracy == 1


def test_two_pairs_whose_partners_are_exchanged():
    found = nt_xent(torch.tensor([[X, Y], [Y, X]]), 0.5)
    assert found.loss.item() == pytest.approx(math.log(2 + math.exp(1 / 0.5)), rel=1e-6)
    assert found.accuracy == 0


def test_it_is_the_cross_entropy_over_the_similarities_to_all_others():
    views = pairs()
    flat, total = F.normalize(views, dim=-1).flatten(0, 1), 0.0
    for i in range(10):
        others = [j for j in range(10) if j != i]
        logits = torch.stack([flat[i] @ flat[j] for j in others]) / 0.3
        total += F.cross_entropy(logits, torch.tensor(others.index((i + 5) % 10))).item()
    assert nt_xent(views, 0.3).loss.item() == pytest.approx(total / 10, rel=1e-5)


def test_both_views_and_all_pairs_count_alike_and_lengths_do_not_count():
    views, order = pairs(), torch.tensor([3, 0, 4, 1, 2])
    expected = nt_xent(views, 0.2).loss
    for other in (views.flip(0), views[:, order], views * torch.tensor([1.0, 50.0]).view(2, 1, 1)):
        torch.testing.assert_close(nt_xent(other, 0.2).loss, expected)


def test_without_a_preference_it_is_the_logarithm_of_the_number_of_candidates():
    assert nt_xent(torch.ones(2, 4, 3), 0.1).loss.item() == pytest.approx(math.log(7), rel=1e-6)
    assert nt_xent(torch.randn(2, 1, 3), 0.1).loss == 0  # the partner is the only candidate


def test_the_mean_over_the_parts_of_a_batch_is_the_whole_with_its_gradient():
    views = pairs(6).requires_grad_()
    whole = nt_xent(views, 0.2)
    (expected,) = torch.autograd.grad(whole.loss, views)
    parts = [nt_xent(views[:, i : i + 2], 0.2, all_embeddings=views, first=i) for i in (0, 2, 4)]
    mean = torch.stack([part.loss for part in parts]).mean()
    torch.testing.assert_close(mean, whole.loss)
    torch.testing.assert_close(torch.autograd.grad(mean, views)[0], expected)
    torch.testing.assert_close(torch.stack([part.accuracy for part in parts]).mean(), whole.accuracy)


def test_half_precision_is_computed_in_float32():
    views = pairs().bfloat16()
    assert nt_xent(views, 0.1).loss.dtype == torch.float32
    torch.testing.assert_close(nt_xent(views, 0.1).loss, nt_xent(views.float(), 0.1).loss)


def test_alignment_is_the_squared_distance_of_partners():
    assert alignment(torch.tensor([[X, Y], [X, Y]])) == 0
    assert alignment(torch.tensor([[X, Y], [[-3.0, 0.0], Y]])).item() == pytest.approx(2)  # 4 and 0


def test_uniformity_is_zero_for_equal_embeddings_and_by_hand_for_orthogonal_ones():
    assert uniformity(torch.ones(2, 4, 3)).item() == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.tensor([[X, Y], [Y, X]])).item() == pytest.approx(-4)  # all at squared distance 2


def test_a_region_is_recognised_among_those_of_its_image_alone():
    regions = torch.eye(4).expand(2, 3, 4, 4).clone()
    assert matching_accuracy(regions).tolist() == [1, 1, 1]
    regions[1, 2] = regions[1, 2].roll(1, 0)
    assert matching_accuracy(regions).tolist() == [1, 1, 0]
    regions[1, 2] = regions[0, 2][[1, 0, 2, 3]]
    assert matching_accuracy(regions).tolist() == [1, 1, 0.5]
