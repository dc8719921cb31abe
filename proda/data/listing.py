"""Lists the files of a folder or of a pattern, each folder once, and reports what it ignored.

The listing itself tells files from folders, so that no call per file is needed. On network disks such calls would
dominate the start of a run with 25,000 files.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from proda.data.archives import ARCHIVE_SUFFIX, is_link, open_archive
from proda.data.image_files import IMAGE_SUFFIXES, warn_once
from proda.utils.errors import UserError
from proda.utils.run_files import results_among

_PREDICTED = "_pred_labelIds.png"  # how evaluate ends the names of predictions, whose folder has no record
_OF_A_MAC = "__MACOSX/"  # folder in zip files for what a Mac knows about the others


class FoundFiles(dict[str, Path]):
    """Files by key, the part of a path that an image and its label map share; ``left_out`` lists ignored files."""

    def __init__(self) -> None:
        super().__init__()
        self._left_out: dict[str, list[str]] = {}

    def leave_out(self, reason: str, path: str) -> None:
        self._left_out.setdefault(reason, []).append(path)

    def do_not_count(self, paths: Collection[Path]) -> None:
        """These files are used after all."""
        remaining = {
            reason: [path for path in ignored if Path(path) not in paths] for reason, ignored in self._left_out.items()
        }
        self._left_out = {reason: ignored for reason, ignored in remaining.items() if ignored}

    def add(self, other: "FoundFiles", prefix: str = "") -> None:
        """Adds the files of another place, with ``prefix`` before their keys; UserError if two have the same key."""
        for key, path in other.items():
            if self.setdefault(prefix + key, path) != path:
                raise UserError(f"{self[prefix + key]} and {path} have the same name {prefix + key!r}")
        for reason, paths in other._left_out.items():
            self._left_out.setdefault(reason, []).extend(paths)

    def leave_out_below(self, folder: Path, reason: str) -> None:
        """Leaves out the files in and below a folder."""
        for key in [key for key, path in self.items() if folder in path.parents]:
            self.leave_out(reason, str(self.pop(key)))

    @property
    def left_out(self) -> list[str]:
        """One line for each reason: how many files, and the first of them."""
        return [f"{reason} ({len(paths)}, such as {min(paths)})" for reason, paths in sorted(self._left_out.items())]


def list_files(
    root: Path, place: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, one_per_key: bool = True
) -> FoundFiles:
    """Files of a folder or pattern by the part of their path that distinguishes them, sorted by path.

    ``place`` is relative to ``root``. A folder means all files in and below it, and a file's key is its path from
    there without the suffix. In a pattern ``*`` matches any part of one name and ``**/`` any folders; a key is
    the text that they matched: ``left/*/*_left.png`` finds ``left/ulm/3_left.png`` under the key ``ulm/3``. No other
    character is special. A star at the end, with or without a dot before it, matches any suffix too. The case of
    suffixes is ignored. The key of a single file is its name without the suffix.

    A name that ends with .zip may stand for a zip file, which is listed like a folder, and read unopened:
    ``photos.zip``, ``photos.zip/train/*.png``, ``*_images.zip/*.png``. If everything in ``photos.zip`` lies in a folder
    ``photos``, the place ``photos.zip`` means that folder. Zip files that the place does not name are left out.

    ``one_per_key``: two files with one key are an error, since a label map could not be assigned; otherwise the key of
    the second one keeps its suffix.

    Results that a command has written below a folder of images, such as the overlays of ``predict``, are left out and
    counted, unless the place names their folder.

    Links are followed, but not to a folder that contains them. Hidden files, other suffixes and broken links are left
    out and counted. Keys are in Unicode's normal form NFC; a Mac writes names in NFD.

    Raises:
        UserError: a folder or zip file cannot be listed, or two files have one key and may not.
    """
    parts = Path(os.path.expanduser(place)).parts  # without ./ and //
    number = next((n for n, part in enumerate(parts) if part.lower().endswith(ARCHIVE_SUFFIX)), None)
    if number is None:
        return _in_folders(root, parts, suffixes, one_per_key)
    outer, inner, files = parts[: number + 1], parts[number + 1 :], FoundFiles()
    several = any("*" in part for part in outer)
    if not several and _existing(root, outer).is_dir():  # a folder of that name
        return _in_folders(root, parts, suffixes, one_per_key)
    for key, archive in _in_folders(root, outer, (ARCHIVE_SUFFIX,), one_per_key=True).items():
        files.add(_in_archive(archive, inner, suffixes, one_per_key), f"{key}/" if several else "")
    return files


def _in_folders(root: Path, parts: tuple[str, ...], suffixes: tuple[str, ...], one_per_key: bool) -> FoundFiles:
    files = FoundFiles()
    fixed, pattern = _fixed_and_pattern(parts)
    base = _existing(root, fixed)
    if len(fixed) == len(parts) and base.is_file():
        if base.suffix.lower() in suffixes:
            files[_normal(base.stem)] = base
        return files
    if not base.is_dir():
        return files
    return _matching(_walk(str(base), pattern, files, suffixes), base, pattern, files, one_per_key)


def _in_archive(archive: Path, parts: Sequence[str], suffixes: tuple[str, ...], one_per_key: bool) -> FoundFiles:
    """The same below a place in a zip file."""
    files = FoundFiles()
    try:
        members = open_archive(archive).members
    except OSError as error:
        raise UserError(f"{archive}: cannot be read ({error.strerror})") from None
    fixed, pattern = _fixed_and_pattern(parts)
    base = "/".join(fixed)
    single = next((name for name in members if _normal(name) == _normal(base)), None)
    if len(fixed) == len(parts) and single is not None:
        if os.path.splitext(single)[1].lower() in suffixes:
            files[_normal(Path(single).stem)] = archive / single
        return files
    if not parts and all(name.startswith((f"{archive.stem}/", _OF_A_MAC)) for name in members):
        base = archive.stem  # photos.zip made of a folder photos
    below = {}
    for name in members:
        if base == "" or _normal(name).startswith(f"{_normal(base)}/"):
            below["/".join(name.split("/")[base.count("/") + 1 if base else 0 :])] = name
    found = _walk_archive(archive, below, pattern, files, suffixes)
    inside = next((name[: -len(rest)] for rest, name in below.items()), "")
    return _matching(found, archive / inside, pattern, files, one_per_key)


def _fixed_and_pattern(parts: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """The folders before the first star, and a pattern that ends with the name of a file: of all files by default."""
    fixed = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
    pattern = list(parts[fixed:]) or ["**"]
    return parts[:fixed], [*pattern, "*"] if pattern[-1] == "**" else pattern


def _matching(found: Iterable[str], base: Path, pattern: list[str], files: FoundFiles, one_per_key: bool) -> FoundFiles:
    """``files`` with those found below ``base`` that match the pattern; see :func:`list_files`."""
    match = key_matcher(pattern)
    for name in sorted(found):
        key = match(_normal(name))
        if key is None:
            continue
        path = base / name
        if key in files and one_per_key:
            raise UserError(
                f"{files[key]} and {path} have the same name {key!r}; image and label map share one name: a pattern "
                f"such as *{path.suffix} takes one of them"
            )
        if key in files:
            key += path.suffix
        files[key] = path
    return files


def _walk(base: str, pattern: list[str], files: FoundFiles, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths, relative to ``base``, of usable files in folders that the pattern can mean; ``files`` notes the others."""
    levels = _levels(pattern)
    real = os.path.realpath(base)
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", real, (real,))]
    while waiting:
        folder, real, inside = waiting.pop()  # inside: this folder and those that it was reached by, links resolved
        level = folder.count("/")
        place = os.path.join(base, folder[:-1]) if folder else base
        entries = list(_entries(place))
        results = results_among([entry.name for entry, _ in entries], place) - set(pattern)
        for entry, is_folder in entries:
            if entry.name in results or (folder and entry.name.endswith(_PREDICTED) and levels is None):
                files.leave_out("results of a command", entry.path)
            elif is_folder:
                if entry.name.startswith(".") or not _may_hold(levels, level, entry.name):
                    continue
                link = entry.is_symlink()
                below = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                if link and any(os.path.join(place, "").startswith(os.path.join(below, "")) for place in inside):
                    files.leave_out("links to a folder that contains them", entry.path)
                    warn_once(f"{entry.path}: left out: a link to a folder that contains it")
                else:
                    waiting.append((f"{folder}{entry.name}/", below, (*inside, below)))
            elif levels is not None and level != len(levels):
                continue  # the pattern matches deeper folders
            elif _usable(entry.name, entry.path, is_folder is None, files, suffixes):
                yield folder + entry.name


def _walk_archive(
    archive: Path, below: dict[str, str], pattern: list[str], files: FoundFiles, suffixes: tuple[str, ...]
) -> Iterator[str]:
    """The same for members of a zip file. ``below``: their path from the place where the pattern begins -> name."""
    levels, entries = _levels(pattern), open_archive(archive).members
    for path, member in below.items():
        *folders, name = path.split("/")
        hidden = any(folder.startswith(".") for folder in folders) or member.startswith(_OF_A_MAC)
        if hidden or not all(_may_hold(levels, level, folder) for level, folder in enumerate(folders)):
            continue
        if levels is not None and len(folders) != len(levels):
            continue
        if _usable(name, f"{archive}/{member}", is_link(entries[member]), files, suffixes):
            yield path


def _levels(pattern: list[str]) -> list[re.Pattern[str]] | None:
    """What the folders on each level have to match; None if files may lie on any level."""
    return None if "**" in pattern else [re.compile(_regular(part)) for part in pattern[:-1]]


def _may_hold(levels: list[re.Pattern[str]] | None, level: int, folder: str) -> bool:
    return levels is None or (level < len(levels) and levels[level].fullmatch(_normal(folder)) is not None)


def _usable(name: str, path: str, special: bool, files: FoundFiles, suffixes: tuple[str, ...]) -> bool:
    """Whether a file is one of those to list; if not, notes it in ``files``."""
    hidden = name.startswith(".")
    if os.path.splitext(name)[1].lower() not in suffixes:
        if not hidden and name not in ("Thumbs.db", "desktop.ini"):
            files.leave_out("files with another suffix", path)
    elif hidden:
        files.leave_out("hidden files", path)
    elif special:
        files.leave_out("broken links and special files", path)
        warn_once(f"{path}: left out: a broken link or a special file")
    else:
        return True
    return False


def _entries(folder: str) -> Iterator[tuple[os.DirEntry[str], bool | None]]:
    """What a folder holds, each with whether it is a folder itself; None for what is neither a folder nor a file."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = True if entry.is_dir() else False if entry.is_file() else None
                except OSError:  # a link that leads to itself
                    is_folder = None
                yield entry, is_folder
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None


def key_matcher(pattern: list[str]) -> Callable[[str], str | None]:
    """A function from the path of a file to its key; None if it does not match the pattern."""
    before, last = "".join(f"{part}/" for part in pattern[:-1]), pattern[-1]
    stem, dot, suffix = last.rpartition(".")
    alternatives = [(stem, dot + suffix)] if dot else []
    if last.endswith("*"):  # it matches any suffix too
        alternatives.append((last, ".*"))
    expressions = [
        (re.compile(_regular(before + stem)), re.compile(_regular(suffix, "[^/]*"), re.IGNORECASE))
        for stem, suffix in alternatives
    ]

    def match(path: str) -> str | None:
        stem, suffix = os.path.splitext(path)
        for of_stem, of_suffix in expressions:
            if of_suffix.fullmatch(suffix) and (found := of_stem.fullmatch(stem)):
                key = "/".join(group.strip("/") for group in found.groups() if group)
                return key or os.path.basename(stem)
        return None

    return match


def _regular(pattern: str, star: str = "([^/]*)") -> str:
    """A regular expression for a pattern, in the normal form of names."""
    wild = {"**/": "((?:[^/]+/)*)", "*": star}
    pieces = re.split(r"(\*\*/|\*)", _normal(pattern))
    return "".join(wild.get(piece) or re.escape(piece) for piece in pieces)


def _existing(root: Path, parts: Sequence[str]) -> Path:
    """``root`` with the parts added; if a part does not exist, a name with the same normal form."""
    path = Path(root)
    for part in parts:
        if not part.isascii() and not (path / part).exists() and path.is_dir():
            part = next((name for name in sorted(os.listdir(path)) if _normal(name) == _normal(part)), part)
        path = path / part
    return path


def _normal(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
