"""Scenes: drawn streets for adaptation to photographs. The appearance of each is drawn anew, and none looks real.

They have the 11 classes of CamVid, so that a network can learn them without a label of a photograph.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from proda.data.labels import CAMVID_CLASSES, camvid_table
from proda.streets.folders import Drawing, SceneFiles, SceneFolder, complete, save_palette_labels
from proda.streets.randomized import random_style
from proda.streets.town import draw_town

VERSION = 1  # increase it whenever the drawings change; folders of another version are refused
COLORS = np.array([c.color for c in CAMVID_CLASSES] + [(0, 0, 0)], np.uint8)
DOMAIN = 2  # keeps the random numbers of the scenes apart from those of the other Streets


def write_scenes(
    root: Path,
    *,
    seed: int = 0,
    number: int = 1000,
    size: tuple[int, int] = (320, 240),
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Writes ``scenes/images/00001.png`` and ``scenes/labels/00001.png`` and so on under a data root.

    Label maps are 8-bit PNG with a palette: the number in ``CAMVID_CLASSES``, or the next for what has no class.
    The same arguments always give the same files. A second call with the same arguments draws only what is missing.

    Args:
        root: data root, created if needed.
        seed: seed of all scenes.
        number: number of scenes.
        size: (width, height) in pixels.
        progress: wraps the list of scenes to be drawn, as tqdm does.

    Raises:
        UserError: the folder holds other data or scenes of other settings. Nothing is written.
    """
    settings = {"version": VERSION, "seed": seed, "size": list(size), "number": number}
    scenes = [
        SceneFiles(f"images/{i + 1:05d}.png", f"labels/{i + 1:05d}.png", partial(_draw, [seed, DOMAIN, i], size))
        for i in range(number)
    ]
    complete([SceneFolder(Path(root) / "scenes", settings, scenes, _save_labels)], progress)


def _draw(entropy: list[int], size: tuple[int, int]) -> Drawing:
    rng = np.random.default_rng(entropy)
    return draw_town(rng, random_style(rng), size)


def _save_labels(labels: np.ndarray, path: Path) -> None:
    """Writes a label map, uint8 [H, W] of train ids, with the ids of CamVid."""
    save_palette_labels(camvid_table()[labels], COLORS, path)
