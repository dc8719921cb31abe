"""Streets on disk, in the layouts and label encodings of GTA5, SYNTHIA and Cityscapes."""

import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from imagecodecs import png_encode
from PIL import Image

from proda.data.labels import CLASSES
from proda.streets.folders import Drawing, SceneFiles, SceneFolder, complete, save_palette_labels
from proda.streets.scene import draw_scene
from proda.streets.style import CAMERA, GAME, SIMULATOR, Style
from proda.utils.errors import UserError

VERSION = 4  # increase it whenever the drawings change; folders of another version are refused
SOURCES = {"gta5": GAME, "synthia": SIMULATOR}
TRAIN_CITIES, VAL_CITIES = ("alderbach", "birkenau", "carlsfeld"), ("dornheim",)


def write_streets(
    root: Path,
    *,
    seed: int = 0,
    source: str = "gta5",
    num_train: int = 300,
    num_val: int = 100,
    size: tuple[int, int] = (256, 128),
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Writes Streets under a data root in the layout of the real downloads: one source data set and ``cityscapes``.

    - ``gta5/images/00001.png`` and ``gta5/labels/00001.png`` (8-bit palette), or
      ``synthia/RAND_CITYSCAPES/RGB/0000000.png`` and ``.../GT/LABELS/0000000.png`` (16-bit RGBA, class first):
      ``num_train`` scenes in the style ``GAME`` or ``SIMULATOR``;
    - ``cityscapes/leftImg8bit/SPLIT/CITY/...`` and ``cityscapes/gtFine/SPLIT/CITY/...``: ``num_train`` scenes of split
      train and ``num_val`` of split val in the ``CAMERA`` style.

    The same arguments always give the same files. A second call with the same arguments draws only what is missing:
    nothing, or the scenes that an interrupted call has left, or whose image or label map has been lost since.

    Args:
        root: data root, created if needed.
        seed: seed of all scenes.
        source: ``gta5`` or ``synthia``.
        num_train: scenes of the source, and of the target's train split.
        num_val: scenes of the target's val split.
        size: (width, height) in pixels.
        progress: wraps the list of scenes to be drawn, as tqdm does.

    Raises:
        UserError: the source is unknown, or a folder holds other data or Streets of other settings. Nothing is written.
    """
    if source not in SOURCES:
        raise UserError(f"source must be {' or '.join(SOURCES)}, got {source!r}")
    common = {"version": VERSION, "seed": seed, "size": list(size), "num_train": num_train}
    domains: tuple[tuple[str, Style, dict[str, int]], ...] = (
        (source, SOURCES[source], {}),
        ("cityscapes", CAMERA, {"num_val": num_val}),
    )
    folders = []
    for dataset, style, own in domains:
        # The checksum of the style makes sure that old pictures are not reused after a change of its colours.
        settings = common | own | {"style": zlib.crc32(repr(style).encode())}
        scenes = []
        for split, i, image, labels in _file_names(dataset, num_train, num_val):
            entropy = [seed, split == "val", dataset == "cityscapes", i]
            scenes.append(SceneFiles(image, labels, partial(_draw, entropy, style, size)))
        folders.append(SceneFolder(Path(root) / dataset, settings, scenes, partial(_save_labels, dataset)))
    complete(folders, progress)


def _draw(entropy: list[int], style: Style, size: tuple[int, int]) -> Drawing:
    return draw_scene(np.random.default_rng(entropy), style, size)


def _file_names(dataset: str, num_train: int, num_val: int) -> list[tuple[str, int, str, str]]:
    """(split, index in the split, image, label map) of every scene; paths are relative to the data set's folder."""
    if dataset == "gta5":
        return [("train", i, f"images/{i + 1:05d}.png", f"labels/{i + 1:05d}.png") for i in range(num_train)]
    if dataset == "synthia":
        folder = "RAND_CITYSCAPES"
        return [("train", i, f"{folder}/RGB/{i:07d}.png", f"{folder}/GT/LABELS/{i:07d}.png") for i in range(num_train)]
    files = []
    for split, number, cities in (("train", num_train, TRAIN_CITIES), ("val", num_val, VAL_CITIES)):
        for i in range(number):
            city = cities[i * len(cities) // number]
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            files.append((split, i, f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"))
    return files


def _save_labels(dataset: str, labels: np.ndarray, path: Path) -> None:
    """Writes a label map, uint8 [H, W] of train ids, with the data set's own ids and PNG format. IGNORE becomes 0."""
    ids = np.zeros(256, np.uint8)
    ids[: len(CLASSES)] = [c.synthia if dataset == "synthia" else c.cityscapes for c in CLASSES]
    if dataset == "synthia":
        pixels = np.zeros((*labels.shape, 4), np.uint16)  # class, instance (always 0), unused, opacity
        pixels[..., 0], pixels[..., 3] = ids[labels], 0xFFFF
        path.write_bytes(png_encode(pixels, level=3))  # Pillow cannot write 16 bits per channel
    elif dataset == "gta5":
        colours = np.zeros((256, 3), np.uint8)
        colours[[c.cityscapes for c in CLASSES]] = [c.color for c in CLASSES]
        save_palette_labels(ids[labels], colours, path)
    else:
        Image.fromarray(ids[labels]).save(path, "PNG", compress_level=3)
