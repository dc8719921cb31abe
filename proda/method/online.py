"""Online self-training with a mean teacher: DACS (arXiv:2007.08702), as DAFormer (arXiv:2111.14887) has it.

B batch, K classes, h w height and width of the maps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from proda.method import IGNORE

CONFIDENT = 0.968  # published; a pixel counts as confident from this probability on


def confident_fraction(confidence: Tensor, threshold: float = CONFIDENT) -> Tensor:
    """Share of the pixels of each image whose ``confidence`` is at least ``threshold``, float32 [B].

    ``confidence`` [B, h, w] is the largest probability of each pixel. The share is one weight for all pixels of the
    image: unsure pixels are trained on too, but everything counts less as long as the teacher is unsure.
    """
    return (confidence >= threshold).float().mean((1, 2))


def pixel_weights(
    confident_fraction: Tensor, size: tuple[int, int], *, ignore_top: int = 0, ignore_bottom: int = 0
) -> Tensor:
    """Weight of each pixel, float32 [B, h, w]: ``confident_fraction`` [B] of its image; 0 at the top and the bottom.

    ``size`` is h, w. In photographs from a car, the top rows have artefacts of rectification and the bottom rows show
    the bonnet.
    """
    height, width = size
    row = torch.arange(height, device=confident_fraction.device)
    inside = (row >= ignore_top) & (row < height - ignore_bottom)
    return (confident_fraction[:, None] * inside.float())[:, :, None].expand(-1, -1, width)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy times ``weights``, averaged over all pixels, scalar float32.

    ``logits`` [B, K, h, w], ``labels`` [B, h, w] in 0..K-1 or ``IGNORE``, ``weights`` float32 [B, h, w]. Ignored pixels
    have the loss 0 and count in the average, as pixels of weight 0 do.
    """
    per_pixel = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="none")
    return (per_pixel * weights).mean()


def student_weight(iteration: int, momentum: float = 0.001) -> float:
    """Weight of the student in the teacher's moving average after step ``iteration`` = 1, 2, ...

    At first the teacher is the mean of all students so far, the initial one included.
    """
    return max(1 / (iteration + 1), momentum)
