import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.data.benchmarks import GTA5, GTA5_RELEASED_SIZE, Cityscapes, Synthia, open_dataset
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import id_table
from proda.method import IGNORE
from tests.data.test_image_files import error_of, photo, save, write_16_bit_png


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


def test_cityscapes_is_sorted_by_path_and_keeps_splits_apart(tmp_path):
    cityscapes(tmp_path, ["ulm_000001_000019", "aachen_000002_000019", "aachen_000001_000019"])
    cityscapes(tmp_path, ["munster_000000_000019"], split="val")
    train = Cityscapes(tmp_path, "train")
    assert train.names == ["aachen_000001_000019", "aachen_000002_000019", "ulm_000001_000019"] and len(train) == 3
    assert train[0].image.getpixel((3, 2)) == (10, 20, 30) and train[0].labels.dtype == np.uint8
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
    save(tmp_path / "labels/00001.png", np.full((4, 30), 7))  # too many
    assert "label map of 30x4 pixels, expected 8x4" in error_of(ValueError, lambda: GTA5(tmp_path)[0])


def test_synthia_reads_the_first_channel_of_16_bit_labels(tmp_path):
    ids = np.arange(32).reshape(4, 8) % 23
    labels = Synthia(synthia(tmp_path, ids), num_classes=16)[0].labels
    assert (labels == id_table("synthia", 16)[ids]).all()


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia"])
def test_open_dataset_finds_each_data_set_in_the_folder_of_its_name(tmp_path, name):
    sevens = np.full((4, 8), 7)  # road in Cityscapes and GTA5, as 3 is in SYNTHIA
    if name == "synthia":
        synthia(tmp_path / name / "RAND_CITYSCAPES", sevens - 4)
    else:
        cityscapes(tmp_path / name) if name == "cityscapes" else gta5(tmp_path / name, sevens)
    data = open_dataset(name, tmp_path, "train", 16)
    assert len(data) == 1 and data.num_classes == 16 and (data[0].labels == 0).all()
    assert open_dataset(name, tmp_path, "train", 16, with_labels=False)[0].labels is None


def test_an_unknown_data_set_or_split_is_named(tmp_path):
    assert error_of(ValueError, lambda: open_dataset("gta", tmp_path)).startswith("no data set 'gta'; there are")
    message = error_of(ValueError, lambda: open_dataset("gta5", tmp_path, "val"))
    assert message == "gta5 has no split 'val': all of it is for training"


def test_missing_images_are_named_with_the_expected_layout(tmp_path):
    message = error_of(FileNotFoundError, lambda: Cityscapes(tmp_path, "val"))
    assert message.startswith(f"no folder {tmp_path}/leftImg8bit/val, nor leftImg8bit_trainvaltest.zip/leftImg8bit/val")
    assert "Cityscapes unpacks to leftImg8bit/val/CITY/" in message and "--data_root" in message
    (tmp_path / "images").mkdir()
    message = error_of(FileNotFoundError, lambda: GTA5(tmp_path))
    assert message == f"no images {tmp_path}/images/*.png; GTA5 unpacks to images/00001.png and labels/00001.png"


def test_a_missing_label_map_is_named_before_anything_is_read(tmp_path):
    cityscapes(tmp_path, ["a_0_0", "a_0_1", "b_0_0"])
    for name in ("a_0_1", "b_0_0"):
        (tmp_path / f"gtFine/train/{name[0]}/{name}_gtFine_labelIds.png").unlink()
    message = error_of(FileNotFoundError, lambda: Cityscapes(tmp_path, "train"))
    assert message.startswith(f"no label map {tmp_path}/gtFine/train/a/a_0_1_gtFine_labelIds.png for the image ")
    assert message.endswith("a_0_1_leftImg8bit.png; 2 of 3 images are without")


def test_names_must_tell_the_images_apart(tmp_path):
    table = id_table("cityscapes", 19)
    with pytest.raises(ValueError, match="names must be unique, one per image: 1 names, 2 images"):
        LabelledFiles([tmp_path / "a", tmp_path / "b"], None, ["a", "a"], table=table, num_classes=19)


