"""Pretraining from the command line: its files, its resume, and stage 2 from its backbone."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import pretrain
from proda.cli.launch import main
from proda.handlers.stopping import Stopped
from proda.models.pretrained import load_simclr
from proda.settings.config import make_config
from proda.utils.errors import UserError
from tests import small_runs, tiny

SCORES = {"contrastive_loss", "image_accuracy", "region_accuracy", "alignment", "uniformity"}


def train(data: Path, output: Path, **more):
    return small_runs.train("pretrain", data, Path("none"), output, **more)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    flags = small_runs.flags("pretrain", data, Path("none"), folder, panels_every=2)
    assert main(["experiments/pretrain.py", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    return folder


def test_it_writes_the_documented_files(run):
    names = {path.name for path in run.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events and names - events == {
        *("config.json", "train.log", "summary.json", "last.pt", "checkpoint_4.pt", "checkpoint_5.pt")
    }
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == SCORES | {"iteration", "iterations", "seconds", "images_per_second"}
    assert summary["iteration"] == summary["iterations"] == 5
    log = (run / "train.log").read_text()
    for words in ("images                 8 of gta5, 8 of cityscapes", "iteration 4: contrastive loss", "alignment"):
        assert words in log, words


def test_its_board_has_losses_rate_scores_and_pairs_of_views(run):
    tags = EventAccumulator(str(run)).Reload().Tags()
    losses = {"train/loss", "train/loss_image", "train/loss_region", "student/lr/group_0"}
    assert losses | {f"val/{name}" for name in SCORES} <= set(tags["scalars"])
    assert set(tags["images"]) == {"train/source", "train/target"}


def test_its_file_holds_the_trained_backbone_alone_and_says_so(run):
    content = torch.load(run / "last.pt", weights_only=True)
    assert content["content"] == "pretrained backbone" and content["backbone"] == "tiny" and content["iteration"] == 5
    assert not any(name.startswith(("layer5", "image_projection")) for name in content["state_dict"])
    student = small_runs.checkpoint(run, 5)["student"]
    for name, value in content["state_dict"].items():
        assert torch.equal(value, student[f"network.{name}"]), name
    fresh = tiny.network()
    told = load_simclr(fresh, run / "last.pt")
    assert f"{len(content['state_dict'])} of the backbone's {len(content['state_dict'])} tensors loaded" in told


def test_stage_2_starts_from_it_with_a_head_of_its_own(run, data, weights, tmp_path):
    start_from = {"init": "simclr", "init_file": str(run / "last.pt"), "bn_pretrain": True, "lr": 1e-30}
    small_runs.train("stage2_distill", data, weights, tmp_path / "run", iterations=1, adabn=False, **start_from)
    student = torch.load(tmp_path / "run/last.pt", weights_only=True)["model"]
    for name, value in torch.load(run / "last.pt", weights_only=True)["state_dict"].items():
        if not name.endswith(("running_mean", "running_var")):
            assert torch.equal(student[name], value), name
    assert "bn_pretrain.weight" in student


def test_as_a_whole_network_or_for_another_backbone_it_is_refused(run, data, weights, tmp_path):
    file = str(run / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: found a pretrained backbone without a head, expected a whole netw"):
        small_runs.train("source_only", data, weights, tmp_path / "a", init="weights", init_file=file)
    flags = {"init": "simclr", "init_file": file, "backbone": "resnet50"}
    with pytest.raises(UserError, match=r"found weights of --backbone=tiny, expected --backbone=resnet50"):
        small_runs.train("source_only", data, weights, tmp_path / "b", **flags)


def test_it_goes_on_from_a_backbone(run, data, tmp_path):
    train(data, tmp_path / "run", init="simclr", init_file=str(run / "last.pt"), lr=1e-30, iterations=1)
    before, after = (torch.load(folder / "last.pt", weights_only=True) for folder in (run, tmp_path / "run"))
    assert torch.equal(after["state_dict"]["conv1.weight"], before["state_dict"]["conv1.weight"])


@pytest.mark.parametrize("more", [{}, {"num_workers": 2}], ids=["plain", "workers"])
def test_a_stopped_run_resumes_with_the_same_bits(run, data, tmp_path, more):
    for number, after in enumerate((1, 4)):  # in the warm-up, and at a validation
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", stop_after=after, resume=number > 0, **more)
    train(data, tmp_path / "run", resume=True, **more)
    assert not small_runs.differing(*(small_runs.checkpoint(folder, 5) for folder in (tmp_path / "run", run)))
    files = [torch.load(folder / "last.pt", weights_only=True) for folder in (tmp_path / "run", run)]
    assert not small_runs.differing(*files)


def test_neither_labels_nor_classes_nor_validation_images_are_needed(data, tmp_path):
    for domain, images in (("a", "gta5/images"), ("b", "cityscapes/leftImg8bit/train/*/*")):
        (tmp_path / f"{domain}.toml").write_text(f'[train]\nimages = "{data / images}"\n')
    own = {"source": str(tmp_path / "a.toml"), "target": str(tmp_path / "b.toml"), "num_classes": 0}
    summary = train(data, tmp_path / "run", iterations=2, **own)
    assert set(summary) > SCORES


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"init": "simclr"}, "--init=simclr needs --init_file: the converted SimCLRv2 r101 1x weights, or last.pt of"),
        ({"init": "imagenet"}, "--backbone=tiny has no ImageNet weights"),
        ({"region_weight": 2}, "--region_weight=2: expected a number from 0 to 1"),
        ({"temperature": 0}, "--temperature=0: expected a number from 0.001 to 1000"),
        ({"smallest_view": 0}, "--smallest_view=0: expected a number from 0.01 to 1"),
        ({"labelled_only": True}, "--labelled_only has no effect on pretraining, which reads no labels; remove it"),
        ({"batch_size": 9}, "--batch_size=9 exceeds the 8 training images of the source"),
        ({"crop_width": 400}, "--crop_width=400"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(data, tmp_path, capsys, flags, line):
    flags = small_runs.flags("pretrain", data, Path("none"), tmp_path / "run", **flags)
    assert main(["experiments/pretrain.py", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["gta5", "synthia"])
def test_the_presets_of_benchmarks_differ_in_the_source_alone(preset):
    config = make_config(pretrain.Config, {"preset": preset}, pretrain.PRESETS)
    published = {"temperature": 0.2, "region_weight": 0.5, "projection_dimensions": 128, "projection_width": 2048}
    published |= {"momentum": 0.9, "weight_decay": 1e-4}  # DenseCL
    assert {name: getattr(config, name) for name in published} == published
    assert config.source == preset and config.backbone == "resnet101"


def test_the_preset_of_streets_is_for_the_embedded_data():
    config = make_config(pretrain.Config, {"preset": "streets"}, pretrain.PRESETS)
    assert (config.backbone, config.data_root, config.crop_width) == ("tiny", "data/streets", 112)
    assert config.warmup_iterations < config.iterations
