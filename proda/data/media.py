"""Images and videos to predict, as a user names them, and batches of images of any size.

A file that cannot be read does not stop the others: it is noted, with the line that says why.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from proda.data.archives import ARCHIVE_SUFFIX
from proda.data.image_files import IMAGE_SUFFIXES, read_image
from proda.data.listing import list_files
from proda.data.loaders import evaluation_loader
from proda.data.samples import image_tensor
from proda.data.videos import VIDEO_SUFFIXES
from proda.utils.errors import MissingFileError, UserError

NONE = f"found none; expected {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))} files"


@dataclass
class Media:
    """What was found: names, which are unique, and files.

    ``problems`` has a line for each place without any, ``warnings`` one for whatever else the user should know.
    """

    images: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # files in the folders that are neither; see FoundFiles
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_media(places: str) -> Media:
    """Images and videos in one or more places.

    A place is a file, a folder (with its subfolders), a pattern as :func:`~proda.data.listing.list_files` takes it, or
    a text file ``NAME.txt`` with a place on each line. Several are separated by commas. The name of a file is that
    without folder and suffix, or as much of its path as makes the names unique.

    Raises:
        MissingFileError: there is no image and no video in any place, or none that can be listed.
        UserError: a list is not text.
    """
    found = Media()
    keys: dict[Path, str] = {}
    for place in _listed(places):
        try:
            pictures, clips = (
                list_files(Path(), place, suffixes, one_per_key=False) for suffixes in (IMAGE_SUFFIXES, VIDEO_SUFFIXES)
            )
        except UserError as error:
            found.problems.append(str(error))
            continue
        pictures.do_not_count(set(clips.values()))
        for key, path in (*pictures.items(), *clips.items()):
            keys.setdefault(path, key)
        found.left_out += pictures.left_out
        if not pictures and not clips:
            aside = "".join(f"; left out: {line}" for line in pictures.left_out)
            reason = "no such file or folder" if _is_missing(place) else NONE + aside
            found.problems.append(f"{place}: {reason}")
    if not keys:
        raise MissingFileError(f"--images={'; '.join(found.problems) or f'{places}: {NONE}'}")
    videos = {path: key for path, key in keys.items() if path.suffix.lower() in VIDEO_SUFFIXES}
    images = {path: key for path, key in keys.items() if path not in videos}
    found.images, found.videos = unique_names(images), unique_names(videos)
    return found


def unique_names(keys: Mapping[Path, str]) -> dict[str, Path]:
    """Different files by a name for each: its stem, its key, or as much of its path as makes all names differ."""
    candidates = [[path.stem for path in keys], [key.replace("/", "-") for key in keys.values()]]
    plain = [path.absolute().with_name(f"{path.stem}-{path.suffix[1:]}") for path in keys]
    deepest = max((len(path.parts) for path in plain), default=1)
    candidates += [["-".join(path.parts[1:][-depth:]) for path in plain] for depth in range(1, deepest + 1)]
    candidates.append([f"{path.stem}-{number}" for number, path in enumerate(keys, 1)])  # a-b/c and a/b-c are a-b-c
    names = next(names for names in candidates if len(set(names)) == len(names))
    return dict(zip(names, keys, strict=True))


class ReadableImages(Dataset[dict[str, Any]]):
    """Samples of image files, see :func:`sample`; for a file that cannot be read ``{"problem": LINE}``."""

    def __init__(self, files: dict[str, Path], size: tuple[int, int] | None) -> None:
        self.names, self.paths, self.size = list(files), list(files.values()), size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return sample(self.names[index], read_image(self.paths[index]), self.size)
        except UserError as error:
            return {"problem": str(error)}


def sample(name: str, image: Image.Image, size: tuple[int, int] | None) -> dict[str, Any]:
    """An image for the network: ``image`` uint8 [3, h, w], ``name``, and ``file_size`` int64 [2], height and width.

    ``size`` (width, height) is what the network's input is resized to; ``photo`` is the image before, if it differs.
    """
    item = {"name": name, "image": image_tensor(image), "file_size": torch.tensor([image.height, image.width])}
    if size is not None and image.size != size:
        resized = image.resize(size, Image.Resampling.BILINEAR)
        item |= {"photo": item["image"], "image": image_tensor(resized)}
    return item


class ReadableBatches:
    """Batches of images of equal size, each image on one process; may be iterated once.

    ``problems`` fills up with a line for each file that cannot be read; these are in no batch.
    """

    def __init__(
        self, images: ReadableImages, *, batch_size: int, num_workers: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.problems: list[str] = []
        self.loader = evaluation_loader(
            images, rank=rank, world_size=world_size, batch_size=batch_size, num_workers=num_workers, collate_fn=list
        )

    @property
    def images(self) -> int:
        """How many images this process has to read."""
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples in self.loader:
            self.problems += [item["problem"] for item in samples if "problem" in item]
            yield from of_equal_size([item for item in samples if "problem" not in item])


def of_equal_size(samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches of samples whose images are of one size, in the order of the first of each size."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for item in samples:
        groups.setdefault(tuple(item["file_size"].tolist()), []).append(item)
    yield from map(default_collate, groups.values())


def batched(samples: Iterable[dict[str, Any]], count: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of ``count`` samples; the last may be shorter."""
    remaining = iter(samples)
    while several := list(islice(remaining, count)):
        yield several


def photos(batch: dict[str, Any]) -> list[np.ndarray]:
    """The images of a batch as they are in their files, uint8 [H, W, 3] each."""
    return [image.permute(1, 2, 0).cpu().numpy() for image in batch.get("photo", batch["image"])]


def _is_missing(place: str) -> bool:
    """Whether a place that is no pattern, and in no zip file, does not exist."""
    return "*" not in place and ARCHIVE_SUFFIX not in place.lower() and not os.path.exists(os.path.expanduser(place))


def _listed(places: str) -> list[str]:
    """The places that a flag names."""
    listed = [places] if os.path.exists(places) else places.split(",")  # a name may hold commas
    expanded: list[str] = []
    for place in filter(None, map(str.strip, listed)):
        expanded += _lines(place) if place.lower().endswith(".txt") and Path(place).is_file() else [place]
    return expanded


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of images ({error})") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
