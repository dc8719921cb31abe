"""One's own data: folders of images and of label maps, and a short TOML file that says what they are.

``docs/own_data.md`` walks through such a file. Every error is one line that names it.
"""

import colorsys
import difflib
import glob
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from proda.data.benchmarks import Example, LabelledFiles, labels_missing
from proda.data.labels import UNKNOWN, LabelSpace
from proda.method import IGNORE

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # what keeps an id as it is, in one channel
MAX_CLASSES = IGNORE  # train ids share a byte with the mark for "no label"


class OwnData(LabelledFiles):
    """Images and label maps of one's own, as :func:`read_description` finds them.

    ``size`` (width, height), if given, is what every image and label map is resized to when it is read.
    """

    def __init__(self, *args: Any, size: tuple[int, int] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.size = size

    def __getitem__(self, index: int) -> Example:
        image, labels, name = super().__getitem__(index)
        if self.size and image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BILINEAR)
            if labels is not None:
                labels = np.array(Image.fromarray(labels).resize(self.size, Image.Resampling.NEAREST))
        return Example(image, labels, name)


class Description(NamedTuple):
    """What a description file says. ``splits``: "train" and "val" -> "images" and "labels" -> places of files."""

    path: Path
    splits: dict[str, dict[str, list[str]]]
    space: LabelSpace | None  # None where the file lists no classes: those of the other domain hold
    size: tuple[int, int] | None  # width, height

    def has_labels(self, split: str) -> bool:
        return "labels" in self.splits.get(split, {})

    def open(self, split: str, space: LabelSpace, *, with_labels: bool) -> OwnData:
        """The images of a split in the order of their names; labels by ``space.table``.

        Raises:
            FileNotFoundError: no such split, images or labels in the description, or no files where it points.
            ValueError: two images for one name.
        """
        if split not in self.splits:
            raise FileNotFoundError(f"{self.path}: no [{split}]; expected a table [{split}] with images = ...")
        images = self._find(split, "images", IMAGE_SUFFIXES)
        keys, labels = sorted(images), None
        if with_labels:
            if not self.has_labels(split):
                raise FileNotFoundError(f"{self.path}: [{split}] has no labels = ..., and labels are needed here")
            found = self._find(split, "labels", LABEL_SUFFIXES)
            labels = [found.get(key) for key in keys]
        names = [key.replace("/", "-") for key in keys]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{self.path}: two images of [{split}] would be called {twice!r}; rename a folder")
        data = OwnData(
            [images[key] for key in keys],
            labels,
            names,
            table=space.table,
            num_classes=len(space.names),
            size=self.size,
        )
        if labels and None in labels:
            key, places = keys[labels.index(None)], ", ".join(self.splits[split]["labels"])
            raise labels_missing(f"{self.path}: no label map {key!r} in {places} for the image {images[key]}", data)
        return data

    def _find(self, split: str, what: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        """Files by the name that an image and its label map share."""
        files: dict[str, Path] = {}
        for place in self.splits[split][what]:
            found = list_files(self.path.parent, place, suffixes)
            if not found:
                raise FileNotFoundError(
                    f"{self.path}: no {what} {place} for [{split}] under {self.path.parent.resolve()}; "
                    f"expected a folder or a pattern of {', '.join(suffixes)} files"
                )
            for key, path in found.items():
                if files.setdefault(key, path) != path:
                    raise ValueError(f"{self.path}: {files[key]} and {path} have the same name {key!r}")
        return files


def list_files(root: Path, place: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files of a folder or pattern by the part of their path that tells them apart.

    ``place`` is relative to ``root``. A folder stands for all files in and below it, and a file's key is its path from
    there without the suffix. In a pattern ``*`` stands for any part of one name and ``**/`` for any folders, and a
    key is what these stood for: ``left/*/*_left.png`` finds ``left/ulm/3_left.png`` under the key ``ulm/3``. No other
    character is special. The key of a single file is its name. Links are followed; hidden files and other suffixes
    are left out. ValueError if two files have one key.
    """
    parts = Path(place).parts  # without ./ and //
    if (root / place).is_file():
        return {(root / place).stem: root / place} if Path(place).suffix.lower() in suffixes else {}
    fixed = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
    base, pattern = root.joinpath(*parts[:fixed]), "/".join(parts[fixed:]) or "**"
    if pattern.endswith("**"):
        pattern += "/*"
    pieces = re.split(r"(\*\*/|\*)", pattern)
    wild = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)"}
    expression = re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces))
    files: dict[str, Path] = {}
    # glob leaves out hidden files and follows links; of its own special characters only the star is one here
    for found in sorted(glob.glob(re.sub(r"[?[]", r"[\g<0>]", pattern), root_dir=base, recursive=True)):
        path = base / found
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        # a last star stands for a name without its suffix: those of image and label map may differ
        match = expression.fullmatch(found.removesuffix(path.suffix) if pattern.endswith("*") else found)
        key = "/".join(group.strip("/") for group in match.groups() if group)
        if key in files:
            raise ValueError(f"{files[key]} and {path} have the same name {key!r}; image and label map share one name")
        files[key] = path
    return files


