"""Tells images from the label maps that lie among them, by the places that list them or by the words in their names."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from proda.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES
from proda.data.listing import FoundFiles, key_matcher
from proda.utils.errors import UserError

_COMPARED = 16  # pairs whose files are compared, since they may be links
_CANDIDATES = 8  # patterns of each kind that are tried
_LOSSY = (".jpg", ".jpeg", ".webp")  # of photographs, never of label maps


def _words(words: str) -> re.Pattern[str]:
    """Any of these words, of any case, between characters that are no letters or where a small letter meets a capital.

    Underscores in a word stand for any delimiter or none.
    """
    alternatives = "|".join(sorted(words.replace("_", "[ ._-]?").split("|"), key=len, reverse=True))
    change = "(?<=[a-z])(?=[A-Z])"
    return re.compile(f"(?:(?<![A-Za-z])|{change})(?i:{alternatives})(?:(?![A-Za-z])|{change})")


_OF_LABELS = (
    "masks?|labels?|labell?ed|lbls?|segs?|segm|segmentations?|segmentation_class|segmentation_class_raw|semantics?|"
    "sem|sem_seg|gts?|gt_fine|gt_coarse|ground_truths?|annotations?|annots?|anno|targets?|ids?|label_ids?|"
    "train_ids?|label_train_ids?|class_ids?"
)
_OF_IMAGES = (
    "rgba?|images?|imgs?|jpeg_images|photos?|photographs?|pictures?|pics?|frames?|inputs?|left_img_8bit|colou?rs?|"
    "camera|cam|raw|originals?|orig"
)
_OF_OTHERS = (
    "overlays?|overlaid|previews?|vis|viz|visuali[sz]ations?|blend|blends|blended|thumbs?|thumbnails?|instances?|"
    "instance_ids?|inst|segmentation_object|objects?|polygons?|depths?|disparity|disparities|disp|normals?|"
    "confidences?|edges?|boundary|boundaries|colou?red|colou?ri[sz]ed|colou?r_maps?|colou?r_masks?"
)
_LABEL, _IMAGE, _OTHER = _words(_OF_LABELS), _words(_OF_IMAGES), _words(_OF_OTHERS)
_LABEL_OR_IMAGE, _ANY = _words(f"{_OF_LABELS}|{_OF_IMAGES}"), _words(f"{_OF_LABELS}|{_OF_IMAGES}|{_OF_OTHERS}")
_NONE, _COLORS = re.compile("(?!)"), _words("colou?rs?")


class Patterns(NamedTuple):
    """Places of images and of label maps, as a description names them, and how many files they put together."""

    images: str
    labels: str
    pairs: int


def tell_apart(images: FoundFiles, labels: FoundFiles) -> None:
    """Takes the label maps out of ``images``, or the images out of ``labels``, where both places list the same files.

    ``images = "data"`` and ``labels = "data/*_mask.png"`` list ``data/a_mask.png`` twice: as the label map of
    ``data/a.png``, and as an image that has none. So it is no image.

    Raises:
        UserError: a file is its own label map, or it cannot be told which of the two it is.
    """
    real = cache(os.path.realpath)

    def place(path: Path) -> tuple[str, str]:
        return real(path.parent), path.name

    of_labels = {place(path): key for key, path in labels.items()}
    twice = {key: of_labels[place(path)] for key, path in images.items() if place(path) in of_labels}
    others = [(key, own) for key, own in twice.items() if key != own]
    are_images = any(key in labels for key, _ in others)  # they have label maps
    are_labels = any(own in images for _, own in others)  # they belong to images
    if twice and are_images == are_labels:
        raise _same_file(images[next(iter(twice))], images, labels)
    for key, own in twice.items():
        if are_labels:
            del images[key]
        else:
            del labels[own]
    images.do_not_count(set(labels.values()))
    labels.do_not_count(set(images.values()))
    pairs = [key for key in images if key in labels]
    for index in np.unique(np.linspace(0, len(pairs) - 1, _COMPARED).astype(int)) if pairs else ():
        image, label = images[pairs[index]], labels[pairs[index]]
        if os.path.exists(image) and os.path.exists(label) and os.path.samefile(image, label):
            raise _same_file(image, images, labels)


def leave_out_label_maps(images: FoundFiles, labels: FoundFiles) -> None:
    """Takes the files of ``labels``, which belong to other images, out of ``images``."""
    real = cache(os.path.realpath)
    listed = {(real(path.parent), path.name) for path in labels.values()}
    for key, path in list(images.items()):
        if (real(path.parent), path.name) in listed:
            images.leave_out("label maps", str(images.pop(key)))


def not_photographs(images: Mapping[str, Path]) -> list[Path]:
    """Files among ``images`` whose names say that they are label maps or overlays of other images: ``a_mask.png``.

    ``images``: key or name -> file.
    """
    plain = {_reduced(key) for key in images if not (_LABEL.search(key) or _OTHER.search(key))}
    return [
        path for key, path in images.items() if (_LABEL.search(key) or _OTHER.search(key)) and _reduced(key) in plain
    ]


def find_patterns(images: Iterable[Path], labels: Iterable[Path], root: Path) -> Patterns | None:
    """The patterns that assign the most label maps to images, by words in names such as ``_mask`` or ``images/``.

    Args:
        images: files that may be images, with any label maps and other pictures among them.
        labels: the same for label maps.
        root: the patterns are relative to this folder if the files are below it.

    Returns None if no pattern assigns one file to another.
    """
    images, labels = set(images), set(labels)
    mixed = bool(images & labels)
    try:
        bases = [Path(os.path.commonpath([path.parent for path in paths])) for paths in (images, labels)]
        if mixed:
            bases = [Path(os.path.commonpath(bases))] * 2
    except ValueError:  # absolute and relative ones, or none
        return None
    pictures = tuple(name for name in _names(images, bases[0]) if name.lower().endswith(IMAGE_SUFFIXES))
    maps = tuple(name for name in _names(labels, bases[1]) if name.lower().endswith(LABEL_SUFFIXES))
    best: tuple[tuple[int, int], str, str] | None = None
    keys = cache(_keys)
    for of_images, of_labels in _candidates(pictures, maps):
        of_image, of_label = keys(of_images, pictures), keys(of_labels, maps)
        shared = [key for key, name in of_label.items() if key in of_image and not (mixed and of_image[key] == name)]
        taken = set(of_label.values()) if mixed else set()
        score = len(shared), -sum(name not in taken for name in of_image.values())
        if shared and (best is None or score > best[0]):
            best = score, of_images, of_labels
    if best is None:
        return None
    places = [
        pattern if base == root else f"{base.relative_to(root) if base.is_relative_to(root) else base}/{pattern}"
        for base, pattern in zip(bases, best[1:], strict=True)
    ]
    return Patterns(places[0], places[1], best[0][0])


def _names(paths: Iterable[Path], base: Path) -> list[str]:
    return sorted(path.relative_to(base).as_posix() for path in paths)


def _candidates(pictures: Sequence[str], maps: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Pairs of patterns that are worth a trial, the more general ones first."""
    labels = [name for name in maps if _is_label(name)]
    rest = [name for name in pictures if not (_LABEL.search(name) or _OTHER.search(name))]
    of_labels = [*_most_common(labels, _LABEL), *_most_common(labels, _LABEL_OR_IMAGE)]
    of_images = [*_most_common(rest, _NONE), *_most_common(rest, _IMAGE)]
    lossy = [name for name in pictures if name.lower().endswith(_LOSSY)]
    yield from ((image, label) for label in dict.fromkeys(of_labels) for image in dict.fromkeys(of_images))
    for image in _most_common(lossy, _NONE):
        yield from ((image, label) for label in _most_common(maps, _NONE))  # a.jpg, a.png
    for ending, count in Counter(map(_ending, maps)).most_common(_CANDIDATES):  # a.png, a_L.png
        if ending and count > 1 and not _OTHER.search(ending):
            longer = [name for name in maps if _ending(name) == ending]
            suffix = _suffix(longer)
            for image in _most_common([name for name in pictures if _ending(name) != ending], _NONE):
                yield image, f"**/*{ending}{suffix}" if any("/" in name for name in longer) else f"*{ending}{suffix}"


