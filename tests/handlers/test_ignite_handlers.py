"""Ignite's own handlers on a trainer of ours, each in a real run: source training of six iterations."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import (
    BasicTimeProfiler,
    EarlyStopping,
    FastaiLRFinder,
    HandlersTimeProfiler,
    ModelCheckpoint,
    TensorboardLogger,
    TimeLimit,
)
from ignite.metrics import RunningAverage

from experiments import source_only
from proda.engines.events import ProdaEvents
from proda.engines.supervised import supervised_trainer
from proda.settings.reading import make_config
from tests import small_runs, tiny

ITERATIONS = 6  # three epochs of two


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.write_data(tmp_path_factory.mktemp("data"), num_val=1)


@pytest.fixture
def train(data, tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Runs the stage, with whatever ``attach(trainer)`` adds to its trainer; returns the summary."""

    def run(attach: Callable[[Engine], None], **more: Any) -> dict[str, Any]:
        def attached(*args: Any) -> Engine:
            trainer = supervised_trainer(*args)
            attach(trainer)
            return trainer

        monkeypatch.setattr(source_only, "supervised_trainer", attached)
        flags = small_runs.flags("source_only", data, Path("none"), tmp_path / "run", init="random", **more)
        flags |= {"iterations": ITERATIONS, "init_file": ""}
        return source_only.run(0, make_config(source_only.Config, flags, source_only.PRESETS))

    return run


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint_*.pt")}


def test_early_stopping_ends_the_run_where_its_score_no_longer_rises(train, tmp_path):
    def attach(trainer: Engine) -> None:
        stopping = EarlyStopping(1, lambda engine: -engine.state.iteration, trainer)
        trainer.add_event_handler(ProdaEvents.VALIDATED, stopping)  # at 2, and at 4 with a lower score

    summary = train(attach)
    assert summary["iteration"] == 4 and "checkpoint_4.pt" in checkpoints(tmp_path / "run")


def test_a_time_limit_ends_the_run_and_saves(train, tmp_path):
    limit = TimeLimit(1)
    limit.start_time -= 1  # long ago
    summary = train(lambda trainer: trainer.add_event_handler(Events.ITERATION_COMPLETED, limit), val_every=100)
    assert summary["iteration"] == 1 and checkpoints(tmp_path / "run") == {"checkpoint_1.pt"}


def test_the_profilers_measure_every_iteration_and_know_our_handlers_by_name(train):
    profiler, of_handlers = BasicTimeProfiler(), HandlersTimeProfiler()
    train(lambda trainer: (profiler.attach(trainer), of_handlers.attach(trainer)))
    results = profiler.get_results()
    assert results["processing_stats"]["total"] > 0 and results["dataflow_stats"]["total"] > 0
    # it makes room for as many batches an epoch as the loader has, and ours has those of the whole run
    assert (profiler.processing_times > 0).nonzero().flatten().tolist() == list(range(ITERATIONS))
    assert results["event_handlers_stats"]["ITERATION_COMPLETED"]["total"] > 0
    rows = {row[0]: row for row in of_handlers.get_results()}
    assert {"SeedIterations", "Validation", "StopOnNan"} <= rows.keys() | {name.split(".")[0] for name in rows}
    assert rows["Processing"][2] > 0


def test_a_model_checkpoint_saves_next_to_ours(train, tmp_path):
    def attach(trainer: Engine) -> None:
        keep = ModelCheckpoint(
            tmp_path / "mine",
            "best",
            score_function=lambda engine: engine.state.metrics["miou"],
            global_step_transform=lambda engine, _: engine.state.iteration,
        )
        trainer.add_event_handler(ProdaEvents.VALIDATED, keep, {"student": trainer.state.remembered["student"]})

    summary = train(attach)
    (saved,) = (tmp_path / "mine").iterdir()
    assert saved.name.startswith(f"best_student_{summary['best_iteration']}_")
    ours = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["model"]
    for name, value in torch.load(saved, weights_only=True).items():
        torch.testing.assert_close(value, ours[name], rtol=0, atol=0)


def test_a_tracker_logs_losses_scores_and_a_metric_of_the_users(train, tmp_path):
    """Uses TensorBoard, which needs no further package; other trackers have the same interface."""

    def attach(trainer: Engine) -> None:
        RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "average")
        tracker = TensorboardLogger(log_dir=tmp_path / "mine")
        tracker.attach_output_handler(
            trainer, Events.ITERATION_COMPLETED, tag="mine", output_transform=lambda output: {"loss": output["loss"]}
        )
        tracker.attach_output_handler(trainer, ProdaEvents.VALIDATED, tag="mine", metric_names=["miou", "average"])
        trainer.add_event_handler(Events.COMPLETED, tracker.close)

    summary = train(attach)
    mine, ours = small_runs.scalars(tmp_path / "mine"), small_runs.scalars(tmp_path / "run")
    assert mine["mine/loss"] == ours["train/loss"] and len(mine["mine/loss"]) == ITERATIONS
    assert mine["mine/miou"] == ours["val/miou"] and mine["mine/miou"][ITERATIONS] == pytest.approx(summary["miou"])
    assert all(math.isfinite(value) for value in mine["mine/average"].values())


def test_the_learning_rate_finder_leaves_a_trainer_as_it_was(train):
    """It runs before training on the same trainer, and restores weights, learning rate and iteration number."""
    rates = []

    def attach(trainer: Engine) -> None:
        parts = trainer.state.remembered
        before = parts["student"].conv1.weight.detach().clone()
        finder = FastaiLRFinder()
        to_save = {"model": parts["student"], "optimizer": parts["optimizer"]}
        with (
            warnings.catch_warnings(action="ignore"),
            finder.attach(trainer, to_save, lambda output: output["loss"].item(), num_iter=4, end_lr=1.0) as finding,
        ):
            finding.run([{"source": tiny.batch()["source"]}] * 4)
        assert torch.equal(parts["student"].conv1.weight, before) and trainer.state.iteration == 0
        rates.extend(finder.get_results()["lr"])

    summary = train(attach)
    assert len(rates) == 4 and rates == sorted(rates) and rates[-1] > 10 * rates[0]
    assert summary["iteration"] == ITERATIONS
