"""Classes, colours and label ids of the benchmarks: Cityscapes, GTA5 and SYNTHIA with 19, 16 and 13 classes.

Inside this project a label map is uint8 [H, W] of train ids 0..K-1, with ``IGNORE`` (250) where there is no label.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from proda.method import IGNORE
from proda.utils.errors import UserError

TRANSPARENT = 1 << 24  # stands for the colour of a pixel that is transparent, in label maps of colours
UNKNOWN = 255  # in an id table: the format has no such id, so the file is of another kind

Color = Sequence[int]  # red, green, blue, 0..255


class Class(NamedTuple):
    """One class of the 19, with its colour and its id in the files of each benchmark."""

    name: str
    color: tuple[int, int, int]  # RGB, 0..255
    cityscapes: int  # GTA5 uses the same ids
    synthia: int


# The sky is (0, 130, 180) as in the released code, not the (70, 130, 180) of the Cityscapes scripts.
CLASSES = (
    Class("road", (128, 64, 128), 7, 3),
    Class("sidewalk", (244, 35, 232), 8, 4),
    Class("building", (70, 70, 70), 11, 2),
    Class("wall", (102, 102, 156), 12, 21),
    Class("fence", (190, 153, 153), 13, 5),
    Class("pole", (153, 153, 153), 17, 7),
    Class("traffic_light", (250, 170, 30), 19, 15),
    Class("traffic_sign", (220, 220, 0), 20, 9),
    Class("vegetation", (107, 142, 35), 21, 6),
    Class("terrain", (152, 251, 152), 22, 16),
    Class("sky", (0, 130, 180), 23, 1),
    Class("person", (220, 20, 60), 24, 10),
    Class("rider", (255, 0, 0), 25, 17),
    Class("car", (0, 0, 142), 26, 8),
    Class("truck", (0, 0, 70), 27, 18),
    Class("bus", (0, 60, 100), 28, 19),
    Class("train", (0, 80, 100), 31, 20),
    Class("motorcycle", (0, 0, 230), 32, 12),
    Class("bicycle", (119, 11, 32), 33, 11),
)


class CamVidClass(NamedTuple):
    """One class of CamVid, with its usual color and the classes of the 19 that it joins."""

    name: str
    color: tuple[int, int, int]  # RGB, 0..255
    joins: tuple[str, ...]


# In the order of the ids in the label maps of the usual 11 classes. The next id means "unlabeled".
CAMVID_CLASSES = (
    CamVidClass("sky", (128, 128, 128), ("sky",)),
    CamVidClass("building", (128, 0, 0), ("building", "wall")),
    CamVidClass("pole", (192, 192, 128), ("pole",)),
    CamVidClass("road", (128, 64, 128), ("road",)),
    CamVidClass("pavement", (60, 40, 222), ("sidewalk",)),
    CamVidClass("tree", (128, 128, 0), ("vegetation", "terrain")),
    CamVidClass("sign_symbol", (192, 128, 128), ("traffic_light", "traffic_sign")),
    CamVidClass("fence", (64, 64, 128), ("fence",)),
    CamVidClass("car", (64, 0, 128), ("car", "truck", "bus")),
    CamVidClass("pedestrian", (64, 64, 0), ("person",)),
    CamVidClass("bicyclist", (0, 128, 192), ("rider", "motorcycle", "bicycle")),
)
CAMVID_UNLABELED = len(CAMVID_CLASSES)
_MOST_TRAIN_IDS = len(CLASSES)
TRAIN_IDS_SUSPECTED = (
    "no id above 18 occurs in any label map: the files seem to hold trainIds (0 is road), expected labelIds (7 is road)"
)

_LEFT_OUT = {  # by the number of classes
    19: set(),
    16: {"terrain", "truck", "train"},
    13: {"terrain", "truck", "train", "wall", "fence", "pole"},
}

# Every id that a file of the format may hold. Anything else means another kind of file (say, one of train ids).
_FILE_IDS = {
    "cityscapes": {*range(34), 255},  # 255 is -1, licence plate, in a byte
    "gta5": {*range(35), IGNORE},
    "synthia": set(range(23)),
}


def classes(num_classes: int) -> tuple[Class, ...]:
    """The classes in the order of their train ids; ``num_classes`` is 19, 16 or 13, else UserError."""
    if num_classes not in _LEFT_OUT:
        raise UserError(f"--num_classes must be 19, 16 or 13, got {num_classes}")
    return tuple(c for c in CLASSES if c.name not in _LEFT_OUT[num_classes])


def class_names(num_classes: int) -> list[str]:
    """Names in the order of the train ids."""
    return [c.name for c in classes(num_classes)]


def benchmark_names(num_classes: int) -> list[str]:
    """As :func:`class_names`; empty for a number of classes that no benchmark has."""
    return class_names(num_classes) if num_classes in _LEFT_OUT else []


def palette(num_classes: int) -> np.ndarray:
    """RGB colours, uint8 [K, 3]."""
    return np.array([c.color for c in classes(num_classes)], np.uint8)


def class_subset(num_classes: int, of: int = 19) -> list[int]:
    """Train ids that the classes of a smaller label space have in the space of ``of`` classes.

    ``class_subset(13, of=16)`` are the rows of a 16-class score that the 13-class score of SYNTHIA averages.
    """
    names = class_names(of)
    return [names.index(name) for name in class_names(num_classes)]


def id_table(dataset: str, num_classes: int) -> np.ndarray:
    """Table uint8 [256] from the ids in the files of ``dataset`` to train ids.

    ``dataset`` is "cityscapes", "gta5" or "synthia". Ids outside the classes become ``IGNORE``; ids that the
    format does not have become ``UNKNOWN``, for the reader to refuse (the released code refuses them for GTA5 only).
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(_FILE_IDS[dataset])] = IGNORE
    for train_id, c in enumerate(classes(num_classes)):
        table[c.synthia if dataset == "synthia" else c.cityscapes] = train_id
    return table


