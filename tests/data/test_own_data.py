import json
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import pseudo_labels
from proda.cli.launch import main
from proda.data.labels import benchmark_labels
from proda.data.listing import list_files
from proda.data.own_data import read_description
from proda.method import IGNORE
from proda.models.build import build_network
from proda.run.config import DataConfig, TrainConfig
from proda.run.data import Data, label_store
from proda.run.domains import Domains
from proda.run.job import read_summary
from proda.settings.reading import make_config
from proda.utils.errors import UserError

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "own_data.md"
CLASSES = '[{ name = "road", ids = [3, 4] }, { name = "car", ids = 1, color = [0, 0, 142] }]'


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def photo(path: Path, size=(8, 4)) -> Path:
    return save(path, np.full((size[1], size[0], 3), 90))


def describe(folder: Path, text: str, name: str = "data.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def simulator(folder: Path, ids=(0, 1, 3, 4), extra: str = "") -> Path:
    photo(folder / "rgb/a.jpg", (4, 1))
    save(folder / "ids/a.png", [list(ids)])
    return describe(
        folder, f'classes = {CLASSES}\nignore = 0\n{extra}\n[train]\nimages = "rgb"\nlabels = "ids"\n', "simulator.toml"
    )


def error_of(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_become_class_numbers_and_ignored_ones_no_class(tmp_path):
    own = read_description(simulator(tmp_path))
    image, labels, name, _ = own.open("train", own.space, with_labels=True)[0]
    assert labels.tolist() == [[IGNORE, 1, 0, 0]] and labels.dtype == np.uint8
    assert image.mode == "RGB" and image.size == (4, 1) and name == "a"
    assert own.space.names == ["road", "car"] and own.space.colors[1].tolist() == [0, 0, 142]
    assert own.space.ids.tolist() == [3, 1]  # what is written for a class: its lowest id


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("rgb", "ids"),
        ("rgb/**/*.jpg", "ids/**/*.png"),
        ("rgb/*/*.jpg", "ids"),
        ("rgb/*/a_*.jpg", "ids/*/a_*.png"),
        ("rgb/**/*", "ids/**/*"),
        (["rgb/night", "rgb/day"], ["ids"]),
    ],
)
def test_an_image_and_its_label_map_find_each_other_by_what_the_pattern_stands_for(tmp_path, images, labels):
    for folder, ids in (("night", 3), ("day", 1)):
        photo(tmp_path / f"rgb/{folder}/a_{folder}.jpg", (2, 1))
        save(tmp_path / f"ids/{'' if isinstance(images, list) else folder}/a_{folder}.png", [[ids, ids]])
    own = read_description(
        describe(
            tmp_path, f"classes = {CLASSES}\n[train]\nimages = {json.dumps(images)}\nlabels = {json.dumps(labels)}\n"
        )
    )
    data = own.open("train", own.space, with_labels=True)
    assert {name[-3:]: labels[0, 0] for _, labels, name, _ in data} == {"ght": 0, "day": 1}


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        ("../shots/*.jpg", ["a b", "ü"]),
        ("{absolute}/*", ["a b", "ü"]),  # a last star leaves out the suffix
        ("../shots/**", ["a b", "run[1]/c?d", "ü"]),
        ("../shots/run[1]/*.jpg", ["c?d"]),  # brackets and question marks are part of a name
        ("../shots/run[1]/*?*.jpg", ["c/d"]),
        ("../linked", ["a b", "run[1]/c?d", "ü"]),
        ("../shots/*/x.jpg", []),
        ("../nowhere/*.jpg", []),
    ],
)
def test_a_pattern_may_begin_anywhere_and_only_the_star_is_special(tmp_path, place, keys):
    shots = tmp_path / ".hidden" / "shots"  # where the data lie is not looked at, only what is below
    for name in ("a b", "ü", "run[1]/c?d", ".trash/e", "run1/.f"):
        photo(shots / f"{name}.jpg")
    (tmp_path / ".hidden/here").mkdir()
    (tmp_path / ".hidden/linked").mkdir()
    for path in shots.glob("[!.]*"):
        (tmp_path / ".hidden/linked" / path.name).symlink_to(path)
    assert sorted(list_files(tmp_path / ".hidden/here", place.format(absolute=shots))) == keys


