"""Class prototypes: the mean feature of each class, and how far each pixel's feature is from it.

B batch, K classes, D feature size, h w height and width of the maps, N updates (the images of all processes).
All results are float32, whatever the inputs and also inside autocast: distances are differences of large numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ClassMeans(NamedTuple):
    """Mean feature of every class in every image."""

    means: Tensor  # float32 [B, K, D], 0 where the class is absent
    present: Tensor  # bool [B, K]


def class_means(
    features: Tensor,
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    min_confidence: float = 0.0,
    min_pixels: int = 10,
) -> ClassMeans:
    """Mean feature of the pixels that are predicted as each class, image by image.

    ``features`` [B, D, h, w], ``logits`` [B, K, h, w]. With ``labels`` [B, h, w] (integers), only pixels whose
    prediction equals the label count. A class with fewer than ``min_pixels`` pixels in an image is absent from it. The
    mean is over the pixels whose highest probability is at least ``min_confidence``; ``min_pixels`` counts all.
    Source: ``calculate_mean_vector`` in the released code.
    """
    num_classes = logits.shape[1]
    classes = torch.arange(num_classes, device=logits.device)[:, None, None]
    predicted = logits.max(1).indices  # faster than argmax on a CPU
    member = predicted.unsqueeze(1) == classes  # [B, K, h, w]
    if labels is not None:
        member = member & (labels == predicted).unsqueeze(1)
    enough = member.sum((2, 3)) >= min_pixels
    if min_confidence > 0:
        member = member & (logits.float().softmax(1).amax(1, keepdim=True) >= min_confidence)
    with _full_precision(features):
        member = member.flatten(2).float()
        pixels = member.sum(2)
        present = enough & (pixels > 0)
        sums = member @ features.float().flatten(2).mT
    means = sums / pixels.clamp(min=1).unsqueeze(2)
    return ClassMeans(means * present.unsqueeze(2), present)


def update_prototypes(
    prototypes: Tensor,
    counts: Tensor,
    means: Tensor,
    present: Tensor,
    *,
    momentum: float | None,
    start_mean: int = 0,
    cap: int = 3000,
) -> tuple[Tensor, Tensor]:
    """Prototypes and counts after N updates one after another, each with the class means of one image (equation 6).

    ``prototypes`` [K, D], ``counts`` [K] (updates so far, at most ``cap``), ``means`` [N, K, D], ``present`` [N, K].
    ``momentum`` in (0, 1] is the weight of the new value in a moving average, 1 - lambda in the paper. None is the
    running mean, P <- (c P + v) / (c + 1), whose count c stays at ``cap`` once it is there. While a count is below
    ``start_mean``, the running mean is used in either case. A mean whose entries sum to exactly 0 is not counted.
    Returns new tensors; raises ValueError for another momentum.

    Source: ``update_objective_SingleVector`` in the released code. Its loop is computed at once: mean n enters with
    the weight of its own update, times what each later update of the class leaves of earlier values.
    """
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(f"the momentum of prototypes must be in (0, 1] or None, got {momentum}")
    means = means.to(prototypes.dtype)
    seen = (present & (means.sum(2) != 0)).long()  # [N, K], 0 or 1; integers add up deterministically on a GPU too
    updates = seen.to(counts.dtype)
    counts_before = (counts + (seen.cumsum(0) - seen).to(counts.dtype)).clamp(max=cap)
    share = 1 / (counts_before + 1)
    if momentum is not None:
        share = torch.where(counts_before < start_mean, share, momentum)
    share = (share * updates).to(prototypes.dtype)
    kept = 1 - share
    kept_later = torch.cat([kept[1:], torch.ones_like(kept[:1])]).flip(0).cumprod(0).flip(0)
    moved = prototypes * kept.prod(0).unsqueeze(1) + ((share * kept_later).unsqueeze(2) * means).sum(0)
    return moved, (counts + updates.sum(0)).clamp(max=cap)


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """Euclidean distance of every pixel's feature to every prototype.

    ``features`` [B, D, h, w], ``prototypes`` [K, D]; returns [B, K, h, w]. One matrix product, differentiable
    everywhere, with zero gradient where feature and prototype coincide.
    """
    with _full_precision(features):
        prototypes = prototypes.float()
        # |f|^2 - 2 f.p + |p|^2 cancels badly far from the origin; moving the origin changes no distance.
        origin = prototypes.mean(0)
        f = features.float().flatten(2) - origin.unsqueeze(1)  # [B, D, h*w]
        p = prototypes - origin
        f_norm = torch.linalg.vector_norm(f, dim=1, keepdim=True)
        p_norm = torch.linalg.vector_norm(p, dim=1).unsqueeze(1)
        squared = f_norm.square() + p_norm.square() - 2 * (p @ f)
        # Rounding can leave a small negative number, and the derivative of a square root is infinite at 0.
        return squared.clamp(min=1e-12).sqrt().unflatten(2, features.shape[2:])


def prototype_weights(distances: Tensor, *, temperature: float = 1.0) -> Tensor:
    """How likely each class is at each pixel (equation 4): softmax(-temperature * distance) over the classes.

    ``distances`` [B, K, h, w] to the prototypes; returns float32 [B, K, h, w], which sums to 1 over K. The distance is
    multiplied by the temperature, as in the released code, and not divided by it, as in the paper. The released code
    first subtracts the smallest distance, which changes nothing. Source: the weight omega of the paper;
    ``get_prototype_weight`` in the released code.
    """
    return (-temperature * distances.float()).softmax(1)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products stay in float32 although autocast is on outside."""
    return torch.autocast(tensor.device.type, enabled=False)
