"""Feature distance to a frozen backbone: the thing-class ImageNet feature distance of DAFormer (arXiv:2111.14887).

B batch, C channels, H W height and width of the label maps, h w those of the features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from proda.method.losses import divisor

# Objects, which ImageNet has classes for, unlike road or sky.
THINGS = (
    *("traffic_light", "traffic_sign", "person", "rider", "car"),
    *("truck", "bus", "train", "motorcycle", "bicycle"),
)
SMALLEST_SHARE = 0.75  # of the pixels of a cell


def mostly_one_of(labels: Tensor, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The cells of the features of which at least 75 % have the same one of ``classes``, bool [B, h, w].

    ``labels`` [B, H, W]; ``size`` is h, w. Cells overlap by a pixel where h or w do not divide H or W.
    """
    found = torch.zeros(len(labels), *size, dtype=torch.bool, device=labels.device)
    for number in classes:
        found |= F.adaptive_avg_pool2d((labels == number).float(), size) >= SMALLEST_SHARE
    return found


def feature_distance(features: Tensor, frozen: Tensor, counted: Tensor, *, positions: Tensor | None = None) -> Tensor:
    """Mean Euclidean distance of the features over the counted positions, scalar float32; 0 if there are none.

    ``features`` and ``frozen`` [B, C, h, w], ``counted`` bool [B, h, w]. ``positions``: a number to divide by instead
    of that of the counted ones.
    """
    distances = torch.linalg.vector_norm(features.float() - frozen.float(), dim=1)
    total = distances.where(counted, 0.0).sum()
    return total / divisor(counted.sum() if positions is None else positions)