def test_size_brings_images_and_labels_to_one_size_without_new_ids(tmp_path):
    own = read_description(simulator(tmp_path, extra="size = [2, 2]"))
    image, labels, *_ = own.open("train", own.space, with_labels=True)[0]
    assert image.size == (2, 2) and labels.shape == (2, 2) and set(labels.flat) <= {0, 1, IGNORE}


PLACES = '[train]\nimages = "a"\n'


def classes(first: str = "", second: str = 'name = "b"', before: str = "") -> str:
    return f'{before}\nclasses = [{{ name = "a"{first} }}, {{ {second} }}]\n{PLACES}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = [", "not TOML"),
        ("size = " + "[" * 5000, "nested too deeply"),
        ('[train]\nimages = "straße"\n'.encode("latin1"), "not TOML ('utf-8' codec"),
        ('[train]\nimage = "a"', "[train] needs images = ..."),
        ('[trian]\nimages = "a"', "unknown key 'trian'; the nearest is 'train'"),
        ("size = [16, 8]\n", "neither [train] nor [val]"),
        (PLACES + "size = [16, 8]\n", "size = ... stands below [train]; move it above"),
        ("size = [3]\n" + PLACES, "expected [width, height]"),
        ("size = [20000, 20000]\n" + PLACES, "expected [width, height] in pixels, at most 178,000,000"),
        ("[train]\nimages = 3", "expected a folder, a pattern, or a list of them"),
        ('[train]\nimages = "a\\u0000b"\n', "expected a folder, a pattern, or a list of them"),
        ('labels_are = "colors"\n' + PLACES, "labels_are = ... without classes = [...]"),
        ('classes = [{ name = "a" }]\n' + PLACES, "expected a list of 2 to 250 entries"),
        (classes(second='name = "a"'), "expected a name that no other class has"),
        (classes(second='name = "b\\nc"'), "expected a name that no other class has"),
        (classes(", ids = [1]"), "id 1 of class b belongs to a"),
        (classes(before="ignore = 0"), "id 0 of class a belongs to ignore"),
        (classes(", id = 3"), "unknown key 'id'; the nearest is"),
        (classes(", ids = 256"), "class a: ids = 256: expected ids in 0..255"),
        (classes(", ids = []"), "class a: ids = []: expected ids in 0..255"),
        (classes(before="ignore = -1"), "ignore = -1: expected ids in 0..255"),
        (classes(", color = 3"), "expected [red, green, blue]"),
    ],
)
def test_a_mistake_in_a_description_is_one_line_with_the_files_name(tmp_path, text, message):
    path = tmp_path / "data.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = error_of(lambda: read_description(path))
    assert found.startswith(f"{path}: ") and message in found


def test_a_description_or_a_folder_that_is_not_there_is_named(tmp_path):
    assert "no such file" in error_of(lambda: read_description(tmp_path / "a.toml"), FileNotFoundError)
    own = read_description(describe(tmp_path, '[train]\nimages = "rgb"\n'))
    space = benchmark_labels(19)
    assert "no images rgb for [train]" in error_of(
        lambda: own.open("train", space, with_labels=False), FileNotFoundError
    )
    assert "no [val]" in error_of(lambda: own.open("val", space, with_labels=False), FileNotFoundError)
    photo(tmp_path / "one/a.jpg"), photo(tmp_path / "two/a.jpg")
    both = read_description(describe(tmp_path, '[train]\nimages = ["one", "two"]\n', "both.toml"))
    message = error_of(lambda: both.open("train", space, with_labels=False))
    assert message.startswith(f"{tmp_path}/both.toml: ") and message.endswith("a.jpg have the same name 'a'")
    assert "has [train] and [val], no [test]" in error_of(lambda: own.open("test", space, with_labels=False), UserError)


def test_images_without_label_maps_are_counted_and_one_is_named(tmp_path):
    own = read_description(simulator(tmp_path))
    for name in "bc":
        photo(tmp_path / f"rgb/{name}.jpg")
    found = error_of(lambda: own.open("train", own.space, with_labels=True), FileNotFoundError)
    assert "no label map 'b' in ids for the image" in found and found.endswith("2 of 3 images are without")


