"""Your own data: folders of images and of label maps, or videos, and a short TOML file that describes them.

``docs/own_data.md`` explains such a file. Every error is one line that names the file.
"""

import difflib
import hashlib
import json
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proda.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, MAX_PIXELS
from proda.data.labelled_files import LabelledFiles, first_duplicate
from proda.data.labels import UNKNOWN, Color, ColorTable, LabelSpace, color_code, color_table, generated_colors
from proda.data.listing import FoundFiles, list_files
from proda.data.pairing import leave_out_label_maps, tell_apart
from proda.data.video_frames import video_frames
from proda.data.videos import VIDEO_SUFFIXES
from proda.method import IGNORE
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import fitting_name

_SPLITS, _OF_THE_WHOLE = ("train", "val"), ("classes", "labels_are", "ignore", "size", "frames")
_BACKSLASH = re.compile(r'^[^#\n]*"[^"\n]*\\', re.MULTILINE)  # in double quotes
_BACKSLASHES = (
    "; in double quotes a backslash begins a special character: write C:/photos, or 'C:\\photos' in single quotes"
)
MAX_CLASSES = IGNORE  # train ids share a byte with the mark for "no label"


class Description(NamedTuple):
    """What a description file says. ``splits``: "train" and "val" -> "images" and "labels" -> places of files."""

    path: Path
    splits: dict[str, dict[str, list[str]]]
    space: LabelSpace | None  # None if the file lists no classes: those of the other domain apply
    size: tuple[int, int] | None  # width, height
    every: dict[str, int]  # for a split whose images are frames of videos: every n-th frame
    frames: str  # folder for these frames; if empty, NAME_frames beside the description
    origin: str = ""  # where a benchmark's files come from, for messages

    def has_videos(self, split: str) -> bool:
        """Whether the images of a split are frames of videos, which ``open`` may have to extract."""
        return split in self.every

    def has_labels(self, split: str) -> bool:
        return "labels" in self.splits.get(split, {})

    def open(self, split: str, space: LabelSpace, *, with_labels: bool, **options: Any) -> LabelledFiles:
        """The images of a split in the order of their names; labels by ``space.table``.

        Frames of videos are extracted first, unless they are there from an earlier call.

        ``options``: ``skip``, ``labelled_only`` and ``optional_labels`` of ``LabelledFiles``. With the last the
        description need not have labels at all.

        Raises MissingFileError if the description has no such split, images or labels, or there are no files where it
        points, and UserError if two images have the same name.
        """
        if split not in _SPLITS:
            raise UserError(
                f"{self.path}: a description has [train] and [val], no [{split}]; write one for these images, with "
                "them under [val]"
            )
        if split not in self.splits:
            raise MissingFileError(f"{self.path}: no [{split}]; expected a table [{split}] with images = ...")
        images = self._find_frames(split) if split in self.every else self._find(split, "images", IMAGE_SUFFIXES)
        found = self._find_labels(split, images, required=with_labels)
        for other in self.splits:
            if other != split and self.has_labels(other):
                with suppress(UserError):  # which is told when that split is opened
                    others = self._find(other, "images", IMAGE_SUFFIXES)
                    leave_out_label_maps(images, self._find_labels(other, others, required=False))
        keys, labels = sorted(images), None
        if with_labels and self.has_labels(split):
            labels = [found.get(key) for key in keys]
        elif with_labels and not options.get("optional_labels"):
            raise MissingFileError(f"{self.path}: [{split}] has no labels = ..., and labels are needed here")
        names = [key.replace("/", "-") for key in keys]
        if twice := first_duplicate(names):
            raise UserError(f"{self.path}: two images of [{split}] would be called {twice!r}; rename a folder")
        data = LabelledFiles(
            [images[key] for key in keys],
            labels,
            names,
            table=space.table,
            num_classes=len(space.names),
            size=self.size,
            **options,
        )
        data.left_out = images.left_out
        places, key_of = ", ".join(self.splits[split].get("labels", [])), dict(zip(names, keys, strict=True))
        data.require_labels(lambda i: f"{self.path}: no label map {key_of[data.names[i]]!r} in {places}")
        return data

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what the description says: classes, their ids, ignored ids and ``size``.

        Not of comments, the places of files, or colours, unless label maps hold colours. ``LabelledFiles.fingerprint``
        tells the files from others.
        """
        content: dict[str, Any] = {"size": self.size}
        if self.space is not None:
            content["classes"], table = self.space.names, self.space.table
            if isinstance(table, ColorTable):
                content["colors"] = [table.codes.tolist(), table.train_ids.tolist()]
            else:
                content["ids"] = table.tolist()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _find_labels(self, split: str, images: FoundFiles, *, required: bool) -> FoundFiles:
        """The label maps of a split, which are taken out of ``images``: both may lie in one folder."""
        if not self.has_labels(split):
            return FoundFiles()
        labels = self._find(split, "labels", LABEL_SUFFIXES, required=required)
        try:
            tell_apart(images, labels)
        except UserError as error:
            raise UserError(f"{self.path}: [{split}] {error}") from None
        return labels

    def _find_frames(self, split: str) -> FoundFiles:
        """The frames of the videos of a split. What is not there yet is extracted, which takes long."""
        videos = self._find(split, "images", VIDEO_SUFFIXES)
        frames = video_frames(videos, self.every[split], self._frames_folder)
        videos.clear()
        videos.update(frames)
        return videos

    @property
    def _frames_folder(self) -> Path:
        return self.path.parent / (os.path.expanduser(self.frames) or fitting_name(self.path.stem, "_frames"))

    def _find(self, split: str, what: str, suffixes: tuple[str, ...], *, required: bool = True) -> FoundFiles:
        """Files by the name that an image and its label map share; ``required``: of which each place has some."""
        files = FoundFiles()
        for place in self.splits[split][what]:
            where = self.path.parent, place
            found = list_files(*where, suffixes)
            if self.every and self._frames_folder not in (self.path.parent / place / "*").parents:
                found.leave_out_below(self._frames_folder, "frames of the videos of this description")
            if not found and required:
                if what == "images" and suffixes != VIDEO_SUFFIXES and list_files(*where, VIDEO_SUFFIXES):
                    remedy = f"every = 10 in [{split}] takes every tenth frame"
                    raise UserError(f"{self.path}: {place} for [{split}] holds videos; {remedy}")
                aside = f"; left out: {', '.join(found.left_out)}" if found.left_out else ""
                aside += f"; {self.origin}" if self.origin else ""
                if "\\" in place or not place.isprintable():
                    aside += _BACKSLASHES
                named = place if place.isprintable() else repr(place)
                raise MissingFileError(
                    f"{self.path}: no {what} {named} for [{split}] under {self.path.parent.resolve()}; "
                    f"expected a folder or a pattern of {', '.join(suffixes)} files{aside}"
                )
            try:
                files.add(found)
            except UserError as error:
                raise UserError(f"{self.path}: {error}") from None
        return files


def read_description(path: str | Path) -> Description:
    """Reads a description file. Raises MissingFileError, or UserError that says what was found and expected."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected a description of data (docs/own_data.md)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected a description of data") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}){_BACKSLASHES if _BACKSLASH.search(text) else ''}") from None
    _check_keys(path, "", content, (*_OF_THE_WHOLE, *_SPLITS))
    splits = {split: _split(path, split, content[split]) for split in _SPLITS if split in content}
    every = {split: content[split]["every"] for split in splits if "every" in content[split]}
    if not splits:
        raise UserError(f"{path}: neither [train] nor [val]; expected a table [train] with images = ...")
    size = content.get("size")
    if size is not None and not (
        _is_list(size, int) and len(size) == 2 and min(size) > 0 and size[0] * size[1] <= MAX_PIXELS
    ):
        raise UserError(f"{path}: size = {size}: expected [width, height] in pixels, at most {MAX_PIXELS:,} in all")
    frames = content.get("frames", "")
    if not isinstance(frames, str) or not (every or "frames" not in content) or "\0" in frames:
        raise UserError(f"{path}: frames = {frames!r}: expected a folder for the frames of videos, with every = ...")
    return Description(path, splits, _label_space(path, content), tuple(size) if size else None, every, frames)


