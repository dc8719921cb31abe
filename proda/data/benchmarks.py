"""Cityscapes, GTA5 and SYNTHIA as their downloads unpack; Cityscapes and GTA5 as zip files, too.

A data set lists its files when it is created, so that a missing folder or label map stops a run before it starts.
Every problem raises a MissingFileError or UserError of one line.
"""

from pathlib import Path
from typing import Any, NamedTuple

from proda.data.labelled_files import LabelledFiles
from proda.data.labels import id_table
from proda.data.listing import FoundFiles, list_files
from proda.utils.errors import MissingFileError, UserError

GTA5_RELEASED_SIZE = (1914, 1052)  # width, height


class _Place(NamedTuple):
    """PNGs of a download: a pattern below ``root`` or, if that folder is missing, one in zip files (empty: none)."""

    root: Path
    unpacked: str
    zipped: str = ""

    @property
    def folder(self) -> Path:
        return self.root / self.unpacked.partition("/*")[0]

    @property
    def in_zip_files(self) -> bool:
        return bool(self.zipped) and not self.folder.is_dir()

    def files(self) -> FoundFiles:
        return list_files(self.root, self.zipped if self.in_zip_files else self.unpacked, (".png",))

    def nor_zipped(self) -> str:
        return f", nor {self.zipped} in {self.root}" if self.in_zip_files else ""

    def file(self, key: str) -> str:
        """The file of a key, in words."""
        name = self.unpacked
        for part in key.split("/")[-name.count("*") :]:
            name = name.replace("*", part, 1)
        return f"{self.root / name}{self.nor_zipped()}"


class _Benchmark(LabelledFiles):
    """PNGs in two folders or in zip files, sorted by path. The last stars of all patterns match the same name."""

    def __init__(self, images: _Place, labels: _Place | None, hint: str, **options: Any) -> None:
        files = images.files()
        if not files:
            if images.folder.is_dir():
                raise MissingFileError(f"no images {images.root / images.unpacked}; {hint}")
            raise MissingFileError(f"no folder {images.folder}{images.nor_zipped()}; {hint} (--data_root tells where)")
        # The order of an unpacked download, whichever zip file a file lies in.
        keys = sorted(files, key=lambda key: "/".join(files[key].parts[-2:]))
        names = [_name(key) for key in keys]
        found = {_name(key): path for key, path in labels.files().items()} if labels else {}
        super().__init__(
            [files[key] for key in keys], [found.get(name) for name in names] if labels else None, names, **options
        )
        self.left_out = files.left_out
        if labels:
            key_of, place = dict(zip(names, keys, strict=True)), labels
            self.require_labels(lambda i: f"no label map {place.file(key_of[self.names[i]])}")


def _name(key: str) -> str:
    return key.rpartition("/")[2]


class Cityscapes(_Benchmark):
    """``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png`` under ``root``.

    A folder that is missing is looked for in ``leftImg8bit_trainvaltest.zip`` or ``gtFine_trainvaltest.zip`` instead.
    Without labels (``with_labels=False``) gtFine need not exist. ``options``: those of ``LabelledFiles``, as in the
    other benchmarks.
    """

    def __init__(
        self, root: Path, split: str, *, num_classes: int = 19, with_labels: bool = True, **options: Any
    ) -> None:
        root = Path(root)

        def place(what: str, pattern: str) -> _Place:
            unpacked = f"{what}/{split}/{pattern}"
            return _Place(root, unpacked, f"{what}_trainvaltest.zip/{unpacked}")

        super().__init__(
            place("leftImg8bit", "*/*_leftImg8bit.png"),
            place("gtFine", "*/*_gtFine_labelIds.png") if with_labels else None,
            f"Cityscapes unpacks to leftImg8bit/{split}/CITY/*_leftImg8bit.png",
            table=id_table("cityscapes", num_classes),
            num_classes=num_classes,
            **options,
        )


class GTA5(_Benchmark):
    """``images/NUMBER.png`` and ``labels/NUMBER.png`` under ``root``: all of them, whatever ``split.mat`` says.

    Instead of a folder that is missing, all ``*_images.zip`` or ``*_labels.zip`` are read. Label maps are 8-bit with a
    palette; the index is the id. A few differ from their image by some pixels and are stretched to it. The released
    code resizes every image and label map to the size of most, as ``size=GTA5_RELEASED_SIZE`` does.
    """

    def __init__(self, root: Path, *, num_classes: int = 19, with_labels: bool = True, **options: Any) -> None:
        root = Path(root)
        super().__init__(
            _Place(root, "images/*.png", "*_images.zip/**/*.png"),
            _Place(root, "labels/*.png", "*_labels.zip/**/*.png") if with_labels else None,
            "GTA5 unpacks to images/00001.png and labels/00001.png",
            table=id_table("gta5", num_classes),
            num_classes=num_classes,
            size_tolerance=16,
            **options,
        )


class Synthia(_Benchmark):
    """SYNTHIA-RAND-CITYSCAPES: ``RGB/NAME.png`` and ``GT/LABELS/NAME.png`` under ``root`` or ``root/RAND_CITYSCAPES``.

    Label maps are PNGs of 16 bits whose first channel holds the class, the others the instance. The download is a RAR
    archive and has to be unpacked.
    """

    def __init__(self, root: Path, *, num_classes: int = 16, with_labels: bool = True, **options: Any) -> None:
        root = Path(root)
        if not (root / "RGB").is_dir() and (root / "RAND_CITYSCAPES").is_dir():
            root = root / "RAND_CITYSCAPES"
        super().__init__(
            _Place(root, "RGB/*.png"),
            _Place(root, "GT/LABELS/*.png") if with_labels else None,
            "SYNTHIA-RAND-CITYSCAPES unpacks to RGB/*.png and GT/LABELS/*.png",
            table=id_table("synthia", num_classes),
            num_classes=num_classes,
            **options,
        )


def open_dataset(
    name: str, root: Path, split: str = "train", num_classes: int = 19, with_labels: bool = True, **options: Any
) -> LabelledFiles:
    """The data set ``name`` in the folder of that name under ``root``, the folder of all data (``--data_root``).

    ``split`` only affects Cityscapes; all files of GTA5 and of SYNTHIA are training data.
    """
    if name not in ("cityscapes", "gta5", "synthia"):
        raise UserError(f"no data set {name!r}; there are cityscapes, gta5 and synthia")
    root, options = Path(root) / name, {"num_classes": num_classes, "with_labels": with_labels, **options}
    if name == "cityscapes":
        return Cityscapes(root, split, **options)
    if split != "train":
        raise UserError(f"{name} has no split {split!r}: all of it is for training")
    return GTA5(root, **options) if name == "gta5" else Synthia(root, **options)
