"""ClassMix (arXiv:2007.07936): pixels of some classes of a source image are pasted onto a target image.

B batch, K classes, H W height and width of the images, h w those of the label maps.
"""

import torch
from torch import Tensor

from proda.method import IGNORE


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes occur in each label map, bool [B, K + 1]; the last column stands for ``IGNORE``.

    ``labels`` [B, h, w] in 0..K-1 or ``IGNORE``.
    """
    found = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    return found.scatter_(1, _columns(labels, num_classes).flatten(1), True)


def choose_classes(present: Tensor, order: Tensor) -> Tensor:
    """Half of the classes that are present in each row, rounded up: those that come first in ``order``. Bool [B, C].

    ``present`` bool [B, C]; ``order`` [B, C], numbers drawn at random.
    """
    rank = order.masked_fill(~present, torch.inf).argsort(1).argsort(1)
    return present & (rank < (present.sum(1, keepdim=True) + 1) // 2)


def pixels_of(chosen: Tensor, labels: Tensor) -> Tensor:
    """The pixels of the chosen classes, bool [B, h, w]. ``chosen`` bool [B, K + 1], ``labels`` [B, h, w]."""
    columns = _columns(labels, chosen.shape[1] - 1)
    return chosen.gather(1, columns.flatten(1)).unflatten(1, tuple(labels.shape[1:]))


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """``source`` where ``pasted`` bool [B, h, w] is set, ``target`` elsewhere; both [B, h, w] or [B, C, h, w]."""
    return torch.where(pasted if source.ndim == pasted.ndim else pasted.unsqueeze(1), source, target)


def _columns(labels: Tensor, num_classes: int) -> Tensor:
    labels = labels.long()
    return labels.where(labels != IGNORE, num_classes)
