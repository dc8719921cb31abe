"""The progress of trainers and evaluators."""

import math

import pytest
import torch
from ignite.engine import Engine, Events

from proda.engines.events import Trainer, remember
from proda.handlers.progress import TrainingProgress, show_progress
from tests.utils.test_progress import shown


class Results:
    """Stands for ``Validation``."""

    def __init__(self, *results: dict) -> None:
        self.results = list(results)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, _: dict) -> None:
        pass


def trained(*results: dict, start: int = 0) -> TrainingProgress:
    """The progress of a run of 10 iterations in epochs of 4."""
    trainer, progress = Trainer(lambda *_: {"loss": torch.tensor(0.4142)}), TrainingProgress()
    progress.attach(trainer)
    if results:
        remember(trainer, validation=Results(*results))
    if start:
        trainer.load_state_dict({"epoch_length": 4, "max_iters": 10, "iteration": start})
    trainer.run([None] * 4, max_iters=10, epoch_length=4)
    progress.close()
    return progress


def test_one_bar_counts_the_iterations_of_all_epochs(terminal):
    trained()
    frames = terminal.getvalue().split("\r")
    assert terminal.getvalue().count("\n") == 1 and "iteration 10/10 100%" in frames[-1]
    assert not [frame for frame in frames if "[" in frame or "poch" in frame]


def test_a_resumed_run_begins_at_its_iteration_with_the_score_of_its_checkpoint(terminal):
    trained({"miou": 0.582, "label_free": 1.5}, start=6)
    frames = terminal.getvalue().split("\r")
    assert "iteration 6/10  60%" in frames[1] and "mIoU 58.2 %" in frames[-1]


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([], "loss 0.414"),
        ([{"miou": 0.25, "label_free": 1.5}, {"miou": 0.582, "label_free": 1.5}], "loss 0.414, mIoU 58.2 %"),
        ([{"miou": math.nan, "label_free": 1.5}], "loss 0.414, label-free score 1.50"),
    ],
)
def test_the_figures_are_the_last_loss_and_the_last_score(results, text):
    assert trained(*results).figures() == text


def test_a_run_that_ends_before_its_first_iteration_has_no_bar(terminal):
    progress = TrainingProgress()
    progress.attach(Trainer(lambda *_: {}))
    progress.close()
    assert terminal.getvalue() == ""


def test_every_run_of_an_evaluator_has_a_bar_that_vanishes(terminal):
    evaluator = Engine(lambda *_: None)
    show_progress(evaluator, "validation, batch")
    for _ in range(2):
        evaluator.run([1, 2, 3])
    assert terminal.getvalue().count("validation, batch 0/3") == 2
    assert shown(terminal.getvalue()) == ""  # blanks over the bar
    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: evaluator.terminate(skip_completed=True))
    evaluator.run([1, 2, 3])
    assert shown(terminal.getvalue()) == ""  # as if a signal had ended it
    terminal.seek(0), terminal.truncate()
    endless = Engine(lambda *_: None)
    show_progress(endless, "validation, batch")
    endless.run(iter([1, 2, 3]))
    assert terminal.getvalue() == ""  # data without a length
