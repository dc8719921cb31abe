"""What every segmentation network offers."""

from typing import NamedTuple

from torch import Tensor, nn


class Segmentation(NamedTuple):
    """What the network predicts for a batch, at network stride; the caller upsamples."""

    logits: Tensor  # [B, K, h, w] before softmax
    features: Tensor  # [B, D, h, w] where prototypes live


class SegmentationNetwork(nn.Module):
    num_classes: int
    num_features: int
    backbone: str
