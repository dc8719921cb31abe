"""Weak and strong views of images: random parameters, and their application to images.

A view is drawn once as plain numbers (``WeakView``, ``StrongView`` of ``proda.method.views``) and then applied. This
module applies it to images and label maps; ``proda.method.views`` applies it to features, distances and soft labels.
Sizes are (height, width).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from proda.method.views import Operation, StrongView, WeakView
from proda.utils.errors import UserError

Size = tuple[int, int]  # height, width
FILL = (127, 127, 127)  # colour of the cutout and of pixels from outside the image


class _Kind(NamedTuple):
    """How a kind of operation is drawn and applied to an RGB image."""

    value: Callable[[int, int, Size], float | None]  # of the level 1..9, the sign -1 or 1, and the image's size
    apply: Callable[[Image.Image, Any], Image.Image]
    geometry: Operation | None = None  # what it does to the geometry


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Output (x, y) shows input (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL)


def _enhancement(enhancer: Callable[[Image.Image], Any]) -> _Kind:
    return _Kind(lambda level, _, __: 0.9 * level / 10 + 0.05, lambda image, value: enhancer(image).enhance(value))


def _shear(level: int, sign: int, size: Size) -> float:
    return sign * 0.3 * level / 10


def _none(*_: Any) -> None:
    return None


_KINDS = {
    "AutoContrast": _Kind(_none, lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": _Kind(_none, lambda image, _: ImageOps.equalize(image)),
    "Identity": _Kind(_none, lambda image, _: image),
    "Posterize": _Kind(lambda level, _, __: int(4 * level / 10) + 4, ImageOps.posterize),  # bits that stay
    "Solarize": _Kind(lambda level, _, __: 256 - int(256 * level / 10), ImageOps.solarize),  # inverted from here on
    "Brightness": _enhancement(ImageEnhance.Brightness),
    "Color": _enhancement(ImageEnhance.Color),
    "Contrast": _enhancement(ImageEnhance.Contrast),
    "Sharpness": _enhancement(ImageEnhance.Sharpness),
    "ShearX": _Kind(_shear, lambda image, x: _affine(image, (1, x, 0, 0, 1, 0)), Operation.SHEAR_X),
    "ShearY": _Kind(_shear, lambda image, y: _affine(image, (1, 0, 0, y, 1, 0)), Operation.SHEAR_Y),
    "TranslateX": _Kind(
        lambda level, sign, size: int(sign * 0.3 * level / 10 * size[1]),
        lambda image, x: _affine(image, (1, 0, x, 0, 1, 0)),
        Operation.TRANSLATE_X,
    ),
    "TranslateY": _Kind(
        lambda level, sign, size: int(sign * 0.3 * level / 10 * size[0]),
        lambda image, y: _affine(image, (1, 0, 0, 0, 1, y)),
        Operation.TRANSLATE_Y,
    ),
    "Rotate": _Kind(
        lambda level, sign, _: sign * 30 * level / 10,  # degrees
        lambda image, angle: image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=FILL),
        Operation.ROTATE,
    ),
}
OPERATIONS = tuple(_KINDS)


class ImageOperation(NamedTuple):
    """An operation of a strong view by its name in ``OPERATIONS``, and its value (None where it takes none)."""

    name: str
    value: float | None


def draw_weak_view(
    rng: np.random.Generator,
    full_size: Size,
    *,
    mean_width: int = 2200,
    crop_height: int = 512,
    crop_width: int = 896,
    jitter: float = 0.5,
    flag: str = "mean_width",
) -> WeakView:
    """A resize to about ``mean_width`` that keeps the aspect, a random crop, a flip half of the time.

    The width is uniform between 1 - ``jitter`` and 1 + ``jitter`` times ``mean_width``. Fields are 0-dim tensors. Every
    draw raises UserError if the smallest possible resize of an image of ``full_size`` is smaller than the crop; its
    message names the ``flag`` that ``mean_width`` comes from and, if a smaller jitter would do, ``--width_jitter``.
    """

    def fits(jitter: float) -> bool:
        width, height = smallest_resize(full_size, mean_width, jitter)
        return width >= crop_width and height >= crop_height

    if not fits(jitter):
        width, height = smallest_resize(full_size, mean_width, jitter)
        enough = next((percent for percent in range(99, -1, -1) if fits(percent / 100)), None)
        way_out = "" if enough is None else f"; training takes them with --width_jitter={enough / 100} or less"
        raise UserError(
            f"--{flag}={mean_width} shrinks images of {full_size[1]}x{full_size[0]} to as little as {width}x{height}, "
            f"expected at least the crop, --crop_width={crop_width} x --crop_height={crop_height}{way_out}"
        )
    width = int(rng.uniform(1 - jitter, 1 + jitter) * mean_width)
    height = _height(width, full_size)
    top = rng.integers(height - crop_height, endpoint=True)
    left = rng.integers(width - crop_width, endpoint=True)
    numbers = (height, width, int(top), int(left), crop_height, crop_width)
    return WeakView._make(map(torch.tensor, (*numbers, rng.random() < 0.5)))


def smallest_resize(full_size: Size, mean_width: int, jitter: float) -> tuple[int, int]:
    """Width and height of the smallest resize of an image that :func:`draw_weak_view` may draw."""
    width = int((1 - jitter) * mean_width)
    return width, _height(width, full_size)


def _height(width: int, full_size: Size) -> int:
    """The height of an image of ``full_size`` that is resized to ``width``."""
    aspect = full_size[1] / full_size[0]
    return int(width / aspect)


def weak_view_of_image(image: Image.Image, view: WeakView) -> Image.Image:
    """The weak view of a full image. Only the cropped part is resized (bilinear, by Pillow)."""
    height, width, top, left, crop_height, crop_width = map(int, view[:6])
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + crop_width) * x, (top + crop_height) * y)
    # Rounding can move the end of the box slightly outside the image, which Pillow refuses.
    box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
    crop = image.resize((crop_width, crop_height), Image.Resampling.BILINEAR, box)
    return ImageOps.mirror(crop) if view.flipped else crop


def weak_view_of_labels(labels: Tensor, view: WeakView) -> Tensor:
    """The weak view of a full-size map [H, W] of any type (labels, confidence): nearest, [height, width]."""
    rows = _nearest(view.top, view.height, labels.shape[0], view.resized_height)
    columns = _nearest(view.left, view.width, labels.shape[1], view.resized_width)
    if view.flipped:
        columns = columns.flip(0)
    return labels[rows].index_select(1, columns)


def draw_strong_view(rng: np.random.Generator, size: Size) -> tuple[list[ImageOperation], StrongView]:
    """A flip half of the time, two random operations each half of the time, and always a cutout.

    Returns the operations to apply between the flip and the cutout, in order, and what they do to the geometry (no
    batch dimension: operations [2], values [2], cutout [4]). The operations are drawn with replacement from
    ``OPERATIONS``, at a level of 1..9. RandAugment (arXiv:1909.13719) with the ranges of the released code.
    """
    flipped = rng.random() < 0.5
    operations, kinds, values = [], [Operation.NONE] * 2, [0.0] * 2
    for n in range(2):
        name = OPERATIONS[rng.integers(len(OPERATIONS))]
        value = _KINDS[name].value(int(rng.integers(1, 10)), 1 if rng.random() < 0.5 else -1, size)
        if rng.random() < 0.5:
            operations.append(ImageOperation(name, value))
            if geometry := _KINDS[name].geometry:
                kinds[n], values[n] = geometry, value or 0.0
    view = StrongView(
        torch.tensor(flipped),
        torch.tensor(kinds, dtype=torch.int64),
        torch.tensor(values, dtype=torch.float64),  # as released: its matrices are in float64
        torch.tensor(_draw_cutout(rng, size)),
    )
    return operations, view


def strong_view_of_image(image: Image.Image, operations: list[ImageOperation], view: StrongView) -> Image.Image:
    """The strong view of a weak view: flip, operations in turn, cutout. A new image of the same size."""
    image = ImageOps.mirror(image) if view.flipped else image.copy()
    for operation in operations:
        image = apply_operation(image, operation)
    ImageDraw.Draw(image).rectangle(view.cutout.tolist(), fill=FILL)  # both corners are inside
    return image


def apply_operation(image: Image.Image, operation: ImageOperation) -> Image.Image:
    """One operation on an RGB image; geometry is bilinear and keeps the size, with ``FILL`` from outside."""
    return _KINDS[operation.name].apply(image, operation.value)


def _draw_cutout(rng: np.random.Generator, size: Size) -> list[int]:
    """x0, y0, x1, y1 of a square around a random point, a third of the shorter side long; clipped at the edges."""
    height, width = size
    side = min(height, width) // 3
    x0 = int(max(0, rng.uniform(0, width) - side / 2))
    y0 = int(max(0, rng.uniform(0, height) - side / 2))
    return [x0, y0, min(width, x0 + side), min(height, y0 + side)]


def _nearest(start: Tensor, length: Tensor, full: int, resized: Tensor) -> Tensor:
    """Which of 0..full-1 are seen by ``length`` pixels from ``start`` on of a map resized to ``resized`` (nearest).

    Adds up the step as Pillow does, whose rounding decides where a centre falls between two pixels.
    """
    step = full / int(resized)
    centres = np.cumsum(np.append(step / 2, np.full(int(resized) - 1, step)))
    return torch.from_numpy(centres.astype(np.int64)[int(start) : int(start + length)])
