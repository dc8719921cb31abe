"""How many pixels of each class every image has, counted once and stored; and rare class sampling, which uses it.

Rare class sampling is that of DAFormer (arXiv:2111.14887). N images, K classes.
"""

import logging
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from proda.data.labelled_files import LabelledFiles
from proda.data.workers import single_items
from proda.utils.errors import UserError
from proda.utils.files import atomic_write, sha256_of_json

log = logging.getLogger("proda")

REFERENCE_AREA = 1914 * 1052  # pixels of an image of GTA5, for which numbers of pixels are given; others are scaled

ENOUGH = 3000  # pixels of a class that an image has to show
TEMPERATURE = 0.01  # the lower, the more often rare classes are drawn


class ClassStatistics(NamedTuple):
    """Pixels of the labelled images of a data set, in the sizes of their files."""

    pixels: np.ndarray  # int64 [N, K]
    areas: np.ndarray  # int64 [N], pixels with and without a class

    @property
    def shares(self) -> np.ndarray:
        """float64 [K]: share of each class in all pixels that have one."""
        counts = self.pixels.sum(0)
        return counts / max(counts.sum(), 1)


class RareClasses:
    """Draws a class, rare ones more often, and then one of the images that show enough of it.

    A class has the probability softmax((1 - share) / 0.01), among the classes that any image shows enough of: more than
    3,000 pixels in an image of the size of GTA5's. A crop should have half as many. The statistics of the data set may
    follow later, by :meth:`use`.
    """

    def __init__(self, statistics: ClassStatistics | None = None) -> None:
        if statistics is not None:
            self.use(statistics)

    def use(self, statistics: ClassStatistics) -> None:
        """Raises UserError if no image shows enough of any class."""
        enough = statistics.pixels * REFERENCE_AREA > ENOUGH * statistics.areas[:, None]
        self.images = [np.flatnonzero(column) for column in enough.T]
        if not enough.any():
            raise UserError(f"--rare_class_sampling: no labelled image shows {ENOUGH} pixels of any class (at 2 MP)")
        self.probabilities = class_probabilities(statistics.shares) * enough.any(0)
        self.probabilities /= self.probabilities.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A class and the index of an image."""
        number = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return number, int(rng.choice(self.images[number]))

    def enough_in_crop(self, count: int, image_area: int) -> bool:
        """Whether a crop with ``count`` pixels of the class has enough, for an image of that size after resizing."""
        return count * REFERENCE_AREA > ENOUGH / 2 * image_area


def class_probabilities(shares: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """float64 [K]: softmax over the classes of (1 - share) / temperature. ``shares`` [K], of the pixels of classes."""
    logits = (1 - np.asarray(shares, np.float64)) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def load_or_count(
    path: Path,
    dataset: LabelledFiles,
    class_names: Sequence[str],
    *,
    num_workers: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> ClassStatistics:
    """The statistics of a data set from ``path``; they are counted and stored there if it has none of these files.

    ``progress`` wraps the images that are counted, as tqdm does.

    Raises:
        UserError: the file cannot be read or written, or a label map cannot be read.
    """
    record = _record(dataset, class_names)
    stored = _load(path) if path.is_file() else None
    if stored is not None and all(stored[key] == value for key, value in record.items()):
        return ClassStatistics(stored["pixels"], stored["areas"])
    if stored is not None:
        log.info("%s: counted for other images, label files or classes; counting again", path)
    statistics = count_classes(dataset, num_workers=num_workers, progress=progress)
    try:
        with atomic_write(path) as partial, open(partial, "wb") as file:
            content: dict[str, Any] = statistics._asdict() | {key: np.array(value) for key, value in record.items()}
            np.savez_compressed(file, **content)
    except OSError as error:  # the folder of the data may be read-only
        log.warning("%s: cannot be written (%s), so the next run counts the classes again", path, error.strerror)
    return statistics


def problem_of_stored(path: Path, dataset: LabelledFiles, class_names: Sequence[str], pixels: np.ndarray) -> str:
    """What is wrong with stored statistics, in one line; empty if nothing is.

    ``pixels`` int64 [N, K]: newly counted ones. Statistics of other images, label files or classes are not wrong: the
    next run counts again.
    """
    try:
        stored = _load(path)
    except UserError as error:
        return str(error)
    if any(stored[key] != value for key, value in _record(dataset, class_names).items()):
        return ""
    wrong = int((stored["pixels"] != pixels).any(1).sum())
    return f"{path}: the pixels of {wrong} images differ from those stored; delete the file" if wrong else ""


def count_classes(
    dataset: LabelledFiles, *, num_workers: int = 0, progress: Callable[[Iterable], Iterable] = iter
) -> ClassStatistics:
    """Reads every label map, in ``num_workers`` processes. An image without one has no pixels of any class."""
    counts = list(progress(single_items(_LabelCounts(dataset), num_workers)))
    return ClassStatistics(np.stack([pixels for pixels, _ in counts]), np.array([area for _, area in counts]))


class _LabelCounts(Dataset[tuple[np.ndarray, int]]):
    def __init__(self, dataset: LabelledFiles) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        labels = self.dataset.read_unscaled_labels(index)
        if labels is None:
            return np.zeros(self.dataset.num_classes, np.int64), 1
        return np.bincount(labels.reshape(-1), minlength=256)[: self.dataset.num_classes], labels.size


def _record(dataset: LabelledFiles, class_names: Sequence[str]) -> dict[str, str]:
    """What the numbers were counted for."""
    table = [dataset.table] if isinstance(dataset.table, np.ndarray) else list(dataset.table)
    return {
        "images": dataset.fingerprint(),
        "label_files": dataset.label_fingerprint(),
        "classes": ", ".join(class_names),
        "ids": sha256_of_json([column.tolist() for column in table]),
    }


def _load(path: Path) -> dict[str, Any]:
    expected = "expected the statistics of classes that a run with --rare_class_sampling wrote; delete the file"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] if file[key].ndim else str(file[key]) for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {expected}") from None
    if missing := {"pixels", "areas", "images", "label_files", "classes", "ids"} - set(found):
        raise UserError(f"{path}: found no {sorted(missing)[0]}; {expected}")
    return found