def camvid_table() -> np.ndarray:
    """Table uint8 [256] from train ids of the 19 classes to the ids of CamVid; what it lacks is unlabeled there."""
    table = np.full(256, CAMVID_UNLABELED, np.uint8)
    names = class_names(19)
    for number, c in enumerate(CAMVID_CLASSES):
        table[[names.index(name) for name in c.joins]] = number
    return table


class ColorTable(NamedTuple):
    """From colours in label files to train ids. ``color_table`` makes one."""

    codes: np.ndarray  # uint32 [N], ascending: 0xRRGGBB, or TRANSPARENT
    train_ids: np.ndarray  # uint8 [N]: train id, or IGNORE

    def lookup(self, codes: np.ndarray) -> np.ndarray:
        """Train ids uint8 of any shape for colours uint32; ``UNKNOWN`` for a colour that is not in the table.

        Colours are searched where they change: label maps consist of long runs of one colour.
        """
        flat = codes.reshape(-1)
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])[: flat.size])
        runs = flat[starts]
        places = np.searchsorted(self.codes, runs).clip(max=len(self.codes) - 1)
        found = np.where(self.codes[places] == runs, self.train_ids[places], np.uint8(UNKNOWN))
        return np.repeat(found, np.diff(starts, append=flat.size)).reshape(codes.shape)


def hold_train_ids(
    table: np.ndarray | ColorTable, num_classes: int, pixels: np.ndarray, *, ignored: float = 0.0
) -> bool:
    """Whether label maps seem to hold train ids (0..18) where the table expects the ids of Cityscapes or SYNTHIA.

    Such files can be read: the ids of a few classes are below 19, too. But no class above 18 occurs.

    Args:
        table: as in ``LabelSpace``; a table of colors or of other ids is never suspected.
        num_classes: number of train ids, K.
        pixels: int64 [K], pixels of each class in all label maps of a split, as the table names them.
        ignored: share of the pixels without a class. Only SYNTHIA needs it, of whose classes two or three are above 18:
            train ids turn its roads into id 0, which is no class there.
    """
    if isinstance(table, ColorTable) or not pixels.any():
        return False
    is_class = table < num_classes
    of_few = np.unique(table[:_MOST_TRAIN_IDS][is_class[:_MOST_TRAIN_IDS]])
    above = np.setdiff1d(table[_MOST_TRAIN_IDS:][is_class[_MOST_TRAIN_IDS:]], of_few)
    if not len(above) or pixels[above].any():
        return False
    if num_classes in _LEFT_OUT and np.array_equal(table, id_table("synthia", num_classes)):
        return ignored > 0.2
    known = [c.cityscapes for c in CLASSES if c.cityscapes >= _MOST_TRAIN_IDS]
    return not is_class[: CLASSES[0].cityscapes].any() and bool(is_class[known].sum() >= 5)


