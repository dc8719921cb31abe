"""Other networks than the published one, on the command line: training, distillation, pretraining, prediction."""

import json
from pathlib import Path

import pytest
import torch

from proda.cli.launch import main
from proda.data.labels import class_names
from proda.models.build import build_network
from proda.models.weights import load_weights, save_weights
from tests import small_runs

ADAMW = {"optimizer": "adamw", "lr": 6e-5, "weight_decay": 0.01, "warmup_iterations": 2, "decay_power": 1.0}
# Backbone, head and more flags.
SMALL = [
    ("tiny", "daformer", {}),
    ("timm:convnext_atto", "daformer", ADAMW | {"layer_decay": 0.9}),
    ("timm:vit_tiny_patch16_224", "daformer", ADAMW | {"layer_decay": 0.65, "adabn": False}),
    ("timm:vit_tiny_patch16_224", "deeplab", ADAMW | {"checkpoint_activations": True}),
]
LARGE = [
    ("convnext_tiny", "daformer", ADAMW | {"layer_decay": 0.8}),
    ("swin_v2_t", "deeplab", ADAMW),
    ("timm:vit_small_patch14_dinov2", "daformer", ADAMW | {"amp": "bf16"}),
    ("resnet101", "deeplab", {}),  # the released network
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.write_data(tmp_path_factory.mktemp("streets"))


def weights_of(backbone: str, head: str, path: Path) -> Path:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    save_weights(path, build_network(backbone, 13, head=head), class_names=class_names(13), mean_width=96)
    return path


def command(stage: str, *args, **more) -> int:
    flags = small_runs.flags(stage, *args, **{"iterations": 3, "panels_every": 2} | more)
    return main([f"experiments/{stage}.py", *(f"--{name}={value}" for name, value in flags.items())])


def trained(stage: str, data: Path, tmp_path: Path, backbone: str, head: str, more: dict) -> None:
    """Three iterations of a stage; then what it leaves predicts in tiles, without a flag about the network."""
    weights, run = weights_of(backbone, head, tmp_path / "warmup.pt"), tmp_path / "run"
    assert command(stage, data, weights, run, backbone=backbone, head=head, **more) == 0
    before, after = load_weights(weights), load_weights(run / "last.pt")
    assert (after.info.backbone, after.info.head, after.info.iteration) == (backbone, head, 3)
    if stage == "stage1_denoise":
        assert after.prototypes.shape == (13, 32 if backbone == "tiny" else 256) and after.prototypes.isfinite().all()
    moved = [name for name, value in after.model.items() if not torch.equal(value, before.model[name])]
    assert len(moved) > 0.9 * sum(value.is_floating_point() for value in after.model.values())
    assert all(value.isfinite().all() for value in after.model.values())
    images = next(path for path in data.rglob("*leftImg8bit.png"))
    predict = ["experiments/predict.py", f"--weights={run}/last.pt", f"--images={images}", "--tile=64", "--device=cpu"]
    assert main([*predict, f"--output={tmp_path / 'predicted'}", "--num_workers=0"]) == 0


@pytest.mark.parametrize(("backbone", "head", "more"), SMALL, ids=[f"{b}-{h}" for b, h, _ in SMALL])
def test_stage_1_trains_it_and_its_file_predicts(data, tmp_path, backbone, head, more):
    trained("stage1_denoise", data, tmp_path, backbone, head, more)


@pytest.mark.parametrize(("backbone", "head", "more"), SMALL[1:3], ids=[backbone for backbone, _, _ in SMALL[1:3]])
def test_online_self_training_with_all_of_its_parts_trains_it(data, tmp_path, backbone, head, more):
    parts = {"rare_class_sampling": True, "class_mix": True, "color_augmentation": True, "masked_consistency": 1.0}
    parts |= {"feature_distance": 0.005, "mask_block": 8, "ignore_top": 0, "ignore_bottom": 0, "val_every": 3}
    trained("online_self_training", data, tmp_path, backbone, head, more | parts)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head", "more"), LARGE, ids=[f"{b}-{h}" for b, h, _ in LARGE])
@pytest.mark.parametrize("stage", ["stage1_denoise", "online_self_training"])
def test_a_stage_trains_a_network_of_usual_size(data, tmp_path, stage, backbone, head, more):
    trained(
        stage, data, tmp_path, backbone, head, more | ({"ignore_bottom": 0, "ignore_top": 0} if stage[0] == "o" else {})
    )


def test_a_vit_is_distilled_into_a_small_network_which_goes_on_as_its_own_teacher(data, tmp_path):
    """The files of the networks that predict say what they are; --backbone and --head are the student's."""
    teacher = weights_of("timm:vit_tiny_patch16_224", "daformer", tmp_path / "teacher.pt")
    other = small_runs.write_weights(tmp_path / "other.pt")  # tiny, with the published head
    more = {"backbone": "tiny", "head": "daformer", "init": "random", "label_with": other}
    assert command("stage2_distill", data, teacher, tmp_path / "2", **more) == 0
    found = load_weights(tmp_path / "2/last.pt").info
    assert (found.backbone, found.head) == ("tiny", "daformer")
    more = {"backbone": "tiny", "head": "daformer"}
    assert command("stage3_distill", data, tmp_path / "2/last.pt", tmp_path / "3", **more) == 0


def test_a_students_file_of_another_network_is_refused(data, tmp_path, capsys):
    weights = small_runs.write_weights(tmp_path / "tiny.pt")
    assert command("stage1_denoise", data, weights, tmp_path / "run", head="daformer") == 2
    assert "tiny.pt: found weights of --head=deeplab, expected --head=daformer" in capsys.readouterr().err


def test_a_backbone_is_pretrained_and_fills_the_student(data, tmp_path):
    pytest.importorskip("timm")
    chosen, crop = {"backbone": "timm:convnext_atto"}, {"crop_width": 96, "crop_height": 64, "mean_width": 300}
    assert command("pretrain", data, tmp_path, tmp_path / "pretrain", **chosen, **crop) == 0
    teacher = small_runs.write_weights(tmp_path / "teacher.pt")
    more = chosen | {"head": "daformer", "init": "simclr", "init_file": tmp_path / "pretrain/last.pt"}
    assert command("stage2_distill", data, teacher, tmp_path / "run", **more) == 0


def test_adamw_resumes_bit_for_bit(data, tmp_path):
    weights = weights_of("tiny", "daformer", tmp_path / "warmup.pt")
    more = ADAMW | {"head": "daformer", "layer_decay": 0.9, "iterations": 4, "checkpoint_every": 2}
    assert command("source_only", data, weights, tmp_path / "whole", **more) == 0
    assert command("source_only", data, weights, tmp_path / "parts", **more, stop_after=2) == 0
    assert command("source_only", data, weights, tmp_path / "parts", **more, resume=True) == 0
    one, other = (small_runs.checkpoint(tmp_path / name, 4) for name in ("whole", "parts"))
    assert small_runs.differing(one, other) == []


@pytest.mark.parametrize(
    ("stage", "more", "expected"),
    [
        ("warmup", {"optimizer": "adamw", "repeat_backbone_parameters": True}, "--repeat_backbone_parameters is for"),
        ("warmup", {"layer_decay": 0.9, "repeat_backbone_parameters": True}, "--repeat_backbone_parameters is for"),
        ("warmup", {"head": "daformer", "init": "random", "freeze_bn": True}, "--freeze_bn with --head=daformer: the"),
        ("stage2_distill", {"backbone": "convnext_tiny", "init": "simclr"}, "found SimCLR weights of a ResNet"),
        ("source_only", {"backbone": "resnet18", "init": "random"}, "--backbone=resnet18: expected one of resnet101, "),
    ],
)
def test_what_does_not_go_together_is_one_line(data, tmp_path, capsys, stage, more, expected):
    weights = small_runs.write_weights(tmp_path / "tiny.pt")
    if more.get("init") == "simclr":
        torch.save({"state_dict": {"conv1.weight": torch.ones(1)}}, tmp_path / "r101.pth")
        more = more | {"init_file": tmp_path / "r101.pth"}
    assert command(stage, data, weights, tmp_path / "run", **more) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and expected in error[0]


def test_a_plan_counts_the_teacher_as_its_file_describes_it(data, tmp_path, capsys):
    teacher = weights_of("timm:vit_tiny_patch16_224", "daformer", tmp_path / "teacher.pt")
    more = {"head": "daformer", "plan": True, "optimizer": "adamw", "init": "random"}
    assert command("stage2_distill", data, teacher, tmp_path / "run", **more) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters"))
    student, vit = build_network("tiny", 13, head="daformer", bn_pretrain=True), load_weights(teacher).model
    numbers = [sum(p.numel() for p in student.parameters()), sum(value.numel() for value in vit.values())]
    assert f"student {numbers[0] / 1e6:.1f} million" in line
    assert f"teacher {numbers[1] / 1e6:.1f} million" in line
    assert not (tmp_path / "run").exists()


def test_statistics_of_a_network_without_batch_norm_are_said_to_be_none(data, tmp_path):
    backbone = "timm:vit_tiny_patch16_224"
    weights = weights_of(backbone, "deeplab", tmp_path / "warmup.pt")
    more = ADAMW | {"backbone": backbone, "init": "weights", "init_file": weights, "adabn": True, "iterations": 1}
    assert command("warmup", data, weights, tmp_path / "run", **more) == 0
    assert "--adabn has no effect: the network has no batch norm" in (tmp_path / "run/train.log").read_text()
    assert json.loads((tmp_path / "run/summary.json").read_text())["iterations"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("backbone", ["convnext_tiny", "timm:vit_tiny_patch16_224", "timm:vit_small_patch14_dinov2"])
def test_a_network_is_exported_with_free_height_and_width(tmp_path, backbone, format):
    """``export`` compares the file with the network at three sizes before it gets its name."""
    weights = weights_of(backbone, "daformer", tmp_path / "last.pt")
    flags = [
        f"--weights={weights}",
        f"--format={format}",
        f"--output={tmp_path / 'exported'}",
        "--device=cpu",
        "--latency=False",
    ]
    assert main(["experiments/export.py", *flags]) == 0
    assert (tmp_path / f"exported/last.{format}").is_file()
