"""Pseudo labels: rectifying soft ones by prototypes (stage 1), selecting confident hard ones (stages 2 and 3).

B batch, K classes, h w height and width of the maps.
"""

import torch
from torch import Tensor

from proda.method import IGNORE


def rectify(soft_labels: Tensor, weights: Tensor) -> Tensor:
    """Soft labels multiplied by prototype weights and normalised (equation 3): the paper's online denoising.

    Both [B, K, h, w]; returns float32 probabilities of that shape. If the product is 0 for every class of a pixel,
    the result is 0 too, and the pixel has no hard label.
    """
    product = soft_labels.float() * weights.float()
    return product / product.sum(1, keepdim=True).clamp(min=torch.finfo(product.dtype).tiny)


def hard_labels(probabilities: Tensor, *, threshold: float = 0.0) -> Tensor:
    """The most probable class, int64 [B, h, w]; ``IGNORE`` where its probability is below ``threshold`` or 0.

    ``probabilities`` [B, K, h, w], normalised.
    """
    confidence, labels = probabilities.max(1)
    return labels.masked_fill((confidence < threshold) | (confidence == 0), IGNORE)


def confident_labels(
    labels: Tensor, confidence: Tensor, *, threshold: float = 0.95, as_released: bool = False
) -> Tensor:
    """Labels whose confidence exceeds ``threshold``, ``IGNORE`` elsewhere.

    ``labels`` and ``confidence`` have the same shape. ``as_released`` compares in float16, in which 0.9503 does not
    exceed 0.95, and keeps all labels if the threshold is 0.
    """
    if as_released:
        if threshold == 0:
            return labels.clone()
        limit = torch.full((), threshold, dtype=torch.float16, device=confidence.device)
        return labels.masked_fill(confidence.half() <= limit, IGNORE)
    return labels.masked_fill(~(confidence.float() > threshold), IGNORE)  # float16 would round 0.95


def flip_averaged(probabilities: Tensor, mirrored: Tensor) -> Tensor:
    """Mean of the probabilities [..., h, w] of an image and those of its mirror image, which are mirrored back."""
    return (probabilities + mirrored.flip(-1)) / 2
