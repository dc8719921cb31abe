"""Pseudo labels of a target training set on disk: compressed, written atomically, and checked for staleness.

A folder holds one kind of pseudo labels and ``manifest.json``, which records what they were computed from:

    soft    probabilities/NAME.probs              class probabilities at network resolution
    hard    labels/NAME.png, confidence/NAME.png  arg-max and its probability at image size; both open in any viewer

Several processes may write different images into one folder at once. Files are written atomically, so generation can be
killed at any time and continues with the images in ``missing``. Reading a folder cannot execute code.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from imagecodecs import png_decode
from PIL import Image
from PIL.Image import DecompressionBombError
from torch import Tensor

from proda.data.image_files import MAX_PIXELS
from proda.data.labelled_files import first_duplicate
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import atomic_write, safe_path, save_json
from proda.utils.record import check_format, differences, plain

# K classes; h, w network resolution; H, W image size.
FORMAT = 2  # raise it whenever a file of an older version would be read wrongly
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a set of pseudo labels was computed from. Two sets with equal manifests are interchangeable."""

    num_classes: int
    weights: str  # SHA-256 of the weights that predicted them
    settings: Mapping[str, Any]  # other settings that change the labels (flip, amp, size, ...); JSON values
    images: Sequence[str]  # names of all images of the set, each once
    fingerprint: str = ""  # of the image files, as LabelledFiles.fingerprint gives it
    class_names: Sequence[str] = ()  # in the order of the numbers


def described_store(
    folder: str | Path,
    kind: str,
    manifest: Manifest,
    *,
    palette: np.ndarray | None = None,
    overwrite: bool = False,
    remedy: str = "give another folder, or --overwrite",
) -> "SoftLabelStore | HardLabelStore":
    """The store of the labels that ``manifest`` describes; nothing is read or written before its ``check`` or ``open``.

    ``kind`` is "soft" or "hard"; ``palette`` uint8 [K, 3] colors hard labels. Where the folder holds labels that were
    computed from something else, ``overwrite`` deletes them (and no other file); otherwise they are refused, in a line
    that ends in ``remedy``.

    Raises:
        UserError: the name of an image cannot name a file.
    """
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind must be 'soft' or 'hard', got {kind!r}")
    folder = Path(folder)
    for name in manifest.images:
        safe_path(folder, name)
    if twice := first_duplicate(list(manifest.images)):
        raise ValueError(f"{folder}: two images are called {twice!r}; names must differ")
    if manifest.class_names and len(manifest.class_names) != manifest.num_classes:
        raise ValueError(f"{len(manifest.class_names)} class names for {manifest.num_classes} classes")
    store = SoftLabelStore(folder, manifest.num_classes) if kind == "soft" else HardLabelStore(folder, palette)
    store.manifest, store.overwrite, store.remedy = manifest, overwrite, remedy
    return store


def open_store(folder: str | Path, kind: str, manifest: Manifest, **options: Any) -> "SoftLabelStore | HardLabelStore":
    """:func:`described_store`, opened for writing and reading."""
    store = described_store(folder, kind, manifest, **options)
    store.open()
    return store


def read_manifest(folder: str | Path, kind: str) -> Manifest:
    """Reads the manifest in ``folder``. MissingFileError if missing, UserError if the labels are another kind."""
    path = Path(folder) / MANIFEST
    found = _read_json(path)
    for key, known in (("format", FORMAT), ("kind", kind)):
        if found[key] != known:
            raise UserError(f"{path}: {key}: found {found[key]!r}, expected {known!r}")
    return Manifest(**{field.name: found[field.name] for field in fields(Manifest)})