@pytest.mark.parametrize(
    ("text", "hinted"),
    [
        ('[train]\nimages = "C:\\Users\\me"\n', True),  # \U needs eight digits
        ('[train]\nimages = "D:\\photos"\n', True),
        ('[train]\nimages = ["a", "C:\\new\\train"]\n', True),  # TOML, with a line end in the name
        ('[train]\nimages = "C:\\temp"\n', True),
        ("[train]\nimages = 'C:\\photos'\n", True),  # a backslash is no separator here
        ("[train]\nimages = photos\n", False),
        ('[train]\nimages = "nowhere"  # not C:\\photos\n', False),
    ],
)
def test_backslashes_in_paths_get_a_hint(tmp_path, text, hinted):
    photo(tmp_path / "a/a.jpg")

    def opened():
        read_description(describe(tmp_path, text)).open("train", benchmark_labels(19), with_labels=False)

    message = error_of(opened, UserError)
    assert message.startswith(f"{tmp_path}/data.toml: ") and message.isprintable()
    assert ("write C:/photos, or 'C:\\photos' in single quotes" in message) == hinted


def test_validation_photographs_of_several_sizes_are_named_by_the_check_and_refused_before_training(tmp_path, capsys):
    (
        photo(tmp_path / "rgb/a.jpg", (80, 40)),
        photo(tmp_path / "val/a.jpg", (80, 40)),
        photo(tmp_path / "val/b.jpg", (90, 40)),
    )
    target = describe(tmp_path, '[train]\nimages = "rgb"\n[val]\nimages = "val"\n')
    flags = [f"--target={target}", "--parts=val", "--num_workers=0", f"--output={tmp_path}/check"]
    command = [f"{ROOT}/experiments/check_data.py", *flags]
    assert main(command) == 0
    assert f"WARNING {target}: validation images of 2 sizes, which need --val_batch_size=1\n" in capsys.readouterr().out
    assert main([*command, "--val_batch_size=2"]) == 1
    found = read_summary(tmp_path / "check")["val"]["problems"]
    assert len(found) == 1 and found[0].startswith(f"{target}: validation images of 2 sizes with --val_batch_size=2; ")
    target.write_text("size = [80, 40]\n" + target.read_text())
    assert main([*command, "--val_batch_size=2"]) == 0


def test_without_val_the_training_photographs_that_stand_in_for_it_need_one_size(tmp_path):
    photo(tmp_path / "rgb/a.jpg", (80, 40)), photo(tmp_path / "rgb/b.jpg", (90, 40))
    target = str(describe(tmp_path, '[train]\nimages = "rgb"\n'))
    flags = {"target": target, "mean_width": 80, "crop_width": 16, "crop_height": 8}
    one, two = (Data(make_config(TrainConfig, {**flags, "val_batch_size": size})) for size in (1, 2))
    assert len(one.validation_batches()) == 2
    assert "found training images of 80x40 (a.jpg) and 90x40 (b.jpg)" in error_of(two.validation_batches, UserError)


def test_photographs_of_several_sizes_are_refused_before_work_where_batches_hold_whole_ones(tmp_path):
    photo(tmp_path / "rgb/a.jpg", (80, 40)), photo(tmp_path / "rgb/b.jpg", (90, 40))
    target = str(describe(tmp_path, '[train]\nimages = "rgb"\n'))
    flags = {"target": target, "mean_width": 80, "crop_width": 16, "crop_height": 8}
    one, two = (Data(make_config(TrainConfig, {**flags, "batch_size": size})) for size in (1, 2))
    assert len(two.target_views()) == len(one.target_views(full_image=True)) == 2  # crops have one size
    message = error_of(lambda: two.target_views(full_image=True))
    assert message.startswith(f"{target}: found training images of 80x40 (a.jpg) and 90x40 (b.jpg)")
    assert "80x40 (a.jpg) and 90x40 (b.jpg)" in error_of(lambda: one.statistics_batches())  # for AdaBN


