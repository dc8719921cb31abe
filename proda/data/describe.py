"""Looks at images and label maps and writes a first description of them, for a person to edit."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from proda.data.check import sizes_in_words
from proda.data.image_files import image_size, label_palette, read_colors, read_ids
from proda.data.labels import CLASSES, TRANSPARENT, color_code, generated_colors
from proda.data.own_data import MAX_CLASSES
from proda.data.pairing import not_photographs
from proda.data.places import Places
from proda.data.view_sizes import fitting_size
from proda.data.workers import single_items
from proda.utils.errors import UserError
from proda.utils.words import counted, printable

LOOKED_AT = 16  # label maps that decide what label maps hold
_NO_LABEL = 255  # by convention, an id for pixels without a label
_LARGEST_TRAIN_ID = len(CLASSES) - 1
_MIXED = 12  # frequent colours whose mixtures are looked for
_ROUNDING = 2  # by which a mixture of colours may differ from the line between them


@dataclass
class Findings:
    """What is in the files. ``values`` are ids, or colours 0xRRGGBB; each counts pixels, ``files_with`` files."""

    labels_are: str  # "ids" or "colors"; empty without label maps
    palette: dict[int, int] = field(default_factory=dict)  # colours of ids, where label maps have a palette
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) -> images
    values: Counter[int] = field(default_factory=Counter)
    files_with: Counter[int] = field(default_factory=Counter)
    label_maps: int = 0  # that could be read
    mixed: tuple[Path, Path] | None = None  # a label map of colours and one of ids, if there are both
    problems: list[str] = field(default_factory=list)


def look(places: Places, *, num_workers: int = 0, progress: Callable[[Iterable], Iterable] = iter) -> Findings:
    """Reads the headers of all images and the pixels of all label maps that have an image.

    Raises UserError if label maps hold one value, or too many to be those of classes, or none can be read.
    """
    if places.are_videos:
        return Findings("")
    labelled = {places.label_files[key]: places.image_files[key] for key in places.pairs}
    findings = _kind(list(labelled)) if labelled else Findings("")
    files = _Files(list(places.image_files.values()), labelled, findings.labels_are)
    for size, values, problem in progress(single_items(files, num_workers)):
        if problem:
            findings.problems.append(problem)
        elif size:
            findings.sizes[tuple(size)] += 1
        else:
            findings.label_maps += 1
            findings.values.update(values)
            findings.files_with.update(values.keys())
    if labelled:
        _check_values(findings, places.labels)
    return findings


def write_description(places: Places, findings: Findings) -> str:
    """The text of a description file in ``places.root``, with what was found as comments. It loads as it is."""
    lines = ["A first description, written by experiments/describe_data.py; docs/own_data.md explains it."]
    if places.labels:
        lines.append("Name the classes, put values of one class together and those without a meaning in ignore.")
    lines = [f"# {line}" for line in (*lines, _head(places, findings), *_remarks(places, findings))]
    lines += ["", *_class_lines(findings), *_size_lines(places, findings)]
    lines += ["[train]", f"images = {_quoted(places.images)}"]
    if places.labels:
        lines.append(f"labels = {_quoted(places.labels)}")
    if places.are_videos:
        lines.append("every = 10  # use every tenth frame")
    return "\n".join(lines) + "\n"


def suggested_size(findings: Findings) -> tuple[int, int] | None:
    """The width and height for ``size``, if there are several sizes or most images are larger than Cityscapes'."""
    if not findings.sizes:
        return None
    most = findings.sizes.most_common(1)[0][0]
    return fitting_size(most) if len(findings.sizes) > 1 or fitting_size(most) != most else None


