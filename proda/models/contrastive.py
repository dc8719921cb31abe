"""A backbone with projection heads: what contrastive pretraining trains. Only the backbone is kept.

N pairs of views, C channels of the backbone, D dimensions of an embedding, R = rows * columns regions of a pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from proda.models.encoder_decoder import EncoderDecoder
from proda.models.layers import BatchNorm
from proda.models.network import SegmentationNetwork, evaluation_mode
from proda.utils.errors import UserError

GRID = (4, 4)  # rows and columns of regions in the part that both views show
SAMPLES = 2  # a region is the mean of this number of samples squared


class Embeddings(NamedTuple):
    """Embeddings of both views, not normalised."""

    images: Tensor  # [2, N, D]
    regions: Tensor  # [2, N, R, D]; a region is at the same place of the scene in both views


class ContrastiveNetwork(nn.Module):
    """Embeds whole views, and regions of the part of the scene that both views of a pair show.

    The backbone's last features are averaged over the view or over the region, and projected by two 1x1 convolutions
    with batch norm and ReLU between them. Images and regions have projections of their own.

    Args:
        network: its backbone is trained. Its head gets no gradient, so that DDP does not expect one.
        hidden: channels between the two convolutions.
        dimensions: D.

    Raises:
        UserError: the network does not offer ``backbone_features``.
    """

    def __init__(self, network: SegmentationNetwork, *, hidden: int, dimensions: int) -> None:
        super().__init__()
        self.network = network
        for part in network.head_parts():
            part.requires_grad_(False)
        channels = _channels(network)
        self.image_projection = _projection(channels, hidden, dimensions)
        self.region_projection = _projection(channels, hidden, dimensions)

    def forward(self, views: Tensor, overlap: Tensor, flipped: Tensor) -> Embeddings:
        """``views`` float [N, 2, 3, H, W] in 0..1; ``overlap`` and ``flipped`` as :func:`pool_regions` takes them."""
        features = self.network.backbone_features(views.transpose(0, 1).flatten(0, 1))
        images = self.image_projection(features.mean((2, 3), keepdim=True))
        regions = pool_regions(features, *(of_pair.transpose(0, 1).flatten(0, 1) for of_pair in (overlap, flipped)))
        regions = self.region_projection(regions.to(features.dtype))
        return Embeddings(
            images.flatten(1).unflatten(0, (2, -1)), regions.flatten(2).transpose(1, 2).unflatten(0, (2, -1))
        )


def pool_regions(features: Tensor, overlap: Tensor, flipped: Tensor) -> Tensor:
    """Means of the features over a grid of regions of a part of each image, [B, C, rows, columns], at least float32.

    ``features`` [B, C, h, w], whose outermost values lie on the edges of the image (as in a network that computes 1/8
    of the size plus 1; encoders have them half a cell inside, which moves regions by less than that).
    ``overlap`` float [B, 4]: left, top, right and bottom of the part, as fractions of the image's sides.
    ``flipped`` bool [B]: the image is mirrored; its grid is mirrored back.
    """
    height, width = features.shape[-2:]
    features = features.float()
    boxes = overlap.to(features) * features.new_tensor([width - 1, height - 1, width - 1, height - 1])
    regions = roi_align(features, list(boxes.split(1)), GRID, sampling_ratio=SAMPLES)
    return regions.where(~flipped[:, None, None, None], regions.flip(-1))


@torch.no_grad()
def he_initialise(network: SegmentationNetwork) -> None:
    """Draws the backbone's convolutions with He's deviation, as torchvision's ResNet does.

    Fresh published networks have a deviation of 0.01, because pretrained weights are expected to overwrite them.
    Encoders have fresh weights of their own, with which they are trained from scratch.
    """
    if isinstance(network, EncoderDecoder):
        return
    for part in network.backbone_parts():
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _projection(channels: int, hidden: int, dimensions: int) -> nn.Sequential:
    """1x1 convolutions, so that batch norm is of the class that the backbone has."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, dimensions, 1),
    )


@torch.no_grad()
def _channels(network: SegmentationNetwork) -> int:
    """The number of channels of the backbone's features."""
    weight = next(network.parameters())
    try:
        with evaluation_mode(network):
            return network.backbone_features(weight.new_zeros(1, 3, 64, 64)).shape[1]
    except NotImplementedError:
        raise UserError(
            f"--backbone={network.backbone}: pretraining needs a network with backbone_features (docs/extending.md)"
        ) from None