def test_a_file_name_that_no_prediction_could_have_is_told_before_work(tmp_path, capsys):
    photo(tmp_path / "rgb/good.jpg", (80, 40)), photo(tmp_path / "rgb/line\nend.jpg", (80, 40))
    target = describe(tmp_path, '[train]\nimages = "rgb"\n')
    flags = [f"--output={tmp_path}/check", f"--target={target}", "--parts=train", "--num_workers=0"]
    flags += ["--mean_width=80", "--crop_width=16", "--crop_height=8"]
    assert main([f"{ROOT}/experiments/check_data.py", *flags]) == 1
    assert read_summary(tmp_path / "check")["train"]["problems"] == [
        f"{target}: 'line\\nend' cannot name a file in pseudo_labels: expected printable characters, no path "
        "separators, no leading dot"
    ]
    torch.save({"model": build_network("tiny", 19).state_dict()}, tmp_path / "model.pt")
    flags = [f"--output={tmp_path}/run", f"--weights={tmp_path}/model.pt", "--backbone=tiny", "--num_workers=0"]
    assert main([f"{ROOT}/experiments/predict.py", f"--images={tmp_path}/rgb", *flags]) == 2
    assert f"'line\\nend' cannot name a file in {tmp_path}/run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


COLORED = """labels_are = "colors"
classes = [
  { name = "road", color = [[128, 64, 128], [1, 2, 3]] },
  { name = "car", color = [0, 0, 142] },
]
ignore = [0, 0, 0]
[train]
images = "rgb"
labels = "colors"
"""


def colored(folder: Path, *colors, text: str = COLORED) -> Path:
    photo(folder / "rgb/a.jpg", (len(colors), 1))
    save(folder / "colors/a.png", [list(colors)])
    return describe(folder, text, "colored.toml")


def test_colors_become_class_numbers_and_ignored_ones_no_class(tmp_path):
    opaque = [(*color, 255) for color in ((1, 2, 3), (0, 0, 142), (0, 0, 0), (128, 64, 128))]
    own = read_description(colored(tmp_path, *opaque, (1, 2, 3, 0)))  # a transparent pixel has no label
    labels = own.open("train", own.space, with_labels=True)[0].labels
    assert labels.tolist() == [[0, 1, IGNORE, 0, IGNORE]] and labels.dtype == np.uint8
    assert own.space.colors.tolist() == [[128, 64, 128], [0, 0, 142]] and own.space.ids.tolist() == [0, 1]


def test_colors_in_no_class_are_named_with_their_pixels_and_their_file(tmp_path):
    strange = [(9, 9, 9)] * 2 + [(26, 43, 60)] * 3 + [(1, 1, 1), (2, 2, 2)]
    own = read_description(colored(tmp_path, (0, 0, 142), *strange))
    assert error_of(lambda: own.open("train", own.space, with_labels=True)[0]).startswith(
        f"{tmp_path}/colors/a.png: unknown color #1a2b3c (26, 43, 60) in 3 pixels, #090909 (9, 9, 9) in 2 pixels, "
        "#010101 (1, 1, 1) in 1 pixels, and 1 more colors; "
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"colors"\nclasses', '"colours"\nclasses', 'labels_are = \'colours\': expected "ids" or "colors"'),
        ("color = [0, 0, 142]", "color = [0, 0, 256]", "class car: color = [0, 0, 256]: expected [red, green, blue]"),
        ("color = [0, 0, 142]", "ids = 3", 'class car: ids = ... with labels_are = "colors"; expected color'),
        (", color = [0, 0, 142]", "", "class car: color = None: expected [red, green, blue] in 0..255, or a list"),
        ("[0, 0, 142]", "[1, 2, 3]", "color [1, 2, 3] of class car belongs to road already"),
        ("[0, 0, 142]", "[0, 0, 0]", "color [0, 0, 0] of class car belongs to ignore already"),
        ("ignore = [0, 0, 0]", "ignore = [0, 4]", "ignore = [0, 4]: expected colors [[red, green, blue], ...]"),
    ],
)
def test_a_mistake_in_a_table_of_colors_is_one_line(tmp_path, old, new, message):
    assert old in COLORED
    path = describe(tmp_path, COLORED.replace(old, new))
    assert f"{path}: {message}" in error_of(lambda: read_description(path))