class _Files(Dataset):
    """Item: size of an image, or values of a label map with their pixels, or a problem."""

    def __init__(self, images: Sequence[Path], labelled: Mapping[Path, Path], labels_are: str) -> None:
        """``labelled``: label map -> its image."""
        self.images, self.labels, self.labelled, self.labels_are = images, list(labelled), labelled, labels_are

    def __len__(self) -> int:
        return len(self.images) + len(self.labels)

    def __getitem__(self, index: int) -> tuple[list[int], dict[int, int], str]:
        try:
            if index < len(self.images):
                return list(image_size(self.images[index])), {}, ""
            path = self.labels[index - len(self.images)]
            pixels = np.asarray(read_ids(path)) if self.labels_are == "ids" else read_colors(path)
            (width, height), (rows, columns) = image_size(self.labelled[path]), pixels.shape[:2]
            if (columns, rows) != (width, height):
                raise UserError(f"{path}: label map of {columns}x{rows} pixels, expected {width}x{height}")
        except UserError as error:
            return [], {}, str(error)
        values, counts = np.unique(pixels, return_counts=True)
        if len(values) > MAX_CLASSES + 1:
            return [], {}, f"{path}: {len(values)} {self.labels_are}, too many for a label map"
        return [], dict(zip(values.tolist(), counts.tolist(), strict=True)), ""


def _kind(label_files: Sequence[Path]) -> Findings:
    """Whether label maps hold ids or colours, from some of them all over the set; most of them decide.

    Values of a palette are ids if the palettes agree: programs that save colours with a palette order it anew in each
    file.
    """
    palettes: dict[Path, dict[int, int] | None] = {}
    problems: list[str] = []
    for index in np.unique(np.linspace(0, len(label_files) - 1, LOOKED_AT).astype(int)):
        try:
            palettes[label_files[index]] = label_palette(label_files[index])
        except UserError as error:
            problems.append(str(error))
    if not palettes:
        raise UserError(f"no label map can be read: {problems[0]}")
    colored = [path for path in palettes if palettes[path] is None]
    others = [path for path in palettes if palettes[path] is not None]
    mixed = (colored[0], others[0]) if colored and others else None
    if len(colored) > len(others):
        return Findings("colors", mixed=mixed)
    common: dict[int, int] = {}
    for path in others:
        if any(common.setdefault(value, color) != color for value, color in (palettes[path] or {}).items()):
            return Findings("colors", mixed=mixed)
    return Findings("ids", common, mixed=mixed)


def _check_values(findings: Findings, labels: str) -> None:
    if not findings.label_maps:
        raise UserError(f"no label map can be read: {findings.problems[-1]}")
    count, kind = len(_class_values(findings)), findings.labels_are
    if count > MAX_CLASSES:
        raise UserError(
            f"--labels={labels}: {count} {kind}, expected at most {MAX_CLASSES}: pictures with smoothed edges or lossy "
            "compression, or numbers of instances, are no label maps"
        )
    if count < 2:
        raise UserError(f"--labels={labels}: {count} {kind} in {findings.label_maps} label maps, expected 2 or more")


def _class_values(findings: Findings) -> list[int]:
    """The values that become a class."""
    left_out = TRANSPARENT if findings.labels_are == "colors" else -1 if _are_shades(findings) else _NO_LABEL
    return sorted(value for value in findings.values if value != left_out)


def _are_shades(findings: Findings) -> bool:
    """Whether ids are shades of gray from 0 to 255 in about equal steps, as 0 and 255 or 0, 128 and 255 are.

    Such masks are drawn to be looked at. Their 255 is a class, not the mark of a pixel without a label.
    """
    values = sorted(findings.values)
    if findings.labels_are != "ids" or values[:1] != [0] or values[-1] != _NO_LABEL or len(values) < 2:
        return False
    steps = np.diff(values)
    return bool(steps.max() <= 2 * steps.min())


def _head(places: Places, findings: Findings) -> str:
    if places.are_videos:
        return f"{counted(len(places.image_files), 'video')}."
    head = f"{counted(len(places.image_files), 'image')} ({sizes_in_words(findings.sizes)})."
    if not places.labels:
        return head
    kind = "ids, one channel" if findings.labels_are == "ids" else "colors"
    if findings.palette:
        kind = "ids: the values, not the colors of the palette, which all files share"
    return f"{head} {counted(findings.label_maps, 'label map')} of {kind}."


