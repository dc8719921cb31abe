import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from proda.data.image_files import image_size, read_colors, read_ids, read_image
from proda.data.labels import TRANSPARENT


def write_png(path: Path, width: int, height: int, bits: int, color_type: int, stream: bytes) -> None:
    """A PNG by the letter of the format; ``stream``: rows of pixels, each after the number of its filter."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(stream)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    )


def write_16_bit_png(path: Path, channels: np.ndarray) -> None:
    """uint16 [H, W, C] as a 16-bit PNG, with all five filters of the format in turn."""
    height, width, depth = channels.shape
    step = 2 * depth  # bytes from a pixel to its left neighbour
    rows = np.frombuffer(channels.astype(">u2").tobytes(), np.uint8).reshape(height, -1).astype(int)
    above, stream = np.zeros_like(rows[0]), b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        guess = left + above - corner
        to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where(to_above <= to_corner, above, corner)
        paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, paeth)
        prediction = (0, left, above, (left + above) // 2, paeth)[y % 5]
        stream += bytes([y % 5]) + ((row - prediction) % 256).astype(np.uint8).tobytes()
        above = row
    write_png(path, width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[depth], stream)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def photo(path: Path, width: int = 8, height: int = 4) -> Path:
    return save(path, np.full((height, width, 3), (10, 20, 30)))


def error_of(kind, call) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_16_bit_labels_are_exact_for_any_number_of_channels(tmp_path, depth):
    channels = np.random.default_rng(0).integers(0, 65536, (11, 7, depth)).astype(np.uint16)
    channels[..., 0] %= 256
    write_16_bit_png(tmp_path / "a.png", channels)
    assert (np.asarray(read_ids(tmp_path / "a.png")) == channels[..., 0]).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_of_grey_are_ids_and_not_shades(tmp_path, bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (5, 7)).astype(np.uint8)
    rows = np.unpackbits(ids[:, :, None], axis=2)[:, :, -bits:].reshape(5, -1)
    write_png(tmp_path / "a.png", 7, 5, bits, 0, b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    assert (np.asarray(read_ids(tmp_path / "a.png")) == ids).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_16_and_32_bit_tiffs_hold_ids_too(tmp_path, kind):
    ids = np.arange(12).reshape(3, 4).astype(kind)
    Image.fromarray(ids).save(tmp_path / "a.tif")
    assert (np.asarray(read_ids(tmp_path / "a.tif")) == ids).all()
    Image.fromarray(ids + 300).save(tmp_path / "a.tif")
    message = error_of(ValueError, lambda: read_ids(tmp_path / "a.tif"))
    assert message == f"{tmp_path}/a.tif: unknown label id 311 in the first channel, expected ids 0..255"


def test_16_bit_grey_photographs_keep_their_light_and_dark(tmp_path):
    Image.fromarray(np.array([[0, 256, 40_000, 65_535]], np.uint16)).save(tmp_path / "a.png")
    assert [pixel[0] for pixel in np.asarray(read_image(tmp_path / "a.png"))[0]] == [0, 1, 156, 255]


@pytest.mark.parametrize(("suffix", "modes"), [("png", "RGB RGBA L P"), ("webp", "RGB RGBA"), ("bmp", "RGB L P")])
def test_lossless_images_are_read_exactly_in_every_mode(tmp_path, suffix, modes):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    for mode in modes.split():
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        assert (np.asarray(read_image(tmp_path / f"a.{suffix}")) == np.asarray(image.convert("RGB"))).all(), mode


def test_a_damaged_16_bit_label_map_never_passes_for_a_good_one(tmp_path):
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    write_16_bit_png(path, rng.integers(0, 23, (9, 9, 3)).astype(np.uint16))
    good = path.read_bytes()
    for position in rng.integers(41, len(good) - 12, 60):  # in the compressed data
        path.write_bytes(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
        assert error_of(ValueError, lambda: read_ids(path)).startswith(f"{path}: ")


COLORS = np.array([[(128, 64, 128), (0, 0, 142), (7, 7, 7)]] * 2, np.uint8)
CODES = [[0x804080, 0x00008E, 0x070707]] * 2


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colors_of_label_maps_are_read_exactly(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", COLORS)
    codes = read_colors(tmp_path / f"a.{suffix}")
    assert codes.tolist() == CODES and codes.dtype == np.uint32


def test_palettes_and_grey_are_colors_too(tmp_path):
    Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P" and read_colors(tmp_path / "p.png").tolist() == CODES
    Image.new("L", (3, 2), 7).save(tmp_path / "l.png")
    assert read_colors(tmp_path / "l.png").tolist() == [[0x070707] * 3] * 2
    Image.new("1", (3, 2), 1).save(tmp_path / "1.png")
    assert read_colors(tmp_path / "1.png").tolist() == [[0xFFFFFF] * 3] * 2


@pytest.mark.parametrize("alpha", [0, 7, 255])
def test_alpha_that_is_the_same_everywhere_does_not_count(tmp_path, alpha):
    save(tmp_path / "a.png", np.dstack([COLORS, np.full((2, 3), alpha)]))
    assert read_colors(tmp_path / "a.png").tolist() == CODES


def test_transparent_pixels_are_marked_and_partly_transparent_ones_refused(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([COLORS, [[255, 0, 255]] * 2]))
    assert read_colors(path).tolist() == [[0x804080, TRANSPARENT, 0x070707]] * 2
    palette = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((1, 0)))
    assert read_colors(tmp_path / "p.png").tolist() == [[0x804080, TRANSPARENT, 0x070707]] * 2
    Image.fromarray(COLORS).save(tmp_path / "rgb.png", transparency=(0, 0, 142))
    assert read_colors(tmp_path / "rgb.png").tolist() == [[0x804080, TRANSPARENT, 0x070707]] * 2
    save(path, np.dstack([COLORS, [[255, 0, 99]] * 2]))
    assert error_of(ValueError, lambda: read_colors(path)) == (
        f"{path}: 2 pixels are partly transparent; expected a label map whose pixels are opaque or, where there is no "
        "label, transparent"
    )


def test_what_may_change_colors_is_refused(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png", "JPEG")
    assert error_of(ValueError, lambda: read_colors(tmp_path / "a.png")) == (
        f"{tmp_path}/a.png: a JPEG, which may change colors; expected a label map as PNG, BMP, TIFF"
    )
    write_16_bit_png(tmp_path / "b.png", COLORS.astype(np.uint16))
    assert error_of(ValueError, lambda: read_colors(tmp_path / "b.png")) == (
        f"{tmp_path}/b.png: 16 bits a channel, expected a label map of colors of 8 bits a channel"
    )
    path = truncate(save(tmp_path / "c.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3))))
    assert error_of(ValueError, lambda: read_colors(path)).startswith(f"{path}: not a complete label map (")


def test_the_size_of_a_png_is_found_without_decoding_it_and_that_of_a_turned_one_too(tmp_path, monkeypatch):
    picture, exif = Image.new("RGB", (7, 4)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "plain.png")
    picture.convert("L").save(tmp_path / "grey.png")
    # The same orientation behind the pixels, where PNG allows it as well.
    data = (tmp_path / "turned.png").read_bytes()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + int.from_bytes(data[start : start + 4], "big") + 12]
    (tmp_path / "late.png").write_bytes(data.replace(chunk, b"").replace(data[-12:], chunk + data[-12:]))
    for name, size in {"turned": (4, 7), "late": (4, 7), "plain": (7, 4), "grey": (7, 4)}.items():
        assert image_size(tmp_path / f"{name}.png") == read_image(tmp_path / f"{name}.png").size == size, name
    monkeypatch.setattr(Image, "open", None)
    assert image_size(tmp_path / "plain.png") == (7, 4)
