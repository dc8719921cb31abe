"""A data set as two lists of files, images and label maps. All layouts and descriptions use it."""

import copy
import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from proda.data.archives import file_size, read_bytes
from proda.data.image_files import image_size, read_colors, read_ids, read_image, warn_once
from proda.data.labels import UNKNOWN, ColorTable, color_words
from proda.method import IGNORE
from proda.utils.errors import MissingFileError, UserError

HASHED_FILES = 16  # whose content a fingerprint covers
SHOWN_COLORS = 3  # unknown colours of one file that an error names


class Example(NamedTuple):
    """One photograph or rendered image, before any augmentation."""

    image: Image.Image  # RGB
    labels: np.ndarray | None  # uint8 [H, W] train ids of the image's own size
    name: str  # unique in its data set, and safe as the stem of a file
    file_size: tuple[int, int]  # width and height of the image file


class FileEntry(NamedTuple):
    """One file in the listing of a data set."""

    name: str  # of the example
    size: int  # bytes; -1: there is no file
    sha256: str  # of its content; empty where the fingerprint does not cover that


class LabelledFiles(Dataset[Example]):
    """Images and, where there are any, their label maps, as two lists of files.

    The base of the benchmarks and of your own data, or used directly for data in another layout. A file is read when
    its example is requested.

    Args:
        images: files in one of IMAGE_FORMATS.
        labels: one file in one of LABEL_FORMATS per image, of one channel, or of 16 bits whose first channel holds the
            id; None for an image that has none, or for all.
        names: one per image, unique.
        table: uint8 [256] from the ids in the label files to train ids, ``UNKNOWN`` where there is no such id; or a
            ``ColorTable`` for label files that hold colours.
        num_classes: number of train ids.
        size_tolerance: label maps may differ from their image by so many pixels in width and in height; they are
            then stretched to the image (nearest), as in the released code.
        size: (width, height) that every image (bilinear) and label map (nearest) is resized to.
        skip: names of images to skip.
        labelled_only: skips the images without a label map.
        optional_labels: label maps are used for a report only. If one is missing or invalid, a warning is logged and
            all pixels of its image are ``IGNORE``. If no image has a label map, examples have no labels.
    """

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Path | None] | None,
        names: Sequence[str],
        *,
        table: np.ndarray | ColorTable,
        num_classes: int,
        size_tolerance: int = 0,
        size: tuple[int, int] | None = None,
        skip: Collection[str] = (),
        labelled_only: bool = False,
        optional_labels: bool = False,
    ) -> None:
        if len(set(names)) != len(names) or len(names) != len(images):
            raise ValueError(f"names must be unique, one per image: {len(set(names))} names, {len(images)} images")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"one label map per image is needed, got {len(labels)} for {len(images)} images")
        if twice := next((path for path, own in zip(images, labels or (), strict=False) if path == own), None):
            raise UserError(f"{twice}: found as an image and as its own label map, expected two files")
        kept = [
            i
            for i, name in enumerate(names)
            if name not in skip and not (labelled_only and (labels is None or labels[i] is None))
        ]
        if images and not kept:
            raise MissingFileError(
                f"none of {len(images)} images is left, of which the first is {images[0]}: all are to be skipped or "
                "have no label map"
            )
        self.images = [images[i] for i in kept]
        self.label_files = None if labels is None else [labels[i] for i in kept]
        if optional_labels and self.label_files and not any(self.label_files):
            self.label_files = None
        self.names = [names[i] for i in kept]
        self.table = table
        self.num_classes = num_classes
        self.size_tolerance = size_tolerance
        self.size = size
        self.optional_labels = optional_labels
        self.skip, self.skipped = set(skip), set(names) & set(skip)
        self._all_files = (images, labels, names) if self.skipped else ([], None, [])
        self.replaced: dict[int, str] = {}  # index -> name of the example whose place another one has taken
        self._sizes: list[tuple[int, int]] = []  # filled in place, so that copies share it
        self.left_out: list[str] = []  # files in the folders that are not used, in words; see FoundFiles

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """Reads one example. A UserError or MissingFileError names the file if that fails."""
        image, labels, name, file_size = self.read_unscaled(index)
        if self.size and image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BILINEAR)
            labels = self._resized(labels)
        if labels is None and self.optional_labels and self.label_files:  # images of one batch have the same keys
            labels = np.full((image.height, image.width), IGNORE, np.uint8)
        return Example(image, labels, name, file_size)

    def read_unscaled(self, index: int) -> Example:
        """The example in the size that its image file has; no labels where these are optional and cannot be used."""
        image = read_image(self.images[index])
        return Example(image, self._read_labels(index, image.size), self.names[index], image.size)

    def read_labels(self, index: int) -> np.ndarray | None:
        """The labels of the example alone, without decoding the image; None if there are none that can be used."""
        return self._resized(self.read_unscaled_labels(index))

    def read_unscaled_labels(self, index: int) -> np.ndarray | None:
        """As :meth:`read_labels`, in the size that the image file has."""
        if not self.label_files or self.label_files[index] is None:
            return None
        return self._read_labels(index, image_size(self.images[index]))

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image as its example has them, from the headers of all files; read once.

        Raises what :func:`image_size` raises.
        """
        if not self._sizes:
            self._sizes += [self.size or image_size(path) for path in self.images]
        return self._sizes

    def indices(self, names: Iterable[str]) -> list[int]:
        """The indices of the images with these names; KeyError for an unknown name."""
        places = {name: index for index, name in enumerate(self.names)}
        return [places[name] for name in names]

    def keep_order(self, order: Sequence[str], absent: Collection[str]) -> None:
        """Restores an order of examples of which those named ``absent`` are skipped now: the next takes their place.

        So all others keep their index. Does nothing if the examples differ from ``order`` in any other way.
        """
        gone = set(order) - set(self.names)
        if not gone or not gone <= self.skip & set(absent) or [n for n in order if n not in gone] != self.names:
            return
        present = [place for place, name in enumerate(order) if name not in gone]
        following = [bisect_left(present, place) % len(present) for place in range(len(order))]
        self.replaced = {place: name for place, name in enumerate(order) if name in gone}
        self.images = [self.images[i] for i in following]
        self.names = [self.names[i] for i in following]
        if self.label_files:
            self.label_files = [self.label_files[i] for i in following]

    def damaged(self, candidates: Collection[str]) -> list[str]:
        """Those of the skipped examples among ``candidates`` that cannot be read."""
        images, labels, names = self._all_files
        found = []
        for index in [i for i, name in enumerate(names) if name in self.skipped and name in candidates]:
            one = copy.copy(self)
            one.images, one.names = [images[index]], [names[index]]
            one.label_files = None if labels is None else [labels[index]]
            try:
                one.read_unscaled(0)
            except UserError:
                found.append(names[index])
        return found

    @property
    def order(self) -> list[str]:
        """The names, with those of skipped examples where another one has taken their place."""
        return [self.replaced.get(place, name) for place, name in enumerate(self.names)]

    def entries(self, *, labels: bool = False) -> list[FileEntry]:
        """All image files, or label files, in order; what the fingerprint covers. A replaced one has no size."""
        files = self.label_files or [] if labels else self.images
        entries = _entries(self.names[: len(files)], files)
        return [FileEntry(self.replaced[i], -1, "") if i in self.replaced else e for i, e in enumerate(entries)]

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 that distinguishes the image files from others with the same names.

        It covers names, sizes in bytes and the content of HASHED_FILES files from all over the set, neither places
        nor times of modification. Costs one call a file.
        """
        return _fingerprint(self.names, self.images)

    def label_fingerprint(self) -> str:
        """The fingerprint of the label files; empty without labels."""
        return _fingerprint(self.names, self.label_files) if self.label_files else ""

    def require_labels(self, expected: Callable[[int], str]) -> None:
        """Raises MissingLabelsError if an image has no label map; ``expected`` describes the file of an index."""
        if self.optional_labels or not self.label_files or None not in self.label_files:
            return
        count, first = self.label_files.count(None), self.label_files.index(None)
        more = f"; {count} of {len(self)} images are without" if count > 1 else ""
        error = MissingLabelsError(f"{expected(first)} for the image {self.images[first]}{more}")
        error.dataset = self
        raise error

    def _read_labels(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        path = self.label_files[index] if self.label_files else None
        if path is None:
            return None
        try:
            return self._train_ids(path, self.images[index], size)
        except UserError as error:
            if not self.optional_labels:
                raise
            warn_once(f"ignoring these labels: {error}")
            return None

    def _resized(self, labels: np.ndarray | None) -> np.ndarray | None:
        if labels is None or self.size is None or self.size == labels.shape[::-1]:
            return labels
        return np.array(Image.fromarray(labels).resize(self.size, Image.Resampling.NEAREST))

    def _train_ids(self, path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
        table = self.table
        ids = Image.fromarray(_ids_of_colors(path, table)) if isinstance(table, ColorTable) else read_ids(path)
        if ids.size != size:
            if max(abs(ids.width - size[0]), abs(ids.height - size[1])) > self.size_tolerance:
                raise UserError(
                    f"{path}: label map of {ids.width}x{ids.height} pixels, expected {size[0]}x{size[1]} "
                    f"as its image {image}"
                )
            ids = ids.resize(size, Image.Resampling.NEAREST)
        if isinstance(table, ColorTable):
            return np.array(ids)
        labels = ids.point(table.tolist())
        if labels.getextrema()[1] == UNKNOWN:
            found = [i for i, count in enumerate(ids.histogram()) if count and table[i] == UNKNOWN]
            known = np.flatnonzero(table != UNKNOWN)
            raise UserError(f"{path}: unknown label id {', '.join(map(str, found))}, expected ids {_ranges(known)}")
        return np.array(labels)


class MissingLabelsError(MissingFileError):
    """Some images lack a label map although all need one; ``dataset`` can read the others."""

    dataset: LabelledFiles


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once in ``names``; None if all differ."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def write_skip_list(path: Path, names: dict[str, Iterable[str]]) -> None:
    """Writes names of images to skip, a line ``PART/NAME`` for each; ``read_skip_list`` reads it."""
    lines = [f"{part}/{_plain(name)}\n" for part, several in names.items() for name in several]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_skip_list(path: str | Path, part: str) -> set[str]:
    """Names of images of ``part`` (source, train or val) to leave out; a line without ``PART/`` applies to all."""
    return {name for of_part, name in read_skip_entries(path) if of_part in ("", part)}


def read_skip_entries(path: str | Path) -> list[tuple[str, str]]:
    """(part, name) of each line of a list of images to leave out; the part is empty in a line without ``PART/``.

    Empty lines and lines that begin with # are ignored.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not text, or a name in quotation marks is not valid JSON.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingFileError(
            f"--skip_bad={path}: no such file; expected a list of images, as check_data writes it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--skip_bad={path}: cannot be read as a list of images ({error})") from None
    entries = []
    for number, line in enumerate(lines, 1):
        part, _, name = line.strip().rpartition("/")
        if not name or line.startswith("#"):
            continue
        try:
            entries.append((part, json.loads(name) if name.startswith('"') else name))
        except ValueError:
            raise UserError(f"{path}, line {number}: found {name}, expected a name or a name in JSON") from None
    return entries


def _ids_of_colors(path: Path, table: ColorTable) -> np.ndarray:
    """Train ids uint8 [H, W] of a label map of colours; UserError that names the colours in no class."""
    codes = read_colors(path)
    labels = table.lookup(codes)
    strange, counts = np.unique(codes[labels == UNKNOWN], return_counts=True)
    if len(strange):
        most = np.argsort(-counts, kind="stable")[:SHOWN_COLORS]
        words = [f"{color_words(int(strange[i]))} in {counts[i]} pixels" for i in most]
        if len(strange) > SHOWN_COLORS:
            words.append(f"and {len(strange) - SHOWN_COLORS} more colors")
        raise UserError(
            f"{path}: unknown color {', '.join(words)}; expected only colors of classes and those of ignore"
        )
    return labels


def _plain(name: str) -> str:
    """A name as it stands in a list: in JSON where it holds line ends or bytes that are not UTF-8."""
    return name if name.isprintable() and not name.startswith('"') else json.dumps(name)


def _fingerprint(names: Sequence[str], files: Sequence[Path | None]) -> str:
    digest, entries = hashlib.sha256(), _entries(names, files)
    for entry in entries:
        digest.update(json.dumps([entry.name, entry.size]).encode())
    for entry in entries:
        digest.update(bytes.fromhex(entry.sha256))
    return digest.hexdigest()


def _entries(names: Sequence[str], files: Sequence[Path | None]) -> list[FileEntry]:
    hashed = set(np.unique(np.linspace(0, len(files) - 1, HASHED_FILES).astype(int)).tolist()) if files else set()
    entries = []
    try:
        for index, (name, file) in enumerate(zip(names, files, strict=True)):
            content = hashlib.sha256(read_bytes(file)).hexdigest() if file is not None and index in hashed else ""
            entries.append(FileEntry(name, -1 if file is None else file_size(file), content))
    except FileNotFoundError as error:
        raise MissingFileError(f"{error.filename}: not there; it was when the files were listed") from None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return entries


def _ranges(ids: np.ndarray) -> str:
    """Sorted ids in short: 0..33, 255."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
