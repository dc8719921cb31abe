"""What the report says about predictions."""

import numpy as np
import torch

from proda.method import IGNORE
from proda.report.predictions import ImageResult, confusions, error_picture


def test_the_most_frequent_confusions_come_first():
    table = torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    assert confusions(table, 5) == [(0, 1, 0.2, 2 / 3), (1, 0, 0.1, 1 / 3)]
    assert confusions(table, 1) == [(0, 1, 0.2, 2 / 3)]
    assert confusions(torch.eye(3, dtype=torch.int64), 5) == []


def test_errors_are_orange_and_pixels_without_label_dark():
    truth = np.array([[0, 1, IGNORE]], np.uint8)
    predicted = np.array([[0, 0, 1]], np.uint8)
    grey = np.full((1, 3, 3), 255, np.uint8)
    table = torch.zeros(2, 2, dtype=torch.int64)
    picture = error_picture(ImageResult("a", 0.5, 0.5, table, grey, truth, predicted))
    assert picture.tolist() == [[[246, 246, 246], [213, 94, 0], [96, 96, 96]]]
