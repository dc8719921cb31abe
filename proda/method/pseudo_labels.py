"""Pseudo labels: denoising soft ones by prototypes (stage 1), keeping the sure hard ones (stages 2 and 3).

B batch, K classes, h w height and width of the maps.
"""

import torch
from torch import Tensor

from proda.method import IGNORE


def rectify(soft_labels: Tensor, weights: Tensor) -> Tensor:
    """Soft labels reweighted by prototype weights and normalised: the online denoising of the paper.

    Both [B, K, h, w]; returns float32 probabilities. A pixel to which no class gives weight and probability at once
    has 0 everywhere, and no hard label.
    """
    product = soft_labels.float() * weights.float()
    return product / product.sum(1, keepdim=True).clamp(min=torch.finfo(product.dtype).tiny)


def hard_labels(probabilities: Tensor, *, threshold: float = 0.0) -> Tensor:
    """The most probable class, int64 [B, h, w], or ``IGNORE`` where its probability is below ``threshold``.

    ``probabilities`` [B, K, h, w], normalised.
    """
    confidence, labels = probabilities.max(1)
    return labels.masked_fill((confidence < threshold) | (confidence == 0), IGNORE)


def confident_labels(
    labels: Tensor, confidence: Tensor, *, threshold: float = 0.95, as_released: bool = False
) -> Tensor:
    """Labels whose confidence exceeds ``threshold``, ``IGNORE`` elsewhere.

    ``labels`` and ``confidence`` of one shape. ``as_released`` compares in float16, in which 0.9503 does not exceed
    0.95, and takes a threshold of 0 to mean that all labels stay.
    """
    if as_released:
        if threshold == 0:
            return labels.clone()
        limit = torch.tensor(threshold, dtype=torch.float16, device=confidence.device)
        return labels.masked_fill(confidence.half() <= limit, IGNORE)
    return labels.masked_fill(~(confidence.float() > threshold), IGNORE)  # in float16, 0.95 is another number


def flip_averaged(probabilities: Tensor, mirrored: Tensor) -> Tensor:
    """Mean of the probabilities [..., h, w] of an image and of those of its mirror image, mirrored back."""
    return (probabilities + mirrored.flip(-1)) / 2
