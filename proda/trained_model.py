"""A trained network in a program of your own: ``load_model("last.pt").predict("photo.jpg")``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from proda.data.image_files import picture_as_rgb, read_image
from proda.data.labels import stored_labels
from proda.data.samples import image_tensor
from proda.engines.inference import require_finite
from proda.engines.prediction import probability_rows
from proda.engines.tiling import SMALLEST_TILE, automatic_tile
from proda.method.tensors import to_float
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork
from proda.models.weights import load_network, read_weights
from proda.settings.options import SCALES

Picture = str | Path | Image.Image | np.ndarray | Tensor  # see TrainedModel.probabilities


def load_model(
    path: str | Path, device: str | torch.device = "auto", *, tile: int = 0, backbone: str = ""
) -> "TrainedModel":
    """The network of a weights file, ours or a released ``.pkl``, ready to predict.

    Args:
        path: the weights file, which says what network it is.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is "cuda" if there is a GPU.
        tile: larger images are predicted in overlapping tiles of at most this side, in pixels; 0: automatic, by the
            size of the images that the network was trained on.
        backbone: the file ``NAME.py`` of a network of your own, which is executed; otherwise not needed.

    Raises:
        ValueError: a tile of less than 32 pixels.
        MissingFileError: there is no such file.
        UserError: the file is damaged, or does not hold the weights of a known network.
    """
    if 0 != tile < SMALLEST_TILE:
        raise ValueError(f"tile={tile}, expected 0 or at least {SMALLEST_TILE} pixels")
    weights = read_weights(path, flag="")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_network(weights, backbone=backbone, dropout=0.0).to(device).to(memory_format=torch.channels_last)
    return TrainedModel(network, weights.info, tile or automatic_tile(weights.info.mean_width))


class TrainedModel:
    """A network in evaluation mode, with its classes.

    ``network`` takes RGB in 0..1, float [B, 3, H, W]; ``info`` is all that the file says. ``class_names`` has K names
    in the order of the class numbers, ``class_ids`` uint8 [K] the value of each class in label files of the target, and
    ``colors`` uint8 [K, 3] RGB, so that ``colors[labels]`` is a picture.
    """

    def __init__(self, network: SegmentationNetwork, info: ModelInfo, tile: int) -> None:
        space = stored_labels(network.num_classes, info.class_names, info.colors, info.label_ids)
        self.network, self.info, self.tile = network.eval(), info, tile
        self.class_names, self.colors, self.class_ids = tuple(space.names), space.colors, space.ids

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def predict(self, image: Picture, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> np.ndarray:
        """The most probable class of each pixel, uint8 [H, W]. Arguments as for :meth:`probabilities`."""
        rows = [row.max(1).indices[0].byte().cpu() for row in self._rows(image, flip, scales)]
        return torch.cat(rows).numpy()

    def probabilities(self, image: Picture, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> np.ndarray:
        """Class probabilities of each pixel, float32 [K, H, W], of the image's own size.

        Args:
            image: an image file, a picture of Pillow, uint8 [H, W, 3] (RGB), or a tensor [3, H, W] of floats in 0..1
                or of bytes.
            flip: average the predictions of the image and of its mirror image.
            scales: scales of the image to average over.

        Raises:
            MissingFileError, UserError: the file cannot be read.
            ValueError: an array or tensor of another type or shape, or a scale outside 0.1..10.
            FloatingPointError: the network predicts NaN.
        """
        return torch.cat([row[0].cpu() for row in self._rows(image, flip, scales)], dim=1).numpy()

    @torch.no_grad()
    def _rows(self, image: Picture, flip: bool, scales: Sequence[float]) -> Iterator[Tensor]:
        """Class probabilities [1, K, h, W] on the network's device, in strips from top to bottom."""
        if not scales or not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
            raise ValueError(f"scales={tuple(scales)}, expected numbers from {SCALES[0]} to {SCALES[1]}")
        pixels = as_tensor(image)
        if not pixels.numel():
            raise ValueError(f"an image of shape {list(pixels.shape)}, expected at least one pixel")
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.info.size is not None and size != self.info.size[::-1]:  # as images were resized in training
            pixels = _resized(pixels, self.info.size)
        pixels = pixels[None].to(self.device)
        inputs = pixels.float() if pixels.is_floating_point() else to_float(pixels)
        for row in probability_rows(self.network, inputs, size, tile=self.tile, flip=flip, scales=scales):
            require_finite(row)
            yield row


def as_tensor(image: Picture) -> Tensor:
    """An image as a tensor [3, H, W], of bytes or of floats in 0..1; see :meth:`TrainedModel.probabilities`."""
    if isinstance(image, str | Path):
        image = read_image(Path(image))
    if isinstance(image, Image.Image):
        return image_tensor(picture_as_rgb(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array of type {image.dtype} and shape {image.shape}, expected uint8 [H, W, 3]")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise ValueError(f"found {type(image).__name__}, expected a file, a picture, an array or a tensor")
    if image.ndim != 3 or image.shape[0] != 3 or not (image.is_floating_point() or image.dtype == torch.uint8):
        found = f"a tensor of {image.dtype} and shape {list(image.shape)}"
        raise ValueError(f"{found}, expected floats in 0..1 or bytes, of shape [3, H, W]")
    if image.is_floating_point() and image.numel() and not 0 <= image.min() <= image.max() <= 1:
        raise ValueError(f"a tensor of values from {image.min():g} to {image.max():g}, expected values in 0..1")
    return image.float() if image.is_floating_point() else image


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image tensor [3, H, W] resized by Pillow, as image files are; (width, height)."""
    channels = [Image.fromarray(channel.cpu().numpy()) for channel in image]
    arrays = [np.array(channel.resize(size, Image.Resampling.BILINEAR)) for channel in channels]
    return torch.from_numpy(np.stack(arrays))
