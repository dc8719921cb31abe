"""A light head for CPUs, small GPUs and edge devices: ProDA's on the last three scales of an encoder, with 64 features.

B batch, K classes; the maps of the encoder are [B, C_i, h_i, w_i], the largest scale first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proda.models.deeplab import CHANNELS_PER_GROUP, Head, initialise_as_released
from proda.models.layers import resize_half_pixel
from proda.models.network import Segmentation

CHANNELS = 64  # of each scale after its projection, and of the features
DILATIONS = (3, 6, 9, 12)  # half of the published ones: for images a few hundred pixels wide
SCALES = 3  # of the encoder, the last ones: 1/8, 1/16 and 1/32 of the image


class LightHead(Head):
    """Brings every scale to 64 channels and one size, concatenates them, and goes on as ProDA's head.

    It has group norm only, so frozen batch norm suits it. Fresh projections have He's deviation; the other convolutions
    have 0.01, as in the released head: a group norm follows each, so the signal does not die out, and they learn faster
    than from He's. ``in_channels``: C_i of each scale.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, dropout: float) -> None:
        super().__init__(CHANNELS * len(in_channels), CHANNELS, num_classes, dilations=DILATIONS, dropout=dropout)
        initialise_as_released(self)
        self.projections = nn.ModuleList([_projection(width) for width in in_channels])

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Segmentation:  # type: ignore[override]
        """``maps``: one for each scale. ``size``: height and width of the output."""
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        return super().forward(torch.cat([resize_half_pixel(x, size) for x in projected], dim=1))


def _projection(in_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, CHANNELS, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(CHANNELS // CHANNELS_PER_GROUP, CHANNELS), nn.ReLU(inplace=True))
