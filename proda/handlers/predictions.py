"""Writes predictions as files: label maps and coloured overlays."""

from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image

from proda.data.labels import colorize
from proda.engines.optimization import resize
from proda.utils.files import atomic_write, safe_path
from proda.visualization import image_picture


class SavePredictions:
    """Writes the predicted classes of every image of an evaluator's run to ``FOLDER/NAME + suffix``.

    The file is a PNG with one channel. The map has the size of the image file, even if the network's input was resized.
    Reads ``predicted`` [B, H, W] and ``logits`` [B, K, H, W] of ``engine.state.output``, and ``name`` and ``file_size``
    of ``engine.state.batch``.

    Args:
        ids: uint8 [K], the pixel value of each class; if None, the class's number.
        colors: uint8 [K, 3], a palette for image viewers; it does not change the pixel values.
    """

    def __init__(
        self, folder: Path, *, suffix: str = ".png", ids: np.ndarray | None = None, colors: np.ndarray | None = None
    ) -> None:
        self.folder, self.suffix, self.ids, self.colors = Path(folder), suffix, ids, colors

    def attach(self, evaluator: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        batch, out = engine.state.batch, engine.state.output
        columns = (batch["name"], batch["file_size"].tolist(), out["predicted"], out["logits"])
        for name, size, labels, logits in zip(*columns, strict=True):
            if list(labels.shape) != size:
                labels = resize(logits[None].softmax(1), size).max(1).indices[0]
            values = labels.byte().cpu().numpy()
            picture = Image.fromarray(values if self.ids is None else self.ids[values])
            if self.colors is not None:
                # All 256 entries: with a shorter palette Pillow packs several pixels into a byte.
                picture.putpalette(colorize(np.arange(256), self.colors).tobytes())
            with atomic_write(safe_path(self.folder, name, self.suffix)) as partial:
                picture.save(partial, "PNG")


class SaveOverlays:
    """Writes every image of an evaluator's run, blended with the colours of its prediction, to ``FOLDER/NAME.jpg``."""

    def __init__(self, folder: Path, colors: np.ndarray, *, strength: float = 0.5) -> None:
        self.folder, self.colors, self.strength = Path(folder), colors, strength

    def attach(self, evaluator: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        labels = engine.state.output["predicted"].cpu().numpy()
        batch = engine.state.batch
        for name, image, values in zip(batch["name"], batch["image"], labels, strict=True):
            photo, colors = (
                Image.fromarray(picture) for picture in (image_picture(image), colorize(values, self.colors))
            )
            with atomic_write(safe_path(self.folder, name, ".jpg")) as partial:
                Image.blend(photo, colors, self.strength).save(partial, "JPEG", quality=90)
