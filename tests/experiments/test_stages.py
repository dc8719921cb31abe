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
from tests.small_runs import PARTS, STAGES, checkpoint, differing


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Both sources and the target."""
    root = small_runs.write_data(tmp_path_factory.mktemp("streets"))
    write_streets(root, source="synthia", num_train=8, num_val=5, size=(96, 48))
    return root


def command(stage: str, /, *args, **more) -> int:
    return small_runs.train_as_command(stage, *args, **{"iterations": 3} | more)


@pytest.fixture(scope="module")
def runs(data, weights, tmp_path_factory) -> Path:
    """One run of every stage of training."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        assert command(stage, data, weights, folder / stage) == 0
    return folder


def board(folder: Path) -> dict[str, list[str]]:
    return EventAccumulator(str(folder)).Reload().Tags()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(params=STAGES)
def stage(request) -> str:
    return request.param


def test_a_stage_writes_the_documented_files(runs, stage):
    names = {path.name for path in (runs / stage).iterdir()}
    expected = {"config.json", "data_files.json", "train.log", "summary.json", "best.pt", "last.pt", "label_free.pt"}
    expected |= {"checkpoint_2.pt", "checkpoint_3.pt"}
    expected |= {"pseudo_labels"} if stage.startswith("stage") else set()
    expected |= {"prototypes.pt"} if stage == "stage1_denoise" else set()
    expected |= {"teacher.pt"} if stage == "online_self_training" else set()  # it validates the teacher
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events and names - events == expected
    if stage == "stage1_denoise":
        assert len(list((runs / stage / "pseudo_labels/probabilities").iterdir())) == 8
        assert load_prototypes(runs / stage / "prototypes.pt").shape == (13, 32)
    elif stage.startswith("stage"):
        assert len(list((runs / stage / "pseudo_labels/labels").iterdir())) == 8


def test_its_summary_config_and_log_have_what_is_documented(runs, stage):
    summary = read(runs / stage / "summary.json")
    assert {"miou", "best_miou", "best_iteration", "label_free_miou", "iou", "iterations", "seconds"} <= set(summary)
    assert list(summary["iou"]) == class_names(13)
    assert summary["iterations"] == summary["iteration"] == 3 and summary["images_per_second"] > 0
    assert 0 <= summary["miou"] <= summary["best_miou"] <= 1
    config = read(runs / stage / "config.json")
    assert config["iterations"] == 3 and config["source"] == "gta5" and config["lr"] == 0.01
    made = {"command", "python", "torch", "pytorch-ignite", "git_commit", "processes", "started", "files", "data"}
    assert made <= set(config["run"]) and config["run"]["experiment"] == stage
    log = (runs / stage / "train.log").read_text()
    for word in ("device", "processes", "global batch", "iterations", "learning rate", "output", "iteration 3: mIoU"):
        assert word in log, word


@pytest.mark.parametrize("labelled", STAGES[2:])
def test_its_summary_has_what_was_seen_of_its_labels(runs, labelled):
    found = read(runs / labelled / "summary.json")["label_quality"]
    assert found["last"] == found["history"][-1] and found["last"]["iteration"] == 3
    assert list(found["classes"]) == class_names(13) and found["died_out"] == []
    denoising = {"changed", "prototype_weight", "prototypes_moved", "changed_to_right", "miou_before"}
    assert (denoising <= found["last"].keys()) == (labelled == "stage1_denoise")
    for name in ("kept", "confidence_student", "entropy_student", "agreement_student_labels", "miou_labels"):
        assert 0 <= found["last"][name] <= 1, name


def test_its_weights_are_those_of_a_network_and_its_last_ones_of_the_last_iteration(runs, stage):
    last = load_weights(runs / stage / "last.pt")
    assert (last.info.iteration, last.info.num_classes, last.info.backbone) == (3, 13, "tiny")
    assert (last.info.stage, last.info.source, last.info.mean_width) == (stage, "gta5", 96)
    assert last.info.miou == read(runs / stage / "summary.json")["miou"] and len(last.info.git_commit) == 40
    content = torch.load(runs / stage / "last.pt", weights_only=True)
    assert (content.get("prototypes") is not None) == (stage == "stage1_denoise")
    saved = checkpoint(runs / stage, 3)
    assert all(torch.equal(value, saved["student"][name]) for name, value in last.model.items())
    assert saved["trainer"]["iteration"] == 3 and "optimizer" in saved


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