class _Store:
    """Base of both kinds: paths of files, missing files, and completeness of a set."""

    kind: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]  # folder of files -> their suffix; an image has one file in each
    manifest: Manifest  # of the labels, where the store was described by one
    overwrite = False
    remedy = ""
    left_out: Collection[str] = ()  # images of the manifest that the run skips now, so that their labels are not needed

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def check(self) -> str:
        """What makes the labels in the folder stale, although they may be overwritten; empty if nothing does.

        Raises:
            UserError: the folder holds other labels or other files, and they may not be overwritten.
        """
        path = self.folder / MANIFEST
        # Listed before the manifest is looked for: another process writes the manifest first, then anything else.
        strangers = [file for file in _listing(self.folder) if not file.endswith(".part")]
        if not path.exists():
            if strangers:
                raise UserError(
                    f"{self.folder}: holds files but no {MANIFEST}, so it is no pseudo-label folder; {self.remedy}"
                )
            return ""
        try:
            stale = "; ".join(differences(_read_json(path), self._record()))
        except ValueError as error:
            stale = str(error)
        if stale and not self.overwrite:
            raise UserError(f"{path}: these pseudo labels are stale: {stale}; {self.remedy}")
        return stale

    def open(self) -> None:
        """Prepares the folder: a new one, a half-written one to complete, or a complete one.

        Processes may open a folder at the same time, but with ``overwrite`` one process must open it first.

        Raises:
            UserError: as :meth:`check`.
        """
        stale = self.check()
        if stale:
            # The labels go before their manifest: killed in between, the folder is still refused.
            for kind in (SoftLabelStore(self.folder, self.manifest.num_classes), HardLabelStore(self.folder)):
                kind._delete()
        if stale or not (self.folder / MANIFEST).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_json(self._record(), self.folder / MANIFEST)

    def _record(self) -> dict[str, Any]:
        return plain({"format": FORMAT, "kind": self.kind, **asdict(self.manifest)})

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are needed and not (completely) written, in the same order."""
        there = {part: set(_listing(self.folder / part)) for part in self.parts}

        def complete(name: str) -> bool:
            return all(self._path(part, name).name in there[part] for part in there)

        return [name for name in names if name not in self.left_out and not complete(name)]

    def forget(self, names: Iterable[str]) -> None:
        """Deletes the labels of these images, which are written again when they are next missing."""
        for part in self.parts:
            for name in names:
                self._path(part, name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Verifies that every image of the manifest is written; RuntimeError if not. Call it on one process, last."""
        images = read_manifest(self.folder, self.kind).images
        if missing := self.missing(images):
            raise RuntimeError(
                f"{self.folder}: {len(missing)} of {len(images)} pseudo labels are not written, first {missing[0]!r}; "
                "run the same command again to complete them"
            )
        for part in self.parts:  # temporary files of killed writers
            for file in _listing(self.folder / part):
                if file.endswith(".part"):
                    (self.folder / part / file).unlink(missing_ok=True)

    def _path(self, part: str, name: str) -> Path:
        return safe_path(self.folder / part, name, self.parts[part])

    def _delete(self) -> None:
        for part, suffix in self.parts.items():
            for file in _listing(self.folder / part):
                if file.endswith((suffix, ".part")):
                    (self.folder / part / file).unlink(missing_ok=True)


# Soft labels keep the log-ratio of each class to the most likely one, which is what survives rectification: weights
# multiply probabilities, so a class that is far behind here may still win. Code c in 0..1023 stands for the ratio
# exp(-c (STEP + BEND c)): steps of 0.3% where classes compete, 5% at the end, 4e-11, beyond which all are equal.
# Code 0 belongs to the arg-max alone, so the arg-max is exact.
_STEP = 0.0025
_BEND = (24 - 1023 * _STEP) / 1023**2
_RATIOS = np.exp(-np.arange(1024) * (_STEP + _BEND * np.arange(1024))).astype(np.float32)
SOFT_BYTES = 0.65  # typical size of a file, for each of its K h w numbers (docs/performance.md)
HARD_BYTES = 0.234  # of both files of an image, for each of its H W pixels
_HEADER = struct.Struct("<8s3I")  # magic, K, h, w; then the compressed codes; then the CRC-32 of all before it
_MAGIC = b"ProDAsl1"


