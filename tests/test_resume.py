"""A run that was interrupted and goes on is the run that was not interrupted."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from proda.cli.launch import start
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.stopping import Stopped
from proda.handlers.validation import Validation
from proda.run.config import UserError
from proda.utils.run_files import MODELS
from tests import small_runs
from tests.small_runs import checkpoint, differing, scalars, train

ITERATIONS = 5


@pytest.fixture(scope="module")
def source_run(data, weights, tmp_path_factory) -> Path:
    """The folder of a complete run; copy it, it is shared."""
    folder = tmp_path_factory.mktemp("complete")
    train("source_only", data, weights, folder)
    return folder


@pytest.fixture
def complete(source_run, tmp_path) -> Path:
    return shutil.copytree(source_run, tmp_path / "run")


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_a_run_stopped_at_any_iteration_and_resumed_ends_with_the_same_bits(stage, data, weights, tmp_path):
    k = random.SystemRandom().randrange(1, ITERATIONS)
    _assert_resumes_exactly(stage, data, weights, tmp_path, stops=[k])


@pytest.mark.slow
@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_loader_processes_and_several_stops_change_nothing(stage, data, weights, tmp_path):
    stops = sorted(random.SystemRandom().sample(range(1, 9), 3))
    _assert_resumes_exactly(stage, data, weights, tmp_path, stops=stops, iterations=9, num_workers=2, seed=7)


@pytest.mark.parametrize("k", [2, 3], ids=["at a renewal", "between two"])
@pytest.mark.parametrize(
    "more",
    [{}, {"renew_labels_from": "teacher", "renew_prototypes": True, "validate_teacher": True, "flip": True}],
    ids=["by the student", "by the teacher"],
)
def test_a_run_whose_soft_labels_are_renewed_resumes_exactly(k, data, weights, tmp_path, more):
    _assert_resumes_exactly("stage1_denoise", data, weights, tmp_path, stops=[k], renew_labels_every=1, **more)


def test_a_run_stopped_while_its_teacher_is_validated_resumes_exactly(data, weights, tmp_path, monkeypatch):
    attach, flags = Validation.attach, {"validate_teacher": True, "iterations": 3}

    def attach_and_ask(self, trainer, **settings) -> None:
        attach(self, trainer, **settings)
        teacher = self.evaluators["teacher_"]
        teacher.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: os.kill(os.getpid(), signal.SIGTERM))

    train("stage1_denoise", data, weights, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Validation, "attach", attach_and_ask)
        train("stage1_denoise", data, weights, tmp_path / "parts", **flags)
    assert checkpoint(tmp_path / "parts", 2)["validation"]["results"] == []
    assert not (tmp_path / "parts/last.pt").exists()
    train("stage1_denoise", data, weights, tmp_path / "parts", resume=True, **flags)
    assert not differing(*(checkpoint(tmp_path / name, 3) for name in ("parts", "whole")))


@pytest.mark.parametrize("stage", ["source_only", pytest.param("stage1_denoise", marks=pytest.mark.slow)])
def test_two_processes_resume_exactly_and_save_the_network_that_they_have_judged(stage, data, weights, tmp_path):
    """Also where batch norm learns and cannot be synchronised, as on CPUs."""
    teacher = stage == "stage1_denoise"
    for folder, extra in (("whole", {}), ("cut", {"stop_after": 3}), ("cut", {"resume": True})):
        extra |= {"validate_teacher": True} if teacher else {}
        flags = {"nproc_per_node": 2, "backend": "gloo", "checkpoint_every": 1, "sync_bn": False, **extra}
        run = small_runs.launch(small_runs.command(stage, data, weights, tmp_path / folder, **flags))
        _, error = run.communicate(timeout=120)
        assert run.returncode == 0, error
    assert differing(checkpoint(tmp_path / "whole", ITERATIONS), checkpoint(tmp_path / "cut", ITERATIONS)) == []
    told = json.loads((tmp_path / "whole/summary.json").read_text())
    for name, scores in {"last": "iou", **({"teacher": "teacher_iou"} if teacher else {})}.items():
        judged = start(
            "experiments/evaluate.py",
            {
                **{"weights": str(tmp_path / f"whole/{name}.pt"), "data_root": str(data)},
                **{"num_classes": 13, "backbone": "tiny", "num_workers": 0, "val_batch_size": 2, "device": "cpu"},
                "output": str(tmp_path / f"judged_{name}"),
            },
        )
        assert judged["iou"] == pytest.approx(told[scores], abs=1e-12)


def test_tensorboard_has_each_step_once_after_a_resume(data, weights, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("source_only", data, weights, whole)
    with pytest.raises(Stopped):
        train("source_only", data, weights, parts, stop_after=3)
    (parts / "checkpoint_3.pt").unlink()  # as if the machine had died before it was written: step 3 is made twice
    train("source_only", data, weights, parts, resume=True)
    curves = scalars(parts)
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5]
    assert curves.keys() == scalars(whole).keys()
    for tag, points in scalars(whole).items():
        assert curves[tag] == points, tag


def test_a_stopped_run_leaves_with_status_0_and_no_summary(data, weights, tmp_path):
    with pytest.raises(Stopped) as end:
        train("source_only", data, weights, tmp_path, stop_after=1)
    assert end.value.code == 0
    assert (tmp_path / "checkpoint_1.pt").exists() and not (tmp_path / "summary.json").exists()


def test_stopping_after_the_last_iteration_is_no_stop(data, weights, tmp_path):
    assert train("source_only", data, weights, tmp_path, stop_after=ITERATIONS)["iterations"] == ITERATIONS


def test_resuming_a_complete_run_trains_nothing_and_gives_its_summary(complete, data, weights):
    before, expected = checkpoint(complete, ITERATIONS), json.loads((complete / "summary.json").read_text())
    (complete / "summary.json").unlink()
    found = train("source_only", data, weights, complete, resume=True)
    assert not differing(checkpoint(complete, ITERATIONS), before)
    assert {key: found[key] for key in ("miou", "best_miou", "iteration", "iterations")} == {
        key: expected[key] for key in ("miou", "best_miou", "iteration", "iterations")
    }
    assert json.loads((complete / "summary.json").read_text())["miou"] == expected["miou"]


def test_a_run_killed_in_its_last_validation_is_validated_by_the_resume(complete, data, weights):
    last = complete / f"checkpoint_{ITERATIONS}.pt"
    content = torch.load(last, weights_only=True)
    assert content["validation"]["results"].pop()["iteration"] == ITERATIONS
    torch.save(content, last)
    assert train("source_only", data, weights, complete, resume=True)["iteration"] == ITERATIONS


def test_resume_in_an_empty_folder_starts_at_the_beginning(data, weights, tmp_path):
    assert train("source_only", data, weights, tmp_path, resume=True)["iterations"] == ITERATIONS


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(source_run, data, weights, tmp_path):
    for seed, same in ((0, True), (1, False)):
        train("source_only", data, weights, tmp_path / str(seed), seed=seed)
        found = differing(checkpoint(tmp_path / str(seed), ITERATIONS), checkpoint(source_run, ITERATIONS))
        assert (not found) == same


def test_a_run_does_not_begin_in_the_folder_of_another(complete, data, weights):
    files = {path: path.stat().st_mtime_ns for path in complete.iterdir()}
    with pytest.raises(ValueError, match=r"holds another run \(label_free.pt\): .*--resume.*--overwrite") as error:
        train("source_only", data, weights, complete)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in complete.iterdir()} == files


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


def test_resume_and_overwrite_exclude_each_other(data, weights, tmp_path):
    with pytest.raises(UserError, match="--resume and --overwrite"):
        train("source_only", data, weights, tmp_path, resume=True, overwrite=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("flag", "value"), [("lr", 0.5), ("momentum", 0.5), ("weight_decay", 0.5), ("batch_size", 2)])
def test_resuming_with_a_setting_that_a_run_keeps_is_one_clear_line(complete, data, weights, flag, value):
    files = {path: path.stat().st_mtime_ns for path in complete.iterdir()}
    with pytest.raises(UserError, match=rf"resumed with its own settings \(--{flag} was .*, is {value}\)") as error:
        train("source_only", data, weights, complete, resume=True, iterations=9, **{flag: value})
    assert "\n" not in str(error.value) and files == {path: path.stat().st_mtime_ns for path in complete.iterdir()}


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


def test_the_seconds_of_a_run_are_those_of_all_its_sessions(data, weights, tmp_path):
    with pytest.raises(Stopped):
        train("source_only", data, weights, tmp_path, stop_after=3)
    path = tmp_path / "checkpoint_3.pt"
    content = torch.load(path, weights_only=True)
    assert 0 < content["stopwatch"]["seconds"] < 100
    content["stopwatch"]["seconds"] += 1000
    torch.save(content, path)
    assert train("source_only", data, weights, tmp_path, resume=True)["seconds"] > 1000


def test_a_handler_that_ends_the_run_early_is_in_the_summary(data, weights, tmp_path, monkeypatch):
    def attach(self, trainer, **_) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: trainer.terminate())
        attach_checkpoints(self, trainer, **_)

    attach_checkpoints = Checkpoints.attach
    monkeypatch.setattr(Checkpoints, "attach", attach)
    summary = train("source_only", data, weights, tmp_path, iterations=20)
    assert summary["iterations"] == 2 and summary["images_per_second"] > 0


def test_a_flag_that_is_missing_at_resume_is_named_before_weights_are_looked_for(complete, data, weights):
    with pytest.raises(UserError, match=r"--init was weights, is simclr, --init_file was .*, is \):"):
        train("source_only", data, weights, complete, resume=True, init="simclr", init_file="")


def test_resuming_another_stage_is_one_clear_line(complete, data, weights):
    with pytest.raises(UserError, match=r"holds a run of source_only, not of stage1_denoise") as error:
        train("stage1_denoise", data, weights, complete, resume=True)
    assert "\n" not in str(error.value)


def test_models_of_a_branch_that_is_not_gone_on_with_do_not_stay(complete, data, weights, tmp_path, capsys):
    shutil.copy(complete / "last.pt", complete / "best.pt")  # of iteration 5
    (complete / "checkpoint_5.pt").unlink()
    summary = train("source_only", data, weights, complete, resume=True, iterations=4)
    assert (
        f"{complete / 'best.pt'} is of iteration 5, after the checkpoint to resume from: deleted"
        in capsys.readouterr().out
    )
    assert summary["iteration"] == 4
    for name in ("best.pt", "label_free.pt", "last.pt"):
        assert not (complete / name).exists() or torch.load(complete / name, weights_only=True)["iteration"] <= 4


def test_a_run_is_resumed_where_its_folder_was_copied(complete, data, weights, tmp_path):
    copied = shutil.copytree(complete, tmp_path / "copied")
    (copied / "checkpoint_5.pt").unlink()
    train("source_only", data, weights, copied, resume=True)
    assert not differing(checkpoint(copied, ITERATIONS), checkpoint(complete, ITERATIONS))


def _assert_resumes_exactly(stage, data, weights, folder, *, stops, iterations=ITERATIONS, **more) -> None:
    more |= {"iterations": iterations}
    train(stage, data, weights, folder / "whole", **more)
    for number, k in enumerate(stops):
        with pytest.raises(Stopped):
            train(stage, data, weights, folder / "parts", stop_after=k, resume=number > 0, **more)
        assert checkpoint(folder / "parts", k)["trainer"]["iteration"] == k
    train(stage, data, weights, folder / "parts", resume=True, **more)
    found, expected = (checkpoint(folder / name, iterations) for name in ("parts", "whole"))
    assert len(small_runs.numbers(expected)) > 100
    assert not differing(found, expected), f"stopped after {stops}"
    names = {path.name for path in (folder / "whole").glob("*.pt") if path.name in MODELS}
    assert names >= {"last.pt", "best.pt", "label_free.pt"}
    for name in names:
        assert not differing(*(torch.load(folder / run / name, weights_only=True) for run in ("parts", "whole"))), name
