"""Finds images and their label maps in folders, zip files and patterns, for a description of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from proda.data.image_files import IMAGE_SUFFIXES, LABEL_SUFFIXES
from proda.data.listing import FoundFiles, list_files
from proda.data.pairing import find_patterns, not_photographs, tell_apart
from proda.data.videos import VIDEO_SUFFIXES
from proda.utils.errors import MissingFileError, UserError
from proda.utils.words import printable


class Places(NamedTuple):
    """Where images and label maps are, relative to ``root``, and what is there, by the names that they share."""

    root: Path
    images: str
    labels: str  # empty: there are no label maps
    image_files: FoundFiles
    label_files: FoundFiles
    are_videos: bool = False
    unused: tuple[Path, ...] = ()  # images and label maps which the patterns that were found leave out

    @property
    def pairs(self) -> list[str]:
        """Names of images with a label map."""
        return [key for key in self.image_files if key in self.label_files]


def find_places(root: Path, images: str, labels: str = "") -> Places:
    """What is in a folder, zip file or pattern of images, and in one of label maps.

    If no image and label map have the same name, but each kind has a prefix or suffix of its own, or if both lie in one
    folder, the places become patterns: ``rgb/**/*_rgb.*``, ``data/*_mask.png``.

    Raises:
        MissingFileError: there are no files.
        UserError: no image and label map belong together, or images alone cannot be distinguished from label maps.
    """
    every = list_files(root, images, one_per_key=False)
    videos = FoundFiles() if every else list_files(root, images, VIDEO_SUFFIXES)
    if videos and labels:
        raise UserError(f"--labels={labels}: --images={images} are videos, whose frames have no label maps")
    if videos:
        return Places(root, images, "", videos, FoundFiles(), are_videos=True)
    if not every:
        raise MissingFileError(f"--images={images}: found none; expected {', '.join(IMAGE_SUFFIXES)} files or videos")
    if not labels:
        return _photographs(root, images, every)
    maps = list_files(root, labels, LABEL_SUFFIXES, one_per_key=False)
    if not maps:
        aside = f"; left out: {', '.join(maps.left_out)}" if maps.left_out else ""
        raise MissingFileError(
            f"--labels={labels}: found none; expected {', '.join(LABEL_SUFFIXES)} files, which keep the values of "
            f"pixels as they are; JPEG and WebP may change them{aside}"
        )
    problem: UserError | None = None
    try:
        places = _listed(root, images, labels)
        if places.pairs:
            return places
    except UserError as error:  # a file is listed as both, or two have one name
        problem = error
    if "*" not in images + labels:
        if problem is None:
            places = _listed(
                root,
                f"{images}/**/{_own_part(places.image_files)}",
                f"{labels}/**/{_own_part(places.label_files)}",
            )
            if places.pairs:
                return places
        if found := find_patterns(every.values(), maps.values(), root):
            places = _listed(root, found.images, found.labels)
            return places._replace(unused=_unused([*every.values(), *maps.values()], places))
    raise problem or UserError(
        f"no image and label map belong together: --images has {_some(every)}, --labels has {_some(maps)}; "
        "expected the same names, or patterns whose stars match the same text"
    )


def _listed(root: Path, images: str, labels: str) -> Places:
    """What lies there; UserError if files have one name, or are images and label maps at once."""
    image_files, label_files = list_files(root, images), list_files(root, labels, LABEL_SUFFIXES)
    tell_apart(image_files, label_files)
    return Places(root, images, labels, image_files, label_files)


def _photographs(root: Path, images: str, every: FoundFiles) -> Places:
    """The images of a place alone: by a pattern if there are as many label maps among them."""
    strange = not_photographs(every)
    if 2 * len(strange) < len(every) - len(strange) or "*" in images:
        return Places(root, images, "", list_files(root, images), FoundFiles())
    found = find_patterns(every.values(), every.values(), root)
    alone = list_files(root, found.images) if found else FoundFiles()
    if found is None or not_photographs(alone):
        raise UserError(
            f"--images={images}: {len(strange)} of {len(every)} files seem to be label maps, such as {strange[0]}; "
            f"set --labels={images}, too, which tells them apart, or a pattern that finds photographs only"
        )
    places = Places(root, found.images, "", alone, FoundFiles())
    return places._replace(unused=_unused(every.values(), places))


def _unused(every: Iterable[Path], places: Places) -> tuple[Path, ...]:
    return tuple(sorted({*every} - {*places.image_files.values(), *places.label_files.values()}))


def _own_part(files: Iterable[str]) -> str:
    """A pattern of the prefix and suffix that all names share, without the digits next to what differs."""
    names = [key.rpartition("/")[2] for key in files]
    common_start = os.path.commonprefix  # of characters, as is meant here
    prefix = common_start(names).rstrip("0123456789")
    suffix = common_start([name[len(prefix) :][::-1] for name in names])[::-1].lstrip("0123456789")
    return f"{prefix}*{suffix}.*"


def _some(files: FoundFiles) -> str:
    names = [printable(key) for key in list(files)[:2]]
    return ", ".join(names) + (f" and {len(files) - 2} more" if len(files) > 2 else "")