def test_stage_1_moves_student_teacher_and_prototypes(runs, weights):
    before, saved = load_weights(weights).model, checkpoint(runs / "stage1_denoise", 3)
    key = "layer5.head.1.weight"
    student, teacher = ((saved[name][key] - before[key]).norm() for name in ("student", "teacher"))
    assert 0 < teacher < 0.1 * student
    first = load_prototypes(runs / "stage1_denoise/prototypes.pt")
    assert not torch.equal(saved["prototypes"]["prototypes"], first)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("source_only", {"train_on": "target"}),  # the oracle
        ("warmup", {"source": "synthia", "freeze_bn": False, "gan": "vanilla"}),
        ("warmup", {"preset": "gta5_released"}),
        # conventional self-training: the teacher is not run
        ("stage1_denoise", {"rectification": False, "structure_weight": 0.0}),
        ("stage1_denoise", {"prototype_momentum": 0.0, "teacher_mode": "eval", "grad_clip": 0.5}),
        ("stage1_denoise", {"renew_labels_every": 1, "amp": "bf16"}),
        ("stage1_denoise", {"preset": "synthia_released", "num_classes": 13}),
        ("stage2_distill", {"preset": "gta5_released", "init": "random"}),  # so with the extra batch norm
        ("stage2_distill", PARTS),
        ("stage3_distill", {"source": "synthia"}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_variants_of_stages(data, weights, tmp_path, stage, more):
    assert command(stage, data, weights, tmp_path / "run", **more) == 0
    assert read(tmp_path / "run/summary.json")["iterations"] == 3
    model = load_weights(tmp_path / "run/last.pt").model
    assert ("bn_pretrain.weight" in model) == (stage == "stage2_distill" and more is not PARTS)
    assert (tmp_path / "run/pseudo_labels/iteration_2").exists() == ("renew_labels_every" in more)


def test_stage_1_trains_online_as_it_does_on_stored_labels_and_stores_none(runs, data, weights, tmp_path):
    assert command("stage1_denoise", data, weights, tmp_path, online_soft_labels=True) == 0
    assert not (tmp_path / "pseudo_labels").exists()
    stored, online = (read(folder / "summary.json")["label_free"] for folder in (runs / "stage1_denoise", tmp_path))
    assert online == pytest.approx(stored, abs=0.02)  # stored ones are rounded


@pytest.mark.parametrize("used", [True, False], ids=["in the losses", "only validated"])
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


def test_a_validated_teacher_has_curves_and_a_file_and_changes_no_training(data, weights, tmp_path):
    run, more = tmp_path / "run", {"renew_labels_every": 1, "teacher_momentum": 0.3, "lr": 0.1}
    assert command("stage1_denoise", data, weights, run, **more, val_every=1, validate_teacher=True) == 0
    assert command("stage1_denoise", data, weights, tmp_path / "plain", **more, val_every=9) == 0
    found, expected = (checkpoint(folder, 3) for folder in (run, tmp_path / "plain"))
    for part in (found, expected):
        del part["validation"]
    # of networks that normalize by batch statistics
    assert all("running_" in name for name in differing(found, expected))
    summary = read(run / "summary.json")
    assert summary["teacher_label_free"] != summary["label_free"]
    assert {"val/teacher_miou", "val/teacher_iou/road", "val/teacher_label_free"} <= set(board(run)["scalars"])
    judged = judge("evaluate", data, tmp_path / "judged", f"--weights={run}/teacher.pt")
    assert judged["miou"] == pytest.approx(summary["teacher_miou"], rel=1e-6)
    assert command("stage2_distill", data, run / "teacher.pt", tmp_path / "next", iterations=1) == 0


def judge(experiment: str, data: Path, output: Path, *flags: str) -> dict:
    common = ["--num_classes=13", "--backbone=tiny", "--num_workers=0", "--device=cpu"]
    common += [f"--data_root={data}", f"--output={output}"]
    assert main([f"experiments/{experiment}.py", *common, *flags]) == 0
    return read(output / "summary.json")


def test_evaluate_gives_the_score_that_training_ended_with(runs, data, tmp_path):
    found = judge("evaluate", data, tmp_path, f"--weights={runs}/stage1_denoise/last.pt")
    expected = read(runs / "stage1_denoise/summary.json")
    assert found["miou"] == pytest.approx(expected["miou"], rel=1e-6) and found["iou"].keys() == expected["iou"].keys()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_pseudo_labels_of_their_own_command_equal_those_of_a_stage_which_accepts_them(data, weights, tmp_path, kind):
    for written in (8, 0):
        found = judge("pseudo_labels", data, tmp_path / "labels", f"--weights={weights}", f"--kind={kind}")
        assert (found["written"], found["images"]) == (written, 8) and ("miou" in found) == (written > 0)
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
    for shared, message in (
        ({"pseudo_labels": folder / "pseudo_labels"}, "these pseudo labels are stale: weights: found SHA-256"),
        ({"prototypes": folder / "prototypes.pt"}, "prototypes of other inputs: weights: found SHA-256"),
    ):
        assert command("stage1_denoise", data, other, tmp_path / "run", **shared) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_every_experiment_is_tried_somewhere():
    here = {path.stem for path in ROOT.glob("experiments/[a-z]*.py")}
    tried = {*STAGES, "evaluate", "pseudo_labels", "prototypes"}
    elsewhere = {"ablation", "check_data", "describe_data", "export", "pipeline", "predict", "quickstart", "report"}
    assert here <= tried | elsewhere and tried <= here
