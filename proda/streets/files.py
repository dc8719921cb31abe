"""Streets on disk, in the layouts and label encodings of GTA5, SYNTHIA and Cityscapes."""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from imagecodecs import png_encode
from PIL import Image

from proda.data.labels import CLASSES
from proda.streets.scene import draw_scene
from proda.streets.style import CAMERA, GAME, SIMULATOR, Style
from proda.utils.errors import UserError
from proda.utils.files import atomic_write, save_json
from proda.utils.record import differences

VERSION = 4  # increase it whenever the drawings change; folders of another version are refused
SOURCES = {"gta5": GAME, "synthia": SIMULATOR}
MARKER, UNFINISHED = "streets.json", "streets.unfinished.json"
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
    root, settings = Path(root), {}
    scenes: list[tuple[str, Style, list[int], Path, Path]] = []
    domains: tuple[tuple[str, Style, dict[str, int]], ...] = (
        (source, SOURCES[source], {}),
        ("cityscapes", CAMERA, {"num_val": num_val}),
    )
    for dataset, style, own in domains:
        folder = root / dataset
        # The checksum of the style makes sure that old pictures are not reused after a change of its colours.
        wanted = common | own | {"style": zlib.crc32(repr(style).encode())}
        finished, present = _finished(folder, wanted), _files_below(folder)
        missing = [scene for scene in _file_names(dataset, num_train, num_val) if not present.issuperset(scene[2:])]
        if missing or not finished:
            settings[folder] = wanted
        for split, i, image_name, labels_name in missing:
            entropy = [seed, split == "val", dataset == "cityscapes", i]
            scenes.append((dataset, style, entropy, folder / image_name, folder / labels_name))
    for folder, wanted in settings.items():
        save_json(wanted, folder / UNFINISHED)
    for dataset, style, entropy, image_path, labels_path in progress(scenes):
        image, labels = draw_scene(np.random.default_rng(entropy), style, size)
        with atomic_write(labels_path) as path:
            _save_labels(labels, dataset, path)
        with atomic_write(image_path) as path:
            image.save(path, "PNG", compress_level=3)
    for folder, wanted in settings.items():
        save_json(wanted, folder / MARKER)
        (folder / UNFINISHED).unlink(missing_ok=True)


def _finished(folder: Path, wanted: dict) -> bool:
    """Whether the Streets that are wanted have once been drawn into a folder to the end.

    A marker file exists from the first scene on, so an interrupted run is never mistaken for a folder of real data.

    Raises:
        UserError: the folder holds other data or Streets of other settings.
    """
    for marker in (folder / MARKER, folder / UNFINISHED):
        if marker.exists():
            found = json.loads(marker.read_text())
            if differing := differences(found, wanted):
                raise UserError(
                    f"{folder} holds Streets of other settings ({'; '.join(differing)}): delete it or choose another "
                    "data root"
                )
            return marker.name == MARKER
    # Hidden files do not count: a run that is killed while it writes its first file leaves one.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} holds other data (it has no {MARKER}): choose another data root for Streets")
    return False


def _files_below(folder: Path) -> set[str]:
    """The files in a folder and its subfolders, as paths relative to it. Each folder is listed once."""
    parts = ((Path(path).relative_to(folder), names) for path, _, names in os.walk(folder))
    return {(part / name).as_posix() for part, names in parts for name in names}


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


def _save_labels(labels: np.ndarray, dataset: str, path: Path) -> None:
    """Writes a label map, uint8 [H, W] of train ids, with the data set's own ids and PNG format. IGNORE becomes 0."""
    ids = np.zeros(256, np.uint8)
    ids[: len(CLASSES)] = [c.synthia if dataset == "synthia" else c.cityscapes for c in CLASSES]
    if dataset == "synthia":
        pixels = np.zeros((*labels.shape, 4), np.uint16)  # class, instance (always 0), unused, opacity
        pixels[..., 0], pixels[..., 3] = ids[labels], 0xFFFF
        path.write_bytes(png_encode(pixels, level=3))  # Pillow cannot write 16 bits per channel
        return
    image = Image.fromarray(ids[labels])
    if dataset == "gta5":
        colours = np.zeros((256, 3), np.uint8)
        colours[[c.cityscapes for c in CLASSES]] = [c.color for c in CLASSES]
        image.putpalette(colours.tobytes())  # the image gets a palette; its pixel values remain the ids
    image.save(path, "PNG", compress_level=3)
