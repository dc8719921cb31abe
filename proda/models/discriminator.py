"""Patch discriminator of the warm-up: tells from which domain a segmentation comes."""

import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Four convolutions of stride 2 and a classifier, on softmax maps that are upsampled to image size.

    Takes class probabilities float [B, K, H, W] and returns one score per patch [B, 1, H/16, W/16] (rounded up),
    before any sigmoid; source is labelled 0 and target 1. ``width``: channels of the first convolution; each of the
    next has twice as many. Source: ``FCDiscriminator`` of the released code, after AdaptSegNet (arXiv:1802.10349).
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(num_classes, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(8 * width, 1, 1)

    def forward(self, probabilities: Tensor) -> Tensor:
        x = F.relu(self.conv1(probabilities))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = F.leaky_relu(self.conv4(x), 0.2)  # only the last one is leaky, as released
        return self.classifier(x)
