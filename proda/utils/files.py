"""Atomic writing of files: a reader sees the old or the new file, never a part of it."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from proda.utils.errors import UserError

_UNDECODABLE = re.compile("[\udc80-\udcff]")  # how Python shows bytes of a file's name that are not UTF-8
LONGEST_NAME = 255  # bytes of the name of a file, which is what the usual file systems allow


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It replaces ``path`` if the block succeeds, and is deleted if it fails.

    The file is flushed to disk before it is renamed, so the old or the new file survives a crash of the machine. The
    temporary name is random, because process ids are not unique if containers share a folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(fitting_name(f".{path.name}", f".{uuid.uuid4().hex[:8]}.part"))
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # errors of write() do not name the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def fitting_name(name: str, suffix: str = "") -> str:
    """``name + suffix``, or a shorter name that ends with the suffix if no folder could hold a name of that length.

    The shorter one has the beginning of ``name`` and the first digits of its SHA-256, so that different names stay
    different, and whoever looks for the file again finds it. Names are measured in bytes.
    """
    fits = len(os.fsencode(name + suffix)) <= LONGEST_NAME
    return name + suffix if fits else _with_checksum(name, suffix)


def _with_checksum(name: str, suffix: str) -> str:
    """A name that every folder can hold, in UTF-8 where ``name`` is not."""
    encoded = os.fsencode(name)
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:12]}{suffix}"
    beginning = _readable(name).encode()[: LONGEST_NAME - len(ending.encode())]
    return beginning.decode(errors="ignore") + ending


def safe_path(folder: Path, name: str, suffix: str = "") -> Path:
    """The file ``name + suffix`` in ``folder``, for a name that comes from data.

    Names that are too long or not UTF-8 are replaced as by :func:`fitting_name`.

    Raises UserError if the name could lead to another folder, or contains unprintable characters such as line ends.
    """
    shown = _readable(name) if isinstance(name, str) else ""
    plain = shown.isprintable() and PureWindowsPath(shown).name == shown  # also knows / and \\
    if not plain or not shown or shown.startswith("."):
        expected = "expected printable characters, no path separators, no leading dot"
        raise UserError(f"{name!r} cannot name a file in {folder}: {expected}")
    return Path(folder) / (fitting_name(name, suffix) if shown == name else _with_checksum(name, suffix))


def is_utf8(name: str) -> bool:
    """Whether the name of a file is text in UTF-8, and not other bytes."""
    return not _UNDECODABLE.search(name)


def _readable(name: str) -> str:
    """The name with a sign in the place of bytes that are not UTF-8."""
    return _UNDECODABLE.sub("\N{REPLACEMENT CHARACTER}", name)


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save`` through :func:`atomic_write`; equal content gives equal bytes. OSError if it cannot be written."""
    with atomic_write(path) as partial:
        try:
            with open(partial, "wb") as file:  # given a path, torch would write its name into the file
                torch.save(content, file)
        except RuntimeError as error:  # torch raises this if the disk is full
            if shutil.disk_usage(partial.parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


def save_json(content: Any, path: Path) -> None:
    """Indented JSON through :func:`atomic_write`; NaN becomes null."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(_without_nan(content), indent=2) + "\n")


def sha256_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of a state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hexadecimal SHA-256 of plain values, whatever the order of a dict's keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