def color_table(classes: Sequence[Sequence[Color]], ignore: Sequence[Color]) -> ColorTable:
    """The table for classes of one or more colours each, in the order of their train ids, and colours without a class.

    Raises ValueError if a colour occurs twice.
    """
    table = {TRANSPARENT: IGNORE} | {color_code(color): IGNORE for color in ignore}
    for train_id, colors in enumerate(classes):
        for color in colors:
            if table.setdefault(color_code(color), train_id) != train_id:
                raise ValueError(f"two meanings of the color {tuple(color)}")
    codes = sorted(table)
    return ColorTable(np.array(codes, np.uint32), np.array([table[code] for code in codes], np.uint8))


def color_code(color: Color) -> int:
    """0xRRGGBB of red, green and blue in 0..255."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def color_words(code: int) -> str:
    """A colour for people: ``#804080 (128, 64, 128)``."""
    return f"#{code:06x} ({code >> 16}, {code >> 8 & 255}, {code & 255})"


class LabelSpace(NamedTuple):
    """The classes of a run, in the order of their train ids, and how label files of the target name them."""

    names: list[str]
    colors: np.ndarray  # uint8 [K, 3] RGB
    table: np.ndarray | ColorTable  # uint8 [256] from ids in the target's label files to train ids; or from colours

    @property
    def ids(self) -> np.ndarray:
        """uint8 [K]: the (lowest) id of each class in label files; the train id where label files hold colours."""
        if isinstance(self.table, ColorTable):
            return np.arange(len(self.names), dtype=np.uint8)
        return np.array([np.flatnonzero(self.table == k)[0] for k in range(len(self.names))], np.uint8)


def benchmark_labels(num_classes: int) -> LabelSpace:
    """19, 16 or 13 classes, with Cityscapes as the target."""
    return LabelSpace(class_names(num_classes), palette(num_classes), id_table("cityscapes", num_classes))


def stored_labels(
    num_classes: int,
    names: Sequence[str] = (),
    colors: Sequence[Sequence[int]] = (),
    table: Sequence[int] = (),
) -> LabelSpace:
    """The label space that a weights file describes; what is empty was not stored.

    Without names, 19, 16 and 13 classes are those of the benchmarks, with their colours and ids. Others are called
    "class 0" and so on, and have hues around the circle and ids equal to their numbers.
    """
    if num_classes in _LEFT_OUT and list(names) in ([], class_names(num_classes)):
        space = benchmark_labels(num_classes)
    else:
        ids = np.append(np.arange(num_classes), np.full(256 - num_classes, UNKNOWN)).astype(np.uint8)
        space = LabelSpace([f"class {k}" for k in range(num_classes)], generated_colors(num_classes), ids)
    return LabelSpace(
        list(names) or space.names,
        np.array(colors, np.uint8) if colors else space.colors,
        np.array(table, np.uint8) if table else space.table,
    )


def generated_colors(count: int) -> np.ndarray:
    """uint8 [K, 3] RGB: hues around the circle, dark and light in turn."""
    hues = (colorsys.hsv_to_rgb(number / count, 0.75, (0.95, 0.6)[number % 2]) for number in range(count))
    return np.array([[round(255 * value) for value in color] for color in hues], np.uint8)


def colorize(labels: np.ndarray, colors: np.ndarray | None = None) -> np.ndarray:
    """Picture of a label map: integer [H, W] in 0..255 to RGB uint8 [H, W, 3].

    ``colors`` is uint8 [K, 3], by default of the 19 classes. Values from K on, ``IGNORE`` among them, keep the grey
    of their value.
    """
    colors = palette(19) if colors is None else colors
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    table[: len(colors)] = colors
    return table[np.asarray(labels)]
