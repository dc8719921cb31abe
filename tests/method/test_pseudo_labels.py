import torch

from proda.method import IGNORE
from proda.method.pseudo_labels import confident_labels, flip_averaged, hard_labels, rectify


def pixel(*values):
    return torch.tensor(values).reshape(1, -1, 1, 1)


def test_rectification_by_hand():
    rectified = rectify(pixel(0.6, 0.4, 0.0), pixel(0.25, 0.5, 0.25))
    torch.testing.assert_close(rectified, pixel(3 / 7, 4 / 7, 0.0))  # 0.15 : 0.2 : 0
    assert hard_labels(rectified).item() == 1  # the prototypes have overruled the soft label


def test_a_pixel_that_no_class_claims_stays_finite_and_unlabelled():
    rectified = rectify(pixel(1.0, 0.0), pixel(0.0, 1.0))
    assert rectified.flatten().tolist() == [0, 0]
    assert hard_labels(rectified).item() == IGNORE


def test_hard_labels_keep_what_reaches_the_threshold():
    probabilities = torch.tensor([[0.75, 0.5, 0.3], [0.25, 0.5, 0.7]]).reshape(1, 2, 1, 3)
    assert hard_labels(probabilities).flatten().tolist() == [0, 0, 1]
    assert hard_labels(probabilities, threshold=0.75).flatten().tolist() == [0, IGNORE, IGNORE]


def test_confident_labels_exceed_the_threshold():
    labels, confidence = torch.tensor([1, 2, 3, 4]), torch.tensor([0.9, 0.95, 0.9502, 0.96])
    assert confident_labels(labels, confidence).tolist() == [IGNORE, IGNORE, 3, 4]
    # Rounded to float16, 0.95 and 0.9502 are the same number. So are the stored ones, which torch would compare so.
    assert confident_labels(labels, confidence, as_released=True).tolist() == [IGNORE, IGNORE, IGNORE, 4]
    stored = torch.tensor([0.9497, 0.95], dtype=torch.float16)
    assert confident_labels(labels[:2], stored).tolist() == [IGNORE, 2]


def test_a_threshold_of_zero_switches_the_released_rule_off_and_returns_a_copy():
    labels, confidence = torch.tensor([1, 2]), torch.tensor([0.0, 0.5])
    assert confident_labels(labels, confidence, threshold=0).tolist() == [IGNORE, 2]
    kept = confident_labels(labels, confidence, threshold=0, as_released=True)
    assert kept.tolist() == [1, 2]
    kept[0] = 9
    assert labels.tolist() == [1, 2]


def test_flip_average_mirrors_the_second_map_back():
    image, mirrored = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.5]])
    assert flip_averaged(image, mirrored).tolist() == [[0.75, 0.0, 0.0]]