def test_the_fingerprint_of_a_table_of_colors_is_of_its_colors(tmp_path):
    def fingerprint(text: str) -> str:
        return read_description(describe(tmp_path, text)).fingerprint()

    first = fingerprint(COLORED)
    assert fingerprint(COLORED.replace("[0, 0, 0]", "[[0, 0, 0]]")) == first
    assert fingerprint(COLORED.replace("142", "143")) != first


def test_source_and_target_may_code_the_same_classes_in_two_ways(tmp_path):
    source, target = simulator(tmp_path), colored(tmp_path, (0, 0, 142), (1, 2, 3), (0, 0, 0), (1, 2, 3))
    domains = Domains(config(source=str(source), target=str(target)))
    assert domains.open("source", "train", with_labels=True)[0].labels.tolist() == [[IGNORE, 1, 0, 0]]
    assert domains.open("target", "train", with_labels=True)[0].labels.tolist() == [[1, 0, IGNORE, 0]]
    domains = Domains(config(source=str(target), target=str(source)))
    assert domains.open("source", "train", with_labels=True)[0].labels.tolist() == [[1, 0, IGNORE, 0]]


def test_check_data_names_unknown_colors_and_their_images_can_be_skipped(tmp_path, capsys):
    for name in "bc":
        photo(tmp_path / f"rgb/{name}.jpg", (32, 16))
        save(tmp_path / f"colors/{name}.png", np.full((16, 32, 3), (0, 0, 142)))
    path = colored(tmp_path, *[(9, 9, 9)] * 3)
    flags = [f"--source={path}", f"--target={path}", "--parts=source", "--num_workers=0", f"--output={tmp_path}/check"]
    flags += ["--mean_width=32", "--crop_width=12", "--crop_height=6"]
    assert main([f"{ROOT}/experiments/check_data.py", *flags]) == 1
    assert f"PROBLEM {tmp_path}/colors/a.png: unknown color #090909 (9, 9, 9) in 3 pixels;" in capsys.readouterr().out
    assert main([f"{ROOT}/experiments/check_data.py", *flags, f"--skip_bad={tmp_path}/check/bad_files.txt"]) == 0


def config(**flags) -> DataConfig:
    return make_config(DataConfig, flags)


def test_the_source_decides_on_the_classes_and_the_target_on_its_ids(tmp_path):
    source = simulator(tmp_path)
    plain = describe(tmp_path, '[train]\nimages = "rgb"\n', "plain.toml")
    coded = describe(
        tmp_path,
        'classes = [{ name = "road", ids = 8 }, { name = "car", ids = 9 }]\n[train]\nimages = "rgb"\n',
        "coded.toml",
    )
    assert Domains(config(source=str(source), target=str(plain))).classes.ids.tolist() == [3, 1]
    space = Domains(config(source=str(source), target=str(coded))).classes
    assert space.names == ["road", "car"] and space.ids.tolist() == [8, 9] and space.colors[1].tolist() == [0, 0, 142]
    assert Domains(config(source="synthia", target=str(plain))).classes.ids[:3].tolist() == [7, 8, 11]


def test_source_and_target_that_do_not_go_together_are_refused(tmp_path):
    source = str(simulator(tmp_path))
    assert "needs --target=NAME.toml" in error_of(lambda: Domains(config(source=source)))
    plain = str(describe(tmp_path, '[train]\nimages = "rgb"\n', "plain.toml"))
    other = describe(tmp_path, 'classes = [{ name = "car" }, { name = "road" }]\n[train]\nimages = "rgb"\n')
    found = error_of(lambda: Domains(config(source=source, target=str(other))))
    assert "its classes are car, road; expected those of the source in the same order: road, car" in found
    assert "has 2 classes" in error_of(lambda: Domains(config(source=source, target=plain, num_classes=19)))
    assert "no classes" in error_of(lambda: Domains(config(source=plain, target=plain)))


def test_a_flag_takes_a_benchmark_or_a_toml_file():
    with pytest.raises(UserError, match=r"--target=photos: expected one of 'cityscapes', 'camvid', or a file"):
        config(target="photos")


def test_photographs_without_labels_stand_in_for_validation(tmp_path):
    for number in range(3):
        photo(tmp_path / f"rgb/{number}.jpg")
    target = str(describe(tmp_path, '[train]\nimages = "rgb"\n', "photos.toml"))
    images = Domains(config(target=target)).validation
    assert len(images) == 3 and images[0].labels is None


