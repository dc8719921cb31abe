"""Shows how far a training run is, and how far each run of an evaluator."""

import math
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from proda.engines.events import Trainer
from proda.utils.progress import Progress, track


class TrainingProgress:
    """One bar for the whole run, or lines where stderr is no terminal: position, time left, last loss and last score.

    The score is the mIoU of the ``Validation`` that the trainer remembers, or its label-free score if there are no
    labels. Ignite's ``ProgressBar`` cannot count the iterations of all epochs. Attach it on rank 0 only.
    """

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def attach(self, trainer: Trainer) -> None:
        self.trainer = trainer
        # Not at STARTED, at which the length of the run is set and missing pseudo labels are written.
        trainer.add_event_handler(Events.EPOCH_STARTED, self.open)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self)

    def open(self, trainer: Trainer) -> None:
        state = trainer.state
        if self.progress is None:
            total = state.max_iters or state.max_epochs * state.epoch_length
            self.progress = Progress("iteration", total, done=state.iteration, figures=self.figures, keep=True)

    def __call__(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.update(trainer.state.iteration)

    def figures(self) -> str:
        """The last loss and the last score in words."""
        output = self.trainer.state.output
        parts = [f"loss {float(output['loss']):.3g}"] if output and "loss" in output else []
        validation = self.trainer.state.remembered.get("validation")
        if validation is not None and validation.results:
            parts.append(_score(validation.results[-1]))
        return ", ".join(parts)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


def show_progress(evaluator: Engine, title: str) -> None:
    """Shows how far each run of ``evaluator`` is, if its data have a length; the bar vanishes afterwards. On rank 0."""
    if idist.get_rank() != 0:
        return

    @evaluator.on(Events.STARTED)
    def count_batches() -> None:
        evaluator.state.dataloader = track(evaluator.state.dataloader, title)


def _score(scores: dict[str, Any]) -> str:
    if math.isnan(scores["miou"]):
        return f"label-free score {scores['label_free']:.2f}"
    return f"mIoU {100 * scores['miou']:.1f} %"