def read_description(path: str | Path) -> Description:
    """Reads a description file; FileNotFoundError, or ValueError saying what was found and expected where."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; expected a description of data (docs/own_data.md)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    _check_keys(path, "", content, ("classes", "ignore", "size", "train", "val"))
    splits = {}
    for split in ("train", "val"):
        if split in content:
            splits[split] = _split(path, split, content[split])
    if not splits:
        raise ValueError(f"{path}: neither [train] nor [val]; expected a table [train] with images = ...")
    size = content.get("size")
    if size is not None and not (_is_list(size, int) and len(size) == 2 and min(size) > 0):
        raise ValueError(f"{path}: size = {size}: expected [width, height] in pixels")
    return Description(path, splits, _label_space(path, content), tuple(size) if size else None)


def _split(path: Path, split: str, table: Any) -> dict[str, list[str]]:
    if not isinstance(table, dict) or "images" not in table:
        raise ValueError(f"{path}: [{split}] needs images = ...: a folder, a pattern, or a list of them")
    _check_keys(path, f"[{split}] ", table, ("images", "labels"))
    places = {}
    for key, value in table.items():
        places[key] = [value] if isinstance(value, str) else value
        if not _is_list(places[key], str) or not places[key]:
            raise ValueError(f"{path}: [{split}] {key} = {value!r}: expected a folder, a pattern, or a list of them")
    return places


def _label_space(path: Path, content: dict[str, Any]) -> LabelSpace | None:
    if "classes" not in content:
        if "ignore" in content:
            raise ValueError(f"{path}: ignore = ... without classes = [...]")
        return None
    listed = content["classes"]
    if not _is_list(listed, dict) or not 2 <= len(listed) <= MAX_CLASSES:
        raise ValueError(
            f'{path}: classes: expected a list of 2 to {MAX_CLASSES} entries {{ name = "road", ids = [1] }}'
        )
    names, colors, table = [], [], np.full(256, UNKNOWN, np.uint8)
    ignore = content.get("ignore", [])
    ignore = [ignore] if isinstance(ignore, int) else ignore
    if not _is_list(ignore, int) or not all(0 <= i <= 255 for i in ignore):
        raise ValueError(f"{path}: ignore = {ignore}: expected ids in 0..255")
    table[ignore] = IGNORE
    for number, entry in enumerate(listed):
        _check_keys(path, f"class {number}: ", entry, ("name", "ids", "color"))
        name, ids = entry.get("name"), entry.get("ids", [number])
        ids = [ids] if isinstance(ids, int) else ids
        if not isinstance(name, str) or not name or name in names:
            raise ValueError(f"{path}: class {number}: name = {name!r}: expected a name that no other class has")
        if not _is_list(ids, int) or not ids or not all(0 <= i <= 255 for i in ids):
            raise ValueError(f"{path}: class {name}: ids = {ids}: expected ids in 0..255")
        for i in ids:
            if table[i] != UNKNOWN:
                owner = "ignore" if table[i] == IGNORE else names[table[i]] if table[i] < number else name
                raise ValueError(f"{path}: id {i} of class {name} belongs to {owner} already")
            table[i] = number
        color = entry.get("color", _color(number, len(listed)))
        if not _is_list(color, int) or len(color) != 3 or not all(0 <= c <= 255 for c in color):
            raise ValueError(f"{path}: class {name}: color = {color}: expected [red, green, blue] in 0..255")
        names.append(name)
        colors.append(color)
    return LabelSpace(names, np.array(colors, np.uint8), table)


def _color(number: int, count: int) -> list[int]:
    """Hues around the circle, dark and light in turn."""
    return [round(255 * c) for c in colorsys.hsv_to_rgb(number / count, 0.75, (0.95, 0.6)[number % 2])]


def _check_keys(path: Path, where: str, found: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{path}: {where}unknown key {key!r}; the nearest is {near!r}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
