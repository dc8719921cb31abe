"""Images and label maps in one folder: which file is which, by the places that list them or by the words in names."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from proda.data.labels import benchmark_labels
from proda.data.listing import list_files
from proda.data.own_data import read_description
from proda.data.pairing import find_patterns, not_photographs, tell_apart
from proda.utils.errors import UserError
from tests.data.test_image_files import error_of, photo, save


def in_folder(folder: Path, *names: str) -> Path:
    """Photographs and, where the name says so, label maps, in the folder ``data``."""
    for name in names:
        if "mask" in name:
            save(folder / "data" / name, np.array([[1, 2]]))
        else:
            photo(folder / "data" / name, 2, 1)
    return folder


@pytest.mark.parametrize(
    ("names", "images", "labels"),
    [
        ("a.jpg a_mask.png", "*.jpg", "*_mask.png"),
        ("a.png a_mask.png", "*.png", "*_mask.png"),
        ("a.jpg a_label.png", "*.jpg", "*_label.png"),
        ("a.jpg a_seg.png", "*.jpg", "*_seg.png"),
        ("a.jpg a_gt.png", "*.jpg", "*_gt.png"),
        ("a.jpg a_labelIds.png a_instanceIds.png", "*.jpg", "*_labelIds.png"),
        ("a_rgb.png a_depth.png a_semantic.png", "*_rgb.png", "*_semantic.png"),
        ("a.jpg mask_a.png", "*.jpg", "mask_*.png"),
        ("img_a.png mask_a.png", "img_*.png", "mask_*.png"),
        ("a.jpg a.png", "*.jpg", "*.png"),
        ("A.JPG A_MASK.PNG", "*.jpg", "*_MASK.png"),
        ("a-1.v2.jpg a-1.v2-seg.png", "*.jpg", "*-seg.png"),
        ("a.jpg a.mask.png", "*.jpg", "*.mask.png"),
        ("aMask.png a.png", "*.png", "*Mask.png"),
        ("a.jpg a_mask.png a_overlay.png", "*.jpg", "*_mask.png"),
        ("a_jpg.rf.0f.jpg a_jpg.rf.0f_mask.png", "*.jpg", "*_mask.png"),
        ("a.jpg a_label_ground-truth.png a_label_ground-truth_colored.png", "*.jpg", "*_label_ground-truth.png"),
        ("u_leftImg8bit.png u_gtFine_labelIds.png u_gtFine_color.png", "*_leftImg8bit.png", "*_gtFine_labelIds.png"),
        ("images/a.png masks/a.png", "images/*.png", "masks/*.png"),
        ("a.png masks/a.png", "*.png", "masks/*.png"),
        ("x/images/a.jpg x/masks/a.png y/images/a.jpg y/masks/a.png", "**/images/*.jpg", "**/masks/*.png"),
        ("x/image.png x/mask.png y/image.png y/mask.png", "**/image.png", "**/mask.png"),
        ("x/a.jpg x/a_mask.png b.jpg b_mask.png", "**/*.jpg", "**/*_mask.png"),
        ("0001.png 0001_L.png 0002.png 0002_L.png", "*.png", "*_L.png"),  # a word that is not known
    ],
)
def test_patterns_are_found_by_the_words_in_names(names, images, labels):
    files = [Path("/r/data") / name for name in names.split()]
    found = find_patterns(files, files, Path("/r"))
    assert found is not None and found[:2] == (f"data/{images}", f"data/{labels}")
    assert found.pairs == (1 if len(files) < 4 else 2)


@pytest.mark.parametrize("names", ["a.png b.png", "a.png a_mask_0.png a_mask_1.png", "a_mask.png", "a.png b_mask.png"])
def test_names_that_do_not_fit_together_give_no_pattern(names):
    files = [Path("/r/data") / name for name in names.split()]
    assert find_patterns(files, files, Path("/r")) is None


def test_files_whose_names_say_that_they_are_no_photographs():
    names = ("a", "a_mask", "a_overlay", "b", "mask_of_zorro", "images/c", "labels/c", "gt")
    assert [path.name for path in not_photographs({name: Path(name.replace("/", "-")) for name in names})] == [
        "a_mask",
        "a_overlay",
        "labels-c",
    ]


def opened(folder: Path, images: str, labels: str, more: str = "", **options):
    """The training images of a description, whose names do not depend on whether labels are asked for."""
    (folder / "data.toml").write_text(
        'classes = [{ name = "a", ids = 1 }, { name = "b", ids = 2 }]\n'
        f'[train]\nimages = "{images}"\nlabels = "{labels}"\n{more}'
    )
    own = read_description(folder / "data.toml")
    with_labels, without = (
        own.open("train", own.space, with_labels=wanted, **(options if wanted else {})) for wanted in (True, False)
    )
    if "labelled_only" not in options:
        assert with_labels.names == without.names
    return with_labels


@pytest.mark.parametrize(
    ("images", "labels"),
    [("data", "data/*_mask.png"), ("data/*.png", "data/*_mask.png"), ("data", "x/../data/*_mask.*"), ("data", "link")],
)
def test_a_label_map_in_the_folder_of_the_images_is_no_image(tmp_path, images, labels):
    in_folder(tmp_path, "a.png", "b.png", "b_mask.png", "a_mask.png", "c_mask.png")  # the last has no image
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    data = opened(tmp_path, images, labels.replace("link", "link/*_mask.png"))
    assert data.names == ["a", "b"] and data[0].labels.tolist() == [[0, 1]] and data.left_out == []


def test_a_place_of_labels_that_lists_the_images_too_leaves_them_images(tmp_path):
    in_folder(tmp_path, "a_rgb.png", "b_rgb.png", "c_rgb.png")
    for name in ("a", "b"):
        save(tmp_path / f"data/{name}.png", np.array([[2, 1]]))
    assert "no label map 'c'" in error_of(UserError, lambda: opened(tmp_path, "data/*_rgb.png", "data/*.png"))
    data = opened(tmp_path, "data/*_rgb.png", "data/*.png", optional_labels=True)
    assert data.names == ["a", "b", "c"] and data[1].labels.tolist() == [[1, 0]]


@pytest.mark.parametrize("labelled_only", [False, True])
@pytest.mark.parametrize(
    ("images", "labels"),
    [("data", "data"), ("data/*", "data/*"), ("data/**/*_mask.png", "data"), ("data", "link")],
)
def test_a_file_is_never_the_label_map_of_itself(tmp_path, images, labels, labelled_only):
    in_folder(tmp_path, "a.jpg", "b.jpg", "a_mask.png", "b_mask.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    message = error_of(UserError, lambda: opened(tmp_path, images, labels, labelled_only=labelled_only))
    assert message.startswith(f"{tmp_path}/data.toml: [train] {tmp_path}/data/a_mask.png is listed as an image and as")
    if "data/*" not in images:  # the images are listed
        assert "/data/*.jpg and " in message and message.endswith("_mask.png")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_do_not_hide_that_an_image_is_its_label_map(tmp_path, link):
    save(tmp_path / "data/a.png", np.array([[1, 2]]))
    (tmp_path / "labels").mkdir()
    link(tmp_path / "data/a.png", tmp_path / "labels/a.png")
    assert "is listed as an image and as a label map" in error_of(UserError, lambda: opened(tmp_path, "data", "labels"))


def test_label_maps_of_validation_are_no_training_images(tmp_path):
    in_folder(tmp_path, "a.png", "val/b.png", "val/b_mask.png")
    save(tmp_path / "labels/a.png", np.array([[1, 2]]))
    more = '[val]\nimages = "data/val"\nlabels = "data/val/*_mask.png"\n'
    data = opened(tmp_path, "data", "labels", more, labelled_only=True)
    assert data.names == ["a"]
    own = read_description(tmp_path / "data.toml")
    found = own.open("train", own.space, with_labels=False)
    assert found.names == ["a", "val-b"]
    assert found.left_out == [f"label maps (1, such as {tmp_path}/data/val/b_mask.png)"]
    assert own.open("val", own.space, with_labels=True).names == ["b"]


def test_zip_files_are_told_apart_like_folders(tmp_path):
    in_folder(tmp_path, "a.png", "a_mask.png")
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
    assert opened(tmp_path, "data.zip", "data.zip/*_mask.png").names == ["a"]
    assert "is listed as" in error_of(UserError, lambda: opened(tmp_path, "data.zip", "data.zip"))


def test_places_without_a_file_in_common_are_left_as_they_are(tmp_path):
    in_folder(tmp_path, "a.jpg", "a_mask.png")
    images, labels = list_files(tmp_path, "data/*.jpg"), list_files(tmp_path, "data/*_mask.png", (".png",))
    tell_apart(images, labels)
    assert list(images) == list(labels) == ["a"]


def test_photographs_alone_are_listed_as_before(tmp_path):
    in_folder(tmp_path, "a.jpg", "a_mask.png")
    (tmp_path / "photos.toml").write_text('[train]\nimages = "data"\n')
    own = read_description(tmp_path / "photos.toml")
    assert own.open("train", benchmark_labels(19), with_labels=False).names == ["a", "a_mask"]
