"""What can be said about pseudo labels: how sure they are, what they agree with, and what rectification changes.

Every function counts or sums over pixels, so that its results can be added up over batches and processes before they
are divided. B batch, K classes, D feature size, h w height and width of the maps. Maps of classes are integers in
0..K-1; any larger number, such as ``IGNORE``, means that the pixel has no class.
"""

import math

import torch
from torch import Tensor


def contingency(rows: Tensor, columns: Tensor, num_classes: int) -> Tensor:
    """How many pixels have which pair of classes, int64 [K + 1, K + 1], of two maps of one shape.

    The last row and the last column count pixels without a class in the one map or in the other.
    """
    size = num_classes + 1
    pairs = rows.long().clamp(max=num_classes) * size + columns.long().clamp(max=num_classes)
    return torch.bincount(pairs.flatten(), minlength=size * size).unflatten(0, (size, size))


def agreement(table: Tensor) -> float:
    """Share of the pixels with a class in both maps of a ``contingency`` where it is the same; NaN without any."""
    both = table[:-1, :-1].double()
    return (both.trace() / both.sum()).item()


def certainty(probabilities: Tensor, where: Tensor | None = None) -> Tensor:
    """Number of pixels, and the sums over them of the confidence and of the normalised entropy; float64 [3].

    ``probabilities`` [B, K, h, w]; the confidence of a pixel is the highest of its K, and its entropy is divided by
    log K, so that both are in 0..1. ``where``, bool [B, h, w], selects pixels; None is all.
    """
    probabilities = probabilities.float()
    entropy = torch.special.entr(probabilities).sum(1) / math.log(probabilities.shape[1])
    values = torch.stack([torch.ones_like(entropy), probabilities.amax(1), entropy]).double()
    return (values if where is None else values * where).sum((1, 2, 3))


def corrections(before: Tensor, after: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """What changes do to the labels: int64 [3], the number of changed pixels, of those set right, of those spoilt.

    Maps [B, h, w]; only pixels with a true class count. Changes from one wrong class to another are in the first number
    alone.
    """
    changed = (before != after) & (truth < num_classes)
    return torch.stack([changed.sum(), (changed & (after == truth)).sum(), (changed & (before == truth)).sum()])


def nearest_distances(prototypes: Tensor) -> Tensor:
    """Distance of each prototype to the nearest other one, [K]; NaN where it or every other one is missing.

    ``prototypes`` [K, D]; one of zeros is that of a class that has not occurred.
    """
    there = prototypes.any(1)
    apart = torch.cdist(prototypes, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill(~(there[:, None] & there), math.inf).fill_diagonal_(math.inf)
    nearest = apart.amin(1)
    return nearest.masked_fill(nearest.isinf(), math.nan)


def movements(prototypes: Tensor, start: Tensor) -> Tensor:
    """Distance of each prototype [K, D] to where it was at the start, [K]; NaN for a class missing at either time."""
    there = prototypes.any(1) & start.any(1)
    return (prototypes - start).norm(dim=1).masked_fill(~there, math.nan)
