"""Folders of drawn scenes: what is missing in them is drawn, and what is not theirs is left alone."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from proda.utils.errors import UserError
from proda.utils.files import atomic_write, save_json
from proda.utils.record import differences

MARKER, UNFINISHED = "streets.json", "streets.unfinished.json"

Drawing = tuple[Image.Image, np.ndarray]  # an RGB image and its label map, uint8 [H, W]


class SceneFiles(NamedTuple):
    """The two files of a scene, and how to draw it. Paths are relative to the folder."""

    image: str
    labels: str
    draw: Callable[[], Drawing]


class SceneFolder(NamedTuple):
    """A data set of drawn scenes."""

    path: Path
    settings: dict[str, Any]  # what the scenes depend on, written into the marker file
    scenes: list[SceneFiles]
    save_labels: Callable[[np.ndarray, Path], None]


def complete(folders: Sequence[SceneFolder], progress: Callable[[list], Iterable]) -> None:
    """Draws the scenes that the folders lack: all of them, none, or those that an interrupted call has left.

    Args:
        folders: the folders, created if needed.
        progress: wraps the list of scenes to be drawn, as tqdm does.

    Raises:
        UserError: a folder holds other data or scenes of other settings. Nothing is written into any folder.
    """
    begun, missing = [], []
    for folder in folders:
        finished, present = _finished(folder), _files_below(folder.path)
        lacking = [scene for scene in folder.scenes if not present.issuperset((scene.image, scene.labels))]
        if lacking or not finished:
            begun.append(folder)
        missing += [(folder, scene) for scene in lacking]
    for folder in begun:
        save_json(folder.settings, folder.path / UNFINISHED)
    for folder, scene in progress(missing):
        image, labels = scene.draw()
        with atomic_write(folder.path / scene.labels) as path:
            folder.save_labels(labels, path)
        with atomic_write(folder.path / scene.image) as path:
            image.save(path, "PNG", compress_level=3)
    for folder in begun:
        save_json(folder.settings, folder.path / MARKER)
        (folder.path / UNFINISHED).unlink(missing_ok=True)


def save_palette_labels(ids: np.ndarray, colours: np.ndarray, path: Path) -> None:
    """Writes ids, uint8 [H, W], as an 8-bit PNG with a palette, uint8 [N, 3] RGB; its pixel values are the ids."""
    image = Image.fromarray(ids)
    image.putpalette(colours.tobytes())
    image.save(path, "PNG", compress_level=3)


def _finished(folder: SceneFolder) -> bool:
    """Whether the scenes that are wanted have once been drawn into a folder to the end.

    A marker file exists from the first scene on, so an interrupted run is never mistaken for a folder of real data.

    Raises:
        UserError: the folder holds other data or scenes of other settings.
    """
    for marker in (folder.path / MARKER, folder.path / UNFINISHED):
        if marker.exists():
            found = json.loads(marker.read_text())
            if differing := differences(found, folder.settings):
                raise UserError(
                    f"{folder.path} holds Streets of other settings ({'; '.join(differing)}): delete it or choose "
                    "another data root"
                )
            return marker.name == MARKER
    # Hidden files do not count: a run that is killed while it writes its first file leaves one.
    if folder.path.exists() and any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise UserError(f"{folder.path} holds other data (it has no {MARKER}): choose another data root for Streets")
    return False


def _files_below(folder: Path) -> set[str]:
    """The files in a folder and its subfolders, as paths relative to it. Each folder is listed once."""
    parts = ((Path(path).relative_to(folder), names) for path, _, names in os.walk(folder))
    return {(part / name).as_posix() for part, names in parts for name in names}
