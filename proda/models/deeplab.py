"""DeepLabV2 with the squeeze-and-excitation ASPP head of ProDA (arXiv:2101.10979), on torchvision's residual blocks.

State-dict keys and shapes are those of the released network, so that its weights load with ``strict=True``. In place
of ProDA's head the same dilated ResNet may have DAFormer's.
"""

# B batch, K classes, D features of the head, H W image height and width, h w = H/8 + 1, W/8 + 1 (at network stride).
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from proda.models.daformer import DAFormerHead
from proda.models.layers import BatchNorm, Dropout
from proda.models.network import Segmentation, SegmentationNetwork, checkpointed
from proda.utils.errors import UserError

CHANNELS_PER_GROUP = 8  # of every GroupNorm: 32 groups at the published 256 channels
SQUEEZE_RATIO = 16
DILATIONS = {"deeplab": (6, 12, 18, 24), "daformer": (1, 6, 12, 18)}  # head -> as published


class SqueezeExcitation(nn.Module):
    """Multiplies every channel by a factor in 0..1 that is computed from the means of all channels over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // SQUEEZE_RATIO
        self.se = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(inplace=True), nn.Linear(squeezed, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x.mean((2, 3)))[:, :, None, None]


class Head(nn.Module):
    """Parallel dilated convolutions, concatenated, weighted by channel, reduced to D features, then classified.

    DeepLab adds its branches; this head concatenates them, as ``Classifier_Module2`` of the released code does.
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, *, dilations: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        groups = channels // CHANNELS_PER_GROUP

        def branch(kernel: int, dilation: int) -> nn.Sequential:
            convolution = nn.Conv2d(in_channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
            return nn.Sequential(convolution, nn.GroupNorm(groups, channels), nn.ReLU(inplace=True))

        self.conv2d_list = nn.ModuleList([branch(1, 1), *(branch(3, dilation) for dilation in dilations)])
        concatenated = channels * len(self.conv2d_list)
        self.bottleneck = nn.Sequential(
            SqueezeExcitation(concatenated),
            nn.Conv2d(concatenated, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),  # without a ReLU after it: features have both signs
        )
        nn.init.zeros_(self.bottleneck.get_parameter("1.bias"))
        self.head = nn.Sequential(Dropout(dropout), nn.Conv2d(channels, num_classes, 1, bias=False))

    def forward(self, x: Tensor) -> Segmentation:
        x = self.bottleneck(torch.cat([branch(x) for branch in self.conv2d_list], dim=1))
        dropout, classifier = self.head
        features = dropout(x)
        return Segmentation(classifier(features), features)


@torch.no_grad()
def initialise_as_released(module: nn.Module) -> None:
    """Draws every convolution with a standard deviation of 0.01; the biases of the head's branches keep torch's."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.normal_(0, 0.01)


class DeepLab(SegmentationNetwork):
    """Dilated ResNet and head.

    Takes RGB in 0..1, neither centred nor scaled, float [B, 3, H, W]. Returns :class:`Segmentation` at 1/8 (or 1/4) of
    the image size, rounded up, plus 1 if the size is a multiple of 8 (or 4); with DAFormer's head always at 1/4.

    ``blocks``: residual blocks of the four stages. ``width``: channels of the stem; the stages have 4, 8, 16 and 32
    times as many (64 is ResNet). ``head_channels``: D, a multiple of 8. ``stride``: 8, or 4 for small images, where
    the first convolution keeps full resolution. ``dilations``: of the head's branches; None is as published. ``head``,
    ``bn_pretrain`` and ``dropout`` as in ``build_network``. Fresh weights are as published, too: every convolution (of
    the backbone alone under DAFormer's head) is normal with standard deviation 0.01; pretrained weights are expected to
    overwrite them. Raises UserError for a head that only encoders have, ValueError for a stride or a number of channels
    that cannot be built.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        width: int = 64,
        head_channels: int = 256,
        stride: int = 8,
        bn_pretrain: bool = False,
        dropout: float = 0.1,
        dilations: tuple[int, ...] | None = None,
        head: str = "deeplab",
    ) -> None:
        super().__init__()
        if head not in DILATIONS:
            raise UserError(
                f"--head={head}: it reads the scales of an encoder, which resnet101, resnet50 and tiny are not; choose "
                "--backbone=timm:NAME or one of torchvision's encoders (docs/networks.md)"
            )
        if stride not in (4, 8):
            raise ValueError(f"stride must be 4 or 8, got {stride}")
        if head_channels < 1 or head_channels % CHANNELS_PER_GROUP:
            raise ValueError(f"head_channels must be a multiple of {CHANNELS_PER_GROUP}, got {head_channels}")
        self.num_classes, self.num_features, self.head = num_classes, head_channels, head
        self.stride, dilations = stride, dilations or DILATIONS[head]
        widths = [factor * width * Bottleneck.expansion for factor in (1, 2, 4, 8)]

        self.conv1 = nn.Conv2d(3, width, 7, stride=stride // 4, padding=3, bias=False)
        self.bn1 = BatchNorm(width)
        # The "plus 1" of the output size comes from the ceil mode.
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(width, width, blocks[0], stride=1, dilation=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], stride=2, dilation=1)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], stride=1, dilation=2)
        self.layer4 = _stage(16 * width, 8 * width, blocks[3], stride=1, dilation=4)
        self.layer5: Head | DAFormerHead
        if head == "daformer":
            initialise_as_released(self)  # before the head is there, whose fresh weights are its own
            self.layer5 = DAFormerHead(widths, head_channels, num_classes, dilations=dilations, dropout=dropout)
        else:
            self.layer5 = Head(widths[-1], head_channels, num_classes, dilations=dilations, dropout=dropout)
            initialise_as_released(self)
        self.bn_pretrain = BatchNorm(widths[-1]) if bn_pretrain else None

    def backbone_features(self, image: Tensor) -> Tensor:
        return self._backbone(image)

    def _backbone(self, image: Tensor, scales: list[Tensor] | None = None) -> Tensor:
        """The output of the last stage; those of the stages before it are added to ``scales``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image)), inplace=True))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = checkpointed(stage, x) if self.checkpoint_activations else stage(x)
            if scales is not None and stage is not self.layer4:
                scales.append(x)
        return self.backbone_output(x)

    def forward(self, image: Tensor) -> Segmentation:
        scales: list[Tensor] | None = [] if isinstance(self.layer5, DAFormerHead) else None
        x = self._backbone(image, scales)
        if self.bn_pretrain is not None:
            x = self.bn_pretrain(x)
        if scales is None:
            return self.layer5(x)
        quarter = scales[0 if self.stride == 8 else 1]
        return self.layer5([*scales, x], (quarter.shape[2], quarter.shape[3]))

    def backbone_parts(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4

    def head_parts(self) -> tuple[nn.Module, ...]:
        return (self.layer5,) if self.bn_pretrain is None else (self.bn_pretrain, self.layer5)


def _stage(in_channels: int, planes: int, blocks: int, *, stride: int, dilation: int) -> nn.Sequential:
    """A residual stage; its first block has a projection as shortcut, and is dilated like the others."""
    out_channels = planes * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm(out_channels))
    first = Bottleneck(in_channels, planes, stride, shortcut, dilation=dilation, norm_layer=BatchNorm)
    # torchvision has the stride in the 3 x 3 convolution; here it is in the first 1 x 1, as in the original ResNet.
    first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
    others = (Bottleneck(out_channels, planes, dilation=dilation, norm_layer=BatchNorm) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def tiny(num_classes: int, *, head: str, **options: Any) -> DeepLab:
    """A network for images of about 256 x 128 that is trained from scratch.

    Its convolutions start with He's deviation; at 0.01 the signal would die out over the layers.
    """
    network = DeepLab(
        num_classes,
        blocks=(1, 1, 1, 1),
        width=8,
        head_channels=32,
        stride=4,
        # These cover as large a part of a crop as the published ones, in two steps instead of four.
        dilations=(3, 6) if head == "deeplab" else (1, 3, 6),
        head=head,
        **options,
    )
    fresh = network.backbone_parts() + ((network.layer5,) if head == "deeplab" else ())  # DAFormer's has it already
    classifier = network.layer5.head[1]  # stays small, so that the first predictions are undecided
    for module in (module for part in fresh for module in part.modules()):
        if isinstance(module, nn.Conv2d) and module is not classifier:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
