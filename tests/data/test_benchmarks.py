import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.data.benchmarks import GTA5, Cityscapes, Synthia, open_dataset
from proda.data.image_files import read_ids, read_image
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import id_table
from proda.method import IGNORE


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


def cityscapes(root: Path, names=("aachen_000000_000019",), split: str = "train", raw_id: int = 7) -> Path:
    for name in names:
        city = name.split("_")[0]
        photo(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
        save(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", np.full((4, 8), raw_id))
    return root


def gta5(root: Path, ids: np.ndarray) -> Path:
    photo(root / "images/00001.png")
    labels = Image.fromarray(ids.astype(np.uint8))
    labels.putpalette([value // 3 for value in range(768)])
    (root / "labels").mkdir()
    labels.save(root / "labels/00001.png")
    return root


def synthia(root: Path, ids: np.ndarray) -> Path:
    photo(root / "RGB/0000000.png")
    (root / "GT/LABELS").mkdir(parents=True)
    write_16_bit_png(root / "GT/LABELS/0000000.png", np.stack([ids, ids * 1000 + 7, ids * 0], 2).astype(np.uint16))
    return root


def test_cityscapes_reads_an_image_its_train_ids_and_its_name(tmp_path):
    image, labels, name = Cityscapes(cityscapes(tmp_path, raw_id=8), "train", num_classes=19)[0]
    assert image.mode == "RGB" and image.getpixel((3, 2)) == (10, 20, 30)
    assert labels.dtype == np.uint8 and labels.shape == (4, 8) and (labels == 1).all()
    assert name == "aachen_000000_000019"


def test_cityscapes_is_sorted_by_path_and_keeps_splits_apart(tmp_path):
    cityscapes(tmp_path, ["ulm_000001_000019", "aachen_000002_000019", "aachen_000001_000019"])
    cityscapes(tmp_path, ["munster_000000_000019"], split="val")
    train = Cityscapes(tmp_path, "train")
    assert train.names == ["aachen_000001_000019", "aachen_000002_000019", "ulm_000001_000019"] and len(train) == 3
    assert Cityscapes(tmp_path, "val").names == ["munster_000000_000019"]


def test_a_target_with_images_only_works_without_labels(tmp_path):
    photo(tmp_path / "leftImg8bit/train/a/a_0_0_leftImg8bit.png")
    assert Cityscapes(tmp_path, "train", with_labels=False)[0].labels is None


def test_gta5_takes_palette_indices_as_ids_and_needs_no_list(tmp_path):
    ids = np.arange(32).reshape(4, 8)
    labels = GTA5(gta5(tmp_path, ids))[0].labels
    assert (labels == id_table("gta5", 19)[ids]).all() and set(np.unique(labels)) == {*range(17), IGNORE}


@pytest.mark.parametrize("size", [(8, 5), (10, 4)])
def test_gta5_stretches_a_label_map_that_differs_from_its_image_by_a_few_pixels(tmp_path, size):
    ids = np.full(size[::-1], 7)
    ids[:, 0] = 8
    labels = GTA5(gta5(tmp_path, ids))[0].labels
    assert labels.shape == (4, 8) and (labels[:, 0] == 1).all() and (labels[:, 1:] == 0).all()


def test_synthia_reads_the_first_channel_of_16_bit_labels(tmp_path):
    ids = np.arange(32).reshape(4, 8) % 23
    labels = Synthia(synthia(tmp_path, ids), num_classes=16)[0].labels
    assert (labels == id_table("synthia", 16)[ids]).all()


def test_synthia_is_found_in_the_folder_that_its_archive_makes(tmp_path):
    synthia(tmp_path / "RAND_CITYSCAPES", np.full((4, 8), 3))
    assert (Synthia(tmp_path)[0].labels == 0).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_16_bit_labels_are_exact_for_any_number_of_channels(tmp_path, depth):
    channels = np.random.default_rng(0).integers(0, 65536, (11, 7, depth)).astype(np.uint16)
    channels[..., 0] %= 256
    write_16_bit_png(tmp_path / "a.png", channels)
    assert (np.asarray(read_ids(tmp_path / "a.png")) == channels[..., 0]).all()


def test_8_bit_grey_labels_are_read_too(tmp_path):
    ids = np.arange(12).reshape(3, 4)
    assert (np.asarray(read_ids(save(tmp_path / "a.png", ids))) == ids).all()


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


def test_a_jpeg_named_png_is_an_image_but_no_label_map(tmp_path):
    """Grey, it would pass for one: with ids that its compression made up."""
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path, "JPEG")
    assert read_image(path).size == (4, 4)
    message = error_of(ValueError, lambda: read_ids(path))
    assert message == f"{path}: a JPEG, which may change ids; expected a label map as PNG, BMP, TIFF"


def test_16_bit_grey_photographs_keep_their_light_and_dark(tmp_path):
    Image.fromarray(np.array([[0, 256, 40_000, 65_535]], np.uint16)).save(tmp_path / "a.png")
    assert [pixel[0] for pixel in np.asarray(read_image(tmp_path / "a.png"))[0]] == [0, 1, 156, 255]


def test_images_of_other_modes_become_rgb(tmp_path):
    assert read_image(save(tmp_path / "a.png", np.full((2, 2), 9))).getpixel((0, 0)) == (9, 9, 9)
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "b.webp", lossless=True)
    assert read_image(tmp_path / "b.webp").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(("suffix", "modes"), [("png", "RGB RGBA L P"), ("webp", "RGB RGBA"), ("bmp", "RGB L P")])
def test_lossless_images_are_read_exactly_in_every_mode(tmp_path, suffix, modes):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    for mode in modes.split():
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        assert (np.asarray(read_image(tmp_path / f"a.{suffix}")) == np.asarray(image.convert("RGB"))).all(), mode


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia"])
def test_open_dataset_finds_each_data_set_in_the_folder_of_its_name(tmp_path, name):
    write = {"cityscapes": cityscapes, "gta5": lambda r: gta5(r, sevens), "synthia": lambda r: synthia(r, sevens - 4)}
    sevens = np.full((4, 8), 7)  # road in Cityscapes and GTA5, as 3 is in SYNTHIA
    write[name](tmp_path / name)
    data = open_dataset(name, tmp_path, "train", 16)
    assert len(data) == 1 and data.num_classes == 16 and (data[0].labels == 0).all()
    assert open_dataset(name, tmp_path, "train", 16, with_labels=False)[0].labels is None


def error_of(kind, call) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_data_set_or_split_is_named(tmp_path):
    assert error_of(ValueError, lambda: open_dataset("gta", tmp_path)).startswith("no data set 'gta'; there are")
    message = error_of(ValueError, lambda: open_dataset("gta5", tmp_path, "val"))
    assert message == "gta5 has no split 'val': all of it is for training"


def test_a_missing_folder_is_named_with_the_expected_layout(tmp_path):
    message = error_of(FileNotFoundError, lambda: Cityscapes(tmp_path, "val"))
    assert message.startswith(f"no folder {tmp_path}/leftImg8bit/val; Cityscapes unpacks to leftImg8bit/val/CITY/")
    assert "--data_root" in message


def test_an_empty_folder_is_named_with_the_expected_layout(tmp_path):
    (tmp_path / "images").mkdir()
    message = error_of(FileNotFoundError, lambda: GTA5(tmp_path))
    assert message == f"no images *.png under {tmp_path}/images; GTA5 unpacks to images/00001.png and labels/00001.png"


def test_a_missing_label_map_is_named_before_anything_is_read(tmp_path):
    cityscapes(tmp_path, ["a_0_0", "a_0_1", "b_0_0"])
    for name in ("a_0_1", "b_0_0"):
        (tmp_path / f"gtFine/train/{name[0]}/{name}_gtFine_labelIds.png").unlink()
    message = error_of(FileNotFoundError, lambda: Cityscapes(tmp_path, "train"))
    assert message == (
        f"no label map {tmp_path}/gtFine/train/a/a_0_1_gtFine_labelIds.png for the image "
        f"{tmp_path}/leftImg8bit/train/a/a_0_1_leftImg8bit.png; 2 of 3 images are without"
    )


def test_an_image_that_vanishes_after_it_was_listed_is_named(tmp_path):
    data = Cityscapes(cityscapes(tmp_path), "train")
    data.images[0].unlink()
    assert error_of(FileNotFoundError, lambda: data[0]).startswith(f"{data.images[0]}: no such image")


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def test_a_truncated_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    path = truncate(save(tmp_path / "a.png", noise))
    assert error_of(ValueError, lambda: read_image(path)).startswith(f"{path}: not a complete image (")


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    assert (
        error_of(ValueError, lambda: read_image(path))
        == f"{path}: not a complete image (none of PNG, JPEG, WEBP, TIFF, BMP)"
    )
    assert (
        error_of(ValueError, lambda: read_ids(path))
        == f"{path}: not a complete label map (none of PNG, JPEG, WEBP, TIFF, BMP)"
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_a_truncated_label_map_is_named(tmp_path, bits):
    noise = np.random.default_rng(0).integers(0, 23, (40, 40, 3)).astype(np.uint16)
    path = tmp_path / "a.png"
    if bits == 16:
        write_16_bit_png(path, noise)
    else:
        save(path, noise[..., 0])
    truncate(path)
    assert error_of(ValueError, lambda: read_ids(path)).startswith(f"{path}: not a complete label map (")


def test_a_damaged_16_bit_label_map_never_passes_for_a_good_one(tmp_path):
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    write_16_bit_png(path, rng.integers(0, 23, (9, 9, 3)).astype(np.uint16))
    good = path.read_bytes()
    for position in rng.integers(41, len(good) - 12, 60):  # in the compressed data
        path.write_bytes(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
        assert error_of(ValueError, lambda: read_ids(path)).startswith(f"{path}: ")


def test_a_label_map_of_another_size_is_named_with_both_sizes(tmp_path):
    data = Cityscapes(cityscapes(tmp_path), "train")
    save(data.label_files[0], np.full((4, 9), 7))
    assert error_of(ValueError, lambda: data[0]) == (
        f"{data.label_files[0]}: label map of 9x4 pixels, expected 8x4 as its image {data.images[0]}"
    )


def test_gta5_refuses_a_label_map_of_quite_another_size(tmp_path):
    data = GTA5(gta5(tmp_path, np.full((4, 30), 7)))
    assert "label map of 30x4 pixels, expected 8x4" in error_of(ValueError, lambda: data[0])


def test_an_unknown_id_is_named_with_the_ids_expected(tmp_path):
    data = Cityscapes(cityscapes(tmp_path, raw_id=77), "train")
    message = error_of(ValueError, lambda: data[0])
    assert message == f"{data.label_files[0]}: unknown label id 77, expected ids 0..33, 255"


def test_a_16_bit_id_beyond_a_byte_is_refused_and_not_wrapped(tmp_path):
    data = Synthia(synthia(tmp_path, np.full((4, 8), 256 + 3)))
    assert "unknown label id 259 in the first channel" in error_of(ValueError, lambda: data[0])


def test_a_colour_picture_in_place_of_labels_is_refused(tmp_path):
    path = photo(tmp_path / "a.png")
    assert error_of(ValueError, lambda: read_ids(path)) == (
        f"{path}: a picture of mode RGB, expected a label map: one channel of 8 bits, or 16 bits"
    )


def test_names_must_tell_the_images_apart(tmp_path):
    table = id_table("cityscapes", 19)
    with pytest.raises(ValueError, match="names must be unique, one per image: 1 names, 2 images"):
        LabelledFiles([tmp_path / "a", tmp_path / "b"], None, ["a", "a"], table=table, num_classes=19)
