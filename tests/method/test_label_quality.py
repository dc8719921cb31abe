"""What is counted about pseudo labels."""

import math

import pytest
import torch

from proda.method import IGNORE
from proda.method.label_quality import (
    agreement,
    certainty,
    contingency,
    corrections,
    movements,
    nearest_distances,
)

K = 3


def test_pairs_of_classes_by_hand_with_pixels_that_have_none():
    table = contingency(torch.tensor([[[0, 0, 1, IGNORE]]]), torch.tensor([[[0, 2, IGNORE, 1]]]), K)
    expected = torch.zeros(K + 1, K + 1, dtype=torch.int64)
    expected[0, 0] = expected[0, 2] = expected[1, K] = expected[K, 1] = 1
    assert torch.equal(table, expected)
    assert agreement(table) == 1 / 2  # of the two pixels with a class in both maps


def test_pairs_are_those_of_a_slow_count_whatever_the_type():
    rows, columns = torch.randint(0, K + 1, (2, 7, 9), dtype=torch.uint8), torch.randint(0, K + 1, (2, 7, 9))
    table = contingency(rows, columns, K)
    for i in range(K + 1):
        for j in range(K + 1):
            assert table[i, j] == ((rows == i) & (columns == j)).sum()
    assert math.isnan(agreement(contingency(torch.tensor([0]), torch.tensor([IGNORE]), K)))


def test_certainty_of_a_sure_an_undecided_and_a_half_decided_pixel():
    pixels = torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]).T.reshape(1, K, 1, 3)
    number, confidence, entropy = certainty(pixels).tolist()
    assert number == 3
    assert confidence == pytest.approx(1 + 1 / 3 + 1 / 2)
    assert entropy == pytest.approx(0 + 1 + math.log(2) / math.log(3))


def test_certainty_of_selected_pixels_and_its_sums_add_up():
    maps = torch.randn(2, K, 4, 5).softmax(1)
    where = torch.rand(2, 4, 5) > 0.5
    torch.testing.assert_close(certainty(maps, where) + certainty(maps, ~where), certainty(maps))
    assert certainty(maps, where)[0] == where.sum()
    torch.testing.assert_close(certainty(maps[:1]) + certainty(maps[1:]), certainty(maps))


def test_changes_are_right_wrong_or_neither_and_unlabelled_pixels_do_not_count():
    before = torch.tensor([0, 0, 0, 0, 0])
    after = torch.tensor([0, 1, 1, 1, 1])
    truth = torch.tensor([1, 1, 0, 2, IGNORE])  # unchanged, right, wrong, neither, unknown
    assert corrections(before, after, truth, K).tolist() == [3, 1, 1]


def test_distances_between_prototypes_leave_out_classes_that_have_not_occurred():
    prototypes = torch.tensor([[1.0, 0.0], [4.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
    assert nearest_distances(prototypes)[:3].tolist() == pytest.approx([1, math.hypot(3, 3), 1])
    assert nearest_distances(prototypes)[3].isnan()
    assert nearest_distances(torch.tensor([[1.0, 2.0], [0.0, 0.0]])).isnan().all()  # one alone has no neighbour


def test_a_prototype_that_appears_later_has_not_moved():
    start = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    moved = movements(torch.tensor([[4.0, 5.0], [1.0, 1.0]]), start)
    assert moved[0] == 5 and moved[1].isnan()
