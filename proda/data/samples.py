"""Inputs of the networks: training samples of each domain, and whole images for evaluation.

All random parameters of a sample come from the seed in its index, so a sample is the same on any number of processes
and workers. Images travel as uint8 and become float on the device.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from proda.data.augment import (
    draw_strong_view,
    draw_weak_view,
    strong_view_of_image,
    weak_view_of_image,
    weak_view_of_labels,
)
from proda.data.class_statistics import RareClasses
from proda.data.labelled_files import Example, LabelledFiles
from proda.method.pseudo_labels import confident_labels
from proda.method.views import WeakView, crop_soft_labels
from proda.utils.errors import UserError

MORE_CROPS = 10  # of an image, to find one that shows a rare class


class SampleIndex(NamedTuple):
    """Index of an example, and the seed of the random parameters of its sample."""

    index: int  # type: ignore[assignment]  # takes the place of tuple.index, which nobody calls
    seed: tuple[int, ...]

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


class Examples(Protocol):
    """What samples are made of: ``LabelledFiles``, or your own data in another layout."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class SourceTraining(Dataset):
    """Labelled crops: ``image`` uint8 [3, h, w], ``labels`` uint8 [h, w] (train ids, ``IGNORE``), ``name`` str.

    With ``rare_classes`` the seed of a sample, not its index, decides which example it is of: one with enough pixels of
    a class drawn by its rarity. The crop is drawn again, up to ``MORE_CROPS`` times, until it has enough of them too.
    """

    def __init__(
        self,
        dataset: Examples,
        *,
        mean_width: int = 2200,
        crop_height: int = 512,
        crop_width: int = 896,
        jitter: float = 0.5,
        rare_classes: RareClasses | None = None,
    ) -> None:
        self.dataset = dataset
        self.rare_classes = rare_classes
        self.view_settings: dict[str, Any] = dict(
            mean_width=mean_width, crop_height=crop_height, crop_width=crop_width, jitter=jitter
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: SampleIndex) -> dict[str, Any]:
        rng, rare, number, index = sample.generator(), self.rare_classes, -1, sample.index
        if rare is not None:
            number, index = rare.draw(rng)
        image, labels, name, _ = self.dataset[index]
        if labels is None:
            raise UserError(f"source example {name} has no label map; training on it needs one")
        for _ in range(1 + MORE_CROPS):
            view = _weak_view(rng, image, self.dataset, index, self.view_settings)
            crop = weak_view_of_labels(torch.from_numpy(labels), view)
            area = int(view.resized_height * view.resized_width)
            if rare is None or rare.enough_in_crop(int(torch.eq(crop, number).sum()), area):
                break
        return {"image": image_tensor(weak_view_of_image(image, view)), "labels": crop, "name": name}


class TargetTraining(Dataset):
    """Views of unlabelled photographs, optionally with stored labels of a network.

    An item has ``name`` str, ``image`` uint8 [3, h, w] (the weak view) and ``weak_view``; the label files of the data
    set, if it reads any, are not in it. Optional:

    * ``full_image=True``: ``full_image`` uint8 [3, H, W].
    * ``strong=True``: ``strong_image`` uint8 [3, h, w], made of the weak view, and ``strong_view``.
    * ``soft_labels``, a store whose ``read(name)`` is [K, H/8, W/8]: ``soft_labels`` float32 [K, h/4, w/4] of the weak
      view.
    * ``pseudo_labels``, a store whose ``read(name)`` is labels uint8 [H, W] and their confidence [H, W]:
      ``pseudo_labels`` uint8 [h, w] of the weak view, ``IGNORE`` where the confidence does not exceed ``threshold``
      (``threshold_as_released``: compared in float16).
    """

    def __init__(
        self,
        dataset: Examples,
        *,
        mean_width: int = 2200,
        crop_height: int = 512,
        crop_width: int = 896,
        jitter: float = 0.5,
        full_image: bool = False,
        strong: bool = False,
        soft_labels: Any | None = None,
        pseudo_labels: Any | None = None,
        threshold: float = 0.95,
        threshold_as_released: bool = False,
    ) -> None:
        self.dataset = dataset
        self.view_settings: dict[str, Any] = dict(
            mean_width=mean_width, crop_height=crop_height, crop_width=crop_width, jitter=jitter
        )
        self.full_image = full_image
        self.strong = strong
        self.soft_labels = soft_labels
        self.pseudo_labels = pseudo_labels
        self.threshold = threshold
        self.threshold_as_released = threshold_as_released

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: SampleIndex) -> dict[str, Any]:
        rng = sample.generator()
        image, _, name, _ = self.dataset[sample.index]
        view = _weak_view(rng, image, self.dataset, sample.index, self.view_settings)
        weak = weak_view_of_image(image, view)
        item: dict[str, Any] = {"image": image_tensor(weak), "name": name, "weak_view": view}
        if self.full_image:
            item["full_image"] = image_tensor(image)
        if self.strong:
            operations, item["strong_view"] = draw_strong_view(rng, (weak.height, weak.width))
            item["strong_image"] = image_tensor(strong_view_of_image(weak, operations, item["strong_view"]))
        if self.soft_labels is not None:
            item["soft_labels"] = crop_soft_labels(torch.as_tensor(self.soft_labels.read(name)), view)
        if self.pseudo_labels is not None:
            labels, confidence = map(torch.as_tensor, self.pseudo_labels.read(name))
            if labels.shape != (image.height, image.width):
                found = "x".join(map(str, reversed(labels.shape)))
                raise UserError(f"stored pseudo labels of {name} are {found}, expected {image.width}x{image.height}")
            item["pseudo_labels"] = confident_labels(
                weak_view_of_labels(labels, view),
                weak_view_of_labels(confidence, view).float(),  # in float16 the threshold itself would be rounded
                threshold=self.threshold,
                as_released=self.threshold_as_released,
            )
        return item


class EvaluationSamples(Dataset):
    """Whole images: ``image`` uint8 [3, H, W], ``name`` str and, if it has any, ``labels`` uint8 [H, W].

    ``file_size`` int64 [2] is the height and width of the image file, which a description's ``size`` may change.
    """

    def __init__(self, dataset: Examples) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, labels, name, file_size = self.dataset[index]
        item = {"image": image_tensor(image), "name": name, "file_size": torch.tensor(file_size[::-1])}
        return item if labels is None else {**item, "labels": torch.from_numpy(labels)}


def _weak_view(
    rng: np.random.Generator, image: Image.Image, dataset: Examples, index: int, settings: dict[str, Any]
) -> WeakView:
    """Draws a weak view; the UserError for an image that is too small names its file."""
    try:
        return draw_weak_view(rng, (image.height, image.width), **settings)
    except UserError as error:
        if isinstance(dataset, LabelledFiles):
            raise UserError(f"{dataset.images[index]}: {error}") from None
        raise


def image_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W] of an RGB image; channels last in memory: the copy that collating makes puts them first."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
