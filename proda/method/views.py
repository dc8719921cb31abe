"""Views of an image, and the same views of the maps that belong to it.

A *weak view* resizes the full image, crops it and may mirror it. A *strong view* may mirror the weak view, applies
geometric operations one after another and cuts out a rectangle. Images are warped where samples are loaded; here the
maps of an image (labels, soft labels, distances, features), which are a quarter of its size, are warped to its views.

The parameters of a view are tensors with one entry per sample, so that a batch is warped at once. Coordinates are
those of Pillow: pixel i covers i..i+1 and its centre is at i + 0.5; pixel j of a quarter-size map covers 4j..4j+4.

B batch, C channels, N operations of a strong view, h w height and width of the maps.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from proda.method import IGNORE

SCALE = 4  # label maps and features of target views have a quarter of the image's resolution


class WeakView(NamedTuple):
    """Resize, crop and flip, in pixels of the image. All int64 (``flipped`` bool), [B] or 0-dim for one sample."""

    resized_height: Tensor  # size of the whole image after the resize
    resized_width: Tensor
    top: Tensor  # corner of the crop in the resized image
    left: Tensor
    height: Tensor  # size of the crop, the same for all samples of a batch
    width: Tensor
    flipped: Tensor  # the crop is mirrored left to right, last


class Operation(IntEnum):
    """Geometric operations of a strong view, and what each does with its value."""

    NONE = 0
    SHEAR_X = 1  # output (x, y) shows input (x + value * y, y)
    SHEAR_Y = 2  # output (x, y) shows input (x, y + value * x)
    TRANSLATE_X = 3  # output (x, y) shows input (x + value, y), in pixels of the image
    TRANSLATE_Y = 4  # output (x, y) shows input (x, y + value)
    ROTATE = 5  # value in degrees, counter-clockwise about the centre


class StrongView(NamedTuple):
    """From the weak view to the strong one: first the flip, then the operations in turn, last the cutout."""

    flipped: Tensor  # bool [B]
    operations: Tensor  # int64 [B, N], members of ``Operation`` in the order in which they were applied
    values: Tensor  # float [B, N]; float64 where maps have to be warped exactly as the released code does
    cutout: Tensor  # int64 [B, 4], x0 y0 x1 y1 in pixels of the image, both corners inside; all -1 for none


def warp_to_weak_view(
    maps: Tensor, view: WeakView, *, scale: int = SCALE, size: tuple[int, int] | None = None
) -> Tensor:
    """Maps of full images, warped to the weak view by bilinear sampling.

    ``maps`` [B, C, h, w], 1/``scale`` the size of the full images; returns float32
    [B, C, height / scale, width / scale]. ``size``: height and width of the crop, if the caller knows them; reading
    them from a view on a GPU waits for the GPU. Sizes and positions are divided by ``scale`` and truncated, and
    corners are aligned, as in the released code.
    """
    height, width = size or (int(view.height.max()), int(view.width.max()))
    rows = torch.arange(height // scale, device=maps.device)
    columns = torch.arange(width // scale, device=maps.device)
    y = (view.top // scale)[:, None] + rows
    x = (view.left // scale)[:, None] + columns
    return _sample_crop(maps, y, x, view.resized_height // scale, view.resized_width // scale, view.flipped)


def crop_soft_labels(soft: Tensor, view: WeakView, *, scale: int = SCALE) -> Tensor:
    """Stored soft labels of one full image, cropped to its weak view in one bilinear sampling.

    ``soft`` [K, h, w] of any floating type and resolution, ``view`` of one sample; returns float32
    [K, height / scale, width / scale]. The released code enlarges them to the full image, resizes, crops and reduces
    to a quarter, each time with aligned corners. This samples at the same positions without the intermediate images.
    """
    view = WeakView(*(torch.as_tensor(field)[None] for field in view))
    return crop_soft_label_batch(soft[None], view, (int(view.height), int(view.width)), scale=scale)[0]


def crop_soft_label_batch(soft: Tensor, view: WeakView, size: tuple[int, int], *, scale: int = SCALE) -> Tensor:
    """As ``crop_soft_labels``, for a batch [B, K, h, w] and B views whose crops are of ``size`` (height, width)."""
    y = view.top[:, None] + torch.linspace(0, size[0] - 1, size[0] // scale, device=soft.device)
    x = view.left[:, None] + torch.linspace(0, size[1] - 1, size[1] // scale, device=soft.device)
    return _sample_crop(soft, y, x, view.resized_height, view.resized_width, view.flipped)


def downscale_labels(labels: Tensor, scale: int = SCALE) -> Tensor:
    """Nearest subsampling of labels [..., H, W]: rows and columns 0, scale, 2 * scale, ..."""
    return labels[..., ::scale, ::scale]


def warp_to_strong_view(
    maps: Tensor, view: StrongView, *, scale: int = SCALE, released: bool = False, padding: float = IGNORE
) -> tuple[Tensor, Tensor]:
    """Maps of weak views, warped to the strong views of the same images by nearest sampling.

    ``maps`` [B, C, h, w] of any type, 1/``scale`` the size of the image. Returns the warped maps, of the same type,
    with ``padding`` where the strong view shows fill colour or cutout; and a mask, bool [B, 1, h, w], that is false
    at these pixels.

    By default maps are warped exactly as the image is: operations in the order in which they were applied, repeats
    included; what an operation moves out of the image is lost. ``released`` warps as the released code does: in one
    fixed order, only the last value of a repeated operation, horizontal translation w/h times too far, and the cutout
    without its right and lower edge.
    """
    h, w = maps.shape[2:]
    source, valid = (_source_released if released else _source)(view, h, w, scale)
    moved = maps.flatten(2).gather(2, source[:, None].expand(-1, maps.shape[1], -1)).unflatten(2, (h, w))
    valid = valid.unflatten(1, (1, h, w))
    return moved.masked_fill(~valid, padding), valid


def _sample_crop(maps: Tensor, y: Tensor, x: Tensor, height: Tensor, width: Tensor, flipped: Tensor) -> Tensor:
    """Samples of ``maps`` at rows ``y`` [B, i] and columns ``x`` [B, j] of their copies resized to height x width."""
    x = x.where(~flipped[:, None], x.flip(1))
    maps = _interpolate_rows(maps.float(), y * _aligned_step(maps.shape[2], height))
    return _interpolate_rows(maps.mT, x * _aligned_step(maps.shape[3], width)).mT


def _aligned_step(size: int, resized: Tensor) -> Tensor:
    """The length of one pixel of the resized map in pixels of the map of ``size``, corners aligned; [B, 1]."""
    # torch computes a number divided by a tensor as number * (1 / tensor), which differs in the last bit.
    return (resized.new_full((), size - 1) / (resized - 1).clamp(min=1))[:, None]


def _interpolate_rows(maps: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation of ``maps`` [B, C, h, w] at row positions ``y`` [B, i] in 0..h-1; returns [B, C, i, w].

    ``grid_sample`` will not do: its coordinates of -1..1 lose digits that the golden values keep.
    """

    def rows(index: Tensor) -> Tensor:
        return maps.gather(2, index[:, None, :, None].expand(-1, maps.shape[1], -1, maps.shape[3]))

    last = maps.shape[2] - 1
    above = y.long().clamp(0, last)
    below = (above + 1).clamp(max=last)
    return rows(above).lerp(rows(below), (y - above)[:, None, :, None])


