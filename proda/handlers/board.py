"""Shows how a run goes: its progress on the terminal, and TensorBoard files with scalars and image panels."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import TensorboardLogger
from torch.optim import Optimizer

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.panels import TrainingPanels, ValidationPanels
from proda.handlers.progress import TrainingProgress
from proda.metrics import flatten

log = logging.getLogger("proda")

PANELS = 20  # a panel takes a hundred times the space of the scalars


class Board:
    """Shows a run's progress on the terminal and writes scalars and panels to TensorBoard files, on rank 0.

    TensorBoard shows the losses, the learning rates, the teacher's momentum, GPU memory, the scores of each validation
    and of new pseudo labels, the figures of ``LabelQuality``, and panels of training and validation images. Call
    ``open`` when everything is attached and resumed: a resumed run hides the points that the interrupted run wrote
    after its checkpoint. Call ``close`` when the run has ended.

    Args:
        evaluator: of the student, whose images are shown.
        optimizers: name -> optimizer whose learning rates are shown.
        colors: uint8 [K, 3], the colours of the classes.
    """

    def __init__(
        self, folder: Path, evaluator: Engine, optimizers: Mapping[str, Optimizer], colors: np.ndarray
    ) -> None:
        self.folder, self.evaluator, self.optimizers, self.colors = Path(folder), evaluator, optimizers, colors
        self.logger: TensorboardLogger | None = None
        self.progress = TrainingProgress()

    def attach(self, trainer: Trainer, *, every: int) -> None:
        """``every``: iterations between scalars; panels of training images follow at every ``PANELS``-th of them."""
        self.trainer, self.every = trainer, every

    def open(self) -> None:
        """Opens the files, and attaches the progress and the handlers that write to the files."""
        if idist.get_rank() != 0:
            return
        trainer = self.trainer
        self.progress.attach(trainer)
        start = trainer.state.iteration
        # File names contain the time in seconds: a run that is resumed within a second must not overwrite its old file.
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
        for name, optimizer in self.optimizers.items():  # before the step: the next rate is set right after it
            board.attach_opt_params_handler(trainer, before_step, optimizer, tag=name)
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        if any(parameter.is_cuda for group in groups for parameter in group["params"]):
            trainer.add_event_handler(regularly, self.write_gpu_memory)
        # Flushed each time, so that a killed run loses no point before its last checkpoint.
        trainer.add_event_handler(regularly, lambda: board.writer.flush())
        trainer.add_event_handler(ProdaEvents.VALIDATED, self.write_scores)
        trainer.add_event_handler(ProdaEvents.PSEUDO_LABELS_REFRESHED, self.write_label_quality)
        trainer.add_event_handler(ProdaEvents.LABELS_REPORTED, self.write_label_figures)
        if trainer.state.label_charts:
            board.writer.add_custom_scalars(trainer.state.label_charts)
        TrainingPanels(board.writer, self.colors).attach(trainer, every=PANELS * self.every)
        ValidationPanels(board.writer, self.colors).attach(trainer, self.evaluator)

    def write_scores(self, trainer: Engine) -> None:
        self._write("val", trainer.state.scores, trainer.state.iteration)

    def write_label_quality(self, trainer: Engine) -> None:
        self._write("pseudo_labels", trainer.state.pseudo_label_scores, trainer.state.iteration)

    def write_label_figures(self, trainer: Engine) -> None:
        """Figures of ``LabelQuality``, whose names contain their groups."""
        assert self.logger is not None
        for tag, value in trainer.state.label_quality.items():
            self.logger.writer.add_scalar(tag, value, trainer.state.iteration)
        self.logger.writer.flush()  # the regular flush may come after the checkpoint of this iteration

    def write_gpu_memory(self, trainer: Engine) -> None:
        """Peak GPU memory in GiB."""
        peak = torch.cuda.max_memory_allocated() / 2**30
        self._write("train", {"gpu_memory_gib": peak}, trainer.state.iteration)

    def close(self) -> None:
        self.progress.close()
        if self.logger is not None:
            self.logger.close()

    def _write(self, tag: str, scores: Mapping[str, Any], iteration: int) -> None:
        assert self.logger is not None  # the callers are attached by open()
        for name, value in flatten(scores).items():
            self.logger.writer.add_scalar(f"{tag}/{name}", value, iteration)


def losses(output: dict[str, Any]) -> dict[str, float]:
    """The losses of a trainer's output as floats."""
    return {name: float(value) for name, value in output.items() if name.startswith("loss")}


def _filtered(event: Any, every: int) -> Any:
    """``event(every=every)``, untyped because mypy treats the members of our enumeration as strings."""
    return event(every=every)


def _outlive_full_disk(board: TensorboardLogger) -> None:
    """Lets training continue if TensorBoard files cannot be written; the points are lost, and the log says so once.

    tensorboardX writes in a thread. An OSError would end the thread, and training would wait for it forever.
    """
    writer = board.writer.file_writer.event_writer._ev_writer
    said: list[OSError] = []

    def surviving(write: Callable) -> Callable:
        def attempt(*args: Any) -> None:
            try:
                write(*args)
            except OSError as error:
                if not said:
                    log.error("cannot write TensorBoard files: %s; training continues without these points", error)
                said.append(error)

        return attempt

    for name in ("write_event", "flush", "close"):
        setattr(writer, name, surviving(getattr(writer, name)))
