"""Checks data: the spot check of every run, and the full inspection by ``experiments/check_data.py``."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from proda.data.labelled_files import LabelledFiles
from proda.data.labels import TRAIN_IDS_SUSPECTED, hold_train_ids
from proda.data.workers import single_items
from proda.utils.errors import UserError
from proda.utils.words import counted

SHOWN = 20  # problems that a report prints; its summary has all


def spot_check(dataset: LabelledFiles, count: int = 8) -> list[tuple[int, int]]:
    """Reads examples from all over the data set as training would; returns their sizes (height, width), each once.

    Raises what reading raises: one line with the file's name.
    """
    places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    return sorted({dataset[int(i)].image.size[::-1] for i in places})


class Inspection(NamedTuple):
    """The properties of one example."""

    name: str
    size: tuple[int, int] | None  # width, height of the image file
    pixels: np.ndarray | None  # int64 [256] of each train id; None without labels
    problem: str  # why it cannot be read; empty if it can


class InspectedFiles(Dataset[Inspection]):
    """Reads every example of a data set and returns its inspection."""

    def __init__(self, dataset: LabelledFiles) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Inspection:
        try:
            image, labels, name, _ = self.dataset.read_unscaled(index)
        except UserError as error:
            return Inspection(self.dataset.names[index], None, None, str(error))
        pixels = None if labels is None else np.bincount(labels.reshape(-1), minlength=256)
        return Inspection(name, image.size, pixels, "")


@dataclass
class DatasetReport:
    """The inspections of a whole data set, added up."""

    num_classes: int
    images: int = 0
    labelled: int = 0
    sizes: Counter = field(default_factory=Counter)  # (width, height) on disk -> images
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of each train id
    images_with: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # images that show a train id
    problems: list[str] = field(default_factory=list)
    bad_names: list[str] = field(default_factory=list)  # images that training should skip
    class_pixels: dict[str, np.ndarray] = field(default_factory=dict)  # name of an image -> int64 [K] of each class
    left_out: list[str] = field(default_factory=list)  # files that do not belong to the data set, in words
    remarks: list[str] = field(default_factory=list)  # what a person should look at, though a run would not break

    def add(self, inspection: Inspection) -> None:
        self.images += 1
        if inspection.problem:
            self.problems.append(inspection.problem)
            self.bad_names.append(inspection.name)
            return
        self.sizes[inspection.size] += 1
        if inspection.pixels is not None:
            self.labelled += 1
            self.pixels += inspection.pixels
            self.images_with += inspection.pixels > 0
            self.class_pixels[inspection.name] = inspection.pixels[: self.num_classes]

    @property
    def frequencies(self) -> np.ndarray:
        """float64 [K]: share of each class in the labelled pixels; 0 without any."""
        counts = self.pixels[: self.num_classes]
        return counts / max(counts.sum(), 1)

    @property
    def ignored(self) -> float:
        """Share of pixels without a class; 0 without labels."""
        return self.pixels[self.num_classes :].sum() / max(self.pixels.sum(), 1)

    @property
    def headline(self) -> str:
        """Number of images and labels."""
        ignored = f"{self.labelled} with labels, {100 * self.ignored:.1f}% of their pixels ignored"
        return f"{counted(self.images, 'image')}; {ignored if self.labelled else 'none with labels'}"

    def lines(self, class_names: list[str], *, details: Path) -> Iterator[str]:
        """Sizes, classes that are in no image, and the first problems; ``details`` is the file that has them all."""
        if self.left_out:
            yield f"  left out: {'; '.join(self.left_out)}"
        yield f"  sizes: {sizes_in_words(self.sizes)}"
        absent = [name for name, count in zip(class_names, self.images_with, strict=False) if count == 0]
        if self.labelled and absent:
            yield f"  in no image: {', '.join(absent)}"
        for remark in self.remarks:
            yield f"  WARNING {remark}"
        for problem in self.problems[:SHOWN]:
            yield f"  PROBLEM {problem}"
        if len(self.problems) > SHOWN:
            yield f"  and {len(self.problems) - SHOWN} more; all are in {details}"

    def summary(self, class_names: list[str]) -> dict[str, Any]:
        """The entry of the data set in ``summary.json``."""
        return {
            "images": self.images,
            "labelled": self.labelled,
            "sizes": {f"{w}x{h}": n for (w, h), n in self.sizes.most_common()},
            "ignored": self.ignored,
            "class_frequencies": dict(zip(class_names, self.frequencies.tolist(), strict=True)),
            "images_with_class": dict(zip(class_names, self.images_with.tolist(), strict=False)),
            "left_out": self.left_out,
            "remarks": self.remarks,
            "problems": self.problems,
        }


def sizes_in_words(sizes: Counter[tuple[int, int]]) -> str:
    """The most common sizes (width, height) and how often they occur, for one line."""
    words = [f"{width}x{height}: {count}" for (width, height), count in sizes.most_common(5)]
    words += [f"and {len(sizes) - 5} other sizes"] if len(sizes) > 5 else []
    return ", ".join(words) or "none can be read"


def choose_examples(class_pixels: Mapping[str, np.ndarray], count: int = 12) -> list[str]:
    """Names of images that together show every class, if ``count`` are enough, in the order of the data set.

    ``class_pixels``: name of an image -> int64 [K], its pixels of each class. The classes that the fewest images show
    come first: each gets the image with most of it, unless one that is chosen already has a quarter as much. What is
    left of ``count`` is taken from all over the set.
    """
    names = list(class_pixels)
    if not names:
        return []
    pixels = np.stack(list(class_pixels.values()))  # [N, K]
    chosen: list[int] = []
    for k in np.argsort((pixels > 0).sum(0), kind="stable"):
        best = int(pixels[:, k].argmax())
        shown = pixels[chosen, k].max(initial=0)
        if len(chosen) < count and pixels[best, k] > 4 * shown:
            chosen.append(best)
    rest = [i for i in range(len(names)) if i not in set(chosen)]
    places = np.linspace(0, len(rest) - 1, min(count - len(chosen), len(rest))).round().astype(int)
    return [names[i] for i in sorted([*chosen, *(rest[place] for place in places)])]


def inspect_files(
    dataset: LabelledFiles,
    report: DatasetReport,
    *,
    num_workers: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Reads every example into ``report``, in ``num_workers`` processes; ``progress`` wraps them as tqdm does."""
    report.left_out += dataset.left_out
    for inspection in progress(single_items(InspectedFiles(dataset), num_workers)):
        report.add(inspection)
    counts = report.pixels[: report.num_classes]
    if hold_train_ids(dataset.table, report.num_classes, counts, ignored=report.ignored):
        report.remarks.append(TRAIN_IDS_SUSPECTED)
