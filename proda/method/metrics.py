"""Scores of a segmentation from its confusion matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

SLICE = 2**19  # numbers in a slice of logits, 2 MB


class Scores(NamedTuple):
    """Fractions in 0..1; NaN where there are no pixels to score."""

    iou: Tensor  # float64 [K], NaN for a class that is in neither labels nor predictions
    mean_iou: Tensor  # mean of the classes that are not NaN
    overall_accuracy: Tensor  # correct pixels of all pixels
    mean_accuracy: Tensor  # mean over classes of correct pixels of the class's pixels
    frequency_weighted_iou: Tensor  # IoU weighted by how many pixels a class has


def scores(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix [K, K] without ignored pixels; rows are true classes, columns predicted ones."""
    confusion = confusion.double()
    correct = confusion.diagonal()
    true, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    iou = correct / (true + predicted - correct)  # 0/0 = NaN: the class is absent
    frequency = true / total
    return Scores(
        iou=iou,
        mean_iou=iou.nanmean(),
        overall_accuracy=correct.sum() / total,
        mean_accuracy=(correct / true).nanmean(),
        frequency_weighted_iou=torch.where(frequency == 0, 0.0, frequency * iou).sum(),
    )


def mutual_information(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of a label-free score: predictions should be confident at each pixel, yet diverse overall.

    ``logits`` [B, K, H, W] of a batch, whose softmax is the class probabilities; -inf is a probability of 0.

    Returns:
        The sum over images of the mean prediction, float64 [K], and of the mean entropy of a pixel (nats, float64
        scalar). With N images the score is the entropy of ``first / N`` minus ``second / N``, between 0 and log K;
        higher is better.
    """
    batch, classes, height, width = logits.shape
    total = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    entropy = torch.zeros((), dtype=torch.float64, device=logits.device)
    # In slices that fit into a processor's cache: several times faster, and no copy of all logits is made.
    for rows in logits.split(max(1, SLICE // (batch * classes * width)), dim=2):
        log = rows.float().log_softmax(1).clamp_min_(torch.finfo(torch.float32).min)  # 0 * -inf would be NaN
        probabilities = log.exp()
        total += probabilities.sum((0, 2, 3))
        entropy -= (probabilities * log).sum()
    return total / (height * width), entropy / (height * width)
