"""A run that was interrupted and goes on is the run that was not interrupted."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events

from proda.handlers.checkpoints import Checkpoints
from proda.handlers.stopping import Stopped
from proda.handlers.validation import Validation
from proda.utils.errors import UserError
from proda.utils.run_files import MODELS
from tests import small_runs
from tests.small_runs import checkpoint, differing, scalars, stopped_after, train

ITERATIONS = 5


@pytest.fixture(scope="module")
def whole(data, weights, tmp_path_factory) -> Callable[..., Path]:
    """stage, flags -> the folder of a run that nobody interrupts; copy it, it is shared."""
    made: dict[str, Path] = {}

    def of(stage: str, **more) -> Path:
        key = f"{stage} {more}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            train(stage, data, weights, made[key], **more)
        return made[key]

    return of


@pytest.fixture
def complete(whole, tmp_path) -> Path:
    return shutil.copytree(whole("source_only"), tmp_path / "run")


@pytest.fixture
def assert_resumes_exactly(whole, data, weights, tmp_path) -> Callable:
    def of(stage: str, *stops: int, iterations: int = ITERATIONS, **more) -> None:
        more |= {"iterations": iterations}
        for number, k in enumerate(stops):
            with stopped_after(k):
                train(stage, data, weights, tmp_path, resume=number > 0, **more)
            assert checkpoint(tmp_path, k)["trainer"]["iteration"] == k and not (tmp_path / "summary.json").exists()
        train(stage, data, weights, tmp_path, resume=True, **more)
        found, expected = (checkpoint(folder, iterations) for folder in (tmp_path, whole(stage, **more)))
        assert len(small_runs.numbers(expected)) > 100
        assert not differing(found, expected), f"stopped after {stops}"
        names = {path.name for path in whole(stage, **more).glob("*.pt") if path.name in MODELS}
        assert names >= {"last.pt", "best.pt", "label_free.pt"}
        for name in names:
            both = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, whole(stage, **more)))
            assert not differing(*both), name

    return of


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_a_run_stopped_at_any_iteration_and_resumed_ends_with_the_same_bits(stage, assert_resumes_exactly):
    assert_resumes_exactly(stage, random.SystemRandom().randrange(1, ITERATIONS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_loader_processes_and_several_stops_change_nothing(stage, assert_resumes_exactly):
    stops = sorted(random.SystemRandom().sample(range(1, 9), 3))
    assert_resumes_exactly(stage, *stops, iterations=9, num_workers=2, seed=7)


@pytest.mark.parametrize("k", [2, 3], ids=["at a renewal", "between two"])
def test_a_run_whose_soft_labels_are_renewed_resumes_exactly(k, assert_resumes_exactly):
    assert_resumes_exactly("stage1_denoise", k, renew_labels_every=1)


def test_a_run_with_adamw_and_its_warm_up_resumes_exactly(assert_resumes_exactly):
    more = {"optimizer": "adamw", "lr": 6e-5, "weight_decay": 0.01, "warmup_iterations": 2, "decay_power": 1.0}
    assert_resumes_exactly("source_only", 2, head="deeplab", **more)


def test_a_run_stopped_while_its_teacher_is_validated_resumes_exactly(whole, data, weights, tmp_path, monkeypatch):
    attach, flags = Validation.attach, {"validate_teacher": True, "iterations": 3}

    def attach_and_ask(self, trainer, **settings) -> None:
        attach(self, trainer, **settings)
        teacher = self.evaluators["teacher_"]
        teacher.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: os.kill(os.getpid(), signal.SIGTERM))

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Validation, "attach", attach_and_ask)
        train("stage1_denoise", data, weights, tmp_path, **flags)
    assert checkpoint(tmp_path, 2)["validation"]["results"] == []
    assert not (tmp_path / "last.pt").exists()
    train("stage1_denoise", data, weights, tmp_path, resume=True, **flags)
    assert not differing(checkpoint(tmp_path, 3), checkpoint(whole("stage1_denoise", **flags), 3))


def test_tensorboard_has_each_step_once_and_the_seconds_are_those_of_all_sessions(whole, data, weights, tmp_path):
    with stopped_after(3):
        train("source_only", data, weights, tmp_path)
    (tmp_path / "checkpoint_3.pt").unlink()  # as if the machine had died before it was written: step 3 is made twice
    content = checkpoint(tmp_path, 2)
    assert 0 < content["stopwatch"]["seconds"] < 100
    content["stopwatch"]["seconds"] += 1000
    torch.save(content, tmp_path / "checkpoint_2.pt")
    assert train("source_only", data, weights, tmp_path, resume=True)["seconds"] > 1000
    curves, expected = scalars(tmp_path), scalars(whole("source_only"))
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5]
    assert curves == expected


def test_resuming_a_complete_run_trains_nothing_and_validates_what_was_interrupted(complete, data, weights):
    before, expected = checkpoint(complete, ITERATIONS), json.loads((complete / "summary.json").read_text())
    (complete / "summary.json").unlink()
    content = checkpoint(complete, ITERATIONS)  # as if it had been killed in its last validation
    assert content["validation"]["results"].pop()["iteration"] == ITERATIONS
    torch.save(content, complete / f"checkpoint_{ITERATIONS}.pt")
    for _ in range(2):
        found = train("source_only", data, weights, complete, resume=True)
        assert not differing(checkpoint(complete, ITERATIONS), before)
        same = ("miou", "best_miou", "iteration", "iterations")
        assert {key: found[key] for key in same} == {key: expected[key] for key in same}
        assert json.loads((complete / "summary.json").read_text())["miou"] == expected["miou"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(whole, data, weights, tmp_path):
    for seed, same in ((0, True), (1, False)):  # --resume in an empty folder starts at the beginning
        train("source_only", data, weights, tmp_path / str(seed), seed=seed, resume=True)
        found = differing(checkpoint(tmp_path / str(seed), ITERATIONS), checkpoint(whole("source_only"), ITERATIONS))
        assert (not found) == same


def test_overwrite_deletes_the_other_run_and_nothing_of_the_users(complete, data, weights):
    (complete / "notes.txt").write_text("mine")
    train("source_only", data, weights, complete, overwrite=True, iterations=3)
    assert (complete / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in complete.glob("checkpoint_*")) == ["checkpoint_2.pt", "checkpoint_3.pt"]
    assert list(scalars(complete)["train/loss"]) == [1, 2, 3]


def test_overwrite_makes_new_pseudo_labels_and_prototypes_for_new_weights(data, weights, tmp_path):
    other = small_runs.write_weights(tmp_path / "other.pt", seed=1)
    train("stage1_denoise", data, weights, tmp_path / "run", iterations=1)
    old = torch.load(tmp_path / "run" / "prototypes.pt", weights_only=True)["prototypes"]
    train("stage1_denoise", data, other, tmp_path / "run", iterations=1, overwrite=True)
    assert not torch.equal(torch.load(tmp_path / "run" / "prototypes.pt", weights_only=True)["prototypes"], old)


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("source_only", {}, r"holds another run \(label_free.pt\): .*--resume.*--overwrite"),
        ("source_only", {"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ("source_only", {"resume": True, "lr": 0.5}, r"resumed with its own settings \(--lr was .*, is 0.5\)"),
        ("source_only", {"resume": True, "batch_size": 2}, r"its own settings \(--batch_size was 4, is 2\)"),
        # named before weights are looked for
        ("source_only", {"resume": True, "init": "simclr", "init_file": ""}, r"--init was weights, is simclr, --init_"),
        ("stage1_denoise", {"resume": True}, "holds a run of source_only, not of stage1_denoise"),
    ],
)
def test_what_is_refused_in_the_folder_of_a_run_is_one_line_and_changes_nothing(
    complete, data, weights, stage, more, message
):
    files = {path: path.stat().st_mtime_ns for path in complete.iterdir()}
    with pytest.raises(UserError, match=message) as error:
        train(stage, data, weights, complete, **more)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in complete.iterdir()} == files


def test_a_longer_run_says_that_its_schedule_moves(complete, data, weights, capsys):
    assert train("source_only", data, weights, complete, resume=True, iterations=7)["iterations"] == 7
    out = capsys.readouterr().out
    assert "--iterations was 5, is 7" in out
    assert "the learning rate now reaches zero at iteration 7 instead of iteration 5" in out


def test_a_longer_run_whose_schedule_stays_is_the_long_run(data, weights, tmp_path):
    train("source_only", data, weights, tmp_path / "whole", iterations=7, schedule_iterations=9)
    train("source_only", data, weights, tmp_path / "parts", iterations=4, schedule_iterations=9)
    train("source_only", data, weights, tmp_path / "parts", iterations=7, schedule_iterations=9, resume=True)
    assert not differing(checkpoint(tmp_path / "whole", 7), checkpoint(tmp_path / "parts", 7))


def test_fewer_iterations_than_a_run_has_made_are_none_and_no_negative_speed(complete, data, weights):
    summary = train("source_only", data, weights, complete, resume=True, iterations=3)
    assert summary["iterations"] == ITERATIONS and "images_per_second" not in summary
    assert json.loads((complete / "config.json").read_text())["iterations"] == ITERATIONS


def test_the_length_of_a_run_that_was_cut_short_is_what_it_has_made(data, weights, tmp_path):
    with stopped_after(4):
        train("source_only", data, weights, tmp_path)
    assert train("source_only", data, weights, tmp_path, resume=True, iterations=3)["iterations"] == 4
    assert json.loads((tmp_path / "config.json").read_text())["iterations"] == 4  # neither 3 nor the 5 it began with


def test_a_finished_run_without_checkpoints_does_not_start_again(complete, data, weights):
    for path in complete.glob("checkpoint_*"):
        path.unlink()
    files = {path: path.stat().st_mtime_ns for path in complete.iterdir()}
    with pytest.raises(UserError, match=r"holds a finished run .* without a checkpoint, so nothing is left to train"):
        train("source_only", data, weights, complete, resume=True)
    assert {path: path.stat().st_mtime_ns for path in complete.iterdir()} == files


def test_a_run_that_ended_before_its_first_checkpoint_leaves_no_points_of_its_own(data, weights, tmp_path):
    with stopped_after(3):
        train("source_only", data, weights, tmp_path)
    for path in tmp_path.glob("*.pt"):
        path.unlink()  # as if the machine had died before the first was written
    train("source_only", data, weights, tmp_path, resume=True, iterations=2)
    assert list(scalars(tmp_path)["train/loss"]) == [1, 2]


@pytest.mark.parametrize("best", [2, 1])
def test_the_best_model_of_the_summary_is_in_the_folder_after_a_damaged_checkpoint(
    best, data, weights, tmp_path, monkeypatch, capsys
):
    """Validations at 1, 2 and 4, and then, after checkpoint_4.pt was damaged, at 3 and 6 with another --val_every."""

    mious = {1: 0.2 if best == 2 else 0.5, 2: 0.4, 3: 0.1, 4: 0.6, 6: 0.3}
    monkeypatch.setattr(
        "proda.handlers.validation.named_scores",
        lambda confusion, names: {"miou": mious[current.state.iteration], "iou": {}},
    )
    current = SimpleNamespace()

    def attach(self, trainer, *, every) -> None:
        nonlocal current
        current = trainer
        attach_validation(self, trainer, every=every)
        if every == 2:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    attach_validation = Validation.attach
    monkeypatch.setattr(Validation, "attach", attach)
    train("source_only", data, weights, tmp_path, iterations=4)
    os.truncate(tmp_path / "checkpoint_4.pt", 1000)
    summary = train("source_only", data, weights, tmp_path, iterations=6, val_every=3, resume=True)
    kept = torch.load(tmp_path / "best.pt", weights_only=True)["iteration"]
    assert summary["best_iteration"] == kept == 2
    assert summary["best_miou"] == pytest.approx(0.4)
    assert ("best.pt of iteration 1, the best so far, is gone" in capsys.readouterr().out) == (best == 1)


def test_a_handler_that_ends_the_run_early_is_in_the_summary(data, weights, tmp_path, monkeypatch):
    def attach(self, trainer, **_) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: trainer.terminate())
        attach_checkpoints(self, trainer, **_)

    attach_checkpoints = Checkpoints.attach
    monkeypatch.setattr(Checkpoints, "attach", attach)
    summary = train("source_only", data, weights, tmp_path, iterations=20)
    assert summary["iterations"] == 2 and summary["images_per_second"] > 0


def test_models_of_a_branch_that_is_not_gone_on_with_do_not_stay(complete, data, weights, capsys):
    shutil.copy(complete / "last.pt", complete / "best.pt")  # of iteration 5
    (complete / "checkpoint_5.pt").unlink()
    summary = train("source_only", data, weights, complete, resume=True, iterations=4)
    line = f"{complete / 'best.pt'} is of iteration 5, after the checkpoint to resume from: deleted"
    assert line in capsys.readouterr().out
    assert summary["iteration"] == 4
    for name in ("best.pt", "label_free.pt", "last.pt"):
        assert not (complete / name).exists() or torch.load(complete / name, weights_only=True)["iteration"] <= 4


def test_a_run_is_resumed_where_its_folder_was_copied(complete, whole, data, weights):
    (complete / "checkpoint_5.pt").unlink()
    train("source_only", data, weights, complete, resume=True)
    assert not differing(checkpoint(complete, ITERATIONS), checkpoint(whole("source_only"), ITERATIONS))