def _split(path: Path, split: str, table: Any) -> dict[str, list[str]]:
    if not isinstance(table, dict) or "images" not in table:
        raise UserError(f"{path}: [{split}] needs images = ...: a folder, a pattern, or a list of them")
    if misplaced := [key for key in table if key in _OF_THE_WHOLE]:
        raise UserError(f"{path}: {misplaced[0]} = ... stands below [{split}]; move it above the first [table]")
    _check_keys(path, f"[{split}] ", table, ("images", "labels", "every"))
    every = table.get("every", 1)
    if type(every) is not int or every < 1:
        raise UserError(f"{path}: [{split}] every = {every!r}: expected 10 to use every tenth frame of videos")
    if "every" in table and "labels" in table:
        raise UserError(f"{path}: [{split}] has every = ... and labels = ...; frames of videos have no labels")
    places = {}
    for key in ("images", "labels"):
        if key in table:
            places[key] = [table[key]] if isinstance(table[key], str) else table[key]
            if not _is_list(places[key], str) or not places[key] or any(not p or "\0" in p for p in places[key]):
                raise UserError(
                    f"{path}: [{split}] {key} = {table[key]!r}: expected a folder, a pattern, or a list of them"
                )
    return places


def _label_space(path: Path, content: dict[str, Any]) -> LabelSpace | None:
    kind = content.get("labels_are", "ids")
    if kind not in ("ids", "colors"):
        raise UserError(f'{path}: labels_are = {kind!r}: expected "ids" or "colors"')
    if "classes" not in content:
        for key in ("ignore", "labels_are"):
            if key in content:
                raise UserError(f"{path}: {key} = ... without classes = [...]")
        return None
    listed = content["classes"]
    if not _is_list(listed, dict) or not 2 <= len(listed) <= MAX_CLASSES:
        raise UserError(
            f'{path}: classes: expected a list of 2 to {MAX_CLASSES} entries {{ name = "road", ids = [1] }}'
        )
    names: list[str] = []
    for number, entry in enumerate(listed):
        _check_keys(path, f"class {number}: ", entry, ("name", "ids", "color"))
        name = entry.get("name")
        if not isinstance(name, str) or not name or not name.isprintable() or name in names:
            raise UserError(f"{path}: class {number}: name = {name!r}: expected a name that no other class has")
        names.append(name)
    classes, ignore = dict(zip(names, listed, strict=True)), content.get("ignore", [])
    if kind == "colors":
        colors = {name: _colors_of(path, name, entry) for name, entry in classes.items()}
        shown = [several[0] for several in colors.values()]
        return LabelSpace(names, np.array(shown, np.uint8), _color_table(path, colors, ignore))
    generated = generated_colors(len(names)).tolist()
    shown = [entry.get("color", color) for entry, color in zip(listed, generated, strict=True)]
    for name, color in zip(names, shown, strict=True):
        if not _is_color(color):
            raise UserError(f"{path}: class {name}: color = {color}: expected [red, green, blue] in 0..255")
    return LabelSpace(names, np.array(shown, np.uint8), _id_table(path, classes, ignore))


