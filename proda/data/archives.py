"""Reads files that lie in a folder or, unopened, in a zip file: ``photos.zip/train/1.png`` is a path like any other.

``read_bytes``, ``open_file`` and ``file_size`` take both kinds. Each process opens an archive and reads its directory
when it first needs it: a forked process must not share the position in a file with its parent.
"""

import errno
import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from proda.utils.errors import UserError

ARCHIVE_SUFFIX = ".zip"
# What zipfile raises for a damaged file or an unknown kind of compression; RuntimeError: a password is needed.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)


class Archive(NamedTuple):
    """An open zip file. ``members``: path in the archive -> its entry, files only."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    version: tuple[int, int, int]  # inode, size and time of modification


_opened: dict[Path, Archive] = {}  # of this process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_opened.clear)


def read_bytes(path: Path) -> bytes:
    """The content of a file; FileNotFoundError or another OSError if it cannot be read."""
    try:
        return path.read_bytes()
    except (NotADirectoryError, FileNotFoundError):
        with _open_member(path) as stream:
            try:
                return stream.read()
            except _UNREADABLE as error:
                raise _unreadable(path, error) from None


def open_file(path: Path) -> IO[bytes]:
    """A file to read from, at any position; errors as those of ``read_bytes``."""
    try:
        return open(path, "rb")
    except (NotADirectoryError, FileNotFoundError):
        return _open_member(path)


def file_size(path: Path) -> int:
    """Bytes of a file, unpacked if it lies in a zip file; OSError if there is none."""
    try:
        return path.stat().st_size
    except (NotADirectoryError, FileNotFoundError):
        archive, name = _find(path)
        return archive.members[name].file_size


def open_archive(path: Path) -> Archive:
    """The archive, opened again if another file has taken its place since.

    Raises:
        OSError: the file cannot be read.
        UserError: it is no zip file, or an encrypted one.
    """
    state = os.stat(path)
    version = state.st_ino, state.st_size, state.st_mtime_ns
    known = _opened.get(path)
    if known is None or known.version != version:
        _opened[path] = known = _opened_archive(path, version)
    return known


def is_link(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a symbolic link, whose content is only the name of another file."""
    return stat.S_ISLNK(member.external_attr >> 16)


def _opened_archive(path: Path, version: tuple[int, int, int]) -> Archive:
    # A file that ZipFile opens by itself is closed too early if two threads end reading at once.
    stream = open(path, "rb")  # noqa: SIM115
    try:
        file = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        stream.close()
        raise UserError(f"{path}: not a complete zip file ({error})") from None
    members = {}
    for member in file.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))  # some programs of Windows write backslashes
        if not member.is_dir() and not name.is_absolute() and ".." not in name.parts:
            members[str(name)] = member
    if locked := next((name for name, member in members.items() if member.flag_bits & 1), None):
        stream.close()
        raise UserError(f"{path}: encrypted (such as {locked}); expected a zip file without a password")
    return Archive(file, members, version)


def _find(path: Path) -> tuple[Archive, str]:
    """The archive and the member that a path means; FileNotFoundError if there is none."""
    for place in path.parents:
        if place.suffix.lower() == ARCHIVE_SUFFIX and (place in _opened or place.is_file()):
            archive, name = _opened.get(place) or open_archive(place), path.relative_to(place).as_posix()
            if name in archive.members:
                return archive, name
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _open_member(path: Path) -> IO[bytes]:
    archive, name = _find(path)
    try:
        return archive.file.open(archive.members[name])
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read from the zip file ({error})")
