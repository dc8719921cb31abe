"""The descriptions that describe_data writes: they load as they are, and say what was found."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.cli.launch import main
from proda.data.describe import look, write_description
from proda.data.labels import benchmark_labels
from proda.data.own_data import Description, read_description
from proda.data.places import find_places
from proda.method import IGNORE
from proda.run.config import DataConfig
from proda.run.domains import Domains
from proda.run.job import read_summary
from proda.settings.reading import make_config
from proda.utils.errors import MissingFileError, UserError
from tests.data.test_image_files import error_of, photo, save
from tests.small_runs import ROOT


def described(folder: Path, images: str = "rgb", labels: str = "") -> tuple[str, Description]:
    """The text written about data, and the description that it is."""
    places = find_places(folder, images, labels)
    text = write_description(places, look(places))
    (folder / "written.toml").write_text(text)
    return text, read_description(folder / "written.toml")


def data(folder: Path, *maps, suffix: str = ".png") -> Path:
    """An image and a label map for each array of ids [H, W] or colours [H, W, 3 or 4]."""
    for number, pixels in enumerate(maps):
        pixels = np.asarray(pixels)
        photo(folder / f"rgb/{number}.jpg", pixels.shape[1], pixels.shape[0])
        save(folder / f"labels/{number}{suffix}", pixels)
    return folder


def labels_of(own: Description) -> list:
    return [example.labels.tolist() for example in own.open("train", own.space, with_labels=True)]


RED, ROAD, BLACK = (200, 0, 1), (128, 64, 128), (0, 0, 0)


@pytest.mark.parametrize(
    ("maps", "names", "labels", "lines"),
    [
        (
            [[[3, 3, 9, 255]], [[3, 3, 3, 3]]],
            ["class_3", "class_9"],
            [[[0, 0, 1, IGNORE]], [[0, 0, 0, 0]]],
            [
                '{ name = "class_3", ids = [3] },  # 75% of the pixels, in 2 of 2\n',
                "ignore = [255]  # 12.5% of the pixels; usually: no label\n",
                "# 2 images (4x1: 2). 2 label maps of ids, one channel.\n",
            ],
        ),
        (
            [[[RED, ROAD]], [[BLACK, ROAD]]],
            ["color_000000", "color_804080", "color_c80001"],
            [[[2, 1]], [[0, 1]]],
            [
                'labels_are = "colors"\n',
                "color = [128, 64, 128] },  # 50% of the pixels, in 2 of 2; Cityscapes: road\n",
                "color = [0, 0, 0] },  # 25% of the pixels, in 1 of 2; often: no label\n",
            ],
        ),
        (
            [[[(9, 0, 9, 0), (200, 9, 9, 255), (1, 2, 3, 255)]]],
            ["color_010203", "color_c80909"],
            [[[IGNORE, 1, 0]]],
            ["# 33.3% of the pixels are transparent: they have no label.\n"],
        ),
        ([[[(7, 0, 0, 255), (10, 0, 0, 255)]]], ["class_7", "class_10"], [[[0, 1]]], ["Only the red channel is used"]),
        (
            [[[0, 7, 8, 11, 21, 23, 26, 33]]],
            [f"class_{value}" for value in (0, 7, 8, 11, 21, 23, 26, 33)],
            [[[*range(8)]]],
            [
                "look like the labelIds of Cityscapes",
                "ids = [26] },  # 12.5% of the pixels, in 1 of 1; Cityscapes: car\n",
                "Cityscapes: none of the 19 classes",
            ],
        ),
    ],
    ids=["ids", "colors", "transparent", "ids in the red channel", "ids of Cityscapes"],
)
def test_values_become_classes_with_their_share_and_meaning(tmp_path, maps, names, labels, lines):
    text, own = described(data(tmp_path, *maps), labels="labels")
    assert own.space.names == names and labels_of(own) == labels
    assert all(line in text for line in lines)
    assert ("Cityscapes: car" in text) == ("class_26" in names)
    assert abs(own.space.colors[0].astype(int) - own.space.colors[1]).max() > 80  # they can be told apart


def palette_map(path: Path, values, colors) -> None:
    picture = Image.fromarray(np.array(values, np.uint8))
    picture.putpalette(bytes(np.array(colors, np.uint8)))
    picture.save(path)


@pytest.mark.parametrize("agree", [True, False])
def test_values_of_a_palette_are_ids_if_all_files_have_the_same_palette(tmp_path, agree):
    data(tmp_path, [[0, 1]], [[0, 1]])
    colors = [(10, 0, 0), (0, 10, 0)]
    palette_map(tmp_path / "labels/0.png", [[0, 1]], colors)
    palette_map(tmp_path / "labels/1.png", [[0, 1]], colors if agree else colors[::-1])
    text, own = described(tmp_path, labels="labels")
    assert own.space.names == (["class_0", "class_1"] if agree else ["color_000a00", "color_0a0000"])
    assert own.space.colors.tolist() == [list(color) for color in (colors if agree else colors[::-1])]
    assert labels_of(own) == ([[[0, 1]], [[0, 1]]] if agree else [[[1, 0]], [[0, 1]]])
    assert ("not the colors of the palette" in text) == agree


def test_label_maps_of_another_kind_or_size_are_named(tmp_path):
    data(tmp_path, *[[[1, 2]]] * 4)
    save(tmp_path / "labels/1.png", np.array([[[9, 0, 0], [1, 2, 3]]]))
    save(tmp_path / "labels/2.png", np.array([[1, 2, 5]]))
    text, own = described(tmp_path, labels="labels")
    assert own.space.names == ["class_1", "class_2"]
    assert f"# Label maps differ: {tmp_path}/labels/1.png has colors, {tmp_path}/labels/0.png one channel." in text
    assert "# Files that cannot be used: 2. check_data lists them. The first: " in text
    findings = look(find_places(tmp_path, "rgb", "labels"))
    assert f"{tmp_path}/labels/2.png: label map of 3x1 pixels, expected 2x1" in findings.problems


def test_names_without_a_partner_and_bad_files_are_counted(tmp_path):
    data(tmp_path, [[1, 2]], [[1, 2]], [[1, 2]])
    photo(tmp_path / "rgb/x.jpg"), save(tmp_path / "labels/y.png", np.array([[5]]))
    (tmp_path / "labels/2.png").write_bytes(b"\x89PNG")
    text, own = described(tmp_path, labels="labels")
    assert "# Images without a label map: 1, such as x. Train with --labelled_only.\n" in text
    assert "# Label maps without an image: 1, such as y. They are not used.\n" in text
    assert f"# Files that cannot be used: 1. check_data lists them. The first: {tmp_path}/labels/2.png: " in text
    assert own.space.names == ["class_1", "class_2"]  # not the 5
    assert len(own.open("train", own.space, with_labels=True, labelled_only=True)) == 3


def test_names_that_differ_by_a_suffix_are_matched_by_a_pattern(tmp_path):
    for name in ("010", "020"):
        photo(tmp_path / f"rgb/ulm/{name}_rgb.jpg", 2, 1)
        save(tmp_path / f"labels/ulm/{name}_seg_ids.png", np.array([[1, 2]]))
    text, own = described(tmp_path, labels="labels")
    assert 'images = "rgb/**/*_rgb.*"\nlabels = "labels/**/*_seg_ids.*"\n' in text
    assert labels_of(own) == [[[0, 1]]] * 2


def test_photographs_of_several_sizes_get_one_size(tmp_path):
    for number, width in enumerate((8, 8, 6)):
        photo(tmp_path / f"rgb/{number}.jpg", width, 4)
    _, own = described(tmp_path)
    assert own.space is None and own.size == (8, 4)
    assert own.open("train", benchmark_labels(19), with_labels=False)[2].image.size == (8, 4)


def test_videos_are_described_with_every_tenth_frame(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"")
    text, own = described(tmp_path, "clips")
    assert own.every == {"train": 10} and "# 1 video." in text


@pytest.mark.parametrize("images", ["data", "./data"])
def test_patterns_tell_label_maps_from_the_images_in_one_folder(tmp_path, images):
    for name in ("a", "b"):
        photo(tmp_path / f"data/{name}.jpg", 2, 1), photo(tmp_path / f"data/{name}_overlay.png", 2, 1)
        save(tmp_path / f"data/{name}_mask.png", np.array([[1, 2]]))
    text, own = described(tmp_path, images, labels=images)
    assert 'images = "data/*.jpg"\nlabels = "data/*_mask.png"\n' in text
    assert "# 2 images (2x1: 2). 2 label maps of ids, one channel.\n" in text and "labelled_only" not in text
    assert f"# Left out by the patterns below: 2 files, such as {tmp_path}/data/a_overlay.png.\n" in text
    assert labels_of(own) == [[[0, 1]]] * 2
    text, own = described(tmp_path, images)
    assert own.open("train", benchmark_labels(19), with_labels=False).names == ["a", "b"]
    assert f"4 files, such as {tmp_path}/data/a_mask.png. Label maps among them are described with --labels." in text


def test_label_maps_that_no_pattern_of_images_leaves_out_need_their_own_place(tmp_path):
    for name in ("a", "b"):
        photo(tmp_path / f"data/{name}.png", 2, 1), photo(tmp_path / f"data/{name}_overlay.png", 2, 1)
        save(tmp_path / f"data/{name}_mask.png", np.array([[1, 2]]))
    message = error_of(UserError, lambda: described(tmp_path, "data"))
    assert "--images=data: 4 of 6 files seem to be label maps" in message and "set --labels=data, too" in message
    text, own = described(tmp_path, "data", labels="data")
    assert 'images = "data/*.png"\nlabels = "data/*_mask.png"\n' in text
    assert f"# Seem to be no photographs by their names: 2, such as {tmp_path}/data/a_overlay.png. Move them" in text
    assert own.open("train", own.space, with_labels=True, labelled_only=True).names == ["a", "b"]
    message = error_of(UserError, lambda: described(tmp_path, "data/*", labels="data/*"))
    assert "is listed as an image and as a label map" in message and "/data/*_mask.png" in message


@pytest.mark.parametrize(
    ("values", "classes", "ignore", "remark"),
    [
        ([0, 255], [0, 255], [], "Only 0 and 255 occur: 255 is taken for a class"),
        ([0, 128, 255], [0, 128, 255], [], "Only 0 and 128 and 255 occur: 255 is taken for a class"),
        ([0, 85, 170, 255], [0, 85, 170, 255], [], "Only shades of gray occur: 255 is taken for a class"),
        ([0, 1], [0, 1], [], ""),
        ([0, 1, 255], [0, 1], [255], ""),
        ([1, 2, 255], [1, 2], [255], ""),
        ([0, 7, 26, 255], [0, 7, 26], [255], ""),
        ([0, 20, 255], [0, 20], [255], ""),
    ],
)
def test_255_is_a_class_only_among_shades_of_gray(tmp_path, values, classes, ignore, remark):
    text, own = described(data(tmp_path, [values], [values[:1] * len(values)]), labels="labels")
    assert own.space.names == [f"class_{value}" for value in classes]
    assert (f"ignore = {ignore}" in text) and ("is taken for a class" in text) == bool(remark) and remark in text
    assert labels_of(own)[0] == [[classes.index(v) if v in classes else IGNORE for v in values]]


def test_black_and_white_are_two_classes(tmp_path):
    text, own = described(data(tmp_path, [[(0, 0, 0), (255, 255, 255)]]), labels="labels")
    assert own.space.names == ["color_000000", "color_ffffff"] and "often: no label" not in text


@pytest.mark.parametrize(
    ("maps", "suffix", "expected"),
    [
        (
            np.array([[1, 2]], np.float32),
            ".tif",
            "labels/0.tif: a TIFF of floating-point numbers, expected a label map",
        ),
        (
            np.array([[1, 2]], np.uint8),
            ".jpg",
            "JPEG and WebP may change them; left out: files with another suffix (1, s",
        ),
    ],
)
def test_label_maps_of_an_unfit_format_are_named_with_the_reason(tmp_path, maps, suffix, expected):
    photo(tmp_path / "rgb/0.jpg", 2, 1)
    (tmp_path / "labels").mkdir()
    Image.fromarray(maps).save(tmp_path / f"labels/0{suffix}")
    assert expected in error_of(UserError, lambda: described(tmp_path, labels="labels"))


def smoothed(colors: list, size: int = 64) -> np.ndarray:
    """Disks of colours on the first one, with edges as a painting program draws them."""
    shape = (size, size) if isinstance(colors[0], int) else (size, size, 3)
    pixels = np.broadcast_to(np.array(colors[0], float), shape).copy()
    y, x = np.mgrid[:size, :size]
    for number, color in enumerate(colors[1:]):
        distance = np.hypot(x - size * (0.25 + 0.5 * (number % 2)), y - size * (0.25 + 0.5 * (number // 2)))
        share = (size / 5 - distance).clip(0, 1).reshape(size, size, *[1] * (len(shape) - 2))
        pixels = share * np.array(color) + (1 - share) * pixels
    return pixels.round().astype(np.uint8)


@pytest.mark.parametrize("colors", [[(9, 9, 9), (200, 30, 60), (128, 64, 128)], [0, 200]])
def test_values_of_smoothed_edges_are_remarked_on(tmp_path, colors):
    smooth = smoothed(colors, 160)
    text, own = described(data(tmp_path, smooth), labels="labels")
    kind = "ids" if colors == [0, 200] else "colors"
    assert len(own.space.names) > 15 and f"# Many of the {len(own.space.names)} {kind} are rare mixtures of" in text


def test_many_classes_without_smoothed_edges_are_not_remarked_on(tmp_path):
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.full(66, 0.3))
    for number, colors in enumerate((rng.integers(0, 256, (66, 3)), np.arange(66))):
        text, own = described(data(tmp_path / str(number), colors[rng.choice(66, (64, 64), p=shares)]), labels="labels")
        assert len(own.space.names) > 30 and "rare mixtures" not in text


def test_train_ids_are_recognized(tmp_path):
    text, _ = described(data(tmp_path, [[*range(19), 255]]), labels="labels")
    assert "# The ids look like the trainIds of Cityscapes; the comments below" in text
    assert "ids = [13] },  # 5% of the pixels, in 1 of 1; Cityscapes: car\n" in text
    photo(tmp_path / "more/a_leftImg8bit.png", 3, 1)
    few = save(tmp_path / "ids/a_gtFine_labelIds.png", np.array([[0, 1, 13]]))
    text, _ = described(tmp_path, "more", labels="ids")
    assert "# The names are those of Cityscapes' labelIds, but no id is above 18: the files may hold trainIds" in text
    save(few, np.array([[7, 8, 26]]))
    text, _ = described(tmp_path, "more", labels="ids")
    assert "trainIds" not in text


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([[[1, 1]]], "--labels=labels: 1 ids in 1 label maps, expected 2 or more"),
        ([np.random.default_rng(0).integers(0, 256, (40, 40, 3))], "0.png: 1600 colors, too many for a label map"),
        (
            [np.stack([np.arange(k, k + 200), np.arange(200), np.zeros(200)], 1)[None] for k in (0, 5)],
            "--labels=labels: 400 colors, expected at most 250: pictures with smoothed edges or lossy compression, or",
        ),
    ],
)
def test_what_cannot_be_label_maps_is_refused(tmp_path, maps, message):
    data(tmp_path, *maps)
    assert message in error_of(UserError, lambda: described(tmp_path, labels="labels"))


def test_places_that_do_not_go_together_are_named(tmp_path):
    photo(tmp_path / "rgb/a.jpg"), photo(tmp_path / "rgb/b.jpg"), save(tmp_path / "labels/c.png", np.array([[1, 2]]))
    message = error_of(UserError, lambda: described(tmp_path, labels="labels"))
    assert message.startswith("no image and label map belong together: --images has a, b, --labels has c; ")
    assert "--images=nowhere: found none" in error_of(MissingFileError, lambda: described(tmp_path, "nowhere"))
    assert "--labels=nowhere: found none" in error_of(MissingFileError, lambda: described(tmp_path, labels="nowhere"))


def test_the_command_writes_a_source_and_a_target_that_a_run_can_open(tmp_path, monkeypatch, capsys):
    data(tmp_path / "sim", [[1, 2]], [[2, 1]])
    photo(tmp_path / "photos/a.jpg")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    command = [f"{ROOT}/experiments/describe_data.py", "--num_workers=0", f"--output={tmp_path}/run"]
    source = [*command, "--images=sim/rgb", "--labels=sim/labels", "--description=below/sim.toml"]
    assert main(source) == 0
    assert main([*command, "--images=photos", "--description=photos.toml"]) == 0
    domains = Domains(make_config(DataConfig, {"source": "below/sim.toml", "target": "photos.toml"}))
    assert [example.labels.tolist() for example in domains.source] == [[[0, 1]], [[1, 0]]]
    assert len(domains.target) == 1 and domains.classes.names == ["class_1", "class_2"]
    assert read_summary(tmp_path / "run")["images"] == 1
    capsys.readouterr()
    before = Path("below/sim.toml").read_text()
    assert 'images = "../sim/rgb"' in before
    Path("below/sim.toml").write_text(before + "# edited\n")
    assert main(source) == 2  # nothing that a person has edited is lost
    assert "--description=below/sim.toml: the file exists" in capsys.readouterr().err
    assert Path("below/sim.toml").read_text() == before + "# edited\n"
    assert main([*command, "--images=photos", "--description=new/photos.toml"]) == 2
    assert "--description=new/photos.toml: the folder new does not exist" in capsys.readouterr().err