def _id_table(path: Path, classes: dict[str, dict[str, Any]], ignore: Any) -> np.ndarray:
    owners = dict.fromkeys(_ids(f"{path}: ignore", ignore), "ignore")
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(owners)] = IGNORE
    for number, (name, entry) in enumerate(classes.items()):
        ids = _ids(f"{path}: class {name}: ids", entry.get("ids", number), at_least=1)
        for i in ids:
            if i in owners:
                raise UserError(f"{path}: id {i} of class {name} belongs to {owners[i]} already")
            owners[i], table[i] = name, number
    return table


def _ids(where: str, value: Any, at_least: int = 0) -> list[int]:
    ids = [value] if isinstance(value, int) else value
    if not _is_list(ids, int) or len(ids) < at_least or not all(0 <= i <= 255 for i in ids):
        raise UserError(f"{where} = {value}: expected ids in 0..255")
    return ids


def _color_table(path: Path, classes: dict[str, list[Color]], ignore: Any) -> ColorTable:
    ignore = [ignore] if _is_color(ignore) else ignore
    if not isinstance(ignore, list) or not all(map(_is_color, ignore)):
        raise UserError(f"{path}: ignore = {ignore}: expected colors [[red, green, blue], ...] in 0..255")
    owners = {color_code(color): "ignore" for color in ignore}
    for name, several in classes.items():
        for color in several:
            if (owner := owners.setdefault(color_code(color), name)) != name:
                raise UserError(f"{path}: color {color} of class {name} belongs to {owner} already")
    return color_table(list(classes.values()), ignore)


def _colors_of(path: Path, name: str, entry: dict[str, Any]) -> list[Color]:
    """The colours of a class in label files."""
    if "ids" in entry:
        raise UserError(f'{path}: class {name}: ids = ... with labels_are = "colors"; expected color = ... alone')
    color = entry.get("color")
    colors = [color] if _is_color(color) else color
    if not isinstance(colors, list) or not colors or not all(map(_is_color, colors)):
        raise UserError(
            f"{path}: class {name}: color = {color}: expected [red, green, blue] in 0..255, or a list of such colors"
        )
    return colors


def _check_keys(path: Path, where: str, found: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(f"{path}: {where}unknown key {key!r}; the nearest is {near!r}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _is_color(value: Any) -> bool:
    return _is_list(value, int) and len(value) == 3 and all(0 <= part <= 255 for part in value)
