"""What a weights file says about its network, apart from the tensors: plain values that JSON could hold."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proda.utils.errors import UserError

NORMALISATION = "RGB in 0..1"  # the input of every network here: values of 8 bits divided by 255, nothing subtracted


@dataclass(frozen=True)
class ModelInfo:
    """A network, its classes, its input, and the run that it comes from. Empty values are unknown."""

    # The network.
    num_classes: int = 0  # K
    backbone: str = ""  # name under which ``build_network`` makes it
    head: str = ""
    # Its classes, in the order of the logits.
    class_names: tuple[str, ...] = ()
    colors: tuple[tuple[int, ...], ...] = ()  # RGB in 0..255, one for each class
    label_ids: tuple[int, ...] = ()  # 256: value in a label file of the target -> class; 250 is ignored, 255 unknown
    # Its input.
    normalisation: str = NORMALISATION
    size: tuple[int, int] | None = None  # width and height that every image was resized to; None: images as they are
    mean_width: int = 0  # target images were resized to about this width for training, then cropped
    # The run.
    source: str = ""  # labelled domain: a benchmark, or the name of a description file
    target: str = ""  # unlabelled domain
    recipe: str = ""  # --preset
    stage: str = ""  # name of the experiment file
    proda: str = ""  # versions of the packages
    torch: str = ""
    git_commit: str = ""
    # Its scores.
    iteration: int | None = None  # iterations of training
    miou: float | None = None  # on labelled validation images, 0..1; NaN without labels
    label_free: float | None = None  # label-free score of the same validation

    def __str__(self) -> str:
        """One line for people: ``tiny, 13 classes; stage1_denoise, streets, iteration 800, mIoU 52.1``."""
        parts = [self.stage, self.recipe, "" if self.iteration is None else f"iteration {self.iteration}"]
        if self.miou is not None and self.miou == self.miou:
            parts.append(f"mIoU {100 * self.miou:.1f}")
        run = ", ".join(part for part in parts if part)
        return f"{self.backbone or 'unknown backbone'}, {self.num_classes} classes{run and '; '}{run}"

    def plain(self) -> dict[str, Any]:
        """Its values as numbers, texts, lists and None; what is unknown is left out."""
        known = {name: value for name, value in vars(self).items() if value not in ((), "", None)}
        # By way of JSON, so that no two entries are one object: pickle would write these in another way.
        return json.loads(json.dumps(known))


def read_info(content: Mapping[str, Any], path: str | Path) -> ModelInfo:
    """The values of :meth:`ModelInfo.plain` among the entries of a weights file; other entries are ignored.

    ``iter`` and ``best_iou`` of released files count as ``iteration`` and ``miou``.

    Raises:
        UserError: an entry has another type, the numbers of classes differ, or the network needs another input.
    """
    names = {"iter": "iteration", "best_iou": "miou"}  # entry of the file -> field
    names |= {field.name: field.name for field in dataclasses.fields(ModelInfo)}
    values = {name: content[entry] for entry, name in names.items() if content.get(entry) is not None}
    for name, value in values.items():
        expected, valid = _EXPECTED.get(name, _TEXT)
        if not valid(value):
            raise UserError(f"{path}: found {name} of type {type(value).__name__}, expected {expected}")
    info = ModelInfo(**{name: _as_tuples(value) for name, value in values.items()})
    count = info.num_classes or len(info.class_names)
    for name in ("class_names", "colors"):
        if (found := len(getattr(info, name))) not in (0, count):
            raise UserError(f"{path}: found {found} {name} for {count} classes")
    if info.label_ids and not set(range(count)) <= set(info.label_ids):
        raise UserError(f"{path}: found label_ids without one of the {count} classes")
    if info.normalisation != NORMALISATION:
        raise UserError(f"{path}: found a network for {info.normalisation!r}, expected {NORMALISATION!r}")
    return dataclasses.replace(info, num_classes=count)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(entry) is kind for entry in value)


def _is_bytes(value: Any, count: int) -> bool:
    return _is_list(value, int) and len(value) == count and all(0 <= entry <= 255 for entry in value)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


# Field -> what it expects, and a test of its value.
_Expected = tuple[str, Callable[[Any], bool]]
_TEXT: _Expected = ("text", lambda value: isinstance(value, str))
_NUMBER: _Expected = ("a number", lambda value: isinstance(value, float))
_COUNT: _Expected = ("a whole number", lambda value: type(value) is int and value >= 0)
_EXPECTED: dict[str, _Expected] = {
    "num_classes": _COUNT,
    "class_names": ("a list of names", lambda value: _is_list(value, str)),
    "colors": ("RGB colors", lambda value: _is_list(value, list) and all(_is_bytes(color, 3) for color in value)),
    "label_ids": ("a list of 256 numbers in 0..255", lambda value: _is_bytes(value, 256)),
    "size": ("[width, height]", lambda value: _is_list(value, int) and len(value) == 2 and min(value) > 0),
    "mean_width": _COUNT,
    "iteration": _COUNT,
    "miou": _NUMBER,
    "label_free": _NUMBER,
}
