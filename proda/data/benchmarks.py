"""Cityscapes, GTA5 and SYNTHIA as their downloads unpack: which files there are, and how one is read.

A data set lists its files when it is made, so that a missing folder or label map ends a run before it starts, and
reads a file only when asked for an example. Every problem is a FileNotFoundError or ValueError of one line.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from imagecodecs import png_decode
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from proda.data.labels import UNKNOWN, id_table

# What Pillow raises for a bad file, and imagecodecs (RuntimeError).
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, RuntimeError)

# Bit depth and colour type in the header of a PNG.
_RGB_8_BIT, _16_BIT, _FEW_BITS_OF_GREY = b"\x08\x02", b"\x10", (b"\x01\x00", b"\x02\x00", b"\x04\x00")
_EXACT = ("PNG", "BMP", "TIFF")  # formats that keep ids as they are


class Example(NamedTuple):
    """One photograph or rendered image as it is on disk, before any augmentation."""

    image: Image.Image  # RGB
    labels: np.ndarray | None  # uint8 [H, W] train ids of the image's own size
    name: str  # unique in its data set, and safe as the stem of a file


class LabelledFiles(Dataset[Example]):
    """Images and, where there are any, their label maps, as two lists of files.

    The base of the layouts below, and enough by itself for data in another layout.

    Args:
        images: files that Pillow reads.
        labels: one single-channel file per image, or one of 16 bits whose first channel holds the id; None for an
            image that has none, or for all.
        names: one per image, unique.
        table: uint8 [256] from the ids in the label files to train ids, ``UNKNOWN`` where there is no such id.
        num_classes: number of train ids.
        size_tolerance: label maps may differ from their image by so many pixels in width and in height; they are
            then stretched to the image (nearest), as in the released code.
    """

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Path | None] | None,
        names: Sequence[str],
        *,
        table: np.ndarray,
        num_classes: int,
        size_tolerance: int = 0,
    ) -> None:
        if len(set(names)) != len(names) or len(names) != len(images):
            raise ValueError(f"names must be unique, one per image: {len(set(names))} names, {len(images)} images")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"one label map per image is needed, got {len(labels)} for {len(images)} images")
        self.images = list(images)
        self.label_files = None if labels is None else list(labels)
        self.names = list(names)
        self.table = table
        self.num_classes = num_classes
        self.size_tolerance = size_tolerance

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """Reads one example; ValueError or FileNotFoundError naming the file if that cannot be done."""
        image = read_image(self.images[index])
        labels = None if self.label_files is None else self._read_labels(index, image.size)
        return Example(image, labels, self.names[index])

    def _read_labels(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        path = self.label_files[index]
        if path is None:
            return None
        ids = read_ids(path)
        if ids.size != size:
            off = max(abs(ids.width - size[0]), abs(ids.height - size[1]))
            if off > self.size_tolerance:
                raise ValueError(
                    f"{path}: label map of {ids.width}x{ids.height} pixels, expected {size[0]}x{size[1]} "
                    f"as its image {self.images[index]}"
                )
            ids = ids.resize(size, Image.Resampling.NEAREST)
        labels = ids.point(self.table.tolist())
        if labels.getextrema()[1] == UNKNOWN:
            found = [i for i, count in enumerate(ids.histogram()) if count and self.table[i] == UNKNOWN]
            known = np.flatnonzero(self.table != UNKNOWN)
            raise ValueError(f"{path}: unknown label id {', '.join(map(str, found))}, expected ids {_ranges(known)}")
        return np.array(labels)


class MissingLabelsError(FileNotFoundError):
    """Some images have no label map where all need one; ``dataset`` reads the others."""

    dataset: LabelledFiles


def labels_missing(first: str, dataset: LabelledFiles) -> MissingLabelsError:
    """The error for a data set of which some ``label_files`` are None; ``first`` says where the first was expected."""
    count = dataset.label_files.count(None)
    error = MissingLabelsError(first + (f"; {count} of {len(dataset)} images are without" if count > 1 else ""))
    error.dataset = dataset
    return error


class Cityscapes(LabelledFiles):
    """``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png`` under ``root``.

    Sorted by path. Without labels (``with_labels=False``) gtFine need not be there.
    """

    def __init__(self, root: Path, split: str, *, num_classes: int = 19, with_labels: bool = True) -> None:
        folder = Path(root) / "leftImg8bit" / split
        hint = f"Cityscapes unpacks to leftImg8bit/{split}/CITY/*_leftImg8bit.png"
        images = _images(folder, "*/*_leftImg8bit.png", hint)
        names = [path.name.removesuffix("_leftImg8bit.png") for path in images]
        label_folder = Path(root) / "gtFine" / split
        labels = [label_folder / i.parent.name / f"{n}_gtFine_labelIds.png" for i, n in zip(images, names, strict=True)]
        super().__init__(
            images,
            labels if with_labels else None,
            names,
            table=id_table("cityscapes", num_classes),
            num_classes=num_classes,
        )
        if with_labels:
            _check_labels(self, set(label_folder.glob("*/*.png")))


class GTA5(LabelledFiles):
    """``images/NUMBER.png`` and ``labels/NUMBER.png`` under ``root``: all of them, whatever ``split.mat`` says.

    The released code, too, takes every file for training. Label maps are 8-bit with a palette; the index is the id.
    A few of the real ones differ from their image by some pixels.
    """

    def __init__(self, root: Path, *, num_classes: int = 19, with_labels: bool = True) -> None:
        images = _images(Path(root) / "images", "*.png", "GTA5 unpacks to images/00001.png and labels/00001.png")
        folder = Path(root) / "labels"
        labels = [folder / path.name for path in images]
        super().__init__(
            images,
            labels if with_labels else None,
            [path.stem for path in images],
            table=id_table("gta5", num_classes),
            num_classes=num_classes,
            size_tolerance=16,
        )
        if with_labels:
            _check_labels(self, set(folder.glob("*.png")))


class Synthia(LabelledFiles):
    """SYNTHIA-RAND-CITYSCAPES: ``RGB/NAME.png`` and ``GT/LABELS/NAME.png`` under ``root`` or ``root/RAND_CITYSCAPES``.

    Label maps are PNGs of 16 bits whose first channel holds the class, the others the instance. Sorted by name (the
    released code takes them in the order of the directory, which differs between machines).
    """

    def __init__(self, root: Path, *, num_classes: int = 16, with_labels: bool = True) -> None:
        root = Path(root)
        if not (root / "RGB").is_dir() and (root / "RAND_CITYSCAPES").is_dir():
            root = root / "RAND_CITYSCAPES"
        images = _images(root / "RGB", "*.png", "SYNTHIA-RAND-CITYSCAPES unpacks to RGB/*.png and GT/LABELS/*.png")
        folder = root / "GT" / "LABELS"
        labels = [folder / path.name for path in images]
        super().__init__(
            images,
            labels if with_labels else None,
            [path.stem for path in images],
            table=id_table("synthia", num_classes),
            num_classes=num_classes,
        )
        if with_labels:
            _check_labels(self, set(folder.glob("*.png")))


def open_dataset(
    name: str, root: Path, split: str = "train", num_classes: int = 19, with_labels: bool = True
) -> LabelledFiles:
    """The data set ``name`` in the folder of that name under ``root``, the folder of all data (``--data_root``).

    ``split`` matters to Cityscapes alone; all files of GTA5 and of SYNTHIA are training data.
    """
    root = Path(root) / name
    if name == "cityscapes":
        return Cityscapes(root, split, num_classes=num_classes, with_labels=with_labels)
    layouts = {"gta5": GTA5, "synthia": Synthia}
    if name not in layouts:
        raise ValueError(f"no data set {name!r}; there are cityscapes, gta5 and synthia")
    if split != "train":
        raise ValueError(f"{name} has no split {split!r}: all of it is for training")
    return layouts[name](root, num_classes=num_classes, with_labels=with_labels)


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, decoded and upright; ValueError if it is not an image or is cut short.

    The PNGs of the benchmarks are decoded by imagecodecs, in 0.6 of the time that Pillow takes.
    """
    data = _read_bytes(path, "image")
    try:
        if _png_format(data) == _RGB_8_BIT:
            return Image.fromarray(png_decode(data))
        image = Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)  # phones store the sensor's rows and say which way is up
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a complete image ({_brief(error)})") from None
    if image.mode.startswith("I"):  # grey of 16 bits: convert would cut all that is brighter than 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def read_ids(path: Path) -> Image.Image:
    """The ids in a label file as an 8-bit grey image; the index where there is a palette.

    16-bit PNGs are decoded by imagecodecs, and the first channel holds the id: Pillow cuts 16-bit colour to the
    high bytes, which are 0 here, and torchvision's decoder crashes the process on some damaged ones. ValueError if
    the file is cut short, is a colour picture or of a format that changes ids, or if an id exceeds 255.
    """
    data = _read_bytes(path, "label map")
    try:
        if _png_format(data)[:1] == _16_BIT:
            deep = png_decode(data)
            return _as_bytes(path, deep if deep.ndim == 2 else deep[..., 0])
        ids = Image.open(io.BytesIO(data))
        ids.load()
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a complete label map ({_brief(error)})") from None
    if ids.format not in _EXACT:
        raise ValueError(f"{path}: a {ids.format}, which may change ids; expected a label map as {', '.join(_EXACT)}")
    if ids.mode.startswith("I"):  # TIFF
        return _as_bytes(path, np.asarray(ids))
    if ids.mode == "1" or _png_format(data) in _FEW_BITS_OF_GREY:  # Pillow stretches these to 0..255
        largest = 2 ** (1 if ids.mode == "1" else data[24]) - 1
        return ids.convert("L").point([value * largest // 255 for value in range(256)])
    if ids.mode not in ("L", "P"):
        raise ValueError(
            f"{path}: a picture of mode {ids.mode}, expected a label map: one channel of 8 bits, or 16 bits"
        )
    return ids if ids.mode == "L" else Image.frombytes("L", ids.size, ids.tobytes())


def _as_bytes(path: Path, ids: np.ndarray) -> Image.Image:
    """Integer ids [H, W] of more than 8 bits in a byte each; none is wrapped."""
    for strange in (ids.max(), ids.min()):
        if not 0 <= strange <= 255:
            raise ValueError(f"{path}: unknown label id {strange} in the first channel, expected ids 0..255")
    return Image.fromarray(ids.astype(np.uint8))


def _png_format(data: bytes) -> bytes:
    """Bit depth and colour type of a PNG, two bytes of its header; empty for another format."""
    return data[24:26] if data.startswith(b"\x89PNG\r\n\x1a\n") else b""


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {what}; it was there when the files were listed") from None


def _images(folder: Path, pattern: str, hint: str) -> list[Path]:
    """Files in ``folder`` that match, sorted as strings; FileNotFoundError with ``hint`` if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; {hint} (--data_root tells where)")
    images = sorted(folder.glob(pattern), key=str)
    if not images:
        raise FileNotFoundError(f"no images {pattern} under {folder}; {hint}")
    return images


def _check_labels(dataset: LabelledFiles, present: set[Path]) -> None:
    """MissingLabelsError if a label file is not ``present``."""
    expected = dataset.label_files
    dataset.label_files = [path if path in present else None for path in expected]
    if None in dataset.label_files:
        first = dataset.label_files.index(None)
        raise labels_missing(f"no label map {expected[first]} for the image {dataset.images[first]}", dataset)


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # names a buffer in memory
        return "of no known format"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ranges(ids: np.ndarray) -> str:
    """Sorted ids in short: 0..33, 255."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
