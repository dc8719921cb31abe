"""The head of DAFormer (arXiv:2111.14887): all scales of the backbone at one resolution, with context.

B batch, K classes, D features; the maps of the backbone are [B, C_i, h_i, w_i], the largest scale first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proda.models.layers import BatchNorm, Dropout, resize_half_pixel
from proda.models.network import Segmentation


class DAFormerHead(nn.Module):
    """Brings every scale to D channels and one size, fuses them by a depthwise separable ASPP, and classifies.

    As published, but for dropout, which draws for the global batch. Fresh weights have He's deviation, those of the
    classifier 0.01, so that the first predictions are undecided. ``in_channels``: C_i of each scale. ``channels``: D;
    256 as published. ``dilations``: of the branches of the ASPP; that of 1 is a 1 x 1 convolution, as in DeepLab's.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in in_channels])
        concatenated = channels * len(in_channels)
        self.branches = nn.ModuleList(
            [
                _block(concatenated, channels, 1) if dilation == 1 else _separable(concatenated, channels, dilation)
                for dilation in dilations
            ]
        )
        self.fusion = _block(channels * len(self.branches), channels, 3)
        self.head = nn.Sequential(Dropout(dropout), nn.Conv2d(channels, num_classes, 1))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    module.bias.zero_()
        self.head.get_parameter("1.weight").normal_(0, 0.01)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Segmentation:
        """``maps``: one for each scale. ``size``: height and width of the output, and of the fusion."""
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        x = torch.cat([resize_half_pixel(x, size) for x in projected], dim=1)
        x = self.fusion(torch.cat([branch(x) for branch in self.branches], dim=1))
        dropout, classifier = self.head
        features = dropout(x)
        return Segmentation(classifier(features), features)


def _block(in_channels: int, channels: int, kernel: int, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(
        in_channels, channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    return nn.Sequential(convolution, BatchNorm(channels), nn.ReLU(inplace=True))


def _separable(in_channels: int, channels: int, dilation: int) -> nn.Sequential:
    """A dilated convolution of each channel on its own, then one that mixes the channels."""
    return nn.Sequential(
        _block(in_channels, in_channels, 3, dilation=dilation, groups=in_channels), _block(in_channels, channels, 1)
    )
