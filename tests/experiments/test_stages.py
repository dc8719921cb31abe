"""Every experiment file runs some iterations from the command line and writes the documented files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proda.cli.launch import ROOT, main
from proda.data.labels import class_names
from proda.models.weights import load_prototypes, load_weights
from proda.streets import write_streets
from tests import small_runs

TRAINING = list(small_runs.STAGES)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Both sources and the target."""
    root = small_runs.write_data(tmp_path_factory.mktemp("streets"))
    write_streets(root, source="synthia", num_train=8, num_val=5, size=(96, 48))
    return root


def command(stage: str, *args, **more) -> int:
    flags = small_runs.flags(stage, *args, **{"iterations": 3, "panels_every": 2} | more)
    return main([f"experiments/{stage}.py", *(f"--{name}={value}" for name, value in flags.items())])


@pytest.fixture(scope="module")
def runs(data, weights, tmp_path_factory) -> Path:
    """One run of every stage of training."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in TRAINING:
        assert command(stage, data, weights, folder / stage) == 0
    return folder


def board(folder: Path) -> dict[str, list[str]]:
    return EventAccumulator(str(folder)).Reload().Tags()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", TRAINING)
def test_a_stage_writes_the_documented_files(runs, stage):
    names = {path.name for path in (runs / stage).iterdir()}
    expected = {"config.json", "train.log", "summary.json", "best.pt", "last.pt", "label_free.pt"}
    expected |= {"checkpoint_2.pt", "checkpoint_3.pt"}
    expected |= {"pseudo_labels"} if stage.startswith("stage") else set()
    expected |= {"prototypes.pt"} if stage == "stage1_denoise" else set()
    expected |= {"teacher.pt"} if stage == "online_self_training" else set()  # it judges the teacher
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events and names - events == expected


@pytest.mark.parametrize("stage", TRAINING)
def test_its_summary_has_the_documented_keys(runs, stage):
    summary = read(runs / stage / "summary.json")
    assert {"miou", "best_miou", "best_iteration", "label_free_miou", "iou", "iterations", "seconds"} <= set(summary)
    assert list(summary["iou"]) == class_names(13)
    assert summary["iterations"] == summary["iteration"] == 3 and summary["images_per_second"] > 0
    assert 0 <= summary["miou"] <= summary["best_miou"] <= 1


@pytest.mark.parametrize("stage", TRAINING[2:])
def test_its_summary_has_what_was_seen_of_its_labels(runs, stage):
    found = read(runs / stage / "summary.json")["label_quality"]
    assert found["last"] == found["history"][-1] and found["last"]["iteration"] == 3
    assert list(found["classes"]) == class_names(13) and found["died_out"] == []
    denoising = {"changed", "prototype_weight", "prototypes_moved", "changed_to_right", "miou_before"}
    assert (denoising <= found["last"].keys()) == (stage == "stage1_denoise")
    for name in ("kept", "confidence_student", "entropy_student", "agreement_student_labels", "miou_labels"):
        assert 0 <= found["last"][name] <= 1, name


@pytest.mark.parametrize("stage", TRAINING)
def test_its_config_says_what_was_run_with_what(runs, stage):
    config = read(runs / stage / "config.json")
    assert config["iterations"] == 3 and config["source"] == "gta5" and config["lr"] == 0.01
    assert {"command", "python", "torch", "pytorch-ignite", "git_commit", "processes", "started"} <= set(config["run"])


@pytest.mark.parametrize("stage", TRAINING)
def test_its_log_has_the_start_up_summary_and_the_validations(runs, stage):
    log = (runs / stage / "train.log").read_text()
    for word in ("device", "processes", "global batch", "iterations", "learning rate", "output", "iteration 3: mIoU"):
        assert word in log, word


@pytest.mark.parametrize("stage", TRAINING)
def test_its_weights_are_those_of_a_network_and_its_last_ones_of_the_last_iteration(runs, stage):
    last = load_weights(runs / stage / "last.pt")
    assert (last.info.iteration, last.info.num_classes, last.info.backbone) == (3, 13, "tiny")
    assert (last.info.stage, last.info.source, last.info.mean_width) == (stage, "gta5", 96)
    assert last.info.miou == read(runs / stage / "summary.json")["miou"] and len(last.info.git_commit) == 40
    assert (last.discriminator is not None) == (stage == "warmup")
    assert (last.prototypes is not None) == (stage == "stage1_denoise")
    checkpoint = small_runs.checkpoint(runs / stage, 3)
    assert all(torch.equal(value, checkpoint["student"][name]) for name, value in last.model.items())
    assert checkpoint["trainer"]["iteration"] == 3 and "optimizer" in checkpoint


@pytest.mark.parametrize("stage", TRAINING)
def test_its_board_has_losses_rates_scores_and_panels(runs, stage):
    tags = board(runs / stage)
    scalars = {"train/loss", "train/loss_source", "student/lr/group_0", "val/miou", "val/iou/road"}
    scalars |= {"discriminator/lr/group_0", "train/loss_adversarial"} if stage == "warmup" else set()
    scalars |= {"pseudo_labels/miou", "train/loss_target"} if stage.startswith("stage") else set()
    scalars |= {"train/ema_momentum", "train/loss_structure"} if stage == "stage1_denoise" else set()
    labels = stage.startswith("stage") or stage == "online_self_training"
    scalars |= {"labels_percent/kept", "truth_percent/miou_student"} if labels else set()
    parts = {f"train/loss_{name}" for name in ("target", "masked", "feature_distance")}
    scalars |= parts if stage == "online_self_training" else set()
    scalars |= {"classes_percent/road/source", "prototypes/road/moved"} if stage == "stage1_denoise" else set()
    assert scalars <= set(tags["scalars"])
    assert ("custom_scalars__config__" in tags["tensors"]) == labels
    target = set() if stage == "source_only" else {"train/target"}
    assert set(tags["images"]) == {"train/source", "val/panel"} | target


def test_stage_1_has_soft_labels_and_stages_2_and_3_hard_ones(runs):
    assert len(list((runs / "stage1_denoise/pseudo_labels/probabilities").iterdir())) == 8
    for stage in ("stage2_distill", "stage3_distill"):
        assert len(list((runs / stage / "pseudo_labels/labels").iterdir())) == 8
    assert load_prototypes(runs / "stage1_denoise/prototypes.pt").shape == (13, 32)


def test_stage_1_moves_student_teacher_and_prototypes(runs, weights):
    before, checkpoint = load_weights(weights).model, small_runs.checkpoint(runs / "stage1_denoise", 3)
    first = load_prototypes(runs / "stage1_denoise/prototypes.pt")
    key = "layer5.head.1.weight"
    student = (checkpoint["student"][key] - before[key]).norm()
    teacher = (checkpoint["teacher"][key] - before[key]).norm()
    assert 0 < teacher < 0.1 * student
    assert not torch.equal(checkpoint["prototypes"]["prototypes"], first)


@pytest.mark.parametrize(
    "more",
    [
        {"rectification": False, "structure_weight": 0.0},  # conventional self-training: the teacher is not run
        {"prototype_momentum": 0.0, "teacher_mode": "eval", "grad_clip": 0.5},
        {"renew_labels_every": 1, "amp": "bf16", "flip": True},
        {"renew_labels_every": 1, "renew_labels_from": "teacher", "rectification": False, "structure_weight": 0.0},
        {"preset": "synthia_released", "num_classes": 13},
    ],
    ids=lambda more: next(iter(more)),
)
def test_variants_of_stage_1(data, weights, tmp_path, more):
    assert command("stage1_denoise", data, weights, tmp_path / "run", **more) == 0
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["iterations"] == 3
    assert (tmp_path / "run/pseudo_labels/iteration_2").exists() == ("renew_labels_every" in more)


@pytest.mark.parametrize("used", [True, False], ids=["in the losses", "only judged"])
def test_a_teacher_that_follows_at_once_has_the_scores_of_the_student(data, weights, tmp_path, used):
    more = {"validate_teacher": True, "teacher_momentum": 1.0, "lr": 0.1}
    more |= {} if used else {"rectification": False, "structure_weight": 0.0}
    assert command("stage1_denoise", data, weights, tmp_path / "run", **more) == 0
    summary = read(tmp_path / "run/summary.json")
    own = {name: summary[name] for name in ("miou", "label_free", "iou", "overall_accuracy")}
    assert own == {name: summary[f"teacher_{name}"] for name in own}
    student, teacher = (load_weights(tmp_path / "run" / name) for name in ("last.pt", "teacher.pt"))
    assert teacher.info == student.info
    assert all(torch.equal(value, student.model[name]) for name, value in teacher.model.items())


def test_the_teacher_has_curves_and_a_file_that_other_commands_judge_alike(data, weights, tmp_path):
    run, more = tmp_path / "run", {"validate_teacher": True, "teacher_momentum": 0.3, "lr": 0.1}
    assert command("stage1_denoise", data, weights, run, **more) == 0
    summary = read(run / "summary.json")
    assert summary["teacher_label_free"] != summary["label_free"]
    assert {"val/teacher_miou", "val/teacher_iou/road", "val/teacher_label_free"} <= set(board(run)["scalars"])
    found = judge("evaluate", data, tmp_path / "judged", f"--weights={run}/teacher.pt")
    assert found["miou"] == pytest.approx(summary["teacher_miou"], rel=1e-6)
    assert command("stage2_distill", data, run / "teacher.pt", tmp_path / "next", iterations=1) == 0


def test_neither_validations_nor_a_judged_teacher_change_the_training(data, weights, tmp_path):
    """Also where the teacher writes the labels and the prototypes are computed anew."""
    more = {"renew_labels_every": 1, "renew_labels_from": "teacher", "renew_prototypes": True, "teacher_momentum": 0.3}
    assert command("stage1_denoise", data, weights, tmp_path / "1", **more, val_every=1, validate_teacher=True) == 0
    assert command("stage1_denoise", data, weights, tmp_path / "2", **more, val_every=9) == 0
    found, expected = (small_runs.checkpoint(tmp_path / name, 3) for name in "12")
    for part in (found, expected):
        del part["validation"]
    different = small_runs.differing(found, expected)
    assert all("running_" in name for name in different)  # of networks that normalise by batch statistics


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("source_only", {"train_on": "target"}),  # the oracle
        ("source_only", {"source": "synthia", "init": "random"}),
        ("warmup", {"source": "synthia", "freeze_bn": False, "gan": "vanilla"}),
        ("warmup", {"preset": "gta5_released"}),
        ("stage2_distill", {"preset": "gta5_released", "init": "random"}),  # so with the extra batch norm
        ("stage3_distill", {"source": "synthia"}),
    ],
)
def test_variants_of_the_other_stages(data, weights, tmp_path, stage, more):
    assert command(stage, data, weights, tmp_path / "run", **more) == 0
    model = load_weights(tmp_path / "run" / "last.pt").model
    assert ("bn_pretrain.weight" in model) == (stage == "stage2_distill")


def judge(experiment: str, data: Path, output: Path, *flags: str) -> dict:
    common = ["--num_classes=13", "--backbone=tiny", "--num_workers=0", "--device=cpu"]
    common += [f"--data_root={data}", f"--output={output}"]
    assert main([f"experiments/{experiment}.py", *common, *flags]) == 0
    return read(output / "summary.json")


def test_evaluate_gives_the_score_that_training_ended_with(runs, data, tmp_path):
    found = judge("evaluate", data, tmp_path, f"--weights={runs}/stage1_denoise/last.pt")
    expected = read(runs / "stage1_denoise/summary.json")
    assert found["miou"] == pytest.approx(expected["miou"], rel=1e-6) and found["iou"].keys() == expected["iou"].keys()


def test_evaluate_at_several_scales_with_the_mirror_image(data, weights, tmp_path):
    found = judge("evaluate", data, tmp_path, f"--weights={weights}", "--flip", "--scales=0.75,1,1.25")
    assert 0 <= found["miou"] <= 1
    assert read(tmp_path / "config.json")["scales"] == "0.75,1,1.25"


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_pseudo_labels_of_their_own_command_equal_those_of_a_stage_which_accepts_them(data, weights, tmp_path, kind):
    found = judge("pseudo_labels", data, tmp_path / "labels", f"--weights={weights}", f"--kind={kind}")
    assert found["written"] == found["images"] == 8 and 0 <= found["miou"] <= 1
    again = judge("pseudo_labels", data, tmp_path / "labels", f"--weights={weights}", f"--kind={kind}")
    assert again["written"] == 0
    stage = {"soft": "stage1_denoise", "hard": "stage2_distill"}[kind]
    folder = tmp_path / "labels" / "pseudo_labels"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command(stage, data, weights, tmp_path / "run", pseudo_labels=folder, iterations=1) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_prototypes_of_their_own_command_equal_those_of_stage_1(runs, data, weights, tmp_path):
    found = judge("prototypes", data, tmp_path, f"--weights={weights}", "--val_batch_size=2")
    assert list(found["images_with_class"]) == class_names(13)
    ours, theirs = (load_prototypes(folder / "prototypes.pt") for folder in (tmp_path, runs / "stage1_denoise"))
    torch.testing.assert_close(ours, theirs)


def test_labels_that_do_not_fit_at_resume_are_not_to_be_deleted(runs, data, weights, tmp_path, capsys):
    folder = shutil.copytree(runs / "stage1_denoise", tmp_path / "run")
    manifest = folder / "pseudo_labels/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "of other images"}))
    assert command("stage1_denoise", data, weights, folder, resume=True) == 2
    error = capsys.readouterr().err
    assert "stale: " in error and "a run can only be resumed with its own settings and data" in error
    assert "delete" not in error


def test_labels_and_prototypes_of_another_network_are_refused(runs, data, tmp_path, capsys):
    other = small_runs.write_weights(tmp_path / "other.pt", seed=1)
    folder = runs / "stage1_denoise"
    shared = {"pseudo_labels": folder / "pseudo_labels"}
    assert command("stage1_denoise", data, other, tmp_path / "run", **shared) == 2
    error = capsys.readouterr().err
    assert "these pseudo labels are stale: weights: found SHA-256" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert command("stage1_denoise", data, other, tmp_path / "run", prototypes=folder / "prototypes.pt") == 2
    assert "prototypes computed from other weights" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["source_only", "stage1_denoise"])
def test_a_loss_of_nan_ends_the_run_in_one_line_and_damages_no_file(data, weights, tmp_path, capsys, stage):
    output = tmp_path / "run"
    more = {"lr": 1000, "head_lr_factor": 1e9, "val_every": 1, "checkpoint_every": 1}
    assert command(stage, data, weights, output, **more) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "--grad_clip" in error[0]
    for file in output.glob("*.pt"):
        tensors = small_runs.numbers(torch.load(file, weights_only=True))
        assert all(value.isfinite().all() for name, value in tensors.items() if "validation" not in name), file
    assert not (output / "summary.json").exists()


def test_every_experiment_is_tried_somewhere():
    here = {path.stem for path in ROOT.glob("experiments/[a-z]*.py")}
    tried = {*TRAINING, "evaluate", "pseudo_labels", "prototypes"}
    elsewhere = {
        "ablation",
        "check_data",
        "describe_data",
        "export",
        "pipeline",
        "predict",
        "pretrain",
        "quickstart",
        "report",
    }  # have their own test files
    assert here <= tried | elsewhere and tried <= here
