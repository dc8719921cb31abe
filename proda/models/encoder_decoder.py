"""A segmentation network from an encoder and one of the heads; see ``Encoder`` for what an encoder is.

B batch, K classes, D features, H W image height and width, h w those of the output.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proda.models import light
from proda.models.daformer import DAFormerHead
from proda.models.deeplab import DILATIONS, Head, initialise_as_released
from proda.models.encoders import Encoder
from proda.models.layers import BatchNorm, ChannelNorm, cropped, resize_half_pixel
from proda.models.network import Segmentation, SegmentationNetwork, checkpointed

CHANNELS = 256  # D of the published heads


class EncoderDecoder(SegmentationNetwork):
    """An encoder, a layer norm on each scale that the head reads, and the head.

    Takes RGB in 0..1, float [B, 3, H, W]; subtracts the encoder's mean and divides by its deviation; and fills the
    image up, at the right and at the bottom and with 0 (the mean colour), to sides that the encoder takes. Returns
    :class:`Segmentation` at 1/4 of the image size with DAFormer's head (which reads all scales), at 1/8 with ProDA's
    (which reads the last one) and the light one (the last three), rounded up (where the encoder's ``stride`` is 4). The
    norms are those that ConvNeXt and Swin have for segmentation, and DAFormer's own backbone too: scales of an encoder
    may differ in size by orders of magnitude. ``bn_pretrain``: one more batch norm on the last scale, before the layer
    norm.
    """

    backbone_prefix = "encoder."

    def __init__(self, num_classes: int, encoder: Encoder, *, head: str, bn_pretrain: bool, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.head = num_classes, head
        self.num_features = light.CHANNELS if head == "light" else CHANNELS
        self.encoder = encoder
        red, green, blue = encoder.mean
        self.neutral_color = (red, green, blue)
        self.bn_pretrain = BatchNorm(encoder.channels[-1]) if bn_pretrain else None
        read = encoder.channels[-{"daformer": len(encoder.channels), "light": light.SCALES}.get(head, 1) :]
        self.norms = nn.ModuleList([ChannelNorm(channels) for channels in read])
        self.decoder: Head | DAFormerHead
        if head == "daformer":
            self.decoder = DAFormerHead(read, CHANNELS, num_classes, dilations=DILATIONS[head], dropout=dropout)
        elif head == "light":
            self.decoder = light.LightHead(read, num_classes, dropout=dropout)
        else:
            self.decoder = Head(read[-1], CHANNELS, num_classes, dilations=DILATIONS[head], dropout=dropout)
            initialise_as_released(self.decoder)
        # Not part of the state dict: they belong to the encoder, not to what is learnt.
        self.register_buffer("mean", torch.tensor(encoder.mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(encoder.deviation)[:, None, None], persistent=False)

    def _scales(self, image: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """The maps of the encoder, and the height and width of the image that they are of, which was filled up."""
        image = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        # No negative numbers here and below: ONNX divides and rounds them in another way.
        height, width = self.filled_size(image.shape[2], image.shape[3])
        image = F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))
        if self.checkpoint_activations and not self.encoder.recomputes_stages:
            *scales, x = checkpointed(self.encoder, image)
        else:
            *scales, x = self.encoder(image)
        return [*scales, self.backbone_output(x)], (height, width)

    def filled_size(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.encoder.multiple
        return (height + multiple - 1) // multiple * multiple, (width + multiple - 1) // multiple * multiple

    def _cells(self, side: int) -> int:
        """Cells of the output for so many pixels, the last one perhaps in part."""
        halves = int(2 * self.encoder.stride) * (1 if self.head == "daformer" else 2)  # of pixels in a cell
        return (2 * side + halves - 1) // halves

    def backbone_features(self, image: Tensor) -> Tensor:
        return self._scales(image)[0][-1]

    def forward(self, image: Tensor) -> Segmentation:
        scales, filled = self._scales(image)
        if self.bn_pretrain is not None:
            scales[-1] = self.bn_pretrain(scales[-1])
        size = (self._cells(filled[0]), self._cells(filled[1]))
        read = [norm(x) for norm, x in zip(self.norms, scales[-len(self.norms) :], strict=True)]
        del scales  # without gradients, nothing else keeps what the head does not read
        if isinstance(self.decoder, DAFormerHead | light.LightHead):
            output = self.decoder(read, size)
        else:
            output = self.decoder(resize_half_pixel(read[0], size))
        h, w = (self._cells(side) for side in image.shape[2:])  # without those that show the filling alone
        return Segmentation(cropped(output.logits, h, w), cropped(output.features, h, w))

    @property
    def checkpoint_activations(self) -> bool:
        return self.encoder.checkpoint_activations

    @checkpoint_activations.setter
    def checkpoint_activations(self, value: bool) -> None:
        self.encoder.checkpoint_activations = value

    def backbone_parts(self) -> tuple[nn.Module, ...]:
        return (self.encoder,)

    def head_parts(self) -> tuple[nn.Module, ...]:
        parts = (self.norms, self.decoder)
        return parts if self.bn_pretrain is None else (self.bn_pretrain, *parts)


def on_encoder(make: Callable[[], Encoder]) -> Callable[..., EncoderDecoder]:
    """A builder for ``BUILDERS``: the backbone is what ``make`` returns; the head is the one asked for."""
    return lambda num_classes, **options: EncoderDecoder(num_classes, make(), **options)
