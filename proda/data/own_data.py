"""Your own data: folders of images and of label maps, and a short TOML file that describes them.

``docs/own_data.md`` explains such a file. Every error is one line that names the file.
"""

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proda.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, MAX_PIXELS
from proda.data.labelled_files import LabelledFiles, first_duplicate
from proda.data.labels import UNKNOWN, LabelSpace, generated_colors
from proda.data.listing import FoundFiles, list_files
from proda.method import IGNORE
from proda.utils.errors import MissingFileError, UserError

_SPLITS, _OF_THE_WHOLE = ("train", "val"), ("classes", "ignore", "size")
MAX_CLASSES = IGNORE  # train ids share a byte with the mark for "no label"


class Description(NamedTuple):
    """What a description file says. ``splits``: "train" and "val" -> "images" and "labels" -> places of files."""

    path: Path
    splits: dict[str, dict[str, list[str]]]
    space: LabelSpace | None  # None if the file lists no classes: those of the other domain apply
    size: tuple[int, int] | None  # width, height

    def has_labels(self, split: str) -> bool:
        return "labels" in self.splits.get(split, {})

    def open(self, split: str, space: LabelSpace, *, with_labels: bool, **options: Any) -> LabelledFiles:
        """The images of a split in the order of their names; labels by ``space.table``.

        ``options``: ``skip``, ``labelled_only`` and ``optional_labels`` of ``LabelledFiles``. With the last the
        description need not have labels at all.

        Raises:
            MissingFileError: no such split, images or labels in the description, or no files where it points.
            UserError: two images have the same name.
        """
        if split not in self.splits:
            raise MissingFileError(f"{self.path}: no [{split}]; expected a table [{split}] with images = ...")
        images = self._find(split, "images", IMAGE_SUFFIXES)
        keys, labels = sorted(images), None
        if with_labels and self.has_labels(split):
            found = self._find(split, "labels", LABEL_SUFFIXES)
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

        Not of comments, colours or the places of files; ``LabelledFiles.fingerprint`` tells the files from others.
        """
        content: dict[str, Any] = {"size": self.size}
        if self.space is not None:
            content |= {"classes": self.space.names, "ids": self.space.table.tolist()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _find(self, split: str, what: str, suffixes: tuple[str, ...]) -> FoundFiles:
        """Files by the name that an image and its label map share."""
        files = FoundFiles()
        for place in self.splits[split][what]:
            found = list_files(self.path.parent, place, suffixes)
            if not found:
                aside = f"; left out: {', '.join(found.left_out)}" if found.left_out else ""
                raise MissingFileError(
                    f"{self.path}: no {what} {place} for [{split}] under {self.path.parent.resolve()}; "
                    f"expected a folder or a pattern of {', '.join(suffixes)} files{aside}"
                )
            files.add(found, self.path)
        return files


def read_description(path: str | Path) -> Description:
    """Reads a description file. Raises MissingFileError, or UserError that says what was found and expected."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected a description of data (docs/own_data.md)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected a description of data") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise UserError(f"{path}: not TOML ({error})") from None
    _check_keys(path, "", content, (*_OF_THE_WHOLE, *_SPLITS))
    splits = {}
    for split in _SPLITS:
        if split in content:
            splits[split] = _split(path, split, content[split])
    if not splits:
        raise UserError(f"{path}: neither [train] nor [val]; expected a table [train] with images = ...")
    size = content.get("size")
    if size is not None and not (
        _is_list(size, int) and len(size) == 2 and min(size) > 0 and size[0] * size[1] <= MAX_PIXELS
    ):
        raise UserError(f"{path}: size = {size}: expected [width, height] in pixels, at most {MAX_PIXELS:,} in all")
    return Description(path, splits, _label_space(path, content), tuple(size) if size else None)


def _split(path: Path, split: str, table: Any) -> dict[str, list[str]]:
    if not isinstance(table, dict) or "images" not in table:
        raise UserError(f"{path}: [{split}] needs images = ...: a folder, a pattern, or a list of them")
    if misplaced := [key for key in table if key in _OF_THE_WHOLE]:
        raise UserError(f"{path}: {misplaced[0]} = ... stands below [{split}]; move it above the first [table]")
    _check_keys(path, f"[{split}] ", table, ("images", "labels"))
    places = {}
    for key, value in table.items():
        places[key] = [value] if isinstance(value, str) else value
        named = _is_list(places[key], str) and all(place and "\0" not in place for place in places[key])
        if not named or not places[key]:
            raise UserError(f"{path}: [{split}] {key} = {value!r}: expected a folder, a pattern, or a list of them")
    return places


def _label_space(path: Path, content: dict[str, Any]) -> LabelSpace | None:
    if "classes" not in content:
        if "ignore" in content:
            raise UserError(f"{path}: ignore = ... without classes = [...]")
        return None
    listed = content["classes"]
    if not _is_list(listed, dict) or not 2 <= len(listed) <= MAX_CLASSES:
        raise UserError(
            f'{path}: classes: expected a list of 2 to {MAX_CLASSES} entries {{ name = "road", ids = [1] }}'
        )
    names: list[str] = []
    colors, table = [], np.full(256, UNKNOWN, np.uint8)
    default_colors = generated_colors(len(listed)).tolist()
    ignore = content.get("ignore", [])
    ignore = [ignore] if isinstance(ignore, int) else ignore
    if not _is_list(ignore, int) or not all(0 <= i <= 255 for i in ignore):
        raise UserError(f"{path}: ignore = {ignore}: expected ids in 0..255")
    table[ignore] = IGNORE
    for number, entry in enumerate(listed):
        _check_keys(path, f"class {number}: ", entry, ("name", "ids", "color"))
        name, ids = entry.get("name"), entry.get("ids", [number])
        ids = [ids] if isinstance(ids, int) else ids
        if not isinstance(name, str) or not name or not name.isprintable() or name in names:
            raise UserError(f"{path}: class {number}: name = {name!r}: expected a name that no other class has")
        if not _is_list(ids, int) or not ids or not all(0 <= i <= 255 for i in ids):
            raise UserError(f"{path}: class {name}: ids = {ids}: expected ids in 0..255")
        for i in ids:
            if table[i] != UNKNOWN:
                owner = "ignore" if table[i] == IGNORE else names[table[i]] if table[i] < number else name
                raise UserError(f"{path}: id {i} of class {name} belongs to {owner} already")
            table[i] = number
        color = entry.get("color", default_colors[number])
        if not _is_list(color, int) or len(color) != 3 or not all(0 <= c <= 255 for c in color):
            raise UserError(f"{path}: class {name}: color = {color}: expected [red, green, blue] in 0..255")
        names.append(name)
        colors.append(color)
    return LabelSpace(names, np.array(colors, np.uint8), table)


def _check_keys(path: Path, where: str, found: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(f"{path}: {where}unknown key {key!r}; the nearest is {near!r}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
