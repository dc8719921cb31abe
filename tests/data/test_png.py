"""PNG files with metadata of any size and with damage: one answer, whoever decodes them, for every kind of pixels."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.data.check import DatasetReport, inspect_files
from proda.data.image_files import image_size, label_palette, read_colors, read_ids, read_image
from proda.data.labelled_files import LabelledFiles
from proda.utils.errors import UserError

IDS = np.kron(np.random.default_rng(0).integers(0, 19, (6, 8)), np.ones((8, 8))).astype(np.uint8)
MODES = ("L", "P", "1", "RGB", "RGBA", "LA", "I;16")
READERS = (image_size, read_image, read_ids, read_colors, label_palette)


def picture(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(IDS.astype(np.uint16))
    grey = Image.fromarray(IDS)
    return Image.fromarray(IDS > 9) if mode == "1" else grey.convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(kind + content))


def place_of(data: bytes, kind: bytes) -> tuple[int, int]:
    """Where the content of the first such chunk begins and ends."""
    begin = data.index(kind) + 4
    return begin, begin + int.from_bytes(data[begin - 8 : begin - 4], "big")


def answers(path: Path) -> list:
    """What each reader says, without the name of the file."""
    found = []
    for read in READERS:
        try:
            answer = read(path)
            found.append(np.asarray(answer).tolist() if isinstance(answer, Image.Image | np.ndarray) else answer)
        except UserError as error:
            found.append(str(error).replace(str(path), ""))
    return found


LARGE = {
    "text": chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x/>" * 500_000),
    "color profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(os.urandom(2_000_000))),
    "a kind of its own": chunk(b"prVt", bytes(9_000_000)),
    "many": chunk(b"tEXt", b"Comment\0a") * 2000,
    "damaged": chunk(b"tEXt", b"Comment\0a")[:-1] + b"?",
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("mode", MODES)
def test_metadata_of_any_size_and_state_change_nothing(tmp_path, mode, kind):
    plain, path = tmp_path / "plain.png", tmp_path / "large.png"
    picture(mode).save(plain)
    data, expected = plain.read_bytes(), answers(plain)
    for place in (33, len(data) - 12):  # after the header, and after the pixels
        path.write_bytes(data[:place] + LARGE[kind] + data[place:])
        assert answers(path) == expected


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_header_and_pixels_agree_on_what_is_upright(tmp_path, mode, after_the_pixels):
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6
    picture(mode).save(path)
    data, part = path.read_bytes(), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    place = len(data) - 12 if after_the_pixels else 33
    path.write_bytes(data[:place] + LARGE["XMP"] + part + data[place:])
    assert image_size(path) == read_image(path).size == (48, 64)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_whose_checksum_differs_are_refused_whoever_decodes_them(tmp_path, mode):
    path = tmp_path / "damaged.png"
    picture(mode).save(path)
    data = path.read_bytes()
    begin, end = place_of(data, b"IDAT")
    damaged = {
        "zeros": data[: begin + 20] + bytes(8) + data[begin + 28 :],
        "checksum": data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :],
        "cut in the checksum": data[: end + 2],
        "cut before it": data[: end - 1],
    }
    for content in damaged.values():
        path.write_bytes(content)
        for read in (read_image, read_ids, read_colors):
            with pytest.raises(UserError, match=r"damaged\.png: not a complete .* \(part IDAT: "):
                read(path)


def test_a_palette_or_transparency_whose_checksum_differs_is_refused(tmp_path):
    path = tmp_path / "damaged.png"
    picture("P").save(path, transparency=3)
    data = path.read_bytes()
    for kind in (b"PLTE", b"tRNS"):
        begin, _ = place_of(data, kind)
        path.write_bytes(data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :])
        with pytest.raises(UserError, match=f"part {kind.decode()}: its checksum differs"):
            read_colors(path)


def test_the_check_of_data_names_a_label_map_with_zeros_in_the_middle(tmp_path):
    """Stored without compression, it has as many pixels as before, and 384 of them are wrong."""
    Image.fromarray(np.stack([IDS] * 3, axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(IDS).save(tmp_path / "a_ids.png", compress_level=0)
    data = bytearray((tmp_path / "a_ids.png").read_bytes())
    begin, _ = place_of(data, b"IDAT")
    data[begin + 200 : begin + 584] = bytes(384)
    (tmp_path / "a_ids.png").write_bytes(data)
    table = np.arange(256, dtype=np.uint8)
    files = LabelledFiles([tmp_path / "a.png"], [tmp_path / "a_ids.png"], ["a"], table=table, num_classes=19)
    report = DatasetReport(19)
    inspect_files(files, report)
    (problem,) = report.problems
    assert problem == f"{tmp_path}/a_ids.png: not a complete label map (part IDAT: its checksum differs)"


def test_what_follows_the_image_does_not_matter(tmp_path):
    path = tmp_path / "a.png"
    picture("L").save(path)
    data, expected = path.read_bytes(), answers(path)
    for content in (data + b"more", data[:-12], data[:-5]):
        path.write_bytes(content)
        assert answers(path) == expected
