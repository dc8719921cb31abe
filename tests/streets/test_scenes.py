import numpy as np
import pytest
from PIL import Image

from proda.data.labels import CAMVID_CLASSES, CAMVID_UNLABELED, camvid_table
from proda.streets import random_style, write_scenes
from proda.streets.folders import MARKER, UNFINISHED
from proda.streets.town import draw_town

SMALL = {"number": 3, "size": (64, 48)}
NAMES = [c.name for c in CAMVID_CLASSES]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def scenes(count: int, size=(160, 120)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images, and label maps with the ids of CamVid."""
    drawn = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image, labels = draw_town(rng, random_style(rng), size)
        drawn.append((np.asarray(image), camvid_table()[labels]))
    return drawn


@pytest.fixture(scope="module")
def drawn():
    return scenes(12)


def test_files_are_numbered_images_and_label_maps_with_the_palette_of_camvid(tmp_path):
    write_scenes(tmp_path, **SMALL)
    expected = {f"scenes/{folder}/{i:05d}.png" for folder in ("images", "labels") for i in (1, 2, 3)}
    assert set(contents(tmp_path)) == expected | {f"scenes/{MARKER}"}
    image, labels = (Image.open(tmp_path / f"scenes/{folder}/00002.png") for folder in ("images", "labels"))
    assert (image.mode, labels.mode, image.size, labels.size) == ("RGB", "P", (64, 48), (64, 48))
    palette = np.array(labels.getpalette()).reshape(-1, 3)
    assert palette[: len(NAMES)].tolist() == [list(c.color) for c in CAMVID_CLASSES]
    assert palette[CAMVID_UNLABELED].tolist() == [0, 0, 0]
    assert np.asarray(labels).max() <= CAMVID_UNLABELED


def test_the_same_arguments_give_the_same_files_and_another_seed_others(tmp_path):
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_scenes(tmp_path / folder, seed=seed, **SMALL)
    a, b, c = (contents(tmp_path / folder) for folder in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_a_longer_set_begins_with_the_scenes_of_a_shorter_one(tmp_path):
    write_scenes(tmp_path / "short", number=2, size=(64, 48))
    write_scenes(tmp_path / "long", number=3, size=(64, 48))
    short, long = (contents(tmp_path / folder) for folder in ("short", "long"))
    assert all(long[name] == content for name, content in short.items() if name.endswith(".png"))


def test_all_classes_occur_and_nothing_else(drawn):
    seen = [set(np.unique(labels).tolist()) for _, labels in drawn]
    assert set.union(*seen) <= {*range(len(NAMES)), CAMVID_UNLABELED}
    for number, name in enumerate(NAMES):
        assert sum(number in found for found in seen) >= len(drawn) / 3, name


def test_the_appearance_of_a_class_differs_from_scene_to_scene(drawn):
    for name in ("sky", "road", "building"):
        number = NAMES.index(name)
        colors = [image[labels == number].mean(0) for image, labels in drawn if (labels == number).sum() > 50]
        assert np.std(colors, axis=0).min() > 20, name
    assert len({repr(random_style(np.random.default_rng(seed))) for seed in range(10)}) == 10


def test_a_town_is_the_right_way_up(drawn):
    for _, labels in drawn:
        height = {name: np.nonzero(labels == NAMES.index(name))[0].mean() for name in ("sky", "building", "road")}
        assert height["road"] > max(height["sky"], height["building"])


def test_the_labels_change_where_the_picture_changes(drawn):
    ratios = []
    for image, labels in drawn:
        change = np.abs(np.diff(image.astype(float), axis=1)).sum(-1)
        edges = labels[:, 1:] != labels[:, :-1]
        ratios.append(change[edges].mean() / change[~edges].mean())
    assert np.median(ratios) > 1.6  # 1 if the labels had nothing to do with the picture


def test_traffic_keeps_to_the_left_in_half_of_the_scenes(monkeypatch):
    monkeypatch.setattr("proda.streets.town.layout.LEFT_HAND", 0.0)
    right = scenes(6, (64, 48))
    monkeypatch.setattr("proda.streets.town.layout.LEFT_HAND", 1.0)
    for (image, labels), (mirrored, mirrored_labels) in zip(right, scenes(6, (64, 48)), strict=True):
        assert (image == mirrored[:, ::-1]).all() and (labels == mirrored_labels[:, ::-1]).all()


def test_a_second_call_draws_nothing(tmp_path, monkeypatch):
    write_scenes(tmp_path, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr("proda.streets.scenes.draw_town", None)
    write_scenes(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_call_is_completed_to_the_same_files(tmp_path):
    write_scenes(tmp_path / "whole", **SMALL)

    def interrupted(missing):
        yield from missing[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "broken", progress=interrupted, **SMALL)
    left = contents(tmp_path / "broken")
    assert f"scenes/{UNFINISHED}" in left and f"scenes/{MARKER}" not in left
    write_scenes(tmp_path / "broken", **SMALL)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 1}, {"number": 4}, {"size": (64, 64)}, "version", "other data"])
def test_scenes_of_other_settings_and_other_data_are_refused_and_nothing_is_written(tmp_path, monkeypatch, change):
    words, arguments = "scenes holds .* other settings", dict(SMALL)
    if change == "other data":
        (tmp_path / "scenes").mkdir()
        (tmp_path / "scenes/picture.png").touch()
        words = "scenes holds other data"
    else:
        write_scenes(tmp_path, **SMALL)
        if change == "version":
            monkeypatch.setattr("proda.streets.scenes.VERSION", 0)
        else:
            arguments |= change
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=words):
        write_scenes(tmp_path, **arguments)
    assert contents(tmp_path) == before
