"""Reads one image or one label map from a file, which may lie in a zip file (``archives``).

Every problem is a UserError or MissingFileError of one line that begins with the path. Formats are an explicit list,
since Pillow would start Ghostscript for an EPS file of any name, and sizes are checked in the header before anything is
decoded.
"""

import io
import logging
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from imagecodecs import png_decode
from PIL import ExifTags, Image, UnidentifiedImageError

from proda.data import png
from proda.data.archives import open_file, read_bytes
from proda.data.labels import TRANSPARENT
from proda.utils.errors import MissingFileError, UserError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LABEL_FORMATS = ("PNG", "BMP", "TIFF")  # those that keep an id as it is
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 178_000_000  # of one file; Pillow, too, refuses what is larger

# What Pillow raises for a damaged file, and imagecodecs (RuntimeError).
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, EOFError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)
_UPRIGHT = {  # EXIF orientation -> transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = [_UPRIGHT[number] for number in (5, 6, 7, 8)]  # these swap width and height

# Bit depth and colour type in the header of a PNG.
_RGB_8_BIT, _RGBA_8_BIT = b"\x08\x02", b"\x08\x06"
_16_BIT, _FEW_BITS_OF_GREY = b"\x10", (b"\x01\x00", b"\x02\x00", b"\x04\x00")


_being_read: ContextVar[Path | None] = ContextVar("_being_read", default=None)  # by this thread


@cache
def warn_once(line: str) -> None:
    """Logs a warning about the data, once per process."""
    logging.getLogger("proda").warning("%s", line)


@cache
def name_files_in_warnings() -> None:
    """Makes this process log the warnings of libraries about an image file with its path, once each.

    It replaces ``warnings.showwarning``, so a program calls it, not a library. Other warnings are shown as before.
    """
    show = warnings.showwarning

    def show_or_log(message: Any, category: Any, filename: str, *more: Any, **options: Any) -> None:
        if path := _being_read.get():
            warn_once(f"{path}: {message}")
        else:
            show(message, category, filename, *more, **options)

    warnings.showwarning = show_or_log


def read_image(path: Path) -> Image.Image:
    """An image file as upright RGB of 8 bits, decoded.

    Upright by the orientation in its EXIF data. 16-bit values keep their upper eight bits. Files of 12 bits in 16,
    which many cameras write, are scaled by 12 bits: where the file says so, or else where no value exceeds 4095.
    The PNGs of the benchmarks are decoded by imagecodecs, in 0.6 of the time that Pillow takes.

    Raises:
        MissingFileError: the file does not exist.
        UserError: not an image in one of IMAGE_FORMATS, damaged, or of more than MAX_PIXELS.
    """
    with _one_line(path, "image"):
        return _decode_image(path, _content(path))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header; errors as those of :func:`read_image`."""
    with _one_line(path, "image"), open_file(path) as file:
        is_png = file.read(len(png.SIGNATURE)) == png.SIGNATURE
        file.seek(0)
        with _opened(path, io.BytesIO(png.without_metadata(file, pixels=False)) if is_png else file) as image:
            width, height = image.size
            return (height, width) if _upright(image) in _TURNED else (width, height)


def read_ids(path: Path) -> Image.Image:
    """The ids in a label file as an 8-bit grey image; the index where there is a palette.

    16-bit PNGs are decoded by imagecodecs, and the first channel holds the id: Pillow cuts 16-bit colour to the
    high bytes, which are 0 here, and torchvision's decoder crashes the process on some damaged ones.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is damaged, is a colour picture, is of a format that changes ids or of more than
            MAX_PIXELS, or an id exceeds 255.
    """
    with _one_line(path, "label map"):
        data = _content(path)
        if _png_format(data)[:1] == _16_BIT:
            deep = png_decode(data)
            return _ids_as_bytes(path, deep if deep.ndim == 2 else deep[..., 0])
        ids = _label_picture(path, data, "ids")
        _check_whole_numbers(path, ids)
        ids.load()
    if ids.mode.startswith("I"):  # TIFF
        return _ids_as_bytes(path, np.asarray(ids))
    if ids.mode == "1" or _png_format(data) in _FEW_BITS_OF_GREY:  # Pillow stretches these to 0..255
        largest = 2 ** (1 if ids.mode == "1" else data[24]) - 1
        return ids.convert("L").point([value * largest // 255 for value in range(256)])
    if ids.mode not in ("L", "P"):
        raise UserError(
            f"{path}: a picture of mode {ids.mode}, expected a label map: one channel of 8 bits, or 16 bits"
        )
    return ids if ids.mode == "L" else Image.frombytes("L", ids.size, ids.tobytes())


def label_palette(path: Path) -> dict[int, int] | None:
    """Colours 0xRRGGBB of the values in a label file: empty for one channel of ids, None if it is a colour picture.

    In a file with a palette either the values or their colours may be meant.

    Raises MissingFileError or UserError if it cannot be read as an image.
    """
    with _one_line(path, "label map"):
        data = _content(path)
        picture = _opened(path, io.BytesIO(data))
        if _png_format(data)[:1] == _16_BIT or picture.mode in ("1", "L") or picture.mode.startswith("I"):
            return {}
        _check_whole_numbers(path, picture)
        if picture.mode != "P":
            return None
        colors = _codes(np.array(picture.getpalette("RGB"), np.uint8).reshape(1, -1, 3))[0]
        used = np.unique(np.asarray(picture))
    return {int(value): int(colors[value]) for value in used if value < len(colors)}


def read_colors(path: Path) -> np.ndarray:
    """The colours in a label file, uint32 [H, W] of 0xRRGGBB, or TRANSPARENT.

    Palettes become their colours, and grey becomes a colour. Where alpha is the same in the whole file, it is ignored,
    since engines write any constant. Otherwise pixels of alpha 0 are TRANSPARENT.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is damaged, of a format that changes colours or of more than MAX_PIXELS, has more than 8
            bits a channel, or has pixels that are partly transparent.
    """
    with _one_line(path, "label map"):
        data = _content(path)
        if _png_format(data)[:1] == _16_BIT:
            raise UserError(f"{path}: 16 bits a channel, expected a label map of colors of 8 bits a channel")
        if _png_format(data) in (_RGB_8_BIT, _RGBA_8_BIT):  # tRNS becomes alpha
            pixels = png_decode(data)
        else:
            picture = _label_picture(path, data, "colors")
            _check_whole_numbers(path, picture)
            if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                raise UserError(f"{path}: a picture of mode {picture.mode}, expected a label map of colors, RGB")
            pixels = np.asarray(picture.convert("RGBA"))
    codes = _codes(pixels)
    alpha = pixels[..., 3:]
    if alpha.size and (alpha != alpha[0, 0]).any():
        if partly := np.count_nonzero((alpha > 0) & (alpha < 255)):
            raise UserError(
                f"{path}: {partly} pixels are partly transparent; expected a label map whose pixels are opaque or, "
                "where there is no label, transparent"
            )
        codes[alpha[..., 0] == 0] = TRANSPARENT
    return codes


def _codes(pixels: np.ndarray) -> np.ndarray:
    """0xRRGGBB, uint32 [H, W], of pixels uint8 [H, W, 3 or 4]."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _label_picture(path: Path, data: bytes, what: str) -> Image.Image:
    """The file, not decoded yet; UserError if its format may change ``what`` it holds."""
    picture = _opened(path, io.BytesIO(data))
    if picture.format not in LABEL_FORMATS:
        raise UserError(
            f"{path}: a {picture.format}, which may change {what}; expected a label map as {', '.join(LABEL_FORMATS)}"
        )
    return picture


def _check_whole_numbers(path: Path, picture: Image.Image) -> None:
    if picture.mode.startswith("F"):
        raise UserError(
            f"{path}: a {picture.format} of floating-point numbers, expected a label map of whole numbers, 8 or 16 bits"
        )


def _decode_image(path: Path, data: bytes) -> Image.Image:
    if _png_format(data) == _RGB_8_BIT and not _png_chunk(data, b"eXIf"):
        return _as_rgb(path, png_decode(data), data)
    image = _opened(path, io.BytesIO(data))
    image.load()
    upright = _upright(image)
    if _png_format(data)[:1] == _16_BIT:  # of which Pillow keeps eight bits where there is colour
        image = _as_rgb(path, png_decode(data), data)
    elif image.mode.startswith(("I", "F")):
        image = _as_rgb(path, np.asarray(image), data)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(upright) if upright is not None else image


def picture_as_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture as RGB of 8 bits, scaled like a file. UserError for values that are none of an image."""
    if picture.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        return _as_rgb(Path(getattr(picture, "filename", "") or "a picture"), np.asarray(picture), b"")
    return picture.convert("RGB")


def _upright(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes an image upright; None if it is upright or its metadata cannot be read.

    ImageOps.exif_transpose also rewrites all other tags, and fails on tags that it does not know.
    """
    if image.format == "PNG" and "exif" not in image.info:  # getexif() would decode the pixels to look behind them
        return None
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many errors for invalid metadata; the pixels are still valid
        return None


def _as_rgb(path: Path, pixels: np.ndarray, data: bytes) -> Image.Image:
    """RGB of decoded pixels [H, W] or [H, W, 1..4] of 8 bits or more; drops alpha (also from tRNS)."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1]
    if pixels.dtype != np.uint8:
        largest = pixels.max()
        if pixels.dtype.kind not in "ui" or pixels.min() < 0 or largest > 65535:
            raise UserError(f"{path}: values of type {pixels.dtype} up to {largest}, expected an image of 8 or 16 bits")
        bits = _significant_bits(data)
        if not bits and 0 < largest < 4096:
            bits = 12
            warn_once(f"{path.parent}: 16-bit images without a value above 4095 are taken for 12 bits, as {path.name}")
        pixels = np.minimum(pixels >> (max(bits or 16, 8) - 8), 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return Image.fromarray(pixels.reshape(pixels.shape[:2])).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _significant_bits(data: bytes) -> int:
    """Of a 16-bit PNG that says so in its sBIT chunk; 0 if it does not."""
    bits = _png_chunk(data, b"sBIT")[:1]
    return bits[0] if bits and 8 <= bits[0] <= 16 else 0


def _ids_as_bytes(path: Path, ids: np.ndarray) -> Image.Image:
    """Integer ids [H, W] of more than 8 bits in a byte each; none is wrapped."""
    for strange in (ids.max(), ids.min()):
        if not 0 <= strange <= 255:
            raise UserError(f"{path}: unknown label id {strange} in the first channel, expected ids 0..255")
    return Image.fromarray(ids.astype(np.uint8))


def _png_format(data: bytes) -> bytes:
    """Bit depth and colour type of a PNG, two bytes of its header; empty for another format."""
    return data[24:26] if data.startswith(png.SIGNATURE) else b""


def _png_chunk(data: bytes, kind: bytes) -> bytes:
    """Content of the first chunk of this kind; empty if there is none or for another format."""
    place = 8 if _png_format(data) else len(data)
    while place + 8 <= len(data):
        length, found = struct.unpack_from(">I4s", data, place)
        if found == kind:
            return data[place + 8 : place + 8 + length]
        place += length + 12  # with the length itself, the kind and a checksum
    return b""


def _content(path: Path) -> bytes:
    """The bytes of a file; those of a PNG without metadata, and only if its checksums are right."""
    data = read_bytes(path)
    if _png_format(data):
        width, height = struct.unpack(">II", data[16:24])
        _check_size(path, width, height)
        return png.without_metadata(io.BytesIO(data))
    return data


def _opened(path: Path, file: IO[bytes]) -> Image.Image:
    """An image file, not decoded yet."""
    image = Image.open(file, formats=IMAGE_FORMATS)
    _check_size(path, *image.size)
    return image


def _check_size(path: Path, width: int, height: int) -> None:
    """Pillow checks sizes itself, by a limit of its own; imagecodecs, which decodes PNGs, does not."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width}x{height} pixels, expected at most {MAX_PIXELS // 10**6} million")


@contextmanager
def _one_line(path: Path, what: str) -> Iterator[None]:
    """Turns the errors of reading and decoding a file into one line."""
    before = _being_read.set(path)
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such {what}; it may have been moved or deleted") from None
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        raise UserError(f"{path}: not a complete {what} ({_brief(error)})") from None
    finally:
        _being_read.reset(before)


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message names a buffer in memory
        return f"none of {', '.join(IMAGE_FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} million pixels"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
