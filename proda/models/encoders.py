"""Encoders: backbones that give maps of several scales. What they share, and those of torchvision.

B batch, C_i channels of a scale, H W height and width of an image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth

from proda.models.network import checkpointed

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what most weights expect

# Name -> torchvision's function. Weights files of torchvision's classifiers fit.
TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "convnext_tiny": models.convnext_tiny,
    "convnext_small": models.convnext_small,
    "convnext_base": models.convnext_base,
    "convnext_large": models.convnext_large,
    "swin_v2_t": models.swin_v2_t,
    "swin_v2_s": models.swin_v2_s,
    "swin_v2_b": models.swin_v2_b,
}


class Encoder(nn.Module):
    """Base class. ``forward`` takes normalised images, float [B, 3, H, W]; H and W are multiples of ``multiple``.

    It returns a list of maps [B, C_i, h_i, w_i], the largest first; the last is the output of the last stage. There
    are usually four, at 1/4, 1/8, 1/16 and 1/32 of the image. Everything but ``channels`` has a default.
    """

    channels: Sequence[int]  # C_i
    mean: Sequence[float] = MEAN  # of RGB in 0..1: subtracted from images
    deviation: Sequence[float] = DEVIATION  # images are divided by it
    multiple: int = 32  # images are filled up to multiples of it
    stride: float = 4.0  # pixels in a cell of the output of DAFormer's head, a multiple of 0.5; ProDA's has twice that
    checkpoint_activations: bool = False  # keep fewer activations for the backward pass
    recomputes_stages: bool = False  # ``forward`` does so itself, stage by stage; otherwise for the encoder as a whole

    def renamed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a pretrained model of the encoder's library, under the names that they have here."""
        return found


class TorchvisionEncoder(Encoder):
    """The stages of torchvision's ConvNeXt or Swin V2, at 1/4, 1/8, 1/16 and 1/32 of the image; any image size.

    Stochastic depth is off. Torchvision's ``create_feature_extractor`` would give the same maps, but dissolve the
    stages, which are what is computed again with ``--checkpoint_activations``.
    """

    recomputes_stages = True

    def __init__(self, name: str) -> None:
        super().__init__()
        parts: Any = TORCHVISION[name](weights=None).features
        self.features: nn.Sequential = parts  # downsampling and stage, in turn
        self.channels_last = name.startswith("swin")  # maps are [B, H, W, C] inside
        width = parts[0][0].out_channels
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        for module in self.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0

    def forward(self, image: Tensor) -> list[Tensor]:
        x, scales = image, []
        for number, part in enumerate(self.features):
            x = checkpointed(part, x) if self.checkpoint_activations else part(x)
            if number % 2:
                scales.append(x.permute(0, 3, 1, 2) if self.channels_last else x)
        return scales


BUILDERS: dict[str, Callable[[], Encoder]] = {name: partial(TorchvisionEncoder, name) for name in TORCHVISION}
