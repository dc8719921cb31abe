"""Watching a run: a progress bar, and TensorBoard files with scalars and image panels."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, TensorboardLogger
from torch.optim import Optimizer

from proda.engines.events import ProdaEvents
from proda.handlers.panels import TrainingPanels, ValidationPanels
from proda.metrics import flatten

log = logging.getLogger("proda")


class Board:
    """Shows a run to people, on rank 0: a progress bar on the terminal, scalars and panels in TensorBoard files.

    TensorBoard has the losses, learning rates, the teacher's momentum, GPU memory, the scores of each validation and of
    new pseudo labels, and panels of training and validation images. Open it when everything is attached and resumed: a
    resumed run hides the points that the interrupted one wrote after its checkpoint. Close it when the run has ended.

    Args:
        optimizers: whose learning rates are shown, by name.
        colors: uint8 [K, 3] of the classes.
    """

    def __init__(
        self, folder: Path, evaluator: Engine, optimizers: Mapping[str, Optimizer], colors: np.ndarray
    ) -> None:
        self.folder, self.evaluator, self.optimizers, self.colors = Path(folder), evaluator, optimizers, colors
        self.logger: TensorboardLogger | None = None

    def attach(self, trainer: Engine, *, every: int, panels_every: int) -> None:
        """``every`` and ``panels_every``: iterations between scalars and between training panels (0 for none)."""
        self.trainer, self.every, self.panels_every = trainer, every, panels_every

    def open(self) -> None:
        """Opens the files, and attaches the progress bar and what writes into the files."""
        if idist.get_rank() != 0:
            return
        trainer = self.trainer
        _progress_bar(trainer)
        start = trainer.state.iteration
        # Files are named by the second: a run that is resumed at once must not overwrite the one before.
        resumed = {"purge_step": start + 1, "filename_suffix": f".{start}"} if start else {}
        self.logger = board = TensorboardLogger(log_dir=str(self.folder), **resumed)
        _outlive_full_disk(board)
        regularly, before_step = (
            Events.ITERATION_COMPLETED(every=self.every),
            _filtered(ProdaEvents.BACKWARD_DONE, self.every),
        )
        board.attach_output_handler(trainer, regularly, tag="train", output_transform=losses)
        if hasattr(trainer.state, "ema_momentum"):
            board.attach_output_handler(trainer, regularly, tag="train", state_attributes=["ema_momentum"])
        for name, optimizer in self.optimizers.items():  # before the step, after which the next rate is set
            board.attach_opt_params_handler(trainer, before_step, optimizer, tag=name)
        if torch.cuda.is_available():
            trainer.add_event_handler(regularly, self.write_gpu_memory)
        trainer.add_event_handler(regularly, lambda: board.writer.flush())  # a kill loses no point before a checkpoint
        trainer.add_event_handler(ProdaEvents.VALIDATED, self.write_scores)
        trainer.add_event_handler(ProdaEvents.PSEUDO_LABELS_REFRESHED, self.write_label_quality)
        if getattr(trainer.state, "pseudo_label_scores", None):  # the first labels are written before the files open
            self.write_label_quality(trainer)
        TrainingPanels(board.writer, self.colors).attach(trainer, every=self.panels_every)
        ValidationPanels(board.writer, self.colors).attach(trainer, self.evaluator)

    def write_scores(self, trainer: Engine) -> None:
        self._write("val", trainer.state.scores, trainer.state.iteration)

    def write_label_quality(self, trainer: Engine) -> None:
        self._write("pseudo_labels", trainer.state.pseudo_label_scores, trainer.state.iteration)

    def write_gpu_memory(self, trainer: Engine) -> None:
        """Peak GPU memory in GiB."""
        peak = torch.cuda.max_memory_allocated() / 2**30
        self._write("train", {"gpu_memory_gib": peak}, trainer.state.iteration)

    def close(self) -> None:
        if self.logger is not None:
            self.logger.close()

    def _write(self, tag: str, scores: Mapping[str, Any], iteration: int) -> None:
        assert self.logger is not None  # the handlers that call this are attached when it is opened
        for name, value in flatten(scores).items():
            self.logger.writer.add_scalar(f"{tag}/{name}", value, iteration)


def losses(output: dict[str, Any]) -> dict[str, float]:
    """The losses of a trainer's output as floats."""
    return {name: float(value) for name, value in output.items() if name.startswith("loss")}


def _filtered(event: Any, every: int) -> Any:
    """``event(every=every)``: mypy takes the members of our enumeration for text."""
    return event(every=every)


def _progress_bar(trainer: Engine, *, every: int = 10) -> None:
    ProgressBar(persist=True, desc="iterations").attach(
        trainer,
        output_transform=lambda output: {"loss": float(output["loss"])},
        event_name=Events.ITERATION_COMPLETED(every=every),
        closing_event_name=Events.COMPLETED,
    )


def _outlive_full_disk(board: TensorboardLogger) -> None:
    """Points that cannot be written are lost, with a line in the log.

    tensorboardX writes in a thread, which an OSError would end; training would then wait for it for ever.
    """
    writer = board.writer.file_writer.event_writer._ev_writer
    said: list[OSError] = []

    def surviving(write: Callable) -> Callable:
        def attempt(*args: Any) -> None:
            try:
                write(*args)
            except OSError as error:
                if not said:
                    log.error("TensorBoard cannot be written to: %s; points are lost", error)
                said.append(error)

        return attempt

    for name in ("write_event", "flush", "close"):
        setattr(writer, name, surviving(getattr(writer, name)))
