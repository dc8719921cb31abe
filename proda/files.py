"""Writing files so that a reader sees the old one or the new one, never half of one."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of ``path`` when the block ends well, and vanishes when it does not.

    The bytes are on the disk before the name changes, so a crash of the machine keeps the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save`` through :func:`replacing`."""
    with replacing(path) as partial:
        torch.save(content, partial)


def save_json(content: Any, path: Path) -> None:
    """Indented JSON through :func:`replacing`; NaN becomes null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(_without_nan(content), indent=2) + "\n")


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
