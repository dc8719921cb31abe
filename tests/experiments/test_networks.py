"""Other networks than the published one, on the command line: training, distillation, prediction."""

import re
from pathlib import Path

import pytest
import torch

from proda.cli.launch import main
from proda.data.labels import class_names
from proda.models.build import build_network
from proda.models.weights import load_prototypes, load_weights, save_weights
from tests import small_runs

ADAMW = {"optimizer": "adamw", "lr": 6e-5, "weight_decay": 0.01, "warmup_iterations": 2, "decay_power": 1.0}
PARTS = {"rare_class_sampling": True, "class_mix": True, "color_augmentation": True, "masked_consistency": 1.0}
PARTS |= {"feature_distance": 0.005, "ignore_top": 0, "ignore_bottom": 0, "val_every": 3}
VIT = "timm:vit_tiny_patch16_224"
# Stage, backbone, head and more flags.
SMALL = [
    ("stage1_denoise", "tiny", "daformer", {}),
    ("stage1_denoise", "timm:convnext_atto", "daformer", ADAMW),
    ("stage1_denoise", VIT, "deeplab", ADAMW | {"checkpoint_activations": True}),
    ("stage1_denoise", "timm:tf_efficientnet_lite0", "light", {}),
    ("online_self_training", VIT, "daformer", ADAMW | PARTS | {"adabn": False}),
]
LARGE = [
    ("convnext_tiny", "daformer", ADAMW),
    ("swin_v2_t", "deeplab", ADAMW),
    ("timm:vit_small_patch14_dinov2", "daformer", ADAMW | {"amp": "bf16"}),
    ("resnet101", "deeplab", {}),  # the released network
]


def weights_of(backbone: str, head: str, path: Path) -> Path:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    save_weights(path, build_network(backbone, 13, head=head), class_names=class_names(13), mean_width=96)
    return path


def command(stage: str, /, *args, **more) -> int:
    return small_runs.train_as_command(stage, *args, **{"iterations": 2} | more)


def trained(stage: str, data: Path, tmp_path: Path, backbone: str, head: str, more: dict) -> None:
    """Two iterations of a stage; then what it leaves predicts in tiles, without a flag about the network."""
    weights, run = weights_of(backbone, head, tmp_path / "warmup.pt"), tmp_path / "run"
    assert command(stage, data, weights, run, backbone=backbone, head=head, **more) == 0
    before, after = load_weights(weights), load_weights(run / "last.pt")
    assert (after.info.backbone, after.info.head, after.info.iteration) == (backbone, head, 2)
    if stage == "stage1_denoise":
        prototypes = load_prototypes(run / "prototypes.pt")
        assert (
            prototypes.shape == (13, {"tiny": 32, "timm:tf_efficientnet_lite0": 64}.get(backbone, 256))
            and prototypes.isfinite().all()
        )
    if backbone == VIT and more.get("adabn") is not False:
        assert "--adabn has no effect: the network has no batch norm" in (run / "train.log").read_text()
    moved = [name for name, value in after.model.items() if not torch.equal(value, before.model[name])]
    assert len(moved) > 0.9 * sum(value.is_floating_point() for value in after.model.values())
    assert all(value.isfinite().all() for value in after.model.values())
    images = next(path for path in data.rglob("*leftImg8bit.png"))
    predict = ["experiments/predict.py", f"--weights={run}/last.pt", f"--images={images}", "--tile=64", "--device=cpu"]
    assert main([*predict, f"--output={tmp_path / 'predicted'}", "--num_workers=0"]) == 0


@pytest.mark.parametrize(("stage", "backbone", "head", "more"), SMALL, ids=[f"{b}-{h}" for _, b, h, _ in SMALL])
def test_a_stage_trains_it_and_its_file_predicts(data, tmp_path, stage, backbone, head, more):
    trained(stage, data, tmp_path, backbone, head, more)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head", "more"), LARGE, ids=[f"{b}-{h}" for b, h, _ in LARGE])
@pytest.mark.parametrize("stage", ["stage1_denoise", "online_self_training"])
def test_a_stage_trains_a_network_of_usual_size(data, tmp_path, stage, backbone, head, more):
    more = more | ({"ignore_bottom": 0, "ignore_top": 0} if stage == "online_self_training" else {})
    trained(stage, data, tmp_path, backbone, head, more)


def test_a_vit_is_distilled_into_a_small_network_which_goes_on_as_its_own_teacher(data, tmp_path, capsys):
    """The files of the networks that predict say what they are; --backbone and --head are the student's."""
    teacher = weights_of(VIT, "daformer", tmp_path / "teacher.pt")
    other = small_runs.write_weights(tmp_path / "other.pt")  # tiny, with the published head
    more = {"head": "daformer", "init": "random", "label_with": other}
    # The plan counts the teacher as its file describes it.
    assert command("stage2_distill", data, teacher, tmp_path / "2", **more, plan=True) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters"))
    student, vit = build_network("tiny", 13, head="daformer", bn_pretrain=True), load_weights(teacher).model
    numbers = [sum(p.numel() for p in student.parameters()), sum(value.numel() for value in vit.values())]
    assert f"student {numbers[0] / 1e6:.1f} million" in line and f"teacher {numbers[1] / 1e6:.1f} million" in line
    assert not (tmp_path / "2").exists()
    assert command("stage2_distill", data, teacher, tmp_path / "2", **more) == 0
    found = load_weights(tmp_path / "2/last.pt").info
    assert (found.backbone, found.head) == ("tiny", "daformer")
    assert command("stage3_distill", data, tmp_path / "2/last.pt", tmp_path / "3", head="daformer") == 0


@pytest.mark.parametrize(
    ("stage", "more", "expected"),
    [
        ("stage1_denoise", {"head": "daformer"}, "tiny.pt: found weights of --head=deeplab, expected --head=daformer"),
        ("warmup", {"optimizer": "adamw", "as_released": True}, "--as_released: the released code has --optimizer=sgd"),
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


def test_the_start_of_a_run_says_where_the_weights_of_the_backbone_came_from(data, tmp_path):
    file, more = tmp_path / "resnet50.pth", {"backbone": "resnet50", "init": "imagenet", "iterations": 1}
    torch.save(
        {key: value for key, value in build_network("resnet50", 13).state_dict().items() if "layer5" not in key}, file
    )
    assert command("source_only", data, "", tmp_path / "run", init_file=file, **more) == 0
    log = (tmp_path / "run/train.log").read_text()
    assert re.search(rf"initial weights +{re.escape(str(file))}: \d+ of the backbone's \d+ tensors loaded", log)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("backbone", ["convnext_tiny", VIT, "timm:vit_small_patch14_dinov2"])
def test_a_network_is_exported_with_free_height_and_width(tmp_path, backbone, format):
    """``export`` compares the file with the network at three sizes before it gets its name."""
    weights = weights_of(backbone, "daformer", tmp_path / "last.pt")
    flags = [f"--weights={weights}", f"--format={format}", f"--output={tmp_path / 'exported'}", "--device=cpu"]
    assert main(["experiments/export.py", *flags, "--latency=False"]) == 0
    assert (tmp_path / f"exported/last.{format}").is_file()
