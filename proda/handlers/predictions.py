"""Writes predictions as files: label maps, colored overlays, confidence, videos and shares of classes.

They listen to ``prediction_engine``, whose output has the size of the image file; ``SavePredictions`` also listens to
``segmentation_evaluator``.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events
from PIL import Image

from proda.data.labels import colorize
from proda.data.media import photos
from proda.data.videos import Encoder
from proda.method.tensors import resize
from proda.utils.files import atomic_write, safe_path
from proda.visualization import below, confidence_picture, legend, overlay

LARGEST_JPEG = 65_500  # pixels of a side


class _OfEveryImage:
    """Base of handlers that write a file of every image of an engine's run to a folder."""

    folder: Path

    def attach(self, engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)


class SavePredictions(_OfEveryImage):
    """Writes the predicted classes of every image of an evaluator's run to ``FOLDER/NAME + suffix``.

    The file is a PNG with one channel. The map has the size of the image file, even if the network's input was resized.
    Reads ``predicted`` [B, H, W] of ``engine.state.output`` and, where the network's input was resized, ``logits``
    [B, K, H, W]; and ``name`` and ``file_size`` of ``engine.state.batch``.

    Args:
        ids: uint8 [K], the pixel value of each class; if None, the class's number.
        colors: uint8 [K, 3], a palette for image viewers; it does not change the pixel values.
    """

    def __init__(
        self, folder: Path, *, suffix: str = ".png", ids: np.ndarray | None = None, colors: np.ndarray | None = None
    ) -> None:
        self.folder, self.suffix, self.ids, self.colors = Path(folder), suffix, ids, colors

    def __call__(self, engine: Engine) -> None:
        batch, out = engine.state.batch, engine.state.output
        for number, (name, size) in enumerate(zip(batch["name"], batch["file_size"].tolist(), strict=True)):
            labels = out["predicted"][number]
            if list(labels.shape) != size:
                labels = resize(out["logits"][number, None].softmax(1), size).max(1).indices[0]
            values = labels.byte().cpu().numpy()
            picture = Image.fromarray(values if self.ids is None else self.ids[values])
            if self.colors is not None:
                # All 256 entries: with a shorter palette Pillow packs several pixels into a byte.
                picture.putpalette(colorize(np.arange(256), self.colors).tobytes())
            with atomic_write(safe_path(self.folder, name, self.suffix)) as partial:
                picture.save(partial, "PNG")


class SaveOverlays(_OfEveryImage):
    """Writes every image, blended with the colors of its prediction, to ``FOLDER/NAME.jpg``.

    ``names`` of the classes: a legend of those that occur in the image is added under it. Without names there is none.
    """

    def __init__(self, folder: Path, colors: np.ndarray, *, names: Sequence[str] = (), strength: float = 0.5) -> None:
        self.folder, self.colors, self.names, self.strength = Path(folder), colors, names, strength

    def __call__(self, engine: Engine) -> None:
        batch = engine.state.batch
        labels = engine.state.output["predicted"].cpu().numpy()
        for name, photo, values in zip(batch["name"], photos(batch), labels, strict=True):
            picture = Image.fromarray(overlay(photo, values, self.colors, self.strength))
            if self.names:
                there = np.unique(values)
                note = legend([self.names[k] for k in there], self.colors[there], picture.width)
                picture = below(np.asarray(picture), note)
            picture.thumbnail((LARGEST_JPEG, LARGEST_JPEG))
            with atomic_write(safe_path(self.folder, name, ".jpg")) as partial:
                picture.save(partial, "JPEG", quality=90)


class SaveConfidence(_OfEveryImage):
    """Writes the probability of the predicted class to ``FOLDER/NAME.png``, grey: 255 is 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, engine: Engine) -> None:
        for name, values in zip(engine.state.batch["name"], engine.state.output["confidence"], strict=True):
            with atomic_write(safe_path(self.folder, name, ".png")) as partial:
                Image.fromarray(confidence_picture(values)[..., 0]).save(partial, "PNG")


class AddToVideo:
    """Adds every image to a video, blended with the colors of its prediction; ``side_by_side`` after the image."""

    def __init__(
        self, video: Encoder, colors: np.ndarray, *, side_by_side: bool = False, strength: float = 0.5
    ) -> None:
        self.video, self.colors, self.side_by_side, self.strength = video, colors, side_by_side, strength

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        labels = engine.state.output["predicted"].cpu().numpy()
        for photo, values in zip(photos(engine.state.batch), labels, strict=True):
            picture = overlay(photo, values, self.colors, self.strength)
            self.video.write(np.concatenate([photo, picture], axis=1) if self.side_by_side else picture)


class ClassShares:
    """Writes a table of all images to a CSV file when the engine's run has ended, in the order of their names.

    Columns: ``name``, ``width``, ``height``, ``confidence`` (mean over the pixels, 0..1), and for each class the share
    of the pixels that are predicted as it, 0..1. ``of_all``: the first process writes the rows of all processes, which
    all have to run their engines; otherwise each writes its own.
    """

    def __init__(self, path: Path, names: Sequence[str], *, of_all: bool = False) -> None:
        self.path, self.names, self.of_all = Path(path), names, of_all
        self.rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        self.path.unlink(missing_ok=True)  # of an earlier run: if this one is interrupted, there is no table
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        out = engine.state.output
        for name, labels, confidence in zip(
            engine.state.batch["name"], out["predicted"], out["confidence"], strict=True
        ):
            height, width = labels.shape
            shares = labels.flatten().bincount(minlength=len(self.names)) / (height * width)
            figures = [f"{value:.6f}" for value in (confidence.double().mean().item(), *shares.tolist())]
            self.rows.append([name, str(width), str(height), *figures])

    def write(self) -> None:
        """Writes the file."""
        rows = sorted(of_all_processes(self.rows) if self.of_all else self.rows)
        if idist.get_rank() == 0 or not self.of_all:
            with (
                atomic_write(self.path) as partial,
                open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,  # of odd names
            ):
                csv.writer(file).writerows([["name", "width", "height", "confidence", *self.names], *rows])


def of_all_processes(rows: list) -> list:
    """The rows of every process, in the order of the ranks; each process has to call it."""
    if idist.get_world_size() == 1:
        return rows
    parts: list = [None] * idist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