def _remarks(places: Places, findings: Findings) -> list[str]:
    """Lines about what a person should know or decide."""
    lines = []
    bare = [key for key in places.image_files if key not in places.label_files]
    alone = [key for key in places.label_files if key not in places.image_files]
    if places.labels and bare:
        lines.append(
            f"Images without a label map: {len(bare)}, such as {printable(bare[0])}. Train with --labelled_only."
        )
    if alone:
        lines.append(f"Label maps without an image: {len(alone)}, such as {printable(alone[0])}. They are not used.")
    if findings.mixed:
        color, one = map(str, findings.mixed)
        lines.append(
            f"Label maps differ: {printable(color)} has colors, {printable(one)} one channel. They are taken for "
            f"{findings.labels_are}."
        )
    if findings.problems:
        first = printable(findings.problems[0])
        lines.append(f"Files that cannot be used: {len(findings.problems)}. check_data lists them. The first: {first}")
    if places.unused:
        first = printable(str(places.unused[0]))
        more = "" if places.labels else " Label maps among them are described with --labels."
        lines.append(f"Left out by the patterns below: {counted(len(places.unused), 'file')}, such as {first}.{more}")
    if strange := not_photographs(places.image_files):
        lines.append(
            f"Seem to be no photographs by their names: {len(strange)}, such as {printable(str(strange[0]))}. "
            "Move them elsewhere if so: they are listed as images."
        )
    lines += [f"Left out: {printable(line)}" for line in (*places.image_files.left_out, *places.label_files.left_out)]
    if _are_shades(findings):
        only = " and ".join(map(str, sorted(findings.values))) if len(findings.values) < 4 else "shades of gray"
        lines.append(
            f"Only {only} occur: 255 is taken for a class, as in masks of black and white. If it marks pixels without "
            "a label, move it to ignore."
        )
    if _may_be_smoothed(findings):
        lines.append(
            f"Many of the {len(findings.values)} {findings.labels_are} are rare mixtures of others: smoothed edges "
            "(anti-aliasing), resizing or lossy compression make such values. Export the label maps again without; "
            "these classes are of no use."
        )
    if _like_train_ids(findings):
        lines.append("The ids look like the trainIds of Cityscapes; the comments below say what they mean there.")
    elif _named_label_ids(places) and _are_small_ids(findings):
        lines.append(
            "The names are those of Cityscapes' labelIds, but no id is above 18: the files may hold trainIds, where 0 "
            "is road."
        )
    if _like_cityscapes(findings):
        lines.append("The ids look like the labelIds of Cityscapes; the comments below say what they mean there.")
    if _in_red(findings):
        lines.append(
            "Only the red channel is used, as in CARLA's files: the first of two colors is shown, the second is read."
        )
    if TRANSPARENT in findings.values:
        lines.append(f"{_share(findings, TRANSPARENT)} of the pixels are transparent: they have no label.")
    return lines


def _class_lines(findings: Findings) -> list[str]:
    values, by_id = _class_values(findings), findings.labels_are == "ids"
    if not values:
        return []
    lines = ["classes = ["] if by_id else ['labels_are = "colors"', "classes = ["]
    for number, value in enumerate(values):
        if by_id:
            color = f", color = {_color(findings.palette[value])}" if value in findings.palette else ""
            entry = f'name = "class_{value}", ids = [{value}]{color}'
        elif _in_red(findings):
            shown = generated_colors(len(values))[number].tolist()
            entry = f'name = "class_{value >> 16}", color = [{shown}, {_color(value)}]'
        else:
            entry = f'name = "color_{value:06x}", color = {_color(value)}'
        remark = f"; {meaning}" if (meaning := _meaning(findings, value)) else ""
        seen = f"in {findings.files_with[value]} of {findings.label_maps}"
        lines.append(f"  {{ {entry} }},  # {_share(findings, value)} of the pixels, {seen}{remark}")
    lines.append("]")
    if by_id and _NO_LABEL in findings.values and _NO_LABEL not in values:
        lines.append(f"ignore = [{_NO_LABEL}]  # {_share(findings, _NO_LABEL)} of the pixels; usually: no label")
    else:
        lines.append("ignore = []")
    return [*lines, ""]