def test_gta5_is_resized_as_the_released_code_does_when_asked_to(tmp_path):
    ids = np.random.default_rng(0).choice([7, 8, 11], (4, 8)).astype(np.uint8)
    gta5(tmp_path, ids)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 3))
    save(tmp_path / "images/00001.png", pixels)
    assert GTA5(tmp_path)[0].image.size == (8, 4)
    image, labels, *_ = GTA5(tmp_path, size=(13, 6))[0]
    expected = Image.fromarray(pixels.astype(np.uint8)).resize((13, 6), Image.Resampling.BILINEAR)
    assert (np.asarray(image) == np.asarray(expected)).all() and GTA5_RELEASED_SIZE == (1914, 1052)
    expected = np.asarray(Image.fromarray(ids).resize((13, 6), Image.Resampling.NEAREST))
    assert (labels == id_table("gta5", 19)[expected]).all()


def test_opening_lists_each_folder_once_and_asks_nothing_about_single_files(tmp_path, monkeypatch):
    cityscapes(tmp_path, [f"{city}_{number:06}_000019" for city in ("ulm", "bern") for number in range(30)])
    listed, asked = [], []
    scandir, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda *args, **options: asked.append(args) or stat(*args, **options))
    assert len(Cityscapes(tmp_path, "train")) == 60
    assert len(listed) == len(set(listed)) == 6  # train and two cities of each kind
    assert len(asked) < 12


def zipped(root: Path, folder: str, archive: str, inside: str) -> None:
    """Moves a folder into a zip file beside it, as the path ``inside``."""
    with zipfile.ZipFile(root / archive, "w") as file:
        for path in sorted((root / folder).rglob("*.png")):
            file.write(path, f"{inside}/{path.relative_to(root / folder).as_posix()}")
    shutil.rmtree(root / folder)


def test_cityscapes_is_read_from_its_zip_files_where_folders_are_missing(tmp_path):
    names = ["ulm_000001_000019", "ulm_000010_000019", "aachen_000002_000019"]
    cityscapes(tmp_path, names, raw_id=8), cityscapes(tmp_path, ["bern_000000_000019"], split="val", raw_id=7)
    unpacked = Cityscapes(tmp_path, "train")
    for what in ("leftImg8bit", "gtFine"):
        shutil.copytree(tmp_path / what, tmp_path / "copy" / what)
        zipped(tmp_path, what, f"{what}_trainvaltest.zip", what)
    data, val = Cityscapes(tmp_path, "train"), Cityscapes(tmp_path, "val")
    assert data.names == unpacked.names and val.names == ["bern_000000_000019"]
    assert all((example.labels == 1).all() and example.image.size == (8, 4) for example in data)
    assert (val[0].labels == 0).all()
    shutil.copytree(tmp_path / "copy/gtFine", tmp_path / "gtFine")
    mixed = Cityscapes(tmp_path, "train")  # the folder has precedence
    assert mixed.label_files[0].is_file() and not mixed.images[0].is_file() and (mixed[0].labels == 1).all()
    assert data.label_fingerprint() == mixed.label_fingerprint()


def test_gta5_is_read_from_the_parts_of_its_download(tmp_path):
    for part in (1, 2):
        for number in (1, 2):
            photo(tmp_path / f"images/0000{2 * part + number - 2}.png")
            save(tmp_path / f"labels/0000{2 * part + number - 2}.png", np.full((4, 8), 6 + part))
        zipped(tmp_path, "images", f"0{part}_images.zip", "images")
        zipped(tmp_path, "labels", f"0{part}_labels.zip", "labels")
    data = GTA5(tmp_path)
    assert data.names == ["00001", "00002", "00003", "00004"]
    assert [int(example.labels[0, 0]) for example in data] == [0, 0, 1, 1]
    (tmp_path / "02_labels.zip").unlink()
    assert error_of(FileNotFoundError, lambda: GTA5(tmp_path)) == (
        f"no label map {tmp_path}/labels/00003.png, nor *_labels.zip/**/*.png in {tmp_path} for the image "
        f"{tmp_path}/02_images.zip/images/00003.png; 2 of 4 images are without"
    )
