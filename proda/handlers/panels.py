"""Image panels in TensorBoard: inputs, labels and predictions of training and of validation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image
from tensorboardX import SummaryWriter

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.target import TargetView
from proda.visualization import confidence_picture, grid, image_picture, label_picture

PANEL_ROWS = 4
PANEL_SIZE = (320, 160)  # width and height of each picture of a validation panel, pixels


class TrainingPanels:
    """Writes pictures of a training batch to TensorBoard: the student's input, its prediction and its labels.

    Reads ``engine.state.batch``, and of ``engine.state.output`` those of ``source_logits``, ``target_logits``,
    ``pseudo_labels`` and ``rectified_labels`` that the stage computes. Where handlers have mixed or augmented
    ``engine.state.target``, its image and labels are shown too.
    """

    def __init__(self, writer: SummaryWriter, colors: np.ndarray) -> None:
        self.writer, self.colors = writer, colors

    def attach(self, trainer: Trainer, *, every: int) -> None:
        """``every``: iterations between panels; the first iteration has one, too."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every) | Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Trainer) -> None:
        for name, titles, rows in self._panels(engine.state.batch, engine.state.output, engine.state.target):
            height, width = rows[0][0].shape[:2]
            panel = grid(rows, titles, (max(width, 160), max(width, 160) * height // width))
            self.writer.add_image(name, np.asarray(panel), engine.state.iteration, dataformats="HWC")

    def _panels(
        self, batch: dict[str, Any], out: dict[str, Any], trained_on: TargetView | None = None
    ) -> Iterator[tuple[str, list[str], list[list]]]:
        if "source" in batch and "source_logits" in out:
            source = batch["source"]
            prediction = out["source_logits"].argmax(1)
            rows = [
                [image_picture(image), label_picture(truth, self.colors), label_picture(predicted, self.colors)]
                for image, truth, predicted in zip(source["image"], source["labels"], prediction, strict=True)
            ]
            yield "train/source", ["source image", "ground truth", "prediction"], rows[:PANEL_ROWS]
        if "target" in batch and "target_logits" in out:
            target, confidence = batch["target"], out["target_logits"].softmax(1)
            # The student's input is the strong view in stages 2 and 3, and the weak view in the other stages.
            seen = "strong_image" if "teacher_logits" in out else "image"
            columns = {seen.replace("_", " "): [image_picture(image) for image in target[seen]]}
            if trained_on is not None and trained_on.image is not target[seen]:
                columns["trained on"] = [image_picture(image) for image in trained_on.image]
                columns["its labels"] = [label_picture(labels, self.colors) for labels in trained_on.labels]
            columns |= {
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
    """Writes the first validation images to TensorBoard: input, ground truth, prediction and confidence."""

    def __init__(self, writer: SummaryWriter, colors: np.ndarray) -> None:
        self.writer, self.colors = writer, colors
        self.rows: list[list[np.ndarray]] = []

    def attach(self, trainer: Trainer, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda: self.rows.clear())
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        trainer.add_event_handler(ProdaEvents.VALIDATED, self.write)

    def collect(self, evaluator: Engine) -> None:
        if len(self.rows) < PANEL_ROWS:
            out = evaluator.state.output
            confidence = out["logits"].softmax(1).amax(1)
            columns = (evaluator.state.batch["image"], out["labels"], out["predicted"], confidence)
            for image, truth, predicted, sure in zip(*columns, strict=True):
                pictures = [image_picture(image), label_picture(truth, self.colors)]
                pictures += [label_picture(predicted, self.colors), confidence_picture(sure)]
                # Resized now, because the full-size pictures of a batch would stay in memory until VALIDATED.
                self.rows.append([np.asarray(Image.fromarray(picture).resize(PANEL_SIZE, 0)) for picture in pictures])
            del self.rows[PANEL_ROWS:]

    def write(self, trainer: Trainer) -> None:
        panel = grid(self.rows, ["target image", "ground truth", "prediction", "confidence"], PANEL_SIZE)
        self.writer.add_image("val/panel", np.asarray(panel), trainer.state.iteration, dataformats="HWC")