def _size_lines(places: Places, findings: Findings) -> list[str]:
    size = suggested_size(findings)
    if size is None:
        return []
    most = findings.sizes.most_common(1)[0][0]
    reason = "most have this size" if size == most else f"most have {most[0]}x{most[1]}, more than teachers need"
    active = "# " if places.labels else ""  # of a target, whole images of one batch need one size
    return [f"{active}size = [{size[0]}, {size[1]}]  # all images are resized to this; {reason}", ""]


def _are_small_ids(findings: Findings) -> bool:
    return findings.labels_are == "ids" and max(_class_values(findings)) <= _LARGEST_TRAIN_ID


def _like_train_ids(findings: Findings) -> bool:
    return _are_small_ids(findings) and len(_class_values(findings)) > 2 * len(CLASSES) / 3


def _named_label_ids(places: Places) -> bool:
    return any(re.search("gt_?(?:fine|coarse)|label_?ids", str(path), re.I) for path in places.label_files.values())


def _may_be_smoothed(findings: Findings) -> bool:
    """Whether most values are rare, and mixtures of frequent ones as far as colors tell."""
    frequent, covered = list[int](), 0
    for value, count in findings.values.most_common():
        if covered >= 0.95 * findings.values.total():
            break
        frequent, covered = [*frequent, value], covered + count
    rare = [value for value in findings.values if value not in frequent and value != TRANSPARENT]
    if len(rare) < 8:
        return False
    if findings.labels_are == "ids":
        return len(rare) >= 16 and len(rare) > 8 * len(frequent)
    ends = np.array([_color(value) for value in frequent[:_MIXED] if value != TRANSPARENT], float)
    colors = np.array([_color(value) for value in rare], float)
    mixed = np.zeros(len(rare), bool)
    for one, other in combinations(ends, 2):
        line = other - one
        share = (((colors - one) @ line) / (line @ line)).clip(0, 1)
        mixed |= np.abs(one + share[:, None] * line - colors).max(1) <= _ROUNDING
    return bool(mixed.sum() * 2 > len(rare))


def _meaning(findings: Findings, value: int) -> str:
    """What a value often means; empty if that is unknown."""
    if _like_train_ids(findings):
        return f"Cityscapes: {CLASSES[value].name}"
    if _like_cityscapes(findings):
        names = [c.name for c in CLASSES if c.cityscapes == value]
        return f"Cityscapes: {names[0]}" if names else "Cityscapes: none of the 19 classes"
    if findings.labels_are == "colors" and not _in_red(findings):
        names = [c.name for c in CLASSES if color_code(c.color) == value]
        if names:
            return f"Cityscapes: {names[0]}"
        return "often: no label" if value == 0 and len(_class_values(findings)) > 2 else ""
    return ""


def _like_cityscapes(findings: Findings) -> bool:
    values = set(_class_values(findings))
    known = {c.cityscapes for c in CLASSES}
    return findings.labels_are == "ids" and values <= set(range(34)) and max(values) > 18 and len(values & known) >= 6


def _in_red(findings: Findings) -> bool:
    """Whether label maps hold small ids in their red channel alone."""
    values = _class_values(findings)
    return findings.labels_are == "colors" and all(not value & 0xFFFF and value >> 16 < 64 for value in values)


def _share(findings: Findings, value: int) -> str:
    return f"{100 * findings.values[value] / findings.values.total():.3g}%"


def _color(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]


def _quoted(text: str) -> str:
    """A string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