def _source(view: StrongView, h: int, w: int, scale: int) -> tuple[Tensor, Tensor]:
    """The pixel of the weak view that each pixel of the strong view shows, int64 [B, h * w]; and where there is one.

    Follows the centre of every pixel back through the operations, in pixels of the image, and rounds once at the end.
    """
    height, width = h * scale, w * scale
    device = view.values.device
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    y = (scale * (rows.flatten() + 0.5)).expand(len(view.values), -1)
    x = (scale * (columns.flatten() + 0.5)).expand(len(view.values), -1)

    # On the image the rectangle includes the pixels of both corners.
    x0, y0, x1, y1 = view.cutout.unsqueeze(2).unbind(1)
    valid = ~((x0 <= x) & (x < x1 + 1) & (y0 <= y) & (y < y1 + 1))

    values = view.values.float()
    for n in reversed(range(values.shape[1])):
        x, y = _undo(view.operations[:, n : n + 1], values[:, n : n + 1], x, y, height, width)
        valid = valid & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x = torch.where(view.flipped[:, None], width - x, x)

    row = (y / scale).floor().long().clamp(0, h - 1)
    column = (x / scale).floor().long().clamp(0, w - 1)
    return row * w + column, valid


def _undo(operation: Tensor, value: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The input positions of one operation per sample, [B, 1], for its output positions x, y [B, h * w]."""

    def value_of(kind: Operation) -> Tensor:
        return value.where(operation == int(kind), 0)

    angle = torch.deg2rad(value_of(Operation.ROTATE))
    # Rotation turns about the centre; shears are anchored at the top left corner.
    centre_x = (width / 2) * (operation == int(Operation.ROTATE))
    centre_y = (height / 2) * (operation == int(Operation.ROTATE))
    dx, dy = x - centre_x, y - centre_y
    x = centre_x + angle.cos() * dx + (value_of(Operation.SHEAR_X) - angle.sin()) * dy
    y = centre_y + angle.cos() * dy + (value_of(Operation.SHEAR_Y) + angle.sin()) * dx
    return x + value_of(Operation.TRANSLATE_X), y + value_of(Operation.TRANSLATE_Y)


def _source_released(view: StrongView, h: int, w: int, scale: int) -> tuple[Tensor, Tensor]:
    """As ``_source``, by the rules of the released code, in its order of operations and with its rounding.

    The released code resamples the maps once for each operation. Numbering the pixels and resampling the numbers in
    the same way says which pixel each one came from. Matrices are computed in float64 and positions in float32, as
    there. Positions are written out because ``affine_grid`` rounds a little differently on different processors, which
    decides between two pixels where a position lies halfway.
    """
    values = view.values.double()

    def last_value(kind: Operation) -> Tensor:
        value = torch.zeros_like(values[:, 0])
        for n in range(values.shape[1]):
            value = torch.where(view.operations[:, n] == int(kind), values[:, n], value)
        return value

    zero = torch.zeros_like(values[:, 0])
    one = torch.ones_like(zero)
    shear_x = last_value(Operation.SHEAR_X) * h / w
    shear_y = last_value(Operation.SHEAR_Y) * w / h
    # Both are divided by the height, so that horizontal translation goes w/h times too far.
    translate_x = (last_value(Operation.TRANSLATE_X) / scale).floor() * 2 / h
    translate_y = (last_value(Operation.TRANSLATE_Y) / scale).floor() * 2 / h
    angle = torch.deg2rad(last_value(Operation.ROTATE))
    cos, sin = angle.cos(), angle.sin()
    # The two rows of each matrix that leads from output to input positions, in coordinates of -1..1.
    steps = (
        (1 - 2 * view.flipped.to(zero.dtype), zero, zero, zero, one, zero),
        (one, shear_x, one + shear_x - 1, zero, one, zero),
        (one, zero, zero, shear_y, one, one + shear_y - 1),
        (one, zero, translate_x + one - 1, zero, one, zero),
        (one, zero, zero, zero, one, translate_y + one - 1),
        (cos, -sin * h / w, zero, sin * w / h, cos, zero),
    )
    x, y = _centres(w, zero.device), _centres(h, zero.device)[:, None]
    number = torch.arange(1, h * w + 1, device=zero.device).expand(len(zero), -1)  # 0 is outside
    for step in steps:
        xx, xy, x0, yx, yy, y0 = torch.stack(step).float()[:, :, None, None]  # each [B, 1, 1]
        column = _nearest_pixel(xx * x + xy * y + x0, w)
        row = _nearest_pixel(yx * x + yy * y + y0, h)
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        shown = number.gather(1, (row * w + column).where(inside, 0).flatten(1))
        number = shown.where(inside.flatten(1), 0)

    x0, y0, x1, y1 = view.cutout.div(scale, rounding_mode="floor").unsqueeze(2).unbind(1)
    pixel = torch.arange(h * w, device=zero.device)
    row, column = pixel // w, pixel % w
    in_cutout = (x0 <= column) & (column < x1) & (y0 <= row) & (row < y1)
    return (number - 1).clamp(min=0), (number > 0) & ~in_cutout


def _centres(size: int, device: torch.device) -> Tensor:
    """Where the centres of ``size`` pixels lie between the outer edges -1 and 1, with the rounding of ``affine_grid``.

    That is ``linspace`` between -1 and 1, which counts from both ends and rounds once, scaled by (size - 1) / size.
    """
    step = torch.full((), 2 / max(size - 1, 1), device=device).double()  # rounded to float32 first
    index = torch.arange(size, device=device)
    ends = torch.where(index < size // 2, step * index - 1, 1 - step * (size - 1 - index))
    return ends.float() * (size - 1) / size


def _nearest_pixel(position: Tensor, size: int) -> Tensor:
    """The pixel whose centre is nearest to a position of -1..1, a tie going to the even one, as in ``grid_sample``."""
    return ((position + 1) * (size / 2) - 0.5).round().long()
