"""The distance of features, and the positions that count."""

import pytest
import torch

from proda.data.labels import class_names
from proda.method import IGNORE
from proda.method.feature_distance import THINGS, feature_distance, mostly_one_of


def test_a_cell_counts_from_three_quarters_of_one_class_on():
    labels = torch.full((1, 4, 12), IGNORE)
    labels[0, :, :4] = 5
    labels[0, 0, :4] = 1  # 12 of 16 pixels are left
    labels[0, :, 4:8] = 5
    labels[0, 0, 4:8], labels[0, 1, 4] = 1, 1  # 11 of 16
    labels[0, :, 8:] = 2
    assert mostly_one_of(labels, [5], (1, 3)).tolist() == [[[True, False, False]]]
    assert mostly_one_of(labels, [2, 5], (1, 3)).tolist() == [[[True, False, True]]]
    assert not mostly_one_of(torch.tensor([[[3, 4], [3, 4]]]), [3, 4], (1, 1)).any()  # two classes do not add up


def test_maps_that_the_cells_do_not_divide():
    labels = torch.zeros(2, 33, 65, dtype=torch.uint8)
    assert mostly_one_of(labels, [0], (5, 9)).all() and not mostly_one_of(labels, [1], (5, 9)).any()


def test_the_mean_euclidean_distance_over_the_counted_positions():
    features, frozen = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    features[0, :, 0, 0], features[0, :, 0, 1] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    features[0, :, 0, 2] = 100
    counted = torch.tensor([[[True, True, False]]])
    assert feature_distance(features, frozen, counted).item() == pytest.approx(3)
    assert feature_distance(features, frozen, counted, positions=torch.tensor(4)).item() == pytest.approx(1.5)


def test_no_position_and_equal_features_have_a_finite_gradient_of_zero():
    features = torch.ones(1, 2, 2, 2, requires_grad=True)
    for frozen, counted in ((0, False), (1, True)):
        distance = feature_distance(features, torch.full((1, 2, 2, 2), frozen), torch.full((1, 2, 2), counted))
        (gradient,) = torch.autograd.grad(distance, features)
        assert distance == 0 and not gradient.any() and gradient.isfinite().all()


def test_the_objects_are_classes_of_the_benchmarks():
    assert len(THINGS) == 10 and set(THINGS) <= set(class_names(19))
    assert set(class_names(19)) - set(THINGS) == {
        *("road", "sidewalk", "building", "wall", "fence", "pole", "vegetation", "terrain", "sky")
    }
