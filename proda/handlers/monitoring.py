"""Watching a run: progress bar, TensorBoard scalars and image panels, and the stop on NaN."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, TensorboardLogger, TerminateOnNan
from ignite.handlers.tensorboard_logger import OutputHandler
from PIL import Image
from torch.optim import Optimizer

from proda.engines.events import ProdaEvents
from proda.visualization import confidence_picture, grid, image_picture, label_picture

log = logging.getLogger("proda")

REMEDY = "lower --lr, set --grad_clip, or try --amp=off"
PANEL_ROWS = 4
PANEL_SIZE = (320, 160)  # width and height of each picture of a validation panel, pixels


def losses(output: dict[str, Any]) -> dict[str, float]:
    """The losses of a trainer's output as floats."""
    return {name: float(value) for name, value in output.items() if name.startswith("loss")}


class StopOnNan(TerminateOnNan):
    """Ends the run with a FloatingPointError when a loss of any process is not a finite number.

    The losses in ``output`` become those of the global batch (see ``average_losses``), so all processes stop together.

    Ignite's handler asks the engine to terminate, but the handlers after it still run, and so do those of
    ``COMPLETED``: they would save the weights that are lost. Attach it before whatever saves.
    """

    def __init__(self) -> None:
        super().__init__(output_transform=_sum_of_losses)
        self.logger.disabled = True  # the error says it

    def __call__(self, engine: Engine) -> None:
        average_losses(engine)
        another, engine.should_terminate = engine.should_terminate, False  # another handler's wish to stop is no NaN
        super().__call__(engine)
        if engine.should_terminate:
            raise FloatingPointError(
                f"the loss is not a finite number at iteration {engine.state.iteration} "
                f"({', '.join(f'{name} {value:g}' for name, value in losses(engine.state.output).items())}); "
                f"what was saved before is kept: {REMEDY}"
            )
        engine.should_terminate = another


def _sum_of_losses(output: dict[str, Any]) -> torch.Tensor:
    """Finite if and only if every loss is."""
    return torch.as_tensor(sum(value for name, value in output.items() if name.startswith("loss")))


def average_losses(engine: Engine) -> None:
    """Puts the mean over the processes in the place of each loss in ``output``: the loss of the global batch."""
    output = engine.state.output
    names = sorted(name for name in output if name.startswith("loss"))
    if names and idist.get_world_size() > 1:
        mean = idist.all_reduce(torch.stack([output[name].double() for name in names])) / idist.get_world_size()
        output.update(zip(names, mean, strict=True))


def progress_bar(trainer: Engine, *, every: int = 10) -> None:
    """A bar on the terminal of rank 0, with the loss."""
    if idist.get_rank() == 0:
        ProgressBar(persist=True, desc="iterations").attach(
            trainer,
            output_transform=lambda output: {"loss": float(output["loss"])},
            event_name=Events.ITERATION_COMPLETED(every=every),
            closing_event_name=Events.COMPLETED,
        )


def tensorboard(
    trainer: Engine, optimizers: dict[str, Optimizer], folder: Path, *, every: int
) -> TensorboardLogger | None:
    """TensorBoard files in ``folder``: losses, learning rates and EMA momentum, and the scores of each validation.

    Also the scores of new pseudo labels, where there is ground truth. Call it when the teacher is attached.
    On rank 0 only; elsewhere None. A resumed run hides the points that an interrupted one wrote past its checkpoint.
    Close it when the run has ended.
    """
    if idist.get_rank() != 0:
        return None
    start = trainer.state.iteration
    # Files are named by the second: a run that is resumed at once must not write over the one before.
    resumed = {"purge_step": start + 1, "filename_suffix": f".{start}"} if start else {}
    board = TensorboardLogger(log_dir=str(folder), **resumed)
    _outlive_full_disk(board)
    regularly = Events.ITERATION_COMPLETED(every=every)
    board.attach_output_handler(trainer, regularly, tag="train", output_transform=losses)
    if hasattr(trainer.state, "ema_momentum"):
        board.attach_output_handler(trainer, regularly, tag="train", state_attributes=["ema_momentum"])
    for name, optimizer in optimizers.items():
        board.attach_opt_params_handler(trainer, regularly, optimizer, tag=name)
    # Not through ``board.attach``: it knows Ignite's own events only.
    write_scores = OutputHandler("val", metric_names="all", global_step_transform=lambda *_: trainer.state.iteration)
    trainer.add_event_handler(ProdaEvents.VALIDATED, write_scores, board, ProdaEvents.VALIDATED)

    trainer.add_event_handler(regularly, lambda: board.writer.flush())  # a kill loses no point before its checkpoint

    @trainer.on(ProdaEvents.PSEUDO_LABELS_REFRESHED)
    def write_quality(engine: Engine) -> None:
        found = getattr(engine.state, "pseudo_label_scores", {})
        flat = {name: value for name, value in found.items() if name != "iou"}
        flat |= {f"iou/{name}": value for name, value in found.get("iou", {}).items()}
        for name, value in flat.items():
            if value == value:  # an absent class has no point
                board.writer.add_scalar(f"pseudo_labels/{name}", value, engine.state.iteration)

    return board


