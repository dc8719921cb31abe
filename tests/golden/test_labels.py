"""Every entry of labels.json: classes, ids, palettes, layouts of the files, preprocessing and the confidence rule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data.augment import weak_view_of_image, weak_view_of_labels
from proda.data.benchmarks import GTA5, Cityscapes, Synthia
from proda.data.labels import UNKNOWN, class_names, class_subset, colorize, id_table, palette
from proda.data.samples import image_tensor
from proda.method import IGNORE
from proda.method.pseudo_labels import confident_labels
from proda.method.views import WeakView
from tests.data.test_image_files import write_16_bit_png

GOLDEN = json.loads((Path(__file__).parent / "data" / "labels.json").read_text())
CITYSCAPES, GTA, SYNTHIA = GOLDEN["cityscapes"], GOLDEN["gta5"], GOLDEN["synthia"]
RULE = GOLDEN["pseudo_label_threshold"]


def mapped(table: np.ndarray) -> dict[str, int]:
    return {str(raw): int(train) for raw, train in enumerate(table) if train < 19}


def write(path: Path, size: tuple[int, int], mode: str = "RGB", fill=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, fill).save(path, compress_level=1)


def whole_view(height: int, width: int) -> WeakView:
    return WeakView(*map(torch.tensor, (height, width, 0, 0, height, width, False)))


def test_ignore_value_and_choices_of_classes():
    assert GOLDEN["ignore_value"] == IGNORE
    for num_classes in GOLDEN["n_class_choices"]:
        assert len(class_names(num_classes)) == num_classes
    assert {*CITYSCAPES["classes"]} == {*SYNTHIA["classes"]} == {str(n) for n in GOLDEN["n_class_choices"]}


@pytest.mark.parametrize("num_classes", GOLDEN["n_class_choices"])
def test_cityscapes_classes(num_classes):
    golden = CITYSCAPES["classes"][str(num_classes)]
    assert class_names(num_classes) == golden["class_names"]
    assert class_subset(num_classes) == golden["train_id_to_19_class_id"]
    assert palette(num_classes).tolist() == golden["palette_rgb"]
    table = id_table("cityscapes", num_classes)
    assert mapped(table) == golden["raw_to_train"]
    # Ids that no Cityscapes file has are refused here; the released code ignores them like the rest.
    assert set(table[table >= 19]) == {int(CITYSCAPES["all_other_raw_ids"]), UNKNOWN}


def test_colours_of_sky_and_of_ignored_pixels():
    assert "sky is (0,130,180)" in CITYSCAPES["palette_note"] and "(250,250,250)" in CITYSCAPES["palette_note"]
    assert colorize(np.array([class_names(19).index("sky"), IGNORE])).tolist() == [[0, 130, 180], [250, 250, 250]]


def test_gta5_classes():
    table = id_table("gta5", GTA["n_class"])
    assert mapped(table) == GTA["raw_to_train"]
    assert np.flatnonzero(table == IGNORE).tolist() == [*GTA["raw_to_ignore"], IGNORE]
    first, last = GTA["raw_ids_left_unchanged"]  # the released loader ends with an error at these
    assert "refuses" in GTA["raw_ids_left_unchanged_note"]
    assert np.flatnonzero(table == UNKNOWN).tolist() == [i for i in range(first, last + 1) if i != IGNORE]
    assert class_names(GTA["n_class"]) == GTA["class_names"]
    assert palette(GTA["n_class"]).tolist() == GTA["palette_rgb"]


def test_gta5_has_19_classes_in_the_released_code_and_here_as_many_as_the_target():
    assert "always 19" in GTA["n_class_note"]
    assert (id_table("gta5", 16)[:34] == id_table("cityscapes", 16)[:34]).all()


@pytest.mark.parametrize("num_classes", GOLDEN["n_class_choices"])
def test_synthia_classes(num_classes):
    golden = SYNTHIA["classes"][str(num_classes)]
    table = id_table("synthia", num_classes)
    assert mapped(table) == golden["raw_to_train"]
    assert [np.flatnonzero(table == train).tolist() for train in range(num_classes)] == [
        [raw] for raw in golden["train_to_raw"]
    ]
    names = [name.lower().replace("pedestrian", "person") for name in golden["class_names"]]
    assert class_names(num_classes) == names
    assert set(table[table >= 19]) == {int(SYNTHIA["all_other_raw_ids"]), UNKNOWN}
    assert SYNTHIA["palette"] == "none defined"  # so its labels are shown in those of Cityscapes


def test_cityscapes_files(tmp_path):
    files, size = CITYSCAPES["files"], tuple(CITYSCAPES["loaded_size_width_height"])
    ids = [("ulm", "000001"), ("aachen", "000010"), ("aachen", "000009")]
    for split in files["splits_used"]:
        for city, sequence in ids:
            at = {"split": split, "city": city, "sequence": sequence, "frame": "000019"}
            write(tmp_path / files["images"].format(**at), size)
            write(tmp_path / files["labels"].format(**at), size, "L", 33)
        data = Cityscapes(tmp_path, split)
        assert data[0].image.size == size and (data[0].labels == 18).all()
        assert files["order"] == "full paths sorted as strings"
        assert data.images == sorted(data.images, key=str) and len(data) == 3


def test_gta5_files(tmp_path):
    files, size = GTA["files"], tuple(GTA["loaded_size_width_height"])
    assert files["label_format"].startswith("8-bit PNG whose pixel values (palette indices) are the raw ids")
    assert "numbered 1..N" in files["list"]
    for number in range(1, len(GTA["list_check"]["split_ids"]) + 1):
        write(tmp_path / files["images"].format(number=number), size)
        labels = Image.new("L", size, 7 + number)
        labels.putpalette([255 - value // 3 for value in range(768)])
        (tmp_path / "labels").mkdir(exist_ok=True)
        labels.save(tmp_path / files["labels"].format(number=number), compress_level=1)
    data = GTA5(tmp_path)
    assert [path.name for path in data.images] == GTA["list_check"]["files"]
    assert data[0].image.size == size and (data[0].labels == 1).all()


def test_synthia_files(tmp_path):
    files, size = SYNTHIA["files"], tuple(SYNTHIA["loaded_size_width_height"])
    assert "channel index 0 (red) holds the class id" in SYNTHIA["label_format"]
    ids = np.full((size[1], size[0], 3), 7000, np.uint16)
    ids[..., 0] = 3
    for name in ("0000002", "0000001"):
        write(tmp_path / files["images"].format(name=name), size)
        path = tmp_path / files["labels"].removesuffix(" (same name)").format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_16_bit_png(path, ids)
    data = Synthia(tmp_path)
    assert files["list"] == "directory listing of RGB, not sorted"  # sorted here: the same on every machine
    assert data.names == ["0000001", "0000002"]
    assert data[0].image.size == size and (data[0].labels == 0).all()


def test_image_preprocessing():
    golden = GOLDEN["image_preprocessing"]
    assert (golden["order"], golden["scale"], golden["mean"], golden["std"]) == (
        "RGB",
        "divide by 255",
        [0, 0, 0],
        "none",
    )
    assert golden["layout"] == "float32 [3,H,W]; labels int64 [H,W]"  # uint8 here until they are on the device
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert image_tensor(image)[:, 4, 5].tolist() == list(image.getpixel((5, 4)))

    assert golden["resize_image"] == "bilinear (Pillow)" and golden["resize_label"] == "nearest (Pillow)"
    resized = weak_view_of_image(image, whole_view(33, 47))
    assert (np.asarray(resized) == np.asarray(image.resize((47, 33), Image.Resampling.BILINEAR))).all()
    labels = np.asarray(image)[..., 0].copy()
    resized = weak_view_of_labels(torch.from_numpy(labels), whole_view(33, 47))
    assert (resized.numpy() == np.asarray(Image.fromarray(labels).resize((47, 33), Image.Resampling.NEAREST))).all()


@pytest.mark.parametrize(
    ("threshold", "entry"),
    [(0.95, "labels_threshold_0_95"), (-1, "labels_threshold_default_minus_1"), (0, "labels_threshold_0")],
)
def test_released_confidence_rule(threshold, entry):
    confidence = torch.tensor(RULE["confidence_before_storage"], dtype=torch.float16)
    assert confidence.tolist() == RULE["confidence_stored_float16"]
    assert RULE["rule"].startswith("label becomes 250 where stored confidence <= threshold")
    labels = torch.tensor(RULE["labels"], dtype=torch.uint8)
    kept = confident_labels(labels, confidence, threshold=threshold, as_released=True)
    assert kept.tolist() == RULE[entry]


def test_exact_confidence_rule_keeps_what_exceeds_the_threshold():
    confidence = torch.tensor(RULE["confidence_before_storage"])
    kept = confident_labels(torch.tensor(RULE["labels"], dtype=torch.uint8), confidence, threshold=0.95)
    assert kept.tolist() == [IGNORE] * 6 + [6, 7, 8, 9, 10, 11]


def test_nothing_in_the_file_is_left_out():
    assert set(GOLDEN) == {
        "ignore_value",
        "n_class_choices",
        "cityscapes",
        "gta5",
        "synthia",
        "image_preprocessing",
        "pseudo_label_threshold",
    }
