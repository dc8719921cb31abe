"""Cityscapes, GTA5 and SYNTHIA as their downloads unpack.

A data set lists its files when it is created, so that a missing folder or label map stops a run before it starts.
Every problem raises a MissingFileError or UserError of one line.
"""

from pathlib import Path
from typing import Any

from proda.data.labelled_files import LabelledFiles
from proda.data.labels import id_table
from proda.data.listing import list_files
from proda.utils.errors import MissingFileError, UserError

GTA5_RELEASED_SIZE = (1914, 1052)  # width, height


class _Benchmark(LabelledFiles):
    """PNGs in two folders, sorted by path. The stars of both patterns match the same text."""

    def __init__(
        self,
        images: tuple[Path, str],
        labels: tuple[Path, str] | None,
        hint: str,
        **options: Any,
    ) -> None:
        folder, pattern = images
        if not folder.is_dir():
            raise MissingFileError(f"no folder {folder}; {hint} (--data_root tells where)")
        files = list_files(folder, pattern, (".png",))
        if not files:
            raise MissingFileError(f"no images {pattern} under {folder}; {hint}")
        found = list_files(*labels, (".png",)) if labels else {}
        keys = {key.rpartition("/")[2]: key for key in files}
        super().__init__(
            list(files.values()),
            [found.get(key) for key in files] if labels else None,
            [key.rpartition("/")[2] for key in files],
            **options,
        )
        self.left_out = files.left_out

        def expected(index: int) -> str:
            assert labels
            label_folder, name = labels
            for part in keys[self.names[index]].split("/"):
                name = name.replace("*", part, 1)
            return f"no label map {label_folder / name}"

        self.require_labels(expected)


class Cityscapes(_Benchmark):
    """``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png`` under ``root``.

    Without labels (``with_labels=False``) gtFine need not exist. ``options``: those of ``LabelledFiles``, as in the
    other benchmarks.
    """

    def __init__(
        self, root: Path, split: str, *, num_classes: int = 19, with_labels: bool = True, **options: Any
    ) -> None:
        super().__init__(
            (Path(root) / "leftImg8bit" / split, "*/*_leftImg8bit.png"),
            (Path(root) / "gtFine" / split, "*/*_gtFine_labelIds.png") if with_labels else None,
            f"Cityscapes unpacks to leftImg8bit/{split}/CITY/*_leftImg8bit.png",
            table=id_table("cityscapes", num_classes),
            num_classes=num_classes,
            **options,
        )


class GTA5(_Benchmark):
    """``images/NUMBER.png`` and ``labels/NUMBER.png`` under ``root``: all of them, whatever ``split.mat`` says.

    The released code, too, takes every file for training. Label maps are 8-bit with a palette; the index is the id.

    The images are not all of one size, and a few label maps differ from theirs by some pixels; these are stretched to
    their image. The released code resizes every image and label map to ``GTA5_RELEASED_SIZE`` instead, most of which
    have that size: ``size=GTA5_RELEASED_SIZE`` does the same.
    """

    def __init__(self, root: Path, *, num_classes: int = 19, with_labels: bool = True, **options: Any) -> None:
        super().__init__(
            (Path(root) / "images", "*.png"),
            (Path(root) / "labels", "*.png") if with_labels else None,
            "GTA5 unpacks to images/00001.png and labels/00001.png",
            table=id_table("gta5", num_classes),
            num_classes=num_classes,
            size_tolerance=16,
            **options,
        )


class Synthia(_Benchmark):
    """SYNTHIA-RAND-CITYSCAPES: ``RGB/NAME.png`` and ``GT/LABELS/NAME.png`` under ``root`` or ``root/RAND_CITYSCAPES``.

    Label maps are PNGs of 16 bits whose first channel holds the class, the others the instance. Sorted by name (the
    released code takes them in the order of the directory, which differs between machines).
    """

    def __init__(self, root: Path, *, num_classes: int = 16, with_labels: bool = True, **options: Any) -> None:
        root = Path(root)
        if not (root / "RGB").is_dir() and (root / "RAND_CITYSCAPES").is_dir():
            root = root / "RAND_CITYSCAPES"
        super().__init__(
            (root / "RGB", "*.png"),
            (root / "GT" / "LABELS", "*.png") if with_labels else None,
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
    root = Path(root) / name
    if name == "cityscapes":
        return Cityscapes(root, split, num_classes=num_classes, with_labels=with_labels, **options)
    layouts = {"gta5": GTA5, "synthia": Synthia}
    if name not in layouts:
        raise UserError(f"no data set {name!r}; there are cityscapes, gta5 and synthia")
    if split != "train":
        raise UserError(f"{name} has no split {split!r}: all of it is for training")
    return layouts[name](root, num_classes=num_classes, with_labels=with_labels, **options)
