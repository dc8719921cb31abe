"""A user's experiment with its own handler: what it has without a line of its own."""

import json
import signal

import pytest
import torch

from proda.cli.launch import main
from proda.engines.events import ProdaEvents
from tests import small_runs

FILE = "tests/experiments/my_experiment.py"
ITERATION = [
    "source_losses_ready",
    "source_backward_done",
    "teacher_forward_done",
    "labels_rectified",
    "extra_losses",
    "target_ready",
    "losses_ready",
    "backward_done",
    "optimizer_stepped",
    "prototypes_updated",
]


@pytest.fixture(scope="module")
def train(data, weights):
    """Runs it from its command line; returns the exit status."""

    def run(folder, **more) -> int:
        flags = small_runs.flags("stage1_denoise", data, weights, folder, **{"iterations": 3} | more)
        return main([FILE, *small_runs.as_words(flags)])

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    assert train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def summary(whole) -> dict:
    return json.loads((whole / "summary.json").read_text())


def test_its_handler_sees_the_events_in_the_documented_order(summary):
    moments = summary["moments"]
    around = ("before_weights_used", "labels_reported")
    named = [moment for moment in moments if moment not in around]
    assert named == ["pseudo_labels_refreshed", *ITERATION * 2, "validated", *ITERATION, "validated"]
    before = [moments[i - 1] for i, moment in enumerate(moments) if moment == "validated"]
    assert before == ["before_weights_used"] * 2 and "labels_reported" in moments
    documented = [event.value for event in ProdaEvents]
    assert [moment for moment in documented if moment in ITERATION] == ITERATION


def test_its_handler_finds_the_tensors_of_each_event(summary):
    assert len(summary["changed_labels"]) == 3 and all(0 <= share <= 1 for share in summary["changed_labels"])
    assert max(summary["changed_labels"]) > 0


def test_its_flags_are_checked_and_explained_as_any_others(capsys):
    assert main([FILE, "--wieghts=x.pt"]) == 2
    assert "unknown flag --wieghts; the nearest is --weights" in capsys.readouterr().err
    assert main([FILE, "--help"]) == 0
    assert "first student, first teacher" in capsys.readouterr().out


def test_it_shows_a_plan(train, tmp_path, capsys):
    assert train(tmp_path / "run", plan=True) == 0
    out = capsys.readouterr().out
    assert "my_experiment; nothing is written" in out and "teacher" in out and "in all" in out
    assert not (tmp_path / "run").exists()


def test_it_resumes_exactly(train, whole, tmp_path):
    with small_runs.stopped_after(1):
        assert train(tmp_path) == 128 + signal.SIGTERM
    assert train(tmp_path, resume=True) == 0
    assert not small_runs.differing(*(small_runs.checkpoint(folder, 3) for folder in (tmp_path, whole)))


def test_it_has_the_schedule_and_the_clipping_of_every_run(train, whole, weights, tmp_path):
    before, moved = torch.load(weights, weights_only=True)["model"], {}
    for name, more in (("clipped", {"grad_clip": 1e-6}), ("warming", {"warmup_iterations": 9999})):
        assert train(tmp_path / name, weight_decay=0, iterations=1, **more) == 0
        moved[name] = small_runs.checkpoint(tmp_path / name, 1)["student"]["conv1.weight"] - before["conv1.weight"]
    moved["plain"] = small_runs.checkpoint(whole, 3)["student"]["conv1.weight"] - before["conv1.weight"]
    assert 0 < moved["clipped"].norm() < 1e-5 < 0.01 * moved["plain"].norm()
    assert 0 < moved["warming"].norm() < 0.01 * moved["plain"].norm()


def test_it_stops_where_a_loss_is_not_finite(train, tmp_path, capsys):
    assert train(tmp_path, lr=1000, head_lr_factor=1e9) == 2
    assert "the loss is not a finite number" in capsys.readouterr().err


def test_it_takes_the_parts_of_successors(train, tmp_path, capsys):
    parts = {**small_runs.PARTS, "validate_teacher": True}
    assert train(tmp_path / "run", iterations=2, **parts) == 0
    losses = small_runs.scalars(tmp_path / "run")
    assert {"train/loss_feature_distance", "train/loss_masked", "val/teacher_miou"} <= losses.keys()
    assert train(tmp_path / "other", feature_distance=0.1, thing_classes="dog") == 2
    assert "no class 'dog'" in capsys.readouterr().err and not (tmp_path / "other").exists()
