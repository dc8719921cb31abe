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
from tensorboardX import SummaryWriter
from torch.optim import Optimizer

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.panels import TrainingPanels, ValidationPanels
from proda.handlers.progress import TrainingProgress
from proda.metrics import flatten

log = logging.getLogger("proda")

PANELS = 20  # scalars are written this many times as often as panels of training images


class Board:
    """Shows a run's progress on the terminal and writes scalars and panels to TensorBoard files, on rank 0.

    TensorBoard shows the losses, the learning rates, the teacher's momentum, GPU memory, the scores of each validation
    and of new pseudo labels, the figures of ``LabelQuality``, and panels of training and validation images. Call
    ``open`` when everything is attached and resumed: a resumed run hides the points that the interrupted run wrote
    after its checkpoint. Call ``close`` when the run has ended.

    Args:
        evaluator: of the student, whose images are shown.
        optimizers: name -> optimizer whose learning rates are shown.
        colors: uint8 [K, 3], the colors of the classes.
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
        # A run that ended before its first checkpoint has left points as well, some of step 0.
        first = start + 1 if start else 0
        again = start or any(self.folder.glob("events.out.tfevents.*"))
        resumed = {"purge_step": first, "filename_suffix": f".{start}"} if again else {}
        self.logger = board = TensorboardLogger(log_dir=str(self.folder), **resumed)
        _outlive_full_disk(board)
        regularly = Events.ITERATION_COMPLETED(every=self.every)
        event: Any = ProdaEvents.BACKWARD_DONE  # mypy treats the members of our enumeration as strings
        before_step = event(every=self.every)
        board.attach_output_handler(trainer, regularly, tag="train", output_transform=losses)
        if "teacher" in trainer.state.remembered:
            board.attach_output_handler(trainer, regularly, tag="train", state_attributes=["ema_momentum"])
        for name, optimizer in self.optimizers.items():  # before the step: the next rate is set right after it
            board.attach_opt_params_handler(trainer, before_step, optimizer, tag=name)
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        if any(parameter.is_cuda for group in groups for parameter in group["params"]):
            trainer.add_event_handler(regularly, self.write_gpu_memory)
        # Flushed each time, so that a killed run loses no point before its last checkpoint.
        trainer.add_event_handler(regularly, lambda: board.writer.flush())
        trainer.add_event_handler(ProdaEvents.VALIDATED, self.write_scores)
        trainer.add_event_handler(ProdaEvents.PSEUDO_LABELS_REFRESHED, self.write_label_scores)
        trainer.add_event_handler(ProdaEvents.LABELS_REPORTED, self.write_label_figures)
        if trainer.state.label_charts:
            board.writer.add_custom_scalars(trainer.state.label_charts)
        TrainingPanels(board.writer, self.colors).attach(trainer, every=PANELS * self.every)
        ValidationPanels(board.writer, self.colors).attach(trainer, self.evaluator)

    def write_scores(self, trainer: Trainer) -> None:
        self._write("val/", trainer.state.scores)

    def write_label_scores(self, trainer: Trainer) -> None:
        self._write("pseudo_labels/", trainer.state.pseudo_label_scores)

    def write_label_figures(self, trainer: Trainer) -> None:
        """Figures of ``LabelQuality``, whose names contain their groups."""
        self._write("", trainer.state.label_quality).flush()  # the regular flush may come after this checkpoint

    def write_gpu_memory(self, trainer: Trainer) -> None:
        """Peak GPU memory in GiB."""
        self._write("train/", {"gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30})

    def close(self) -> None:
        self.progress.close()
        if self.logger is not None:
            self.logger.close()

    def _write(self, group: str, figures: Mapping[str, Any]) -> SummaryWriter:
        assert self.logger is not None  # the callers are attached by open()
        for name, value in flatten(figures).items():
            self.logger.writer.add_scalar(f"{group}{name}", value, self.trainer.state.iteration)
        return self.logger.writer


def losses(output: dict[str, Any]) -> dict[str, float]:
    """The losses of a trainer's output as floats."""
    return {name: float(value) for name, value in output.items() if name.startswith("loss")}


def _outlive_full_disk(board: TensorboardLogger) -> None:
    """Lets training continue if TensorBoard files cannot be written; the points are lost, and the log says so once.

    tensorboardX writes in a thread. An OSError would end the thread, and training would wait for it forever.
    """
    writer = board.writer.file_writer.event_writer._ev_writer
    failed = False

    def surviving(write: Callable) -> Callable:
        def attempt(*args: Any) -> None:
            nonlocal failed
            try:
                write(*args)
            except OSError as error:
                if not failed:
                    log.error("cannot write TensorBoard files: %s; training continues without these points", error)
                failed = True

        return attempt

    for name in ("write_event", "flush", "close"):
        setattr(writer, name, surviving(getattr(writer, name)))