def test_pseudo_labels_are_stale_when_the_description_or_the_precision_has_changed(tmp_path):
    photo(tmp_path / "rgb/a.jpg")
    target, text = tmp_path / "photos.toml", 'size = [8, 4]\n[train]\nimages = "rgb"\n'

    def labels(description: str = text, **flags):
        target.write_text(description)
        flags = {"pseudo_labels": str(tmp_path / "labels")} | flags
        settings = make_config(pseudo_labels.Config, {"target": str(target), **flags})
        network = SimpleNamespace(origin="0" * 64)
        store = label_store(settings, Domains(settings), "hard", network, flip=True)
        store.open()
        return store

    labels().write("a", torch.zeros(4, 8).long(), torch.ones(4, 8))
    assert labels().missing(["a"]) == []
    assert "amp: found 'off', expected 'bf16'; delete the folder" in error_of(lambda: labels(amp="bf16"))
    found = error_of(lambda: labels(text.replace("[8, 4]", "[16, 8]")))
    assert "stale: size: found [8, 4], expected [16, 8]; delete" in found
    elsewhere = tmp_path / "moved.toml"  # only its content counts
    elsewhere.write_text("# a comment\n" + text)
    assert labels(target=str(elsewhere)).missing(["a"]) == []


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which every code block of the document has been run, in order."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    variables: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, text in re.findall(r"```(python|toml|bash)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
            if language == "python":
                exec(compile(text, str(DOCUMENT), "exec"), {})
            elif language == "toml":
                Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
            else:
                for line in text.splitlines():
                    line = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)
                    if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
                        variables[assignment[1]] = assignment[2]
                    else:
                        command = shlex.split(line)
                        assert command[:2] == ["python", "run.py"]
                        assert main(command[2:]) == 0, line
    return folder


def test_every_command_of_the_document_runs_and_its_outputs_are_where_it_says(followed):
    assert {"check_data", "warmup", "stage1_denoise", "stage2_distill", "stage3_distill"} <= {
        path.name for path in (followed / "runs").iterdir()
    }
    assert "class_7" in read_description(followed / "my_data.toml").space.names
    for file in (
        "check_data/classes.png",
        "check_data/examples_source.jpg",
        "evaluate/confusion.png",
        "warmup/label_free.pt",
        "warmup/best.pt",
    ):
        assert (followed / "runs" / file).is_file(), file


def test_results_of_own_data_carry_the_classes_of_the_description(followed):
    names = [entry["name"] for entry in tomllib.loads(blocks("toml")[0])["classes"]]
    assert list(read_summary(followed / "runs/evaluate")["iou"]) == names
    assert read_summary(followed / "runs/evaluate")["miou"] > 0
    check = read_summary(followed / "runs/check_data")
    assert check["source"]["images"] == 8 and check["train"]["labelled"] == 0 and check["val"]["labelled"] == 4
    assert sum(check["source"]["class_frequencies"].values()) == pytest.approx(1)


def test_predictions_of_own_images_are_class_numbers_and_overlays(followed):
    for number in range(4):
        labels = Image.open(followed / f"runs/predict/labels/{number:03}.png")
        assert labels.mode == "P" and labels.size == (256, 128) and np.asarray(labels).max() < 8
        width, height = Image.open(followed / f"runs/predict/overlays/{number:03}.jpg").size
        assert width == 256 and height > 128  # a legend is under it


def test_training_does_without_labels_of_the_target(followed, monkeypatch, capsys):
    monkeypatch.chdir(followed)
    Path("bare.toml").write_text('[train]\nimages = "photos/train"\n')
    flags = "--source=my_simulator.toml --target=bare.toml --backbone=tiny --num_workers=0 --mean_width=275"
    flags += " --crop_width=112 --crop_height=64 --iterations=1 --batch_size=2 --init=random --output=runs/bare"
    assert main(["experiments/warmup.py", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert "label-free score only: bare.toml has no labels under [val]" in out
    summary = read_summary("runs/bare")
    assert summary["miou"] is None and summary["label_free"] > 0
    assert not Path("runs/bare/best.pt").exists() and Path("runs/bare/label_free.pt").exists()