def _is_label(name: str) -> bool:
    return bool(_LABEL.search(name)) and not _OTHER.search(name) and not _COLORS.search(name)


def _ending(name: str) -> str:
    """What follows the last delimiter in the name of a file, with it, if there are letters."""
    found = re.search(r"[ ._-][A-Za-z]+$", os.path.splitext(name)[0].rpartition("/")[2])
    return found[0] if found else ""


def _most_common(names: Sequence[str], words: re.Pattern[str]) -> list[str]:
    """The patterns that fit the most names: what is no word becomes a star."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_starred_path(os.path.splitext(name)[0], words), []).append(name)
    common = sorted(groups, key=lambda pattern: -len(groups[pattern]))[:_CANDIDATES]
    return [_with_folders(pattern, groups[pattern]) + _suffix(groups[pattern]) for pattern in common]


def _suffix(names: Sequence[str]) -> str:
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    return suffixes.pop() if len(suffixes) == 1 else ".*"


def _with_folders(pattern: str, names: Sequence[str]) -> str:
    """Without a first ``**/`` that no name needs."""
    depth = pattern.count("/") - pattern.count("**/")
    if pattern.startswith("**/") and pattern.count("**/") == 1 and all(name.count("/") == depth for name in names):
        return pattern.removeprefix("**/")
    return pattern


def _starred_path(path: str, words: re.Pattern[str]) -> str:
    *folders, stem = path.split("/")
    parts = ["**"]
    for folder in folders:
        part = _starred(folder, words)
        if part != "*" or parts[-1] != "**":
            parts.append("**" if part == "*" else part)
    return "/".join([*parts, _starred(stem, words)])


def _starred(name: str, words: re.Pattern[str]) -> str:
    """A part of a path with a star for all but words and the delimiters next to them."""
    text, end = "", 0
    for found in words.finditer(name):
        text += _between(name[end : found.start()], bool(end), True) + found[0]
        end = found.end()
    return text + _between(name[end:], bool(end), False) if end else "*"


def _between(text: str, after: bool, before: bool) -> str:
    """Text between two words; ``after`` and ``before`` say whether there are any."""
    inner = text.lstrip(" ._-") if after else text
    start, rest = text[: len(text) - len(inner)], inner.rstrip(" ._-") if before else inner
    return start + ("*" if rest else "") + inner[len(rest) :]


def _reduced(key: str) -> tuple[str, ...]:
    """A key without the words that say what a file is."""
    parts = [re.sub(r"[ ._-]+", "_", _ANY.sub("", part)).strip("_") for part in key.split("/")]
    return tuple(part for part in parts if part)


def _keys(pattern: str, names: Iterable[str]) -> dict[str, str]:
    match = key_matcher(pattern.split("/"))
    return {key: name for name in names if (key := match(name)) is not None}


def _same_file(path: Path, images: FoundFiles, labels: FoundFiles) -> UserError:
    found = find_patterns(images.values(), images.values(), Path()) or find_patterns(
        images.values(), labels.values(), Path()
    )
    such = f"{found.images} and {found.labels}" if found else "*.jpg and *_mask.png"
    return UserError(
        f"{path} is listed as an image and as a label map; expected places of images and of label maps without a file "
        f"in common, such as {such}"
    )