class SoftLabelStore(_Store):
    """Class probabilities [K, h, w] of each image, in ten bits each and compressed.

    19 x 129 x 257 take about 0.4 MB (float32: 2.5 MB). The arg-max is exact, probabilities are within 0.002, and the
    ratio of two probabilities within 5% where neither is below 4e-11 of the largest.
    """

    kind = "soft"
    parts: ClassVar = {"probabilities": ".probs"}

    def __init__(self, folder: str | Path, num_classes: int) -> None:
        super().__init__(folder)
        self.num_classes = num_classes

    def write(self, name: str, probabilities: Tensor) -> None:
        """Stores float [K, h, w], non-negative and summing to 1 over K, on any device."""
        path = self._path("probabilities", name)
        if probabilities.ndim != 3 or len(probabilities) != self.num_classes:
            raise ValueError(f"{path}: expected [{self.num_classes}, h, w], got {list(probabilities.shape)}")
        probabilities = probabilities.detach().float()
        total = probabilities.sum(0)
        if not ((probabilities >= 0).all() and ((total - 1).abs() < 0.02).all()):  # half precision sums to 1 +- 0.01
            raise ValueError(f"{path}: probabilities must be finite, >= 0 and sum to 1 over classes; are they logits?")
        best = probabilities.argmax(0, keepdim=True)
        log = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        ratio = log.gather(0, best) - log
        steps = ((_STEP**2 + 4 * _BEND * ratio).sqrt() - _STEP) / (2 * _BEND)
        codes = steps.round().clamp(1, 1023).scatter(0, best, 0).to(torch.int16).cpu().numpy()
        # The upper eight bits vary slowly along a row and compress well as differences. The lower two are noise:
        # four to a byte, the four quarters of the array beside each other.
        upper = (codes >> 2).astype(np.uint8)
        upper[..., 1:] -= upper[..., :-1].copy()
        lower = (codes & 3).astype(np.uint8).reshape(-1)
        quarters = np.pad(lower, (0, -lower.size % 4)).reshape(4, -1)
        packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
        compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)  # differences have no repeats worth searching
        data = _HEADER.pack(_MAGIC, *codes.shape) + compressor.compress(upper.tobytes() + packed.tobytes())
        data += compressor.flush()
        _write_whole(path, data + zlib.crc32(data).to_bytes(4, "little"))

    def read(self, name: str) -> Tensor:
        """Float32 [K, h, w], positive and summing to 1 over K; UserError if the file is damaged or of another K."""
        path = self._path("probabilities", name)
        data = _read_bytes(path)
        if (
            len(data) < _HEADER.size + 4
            or not data.startswith(_MAGIC)
            or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little")
        ):
            raise _damaged(path, "its checksum differs")
        _, K, h, w = _HEADER.unpack_from(data)
        if self.num_classes != K:
            raise UserError(f"{path}: found {K} classes, expected {self.num_classes}")
        size = K * h * w
        if h * w > MAX_PIXELS // 16:  # networks predict at an eighth of the image
            raise _damaged(path, f"it claims to be {w}x{h}")
        content = _decompress(path, memoryview(data)[_HEADER.size : -4], size + -(-size // 4))
        codes = content[:size].reshape(K, h, w).cumsum(2, dtype=np.uint8).astype(np.uint16).reshape(-1)
        codes <<= 2
        lower = content[size:]
        codes |= np.concatenate([lower & 3, lower >> 2 & 3, lower >> 4 & 3, lower >> 6])[:size]
        probabilities = _RATIOS.take(codes).reshape(K, h, w)
        probabilities /= probabilities.sum(0)
        return torch.from_numpy(probabilities)


def _decompress(path: Path, data: memoryview, length: int) -> np.ndarray:
    """uint8 [length]; never uses more memory than that, whatever the data contain."""
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, length)
        more = decompressor.decompress(decompressor.unconsumed_tail, 1)  # reads the end of the stream
    except zlib.error as error:
        raise _damaged(path, str(error)) from None
    if len(content) != length or more or not decompressor.eof:
        raise _damaged(path, f"expected {length} bytes of codes")
    return np.frombuffer(content, dtype=np.uint8)


def _confidence_edges() -> np.ndarray:
    """Upper ends of the confidence intervals, without the last: the values at which a decision may change.

    At every n/100 ``confidence > n/100`` changes, and a little above it what the released code asks instead: whether
    float16(confidence) > float16(n/100).
    """
    exact = np.arange(1, 100) / 100
    half = exact.astype(np.float16)
    tie = (half.astype(np.float64) + np.nextafter(half, np.float16(1))) / 2
    # A tie goes to the even neighbour; where that is the upper one, the last value that rounds down lies below the tie.
    released = np.where(tie.astype(np.float16) == half, tie, np.nextafter(tie.astype(np.float32), np.float32(0)))
    return np.unique(np.concatenate([exact, released]).astype(np.float32))


_EDGES = _confidence_edges()
_CONFIDENCES = (np.concatenate([[0], _EDGES]) + np.concatenate([_EDGES, [1]])).astype(np.float32) / 2  # of each code


def threshold_problem(threshold: float) -> str:
    """Why stored confidences would not decide ``confidence > threshold`` exactly; empty if they do."""
    if 0 < threshold < 1 and abs(threshold * 100 - round(threshold * 100)) > 1e-6:
        return f"--threshold={threshold}: expected a multiple of 0.01, because stored confidences have that precision"
    return ""


class HardLabelStore(_Store):
    """Arg-max labels uint8 [H, W] as a palette PNG and their confidence [H, W] as a greyscale PNG of some 200 levels.

    2048 x 1024 pixels take about 0.5 MB. Labels are exact. Confidence is within 0.005, and lies on the same side of
    every threshold that is a multiple of 0.01, both in float32 and as the released code compares, in float16.
    ``palette`` uint8 [K, 3] colours the labels for a viewer; without it they are grey.
    """

    kind = "hard"
    parts: ClassVar = {"confidence": ".png", "labels": ".png"}

    def __init__(self, folder: str | Path, palette: np.ndarray | None = None) -> None:
        super().__init__(folder)
        self.palette = palette

    def write(self, name: str, labels: Tensor, confidence: Tensor) -> None:
        """Stores integer labels [H, W] in 0..255 and confidence [H, W] in 0..1, on any device."""
        confidence_path, labels_path = (self._path(part, name) for part in self.parts)
        if labels.ndim != 2 or labels.shape != confidence.shape:
            raise ValueError(
                f"{labels_path}: expected labels and confidence of one shape [H, W], "
                f"got {list(labels.shape)} and {list(confidence.shape)}"
            )
        low, high = labels.aminmax()
        if labels.is_floating_point() or not 0 <= low <= high <= 255:
            raise ValueError(f"{labels_path}: labels must be integers in 0..255, got {low.item()}..{high.item()}")
        confidence = confidence.detach().float()
        low, high = confidence.aminmax()
        if not (low >= 0 and high <= 1 + 1e-5):  # false for NaN too
            raise ValueError(f"{confidence_path}: confidence must be in 0..1, got {low.item()}..{high.item()}")
        levels = torch.bucketize(confidence, torch.from_numpy(_EDGES).to(confidence.device), out_int32=True)
        codes = Image.fromarray(levels.to(torch.uint8).cpu().numpy())
        image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
        if self.palette is not None:
            colours = np.full((256, 3), 250, dtype=np.uint8)  # 256 of them, or Pillow packs several labels to a byte
            colours[: len(self.palette)] = self.palette
            image.putpalette(colours.tobytes())
        # Run lengths suit what the PNG filters leave of a smooth field, and are five times faster than a search.
        _write_whole(confidence_path, _png(codes, compress_level=1, compress_type=zlib.Z_RLE))
        _write_whole(labels_path, _png(image, compress_level=6))

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """Labels uint8 [H, W] and confidence float32 [H, W]; UserError if a file is damaged."""
        confidence_path, labels_path = (self._path(part, name) for part in self.parts)
        labels = _read_png(labels_path)
        codes = _read_png(confidence_path)
        if labels.shape != codes.shape:
            raise _damaged(confidence_path, f"size {codes.shape} where {labels_path.name} has {labels.shape}")
        if codes.max() >= len(_CONFIDENCES):
            raise _damaged(confidence_path, f"level {codes.max()}, the highest is {len(_CONFIDENCES) - 1}")
        return torch.from_numpy(labels), torch.from_numpy(_CONFIDENCES.take(codes))


def _listing(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _write_whole(path: Path, data: bytes) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: not there; write the pseudo labels first, or check the folder") from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged or truncated ({reason}); delete it and run again: only missing ones are written")


def _png(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _read_png(path: Path) -> np.ndarray:
    content = _read_bytes(path)
    data = io.BytesIO(content)
    try:
        Image.open(data, formats=["PNG"]).verify()  # checksums; decoding alone accepts altered bytes
        if content[24:26] == b"\x08\x00":  # 8 bits of grey: imagecodecs is faster; palettes it would expand to colours
            pixels = png_decode(content)
        else:
            data.seek(0)
            with Image.open(data, formats=["PNG"]) as image:
                pixels = np.array(image)
    # all that Pillow raises, and imagecodecs (RuntimeError)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, RuntimeError, DecompressionBombError) as error:
        raise _damaged(path, str(error)) from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise _damaged(path, f"found {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W]")
    return pixels


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    keys = ("format", "kind", *(field.name for field in fields(Manifest)))
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise UserError(f"{path}: not a pseudo-label manifest, expected {', '.join(keys)}")
    check_format(content["format"], FORMAT, path)
    return content
