"""ClassMix: which classes are drawn, which pixels are theirs, and what is pasted."""

import torch

from proda.method import IGNORE
from proda.method.mixing import choose_classes, paste, pixels_of, present_classes

LABELS = torch.tensor([[[0, 0, 2], [2, 3, IGNORE]], [[1, 1, 1], [1, 1, 1]]])


def test_the_classes_of_each_map_with_the_ignored_value_last():
    assert present_classes(LABELS, 4).tolist() == [[True, False, True, True, True], [False, True, False, False, False]]
    assert present_classes(LABELS.to(torch.uint8), 4).equal(present_classes(LABELS, 4))


def test_half_of_the_classes_rounded_up_in_the_drawn_order():
    present = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, True]])
    order = torch.tensor([[0.9, 0.0, 0.1, 0.5], [0.9, 0.8, 0.1, 0.2], [0.3, 0.1, 0.2, 0.4]])
    chosen = choose_classes(present, order)
    assert chosen.tolist() == [[False, False, True, True], [False, True, False, False], [False, True, True, False]]
    assert not choose_classes(torch.zeros(2, 3, dtype=torch.bool), torch.rand(2, 3)).any()


def test_the_pixels_of_the_chosen_classes():
    chosen = torch.tensor([[True, False, False, False, True], [False, False, True, False, False]])
    assert pixels_of(chosen, LABELS).tolist() == [
        [[True, True, False], [False, False, True]],
        [[False, False, False], [False, False, False]],
    ]


def test_pasting_takes_the_source_where_the_mask_is_set():
    pasted = torch.tensor([[[True, False]]])
    source, target = torch.ones(1, 3, 1, 2, dtype=torch.uint8), torch.zeros(1, 3, 1, 2, dtype=torch.uint8)
    assert paste(pasted, source, target).tolist() == [[[[1, 0]]] * 3]
    assert paste(pasted, LABELS[:1, :1, :2] + 5, LABELS[:1, :1, :2]).tolist() == [[[5, 0]]]
