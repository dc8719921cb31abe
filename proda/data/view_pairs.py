"""Pairs of augmented views of unlabelled images, for contrastive pretraining."""

from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from proda.data.augment import draw_weak_view, weak_view_of_image
from proda.data.samples import Examples, SampleIndex, image_tensor

SMALLEST_OVERLAP = 0.25  # of the smaller of both views; a pair that shows less in common is drawn again
ATTEMPTS = 10
FIXED_VIEWS = 3  # first number of the seeds of views that do not change; those of training begin with another


class Box(NamedTuple):
    """A part of an image in pixels."""

    top: int
    left: int
    height: int
    width: int


class ViewPairs(Dataset):
    """Two views of one region of each image, which differ in place, size and colours.

    The region is a weak view, as the stages train on. Each view is a crop of it, resized to its size, mirrored half of
    the time, with other colours and focus: the augmentations of SimCLR (arXiv:2002.05709), by torchvision.

    An item has ``views`` uint8 [2, 3, h, w], ``overlap`` float32 [2, 4] (left, top, right and bottom in each view of
    the part that both show, as fractions of its width and height), ``flipped`` bool [2] and ``name`` str.

    Args:
        dataset: images; labels are not used.
        mean_width, crop_height, crop_width: of the region, as for the stages' weak views.
        smallest_view: smallest share of the region's area in a view.
        color_strength: strength s of the jitter, 0 to 2.5: factors 1 - 0.8 s to 1 + 0.8 s of brightness, contrast and
            saturation, and up to 0.2 s of the circle of hues.
    """

    def __init__(
        self,
        dataset: Examples,
        *,
        mean_width: int = 2200,
        crop_height: int = 512,
        crop_width: int = 896,
        smallest_view: float = 0.2,
        color_strength: float = 0.5,
    ) -> None:
        self.dataset = dataset
        sides = {"mean_width": mean_width, "crop_height": crop_height, "crop_width": crop_width}
        self.region_settings: dict[str, Any] = sides
        self.smallest_view = smallest_view
        self.colors = color_augmentation(color_strength, (crop_height, crop_width))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: SampleIndex) -> dict[str, Any]:
        rng = sample.generator()
        image, _, name, _ = self.dataset[sample.index]
        region = weak_view_of_image(image, draw_weak_view(rng, (image.height, image.width), **self.region_settings))
        # torchvision draws from torch's global generator. It is borrowed for this sample, and only that of the CPU:
        # torch.manual_seed would also reseed the GPU's, which the training process uses.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            boxes = draw_boxes(region, self.smallest_view)
            flipped = torch.rand(2) < 0.5
            views = [self._view(region, box, mirror) for box, mirror in zip(boxes, flipped.tolist(), strict=True)]
        return {
            "views": torch.stack(views),
            "overlap": overlap(*boxes, flipped),
            "flipped": flipped,
            "name": name,
        }

    def _view(self, region: Image.Image, box: Box, mirror: bool) -> Tensor:
        view = v2.functional.resized_crop(region, *box, size=[region.height, region.width])
        view = v2.functional.horizontal_flip(view) if mirror else view
        return image_tensor(self.colors(view))


class FixedViewPairs(Dataset):
    """``ViewPairs`` that are the same each time, for validation; indexed by number."""

    def __init__(self, pairs: ViewPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs[SampleIndex(index, (FIXED_VIEWS, index))]


def color_augmentation(strength: float, size: tuple[int, int]) -> v2.Transform:
    """Jitter with probability 0.8, grey with 0.2, blur with 0.5, as in SimCLR.

    ``strength``: that of the jitter, see ``ViewPairs``. ``size``: height and width of the views; the blur's kernel is a
    tenth of the shorter side.
    """
    factor, kernel = 0.8 * strength, max(3, min(size) // 10 | 1)
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(factor, factor, factor, 0.2 * strength)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5),
        ]
    )


def draw_boxes(region: Image.Image, smallest: float) -> tuple[Box, Box]:
    """Two random parts of a region that overlap; each has ``smallest`` to all of the area, and roughly the shape.

    The pair is drawn again where less than ``SMALLEST_OVERLAP`` is in common; after ``ATTEMPTS``, both are the same.
    """
    aspect = region.width / region.height
    settings: dict[str, Any] = {"scale": [smallest, 1.0], "ratio": [3 / 4 * aspect, 4 / 3 * aspect]}
    for _ in range(ATTEMPTS):
        one, other = (Box(*v2.RandomResizedCrop.get_params(region, **settings)) for _ in range(2))
        common = _common(one, other)
        area = max(0, common.height) * max(0, common.width)
        if area >= SMALLEST_OVERLAP * min(one.height * one.width, other.height * other.width):
            return one, other
    return one, one


def overlap(one: Box, other: Box, flipped: Tensor) -> Tensor:
    """The common part of two boxes as fractions of each: float32 [2, 4] of left, top, right and bottom.

    ``flipped`` bool [2]: which view is mirrored after it was cut out.
    """
    common = _common(one, other)
    rows = []
    for box, mirror in zip((one, other), flipped.tolist(), strict=True):
        left, top = (common.left - box.left) / box.width, (common.top - box.top) / box.height
        right, bottom = left + common.width / box.width, top + common.height / box.height
        rows.append([1 - right, top, 1 - left, bottom] if mirror else [left, top, right, bottom])
    return torch.tensor(rows, dtype=torch.float32)


def _common(one: Box, other: Box) -> Box:
    """The intersection; without one its height or width is not positive."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom = min(one.top + one.height, other.top + other.height)
    right = min(one.left + one.width, other.left + other.width)
    return Box(top, left, bottom - top, right - left)