def _outlive_full_disk(board: TensorboardLogger) -> None:
    """Points that cannot be written are lost, with a line in the log.

    tensorboardX writes in a thread, which an OSError would end; training would then wait for it for ever.
    """
    writer = board.writer.file_writer.event_writer._ev_writer
    said = []

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


def watch(
    trainer: Engine,
    evaluator: Engine,
    optimizers: dict[str, Optimizer],
    folder: Path,
    colors: np.ndarray,
    *,
    log_every: int,
    panels_every: int,
) -> TensorboardLogger | None:
    """All that shows a run to a person: progress bar, scalars, image panels, GPU memory. Returns the board to close."""
    progress_bar(trainer)
    board = tensorboard(trainer, optimizers, folder, every=log_every)
    TrainingPanels(board, colors).attach(trainer, every=panels_every)
    ValidationPanels(board, colors).attach(trainer, evaluator)
    gpu_memory(trainer, board, every=log_every)
    return board


class TrainingPanels:
    """Puts pictures of the batch into TensorBoard: what the student sees, predicts and is taught.

    Reads ``engine.state.batch`` and whatever ``engine.state.output`` holds of ``target_logits``, ``source_logits``,
    ``pseudo_labels``, ``rectified_labels`` and ``rectified``.
    """

    def __init__(self, board: TensorboardLogger | None, colors: np.ndarray) -> None:
        self.board, self.colors = board, colors

    def attach(self, trainer: Engine, *, every: int) -> None:
        if self.board is not None and every > 0:
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED(every=every) | Events.ITERATION_COMPLETED(once=1), self
            )

    def __call__(self, engine: Engine) -> None:
        for name, titles, rows in self._panels(engine.state.batch, engine.state.output):
            height, width = rows[0][0].shape[:2]
            panel = grid(rows, titles, (max(width, 160), max(width, 160) * height // width))
            self.board.writer.add_image(name, np.asarray(panel), engine.state.iteration, dataformats="HWC")

    def _panels(self, batch: dict[str, Any], out: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list]]]:
        if "source" in batch and "source_logits" in out:
            source = batch["source"]
            prediction = out["source_logits"].argmax(1)
            rows = [
                [image_picture(image), label_picture(truth, self.colors), label_picture(predicted, self.colors)]
                for image, truth, predicted in list(zip(source["image"], source["labels"], prediction, strict=True))
            ]
            yield "train/source", ["source image", "ground truth", "prediction"], rows[:PANEL_ROWS]
        if "target" in batch and "target_logits" in out:
            target, confidence = batch["target"], out["target_logits"].softmax(1)
            # stage 2 and 3 teach on the strong view, the others on the weak one
            seen = "strong_image" if "teacher_logits" in out else "image"
            columns = {
                seen.replace("_", " "): [image_picture(image) for image in target[seen]],
                "prediction": [label_picture(labels, self.colors) for labels in confidence.argmax(1)],
                "confidence": [confidence_picture(value) for value in confidence.amax(1)],
            }
            for title, key in (("pseudo label", "pseudo_labels"), ("rectified", "rectified_labels")):
                if key in out:
                    columns[title] = [label_picture(labels, self.colors) for labels in out[key]]
            if "strong_image" in target and seen == "image":
                columns["strong view"] = [image_picture(image) for image in target["strong_image"]]
            yield "train/target", list(columns), list(map(list, zip(*columns.values(), strict=True)))[:PANEL_ROWS]


class ValidationPanels:
    """Puts the first validation images into TensorBoard: input, ground truth, prediction, confidence."""

    def __init__(self, board: TensorboardLogger | None, colors: np.ndarray) -> None:
        self.board, self.colors = board, colors
        self.rows: list[list[np.ndarray]] = []

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        if self.board is not None:
            evaluator.add_event_handler(Events.STARTED, lambda: self.rows.clear())
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
            trainer.add_event_handler(ProdaEvents.VALIDATED, self.write)

    def collect(self, evaluator: Engine) -> None:
        if len(self.rows) < PANEL_ROWS:
            confidence, prediction = evaluator.state.output["probabilities"].max(1)
            columns = (evaluator.state.batch["image"], evaluator.state.output["labels"], prediction, confidence)
            for image, truth, predicted, sure in zip(*columns, strict=True):
                pictures = (image_picture(image), label_picture(truth, self.colors))
                pictures += (label_picture(predicted, self.colors), confidence_picture(sure))
                # small at once: full-size pictures of a whole batch would stay in memory
                self.rows.append([np.asarray(Image.fromarray(picture).resize(PANEL_SIZE, 0)) for picture in pictures])
            del self.rows[PANEL_ROWS:]

    def write(self, trainer: Engine) -> None:
        panel = grid(self.rows, ["target image", "ground truth", "prediction", "confidence"], PANEL_SIZE)
        self.board.writer.add_image("val/panel", np.asarray(panel), trainer.state.iteration, dataformats="HWC")


def gpu_memory(trainer: Engine, board: TensorboardLogger | None, *, every: int) -> None:
    """Peak GPU memory in GiB to TensorBoard, where there is a GPU."""
    if board is not None and torch.cuda.is_available():

        @trainer.on(Events.ITERATION_COMPLETED(every=every))
        def log_peak(engine: Engine) -> None:
            peak = torch.cuda.max_memory_allocated() / 2**30
            board.writer.add_scalar("train/gpu_memory_gib", peak, engine.state.iteration)
