import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import png_decode
from PIL import Image

from proda.data.benchmarks import GTA5, Cityscapes, Synthia
from proda.data.labels import CLASSES, class_subset
from proda.method import IGNORE
from proda.streets import CAMERA, GAME, SIMULATOR, draw_scene, write_streets
from proda.streets.folders import MARKER, UNFINISHED

SMALL = {"num_train": 3, "num_val": 2, "size": (64, 32)}
GOLDEN = json.loads((Path(__file__).parent.parent / "golden/data/labels.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def scene(style, seed: int, size=(256, 128)) -> tuple[np.ndarray, np.ndarray]:
    image, labels = draw_scene(np.random.default_rng(seed), style, size)
    return np.asarray(image), labels


STYLES = pytest.mark.parametrize("style", [GAME, SIMULATOR, CAMERA], ids=["game", "simulator", "camera"])


@STYLES
def test_a_scene_depends_on_the_seed_alone_and_has_the_size_asked_for(style):
    (image, labels), (again, labels_again), (other, _) = (scene(style, seed, (101, 57)) for seed in (3, 3, 4))
    assert (image == again).all() and (labels == labels_again).all()
    assert (image != other).mean() > 0.5
    assert image.shape == (57, 101, 3) and labels.shape == (57, 101) and image.dtype == labels.dtype == np.uint8


@STYLES
def test_all_thirteen_classes_occur_and_no_other_values_than_train_ids(style):
    pixels = np.zeros(256, int)
    for seed in range(40):
        pixels += np.bincount(scene(style, seed)[1].ravel(), minlength=256)
    share = pixels / pixels.sum()
    assert set(np.nonzero(pixels)[0].tolist()) <= {*range(len(CLASSES)), IGNORE}
    assert share[class_subset(13)].min() > 0.002  # the rarest has more than 60 pixels an image
    names = [c.name for c in CLASSES]
    assert share[names.index("road")] > 0.2 and share[names.index("pole")] > 0.002
    assert (share[IGNORE] > 0) == style.bonnet


def test_a_street_is_the_right_way_up_and_the_labels_lie_where_the_things_are_drawn():
    for seed in range(5):
        image, labels = scene(dataclasses.replace(GAME, clouds=0.0), seed)
        height = {name: np.nonzero(labels == i)[0].mean() for i, name in ((0, "road"), (2, "building"), (10, "sky"))}
        assert height["sky"] < height["building"] < height["road"]
        blue = image[..., 2].astype(int) - image[..., 0] > 25  # as a clear sky is in the game
        assert blue[labels == 10].mean() > 0.9 > 0.1 > blue[labels == 0].mean()


def test_the_camera_is_noisier_and_paler_than_the_game():
    def noise_and_colour(style):
        noise, colour = [], []
        for seed in range(8):
            image, labels = scene(style, seed)
            image = image.astype(float)
            road = (labels[:, 1:] == 0) & (labels[:, :-1] == 0)
            noise.append(np.median(np.abs(np.diff(image[..., 1], axis=1))[road]))  # no edges in the median
            colour.append((image.max(-1) - image.min(-1)).mean())
        return np.mean(noise), np.mean(colour)

    (game_noise, game_colour), (camera_noise, camera_colour) = noise_and_colour(GAME), noise_and_colour(CAMERA)
    assert camera_noise > 2 * game_noise and camera_colour < 0.9 * game_colour


def test_gta5_and_cityscapes_files_are_laid_out_as_the_downloads(tmp_path):
    write_streets(tmp_path, **SMALL)
    city = "cityscapes/{0}/{1}/{2}/{2}_{3:06d}_000019_{4}.png"
    expected = {f"gta5/{folder}/{i:05d}.png" for folder in ("images", "labels") for i in (1, 2, 3)}
    towns = [("train", t, i) for i, t in enumerate(("alderbach", "birkenau", "carlsfeld"))]
    towns += [("val", "dornheim", i) for i in (0, 1)]
    for split, town, i in towns:
        expected.add(city.format("leftImg8bit", split, town, i, "leftImg8bit"))
        expected.add(city.format("gtFine", split, town, i, "gtFine_labelIds"))
    assert set(contents(tmp_path)) == expected | {f"gta5/{MARKER}", f"cityscapes/{MARKER}"}
    assert Image.open(tmp_path / "gta5/labels/00001.png").mode == "P"
    assert Image.open(tmp_path / city.format("gtFine", *towns[0], "gtFine_labelIds")).mode == "L"


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_the_readers_of_the_real_data_read_back_what_was_drawn(tmp_path, source):
    write_streets(tmp_path, source=source, seed=7, num_train=3, num_val=2)
    sets = [
        {"gta5": GTA5, "synthia": Synthia}[source](tmp_path / source, num_classes=19),
        Cityscapes(tmp_path / "cityscapes", "train", num_classes=19, with_labels=True),
        Cityscapes(tmp_path / "cityscapes", "val", num_classes=19, with_labels=True),
    ]
    styles = ({"gta5": GAME, "synthia": SIMULATOR}[source], CAMERA, CAMERA)
    for dataset, style, number, entropy in zip(sets, styles, (3, 3, 2), ((0, 0), (0, 1), (1, 1)), strict=True):
        assert len(dataset) == number
        for i, example in enumerate(dataset):
            image, labels = draw_scene(np.random.default_rng([7, *entropy, i]), style)
            assert (np.asarray(example.image) == np.asarray(image)).all()
            assert (example.labels == labels).all()


CITY = "cityscapes/gtFine/val/dornheim/dornheim_000001_000019_gtFine_labelIds.png"


@pytest.mark.parametrize(
    ("source", "file", "style", "entropy"),
    [
        ("gta5", "gta5/labels/00002.png", GAME, (0, 0)),
        ("gta5", CITY, CAMERA, (1, 1)),
        ("synthia", "synthia/RAND_CITYSCAPES/GT/LABELS/0000001.png", SIMULATOR, (0, 0)),
    ],
)
def test_label_files_hold_the_golden_ids(tmp_path, source, file, style, entropy):
    write_streets(tmp_path, source=source, **SMALL)
    _, labels = draw_scene(np.random.default_rng([0, *entropy, 1]), style, (64, 32))
    golden, to_raw = GOLDEN[source], np.zeros(256, int)
    for raw, train in (golden if source == "gta5" else golden["classes"]["19"])["raw_to_train"].items():
        to_raw[train] = int(raw)
    if source == "gta5":
        found = np.asarray(Image.open(tmp_path / file))
    else:  # 16 bits, with the class in the first channel
        pixels = png_decode((tmp_path / file).read_bytes())
        found = pixels[..., 0]
        assert (pixels[..., 3] == 65535).all() and pixels.dtype == np.uint16
        assert not np.asarray(Image.open(tmp_path / file))[..., 0].any()  # Pillow reads the upper bytes; ids are lower
    assert (found == to_raw[labels]).all()


def test_a_second_call_draws_nothing_and_lists_each_folder_once(tmp_path, monkeypatch):
    write_streets(tmp_path, **SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    monkeypatch.setattr("proda.streets.files.draw_scene", None)
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    write_streets(tmp_path, **SMALL)
    monkeypatch.undo()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    folders = [tmp_path / name for name in ("gta5", "cityscapes")]
    assert sorted(listed) == sorted(str(path) for folder in folders for path in (folder, *folder.rglob("*/")))


def test_an_interrupted_call_is_completed_to_the_same_files(tmp_path):
    write_streets(tmp_path / "whole", **SMALL)

    def interrupted(scenes):
        yield from scenes[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_streets(tmp_path / "broken", progress=interrupted, **SMALL)
    left = contents(tmp_path / "broken")
    assert f"gta5/{UNFINISHED}" in left and not any(name.endswith(MARKER) for name in left)
    write_streets(tmp_path / "broken", **SMALL)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_files_that_a_finished_folder_has_lost_are_drawn_again_and_no_others(tmp_path, monkeypatch, source):
    write_streets(tmp_path, source=source, **SMALL)
    whole = contents(tmp_path)
    lost = [
        sorted(name for name in whole if name.startswith(folder) and name.endswith(".png"))
        for folder in (f"{source}/", "cityscapes/leftImg8bit/val", "cityscapes/gtFine/train")
    ]
    for names in lost:
        (tmp_path / names[1]).unlink()
    drawn = []

    def draw(*args):
        drawn.append(args)
        return draw_scene(*args)

    monkeypatch.setattr("proda.streets.files.draw_scene", draw)
    write_streets(tmp_path, source=source, **SMALL)
    assert contents(tmp_path) == whole
    assert len(drawn) == 3


def test_the_other_source_joins_the_same_root(tmp_path):
    write_streets(tmp_path, **SMALL)
    before = contents(tmp_path)
    write_streets(tmp_path, source="synthia", **SMALL)
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert all(name.startswith("synthia/") for name in after.keys() - before.keys())


@pytest.mark.parametrize("change", ["seed", "unfinished", "style"])
def test_streets_of_other_settings_are_refused_and_nothing_is_written(tmp_path, monkeypatch, change):
    write_streets(tmp_path, seed=1, **SMALL)
    if change == "unfinished":
        (tmp_path / "gta5" / MARKER).rename(tmp_path / "gta5" / UNFINISHED)
    if change == "style":
        monkeypatch.setattr("proda.streets.files.CAMERA", dataclasses.replace(CAMERA, haze=0.1))
    before, seed = contents(tmp_path), 1 if change == "style" else 2
    words = "cityscapes holds .*style" if change == "style" else r"gta5 holds .*\(seed: found 1, expected 2\)"
    with pytest.raises(ValueError, match=words):
        write_streets(tmp_path, seed=seed, **SMALL)
    assert contents(tmp_path) == before


def test_folders_of_other_data_and_an_unknown_source_are_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "cityscapes/leftImg8bit").mkdir(parents=True)
    for source, words in (("gta5", "cityscapes holds other data"), ("carla", "gta5 or synthia, got 'carla'")):
        with pytest.raises(ValueError, match=words):
            write_streets(tmp_path, source=source, **SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["cityscapes"]


def test_a_run_killed_over_its_first_file_does_not_lock_the_folder(tmp_path):
    (tmp_path / "gta5").mkdir()
    (tmp_path / f"gta5/.{UNFINISHED}.1234.part").touch()
    write_streets(tmp_path, **SMALL)
    assert (tmp_path / "gta5" / MARKER).exists()
