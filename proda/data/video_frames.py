"""Every n-th frame of videos, as image files.

A video can only be decoded from its start on: a jump to a frame decodes all frames since the last key frame, and lands
beside the frame that was asked for in many files. Training reads its images in random order. So the frames are written
to a folder once, as JPEGs of high quality, and are files like any others from then on.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from proda.data.image_files import warn_once
from proda.data.videos import VideoFile
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import atomic_write, safe_path, save_json
from proda.utils.progress import Progress

QUALITY = 95  # of JPEG: losses far below those of the video itself, in a fifth of the bytes of PNG
_RECORD = "frames.json"  # written last: the folder is complete


def video_frames(videos: Mapping[str, Path], every: int, folder: Path) -> dict[str, Path]:
    """Image files of every n-th frame of each video, beginning with the first: key of the video/number -> file.

    The frames of a video are in a folder of their own under ``folder``, whose name depends on the size and the time of
    modification of the video and on ``every``. What is there is not written again: an interrupted call is continued,
    and several processes may write the same folder at once.

    Raises:
        MissingFileError: a video is not there.
        UserError: PyAV is not installed, or a video or the folder cannot be used.
    """
    return {f"{key}/{path.stem}": path for key, video in videos.items() for path in _frames(video, key, every, folder)}


def _frames(video: Path, key: str, every: int, folder: Path) -> list[Path]:
    try:
        state = video.stat()
    except OSError as error:
        raise MissingFileError(
            f"{video}: cannot be read ({error.strerror}); expected a video outside zip files"
        ) from None
    identity = json.dumps([state.st_size, state.st_mtime_ns, every])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    folder = safe_path(folder, key.replace("/", "-"), f"-every{every}-{digest}")
    counts = _complete(folder, every)
    if counts is None:
        try:
            decoded, announced = counts = _extract(video, every, folder)
            record = {"video": video.name, "bytes": state.st_size, "every": every}
            save_json({**record, "decoded": decoded, "announced": announced}, folder / _RECORD)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); frames = ... in the description sets another folder"
            ) from None
    decoded, announced = counts
    if decoded < announced:
        warn_once(f"{video}: only {decoded} of {announced} frames could be decoded; the others are left out")
    return _files(folder, decoded, every)


def _complete(folder: Path, every: int) -> tuple[int, int] | None:
    """How many frames were decoded and announced; None without a record that can be read, or if a file is missing."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        there = set(os.listdir(folder))
        complete = all(file.name in there for file in _files(folder, record["decoded"], every))
        return (record["decoded"], record["announced"]) if complete else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _files(folder: Path, decoded: int, every: int) -> list[Path]:
    return [folder / f"{number:07}.jpg" for number in range(0, decoded, every)]


def _extract(path: Path, every: int, folder: Path) -> tuple[int, int]:
    """Writes every n-th frame that is not there yet; returns how many frames were decoded, and how many announced."""
    video = VideoFile(path)
    shown = Progress(f"{path.name}, frame", video.count) if video.count else None
    for number, picture in video.frames(every):
        file = folder / f"{number:07}.jpg"
        if not file.is_file():  # otherwise it is complete, since files are written atomically
            with atomic_write(file) as partial:
                Image.fromarray(picture).save(partial, "JPEG", quality=QUALITY, subsampling=0)
        if shown is not None:
            shown.update(number + 1)
    if shown is not None:
        shown.close()
    return video.decoded, video.announced
