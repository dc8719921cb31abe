"""check_data, evaluate and predict on small data."""

import csv
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import evaluate
from proda.cli.launch import main, start
from proda.data.benchmarks import open_dataset
from proda.data.check import spot_check
from proda.data.labelled_files import read_skip_list
from proda.data.labels import class_names
from proda.data.videos import VideoFile, writing_video
from proda.handlers.predictions import SaveConfidence
from proda.models.build import build_network
from proda.models.weights import save_weights
from proda.run import domains
from proda.run.config import DataConfig
from proda.run.domains import Domains
from proda.run.job import read_summary
from proda.settings.reading import make_config
from proda.trained_model import load_model
from proda.utils.errors import UserError
from tests import small_runs

VIEWS = ["--mean_width=96", "--crop_width=48", "--crop_height=24"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    return small_runs.write_data(folder / "data", num_val=2), small_runs.write_weights(folder / "model.pt")


def command(name, data, output, *flags) -> int:
    common = [f"--data_root={data}", f"--output={output}", "--num_classes=13", "--num_workers=0"]
    return main([str(small_runs.ROOT / f"experiments/{name}.py"), *common, *flags])


def test_data_without_problems_pass_the_check(inputs, tmp_path, capsys):
    assert command("check_data", inputs[0], tmp_path, *VIEWS) == 0
    assert "problems that would break a run: none found" in capsys.readouterr().out
    summary = read_summary(tmp_path)
    assert [summary[part]["images"] for part in ("source", "train", "val")] == [8, 8, 2]
    assert summary["source"]["sizes"] == {"96x48": 8} and (tmp_path / "classes.png").is_file()
    for part in ("source", "train", "val"):
        assert Image.open(tmp_path / f"examples_{part}.jpg").width > 1000


def test_what_would_break_a_run_is_named_and_gives_exit_status_1(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    cut = data / "gta5/images/00003.png"
    cut.write_bytes(cut.read_bytes()[:300])
    first, second = sorted(data.glob("cityscapes/gtFine/val/*/*_labelIds.png"))
    first.unlink()
    Image.fromarray(np.full((48, 96), 99, np.uint8)).save(second)
    assert command("check_data", data, tmp_path / "check", *VIEWS) == 1
    out = capsys.readouterr().out
    assert f"PROBLEM {cut}: not a complete image" in out and f"PROBLEM no label map {first}" in out
    assert f"PROBLEM {second}: unknown label id 99" in out  # existing label maps are still checked
    val = read_summary(tmp_path / "check")["val"]
    assert val["images"] == 2 and val["sizes"] == {"96x48": 1} and len(val["problems"]) == 2
    bad = tmp_path / "check/bad_files.txt"
    assert read_skip_list(bad, "source") == {"00003"} and read_skip_list(bad, "train") == set()
    assert read_skip_list(bad, "val") == {file.name.removesuffix("_gtFine_labelIds.png") for file in (first, second)}
    rest = open_dataset("gta5", data, num_classes=13, skip=read_skip_list(bad, "source"))
    assert len(rest) == 7 and len(spot_check(rest)) == 1


def test_labels_of_training_photographs_may_be_bad_or_missing(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    bad = next(data.glob("cityscapes/gtFine/train/*/*_labelIds.png"))
    bad.write_bytes(b"")
    assert command("check_data", data, tmp_path / "check", "--parts=train", *VIEWS) == 0
    assert f"ignoring these labels: {bad}: not a complete label map" in capsys.readouterr().out
    assert read_summary(tmp_path / "check")["train"]["labelled"] == 7
    bad.unlink()
    assert command("check_data", data, tmp_path / "check", "--parts=train", *VIEWS) == 0
    assert read_summary(tmp_path / "check")["train"]["labelled"] == 0


def test_one_part_alone_may_be_checked_and_views_that_do_not_fit_are_named(inputs, tmp_path, capsys):
    assert command("check_data", inputs[0], tmp_path, "--parts=source", "--mean_width=96") == 1
    summary = read_summary(tmp_path)
    assert "--mean_width=96 shrinks images of 96x48" in summary["source"]["problems"][0] and "val" not in summary
    assert command("check_data", inputs[0], tmp_path, "--parts=sauce") == 2
    assert "no part 'sauce'" in capsys.readouterr().err


def test_train_ids_in_place_of_label_ids_are_told(inputs, tmp_path, capsys):
    data, line = shutil.copytree(inputs[0], tmp_path / "data"), "no id above 18 occurs in any label map: the files seem"
    weights = f"--weights={inputs[1]}"
    assert command("check_data", data, tmp_path / "check", "--parts=val,source", *VIEWS) == 0
    assert command("evaluate", data, tmp_path / "run", weights) == 0
    assert line not in capsys.readouterr().out
    for file in data.glob("cityscapes/gtFine/val/*/*_labelIds.png"):
        Image.fromarray(np.tile(np.arange(96, dtype=np.uint8) % 19, (48, 1))).save(file)
    assert command("check_data", data, tmp_path / "checked", "--parts=val", *VIEWS) == 0
    out = capsys.readouterr().out
    assert f"WARNING {line}" in out and "none found" in out
    assert command("evaluate", data, tmp_path / "again", weights) == 0
    assert f"cityscapes val: {line}" in capsys.readouterr().out


def test_evaluation_refuses_several_sizes_in_one_batch_before_it_begins(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    for file in sorted(data.glob("cityscapes/*/val/*/*.png"))[::2]:
        Image.open(file).resize((48, 24), Image.Resampling.NEAREST).save(file)
    assert (
        command("evaluate", data, tmp_path / "run", f"--weights={inputs[1]}", "--val_batch_size=2", "--split=val") == 2
    )
    error = capsys.readouterr().err
    assert "found val images of " in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_several_processes_are_refused(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.check_data.idist.get_world_size", lambda: 2)
    assert command("check_data", inputs[0], tmp_path / "run", *VIEWS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: check_data was started in 2 processes: start it in one, without --nproc")
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_training_makes_a_spot_check_before_it_writes_anything(inputs, tmp_path):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    cut = data / "gta5/images/00001.png"
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"00001\.png: not a complete image"):
        small_runs.train("source_only", data, inputs[1], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_writes_scores_a_confusion_picture_and_a_submission(inputs, tmp_path):
    data, weights = inputs
    flags = [f"--weights={weights}", "--backbone=tiny", "--flip", "--scales=0.5,1", f"--predictions={tmp_path}/sent"]
    assert command("evaluate", data, tmp_path / "run", *flags) == 0
    assert len(read_summary(tmp_path / "run")["iou"]) == 13
    assert Image.open(tmp_path / "run/confusion.png").width > 13 * 34
    names = {path.name.removesuffix("_leftImg8bit.png") for path in data.glob("cityscapes/leftImg8bit/val/*/*.png")}
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {f"{name}_pred_labelIds.png" for name in names}
    for path in (tmp_path / "sent").iterdir():
        assert set(np.unique(Image.open(path))) <= {7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33}


@pytest.mark.parametrize(
    ("experiment", "flags", "message"),
    [
        (
            "evaluate",
            ["--weights=nowhere.pt"],
            "--weights=nowhere.pt: no such file; expected weights, as a stage leaves",
        ),
        (
            "evaluate",
            ["--num_classes=16"],
            "found weights for 13 classes, expected 16 classes (--source, --num_classes)",
        ),
        ("evaluate", ["--scales=0.001,1"], "--scales=0.001,1: expected numbers from 0.1 to 10, separated by commas"),
        ("evaluate", ["--split=valid"], "--split=valid: expected one of 'val', 'train', 'test'"),
        ("evaluate", ["--backbone=resnet50"], "found weights of --backbone=tiny, expected --backbone=resnet50"),
        ("predict", ["--backbone=resnet50"], "found weights of --backbone=tiny, expected --backbone=resnet50"),
        ("predict", ["--source=gta5"], "found weights for 13 classes, expected 19 classes (--source, --num_classes)"),
        ("predict", ["--tile=31"], "--tile=31: expected 0 or at least 32 pixels"),
        ("predict", ["--images=nowhere"], "--images=nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(inputs, tmp_path, capsys, experiment, flags, message):
    data, weights = inputs
    more = [f"--predictions={tmp_path}/sent"] if experiment == "evaluate" else [f"--images={data}/gta5/images"]
    common = [f"--weights={weights}", f"--data_root={data}", f"--output={tmp_path}/run", "--num_workers=0"]
    assert main([experiment, *common, *more, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_evaluation_needs_an_image_for_each_process_and_no_more(inputs, tmp_path, monkeypatch, capsys):
    flags = {"weights": str(inputs[1]), "data_root": str(inputs[0]), "output": str(tmp_path / "run"), "device": "cpu"}
    config = make_config(evaluate.Config, {**flags, "num_workers": 0, "num_classes": 13, "backbone": "tiny"})
    monkeypatch.setattr("experiments.evaluate.idist.get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"^fewer images than processes \(3\): start fewer processes$"):
        evaluate.run(0, config)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("experiments.evaluate.idist.get_world_size", lambda: 2)  # so this process has one image
    evaluate.run(0, config)
    assert re.search(r"images +2 cityscapes val", capsys.readouterr().out)


def test_an_error_has_its_own_line_next_to_an_open_progress_bar(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    first, cut = sorted(data.glob("cityscapes/leftImg8bit/val/*/*.png"))
    for number in range(4):  # of which a few are read before the run
        shutil.copy(first, first.with_name(f"ulm_0_{number}_leftImg8bit.png"))
    cut = first.with_name("ulm_0_2_leftImg8bit.png")
    cut.write_bytes(cut.read_bytes()[:300])
    flags = [f"--weights={inputs[1]}", "--split=test"]
    (data / "cityscapes/leftImg8bit/val").rename(data / "cityscapes/leftImg8bit/test")
    cut = Path(str(cut).replace("/val/", "/test/"))
    assert command("evaluate", data, tmp_path / "run", *flags) == 2
    lines = capsys.readouterr().err.splitlines()  # \r ends a line, too
    assert [line.partition("(")[0] for line in lines if "error" in line] == [f"error: {cut}: not a complete image "]


def test_a_split_without_labels_gives_predictions_and_no_score(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    (data / "cityscapes/leftImg8bit/val").rename(data / "cityscapes/leftImg8bit/test")
    flags = [f"--weights={inputs[1]}", "--backbone=tiny", "--split=test", f"--predictions={tmp_path}/sent"]
    assert command("evaluate", data, tmp_path / "run", *flags) == 0
    assert "cityscapes test has no labels" in capsys.readouterr().out
    assert read_summary(tmp_path / "run")["miou"] is None and len(list((tmp_path / "sent").iterdir())) == 2


def test_prediction_takes_a_folder_or_a_pattern(inputs, tmp_path):
    data, weights = inputs
    images = data / "gta5" / "images"
    flags = [f"--weights={weights}", "--backbone=tiny", f"--images={images}"]
    assert command("predict", data, tmp_path / "all", *flags) == 0
    assert len(list((tmp_path / "all/labels").iterdir())) == len(list((tmp_path / "all/overlays").iterdir())) == 8
    assert command("predict", data, tmp_path / "one", *flags[:2], f"--images={images}/*1.png") == 0
    assert [path.name for path in (tmp_path / "one/labels").iterdir()] == ["00001.png"]
    assert command("predict", data, tmp_path / "file", *flags[:2], f"--images={images}/00002.png") == 0
    assert [path.name for path in (tmp_path / "file/overlays").iterdir()] == ["00002.jpg"]


@pytest.mark.parametrize("kind", ["with all it says", "of an older version", "released"])
def test_a_weights_file_needs_no_other_flag(inputs, tmp_path, kind):
    """It knows its backbone and its classes, and those of Streets that it is for Streets."""
    weights = small_runs.write_weights(tmp_path / "last.pt")
    if kind == "of an older version":
        content = torch.load(weights, weights_only=True)
        old = {name: content[name] for name in ("model", "num_classes", "backbone", "class_names")}
        torch.save({"format": 2, **old}, weights)
    if kind == "released":
        model = torch.load(weights, weights_only=True)["model"]
        torch.save({"ResNet101": {"model_state": model}, "iter": 1}, weights)
    common = [f"--weights={weights}", "--num_workers=0"]
    images = inputs[0] / "gta5/images/00001.png"
    assert main(["predict", *common, f"--images={images}", f"--output={tmp_path}/predicted"]) == 0
    assert (tmp_path / "predicted/labels/00001.png").is_file()
    assert main(["evaluate", *common, f"--data_root={inputs[0]}", f"--output={tmp_path}/evaluated"]) == 0
    assert list(read_summary(tmp_path / "evaluated")["iou"]) == class_names(13)


def test_weights_trained_on_streets_are_evaluated_on_streets_and_predict_without_them(inputs, tmp_path, monkeypatch):
    content = torch.load(inputs[1], weights_only=True)
    torch.save({**content, "recipe": "streets"}, tmp_path / "last.pt")
    monkeypatch.delenv("PRODA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(domains, "write_streets", lambda root, **_: shutil.copytree(inputs[0], root))
    images = f"--images={inputs[0]}/gta5/images/00001.png"
    assert main(["predict", "--weights=last.pt", images, "--num_workers=0", "--output=predicted"]) == 0
    assert not Path("data").exists()
    assert main(["evaluate", "--weights=last.pt", "--num_workers=0", "--output=run"]) == 0
    assert len(read_summary("run")["iou"]) == 13 and Path("data/streets").is_dir()
    assert main(["evaluate", "--weights=last.pt", "--data_root=elsewhere", "--output=other"]) == 2


def test_own_classes_of_a_weights_file_need_no_description_of_the_source(inputs, tmp_path, capsys):
    """Only the images need one where there are labels; the classes and their ids are in the file."""
    network = build_network("tiny", 2)
    table = [1 if value == 7 else 0 for value in range(256)]  # Cityscapes' road, and all else
    own = {"class_names": ("other", "road"), "colors": ((1, 2, 3), (4, 5, 6)), "label_ids": tuple(table)}
    save_weights(tmp_path / "own.pt", network, **own)
    places = {kind: f"{inputs[0]}/cityscapes/{folder}/val" for kind, folder in (("i", "leftImg8bit"), ("l", "gtFine"))}
    (tmp_path / "photos.toml").write_text(
        f'[val]\nimages = "{places["i"]}/*/*_leftImg8bit.png"\nlabels = "{places["l"]}/*/*_gtFine_labelIds.png"\n'
    )
    flags = [f"--weights={tmp_path}/own.pt", "--num_workers=0", f"--target={tmp_path}/photos.toml"]
    assert main(["evaluate", *flags, f"--output={tmp_path}/run"]) == 0
    assert list(read_summary(tmp_path / "run")["iou"]) == ["other", "road"]
    assert main(["predict", *flags[:2], f"--images={inputs[0]}/gta5/images", f"--output={tmp_path}/predicted"]) == 0
    assert main(["evaluate", *flags[:2], f"--data_root={inputs[0]}", f"--output={tmp_path}/cityscapes"]) == 2
    assert "--target=cityscapes: its classes are not those of" in capsys.readouterr().err
    del own["label_ids"]
    save_weights(tmp_path / "own.pt", network, **own)
    assert main(["evaluate", *flags, f"--output={tmp_path}/older"]) == 2
    assert "does not say the ids of its classes; list the classes, or set --source" in capsys.readouterr().err


def test_prediction_leaves_out_the_photographs_on_a_list(inputs, tmp_path, capsys):
    data, weights = inputs
    photos, listed = tmp_path / "photos", tmp_path / "bad_files.txt"
    shutil.copytree(data / "gta5" / "images", photos)
    (photos / "00003.png").write_bytes(b"\x89PNG")
    flags = [f"--weights={weights}", "--backbone=tiny", f"--images={photos}"]
    assert command("predict", data, tmp_path / "named", *flags) == 1
    assert f"not predicted: {photos / '00003.png'}: not a complete image" in capsys.readouterr().out
    listed.write_text("images/00003\n00005\ntrain/00006\n0007\n")
    assert command("predict", data, tmp_path / "goes_on", *flags, f"--skip_bad={listed}") == 0
    assert f"names in {listed} that match no image: 1, the first is 0007" in capsys.readouterr().out
    names = {path.stem for path in (tmp_path / "goes_on/labels").iterdir()}
    assert names == {path.stem for path in photos.iterdir()} - {"00003", "00005"} and len(names) == 6


@pytest.mark.parametrize("output", ["photos", "photos/run", "photos/deep/er/run"])
def test_results_below_the_images_are_no_images_of_the_next_command(inputs, tmp_path, output, capsys):
    """Neither of the same command, nor of one with another output folder, nor for another command."""
    data, weights = inputs
    shutil.copytree(data / "gta5/images", tmp_path / "photos/deep")
    flags = [f"--weights={weights}", f"--images={tmp_path}/photos"]
    for run in (output, output, "photos/other"):
        assert command("predict", data, tmp_path / run, *flags) == 0
        assert read_summary(tmp_path / run)["images"] == 8
    assert "left out: results of a command (" in capsys.readouterr().out
    assert command("predict", data, tmp_path / "run", flags[0], f"--images={tmp_path}/photos/*/*.png") == 0
    assert read_summary(tmp_path / "run")["images"] == 8
    labels = tmp_path / output / "labels"  # named, they are read
    assert command("predict", data, tmp_path / "run", flags[0], f"--images={labels}") == 0
    assert read_summary(tmp_path / "run")["images"] == 8
    flags = [f"--images={tmp_path}/photos", f"--output={tmp_path}/described", f"--description={tmp_path}/a.toml"]
    assert main(["describe_data", *flags, "--num_workers=0"]) == 0
    assert read_summary(tmp_path / "described")["images"] == 8


def test_an_interrupted_prediction_leaves_no_figures_of_the_one_before(inputs, tmp_path, monkeypatch, capsys):
    def stop(self, engine) -> None:
        raise KeyboardInterrupt

    data, weights = inputs
    flags = [f"--weights={weights}", "--backbone=tiny", f"--images={data / 'gta5/images'}"]
    assert command("predict", data, tmp_path / "out", *flags) == 0
    assert (tmp_path / "out/shares.csv").exists() and (tmp_path / "out/summary.json").exists()
    monkeypatch.setattr(SaveConfidence, "__call__", stop)
    assert command("predict", data, tmp_path / "out", *flags) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not (tmp_path / "out/shares.csv").exists() and not (tmp_path / "out/summary.json").exists()


def test_results_of_other_images_in_the_folder_are_told(inputs, tmp_path, capsys):
    flags, images = [f"--weights={inputs[1]}"], inputs[0] / "gta5/images"
    for name, told in (("00003", False), ("00003", False), ("00005", True)):
        assert command("predict", inputs[0], tmp_path / "out", *flags, f"--images={images / name}.png") == 0
        line = f"{tmp_path}/out/labels: results of files that are not among --images stay there: 1, the first is 00003"
        assert (line in capsys.readouterr().out) == told


def test_files_with_the_longest_names_are_predicted_and_evaluated(inputs, tmp_path, capsys):
    """Every name that is derived from theirs fits, too; a second prediction knows the files of the first."""
    photo, labels = inputs[0] / "gta5/images/00001.png", inputs[0] / "gta5/labels/00001.png"
    names = ["图" * 80, "图" * 83, "a" * 251]
    folders = [tmp_path / "photos" / place for place in ("x" * 200, "x" * 200 + "/" + "y" * 200, "z" * 255)]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(photo, folder / f"{name}.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "labels", copy_function=lambda _, to: shutil.copy(labels, to))
    for _ in range(2):
        flags = [f"--weights={inputs[1]}", f"--images={tmp_path}/photos"]
        assert command("predict", inputs[0], tmp_path / "run", *flags) == 0
        assert "stay there" not in capsys.readouterr().out
    for folder in ("labels", "overlays", "confidence"):
        assert len(list((tmp_path / "run" / folder).iterdir())) == 9

    ids = ", ".join(f'{{ name = "{name}", ids = [{k}] }}' for k, name in enumerate(class_names(13)))
    description = tmp_path / f"{'d' * 250}.toml"
    images = 'images = "photos"\nlabels = "labels"\n'
    description.write_text(f"classes = [{ids}]\nignore = {[*range(13, 256)]}\n[train]\n{images}[val]\n{images}")
    flags = [f"--weights={inputs[1]}", f"--target={description}", f"--predictions={tmp_path}/submission"]
    assert command("evaluate", inputs[0], tmp_path / "evaluated", *flags) == 0
    assert len(list((tmp_path / "submission").iterdir())) == 9
    file = Domains(make_config(DataConfig, {"target": str(description), "num_classes": 13})).class_statistics_file(
        "target"
    )
    assert file.name.startswith("ddd") and file.name.endswith(".class_statistics.npz")
    file.touch()


def test_folders_whose_names_are_not_utf8_are_described_checked_evaluated_and_predicted(inputs, tmp_path):
    root = tmp_path / "d\udcff"
    for kind in ("images", "labels"):
        for folder in ("one\udcfe", "two\udcfe", "two\udcfd"):
            (root / kind / folder).mkdir(parents=True)
            shutil.copy(inputs[0] / f"gta5/{kind}/00001.png", root / kind / folder / "a.png")
    flags = [f"--weights={inputs[1]}", f"--images={root}/images"]
    assert command("predict", inputs[0], root / "run", *flags) == 0
    predicted = sorted(path.name for path in (root / "run/labels").iterdir())
    assert [name.partition("-")[0] for name in predicted] == ["one\N{REPLACEMENT CHARACTER}"] + 2 * [
        "two\N{REPLACEMENT CHARACTER}"
    ]
    rows = list(csv.DictReader((root / "run/shares.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows] == ["one\\udcfe-a", "two\\udcfd-a", "two\\udcfe-a"]

    description = root / "my_data.toml"
    places = {"images": str(root / "images"), "labels": str(root / "labels"), "output": str(tmp_path / "described")}
    start("describe_data", {**places, "num_workers": 0, "description": str(description)})
    assert '[train]\nimages = "images"\nlabels = "labels"\n' in description.read_text("utf-8")
    with pytest.raises(UserError, match="--images=d\udcff/images: this is not UTF-8, and a description has to be"):
        start("describe_data", {**places, "description": str(tmp_path / "my_data.toml")})

    ids = ", ".join(f'{{ name = "{name}", ids = [{k}] }}' for k, name in enumerate(class_names(13)))
    images = 'images = "images"\nlabels = "labels"\n'
    description.write_text(f"classes = [{ids}]\nignore = {[*range(13, 256)]}\n[train]\n{images}[val]\n{images}")
    target = f"--target={description}"
    assert command("check_data", inputs[0], root / "checked", f"--source={description}", target, *VIEWS) == 0
    assert command("evaluate", inputs[0], root / "evaluated", flags[0], target, f"--predictions={root}/made") == 0
    assert len(list((root / "made").iterdir())) == 3


def test_a_prediction_of_images_and_videos_of_any_size(inputs, tmp_path, capsys):
    """What cannot be read is named, the others are predicted, and the exit status says so."""
    av = pytest.importorskip("av", reason="needs the extra [video]")
    media = tmp_path / "media"
    media.mkdir()
    photo = Image.open(inputs[0] / "gta5/images/00001.png").convert("RGB")
    photo.save(media / "a.png")
    photo.resize((300, 70)).save(media / "wide.jpg", quality=95)
    (media / "cut.png").write_bytes(b"\x89PNG")
    (media / "cut.mp4").write_bytes(b"\x00")
    with writing_video(media / "drive.mp4", Fraction(12)) as video:
        for angle in range(3):
            video.write(np.asarray(photo.rotate(5 * angle)))
    flags = [f"--weights={inputs[1]}", f"--images={media},{tmp_path}/nowhere", "--val_batch_size=2", "--tile=128"]
    assert main(["predict", *flags, "--num_workers=0", f"--output={tmp_path}/run"]) == 1
    out, run = capsys.readouterr().out, tmp_path / "run"
    for line in (f"{tmp_path}/nowhere: no such", f"{media}/cut.png: not a comp", f"{media}/cut.mp4: cannot be dec"):
        assert f"not predicted: {line}" in out
    summary = read_summary(run)
    assert (summary["images"], summary["videos"], len(summary["not_predicted"])) == (3, 2, 3)
    assert {path.name for path in run.glob("*/*")} == {
        *("a.png", "a.jpg", "wide.png", "wide.jpg", "drive.mp4", "drive.csv")
    }
    for folder, suffix in (("labels", "png"), ("confidence", "png")):
        assert Image.open(run / folder / f"wide.{suffix}").size == (300, 70)
    rows = list(csv.DictReader((run / "shares.csv").open()))
    assert [(row["name"], row["width"], row["height"]) for row in rows] == [("a", "96", "48"), ("wide", "300", "70")]
    labels = np.asarray(Image.open(run / "labels/wide.png"))
    for number, name in enumerate(class_names(13)):
        assert float(rows[1][name]) == pytest.approx((labels == number).mean(), abs=1e-6)
    confidence = np.asarray(Image.open(run / "confidence/wide.png"))
    assert float(rows[1]["confidence"]) == pytest.approx(confidence.mean() / 255, abs=0.005)
    assert np.array_equal(labels, load_model(inputs[1], tile=128).predict(media / "wide.jpg"))
    assert Image.open(run / "legend.png").width >= 480
    with av.open(str(run / "videos/drive.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height, stream.frames) == (12, 96, 48, 3)
    assert [row["name"] for row in csv.DictReader((run / "videos/drive.csv").open())] == ["000000", "000001", "000002"]
    flags[1] = f"--images={media}/drive.mp4"
    assert main(["predict", *flags, "--num_workers=0", "--side_by_side", f"--output={tmp_path}/pair"]) == 0
    assert next(iter(VideoFile(tmp_path / "pair/videos/drive.mp4"))).shape == (48, 192, 3)


def test_a_released_checkpoint_of_16_classes_is_evaluated_on_16_and_on_13(inputs, tmp_path):
    network = build_network("tiny", 16)
    torch.save({"iter": 7, "ResNet101": {"model_state": network.state_dict()}}, tmp_path / "released.pkl")
    flags = [f"--data_root={inputs[0]}", f"--output={tmp_path}/run", "--num_workers=0", "--backbone=tiny"]
    experiment = str(small_runs.ROOT / "experiments/evaluate.py")
    assert main([experiment, *flags, "--source=synthia", f"--weights={tmp_path}/released.pkl"]) == 0
    summary = read_summary(tmp_path / "run")
    assert len(summary["iou"]) == 16
    of_13 = [iou for name, iou in summary["iou"].items() if name not in ("wall", "fence", "pole") and iou is not None]
    assert summary["miou_13"] == pytest.approx(sum(of_13) / len(of_13))


def test_stored_statistics_of_classes_are_compared_with_what_is_counted(inputs, tmp_path, capsys):
    data, weights = shutil.copytree(inputs[0], tmp_path / "data"), inputs[1]
    flags = {"iterations": 1, "rare_class_sampling": True}
    small_runs.train("source_only", data, weights, tmp_path / "run", **flags)
    stored = data / "gta5_13_classes.class_statistics.npz"
    assert stored.is_file()
    assert command("check_data", data, tmp_path / "check", *VIEWS) == 0
    with np.load(stored) as file:
        content = dict(file)
    content["pixels"][3, 0] += 1
    np.savez(stored, **content)
    capsys.readouterr()
    assert command("check_data", data, tmp_path / "again", *VIEWS) == 1
    assert f"{stored}: the pixels of 1 images differ from those stored; delete the file" in capsys.readouterr().out
    stored.write_bytes(b"damaged")
    assert command("check_data", data, tmp_path / "third", *VIEWS) == 1
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--feature_distance=1", "--thing_classes=road,dog"],
            "--thing_classes: no class 'dog'; expected some of road,",
        ),
        (["--ignore_top=10", "--ignore_bottom=14"], "nothing is left of crops of 24 rows"),
        (["--feature_distance=0", "--thing_classes=car"], "--thing_classes has no effect without --feature_distance"),
        (["--adabn", "--teacher_mode=eval"], "--teacher_mode=eval with --adabn"),
        (["--source_width=60"], "--source_width=60 shrinks images of 96x48"),
    ],
)
def test_flags_of_parts_that_cannot_be_used_are_one_line(inputs, tmp_path, capsys, flags, message):
    arguments = small_runs.command("online_self_training", *inputs, tmp_path / "run", iterations=1)[2:]
    assert main([*arguments, *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and not (tmp_path / "run").exists()


def test_where_no_pixel_has_a_class_the_reason_stands_in_the_place_of_a_score(inputs, tmp_path, capsys):
    data = shutil.copytree(inputs[0], tmp_path / "data")
    for path in data.glob("cityscapes/gtFine/val/*/*_labelIds.png"):
        Image.new("L", (96, 48), 0).save(path)  # unlabeled
    assert command("evaluate", data, tmp_path / "run", f"--weights={inputs[1]}", "--backbone=tiny") == 0
    out, err = capsys.readouterr()
    assert "no mIoU: no pixel has a class in the label maps" in out + err and "nan" not in (out + err).lower()


def test_weights_of_a_run_that_diverged_and_predictions_of_nan_are_one_line(inputs, tmp_path, capsys, monkeypatch):
    data, weights = inputs
    content = torch.load(weights)
    content["model"]["layer5.head.1.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.pt")
    content["model"]["layer5.head.1.weight"].fill_(3e38)  # finite, but no network can compute with them
    torch.save(content, tmp_path / "huge.pt")
    for name, message in (("nan.pt", "nan.pt: found"), ("huge.pt", "error: the network predicts NaN for ")):
        for kind, flags in (
            ("predict", [f"--images={data}/gta5/images/00001.png"]),
            ("evaluate", [f"--predictions={tmp_path}/written"]),
        ):
            assert command(kind, data, tmp_path / f"{kind}{name}", f"--weights={tmp_path / name}", *flags) == 2
            error = capsys.readouterr().err
            assert message in error and "Traceback" not in error
            assert not list(tmp_path.glob("*/labels/*")) and not list(tmp_path.glob("written/*"))
