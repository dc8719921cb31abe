"""TensorBoard files, the progress on the terminal, and the stop on NaN."""

import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.target import TargetView
from proda.handlers.board import Board
from proda.handlers.panels import PANEL_ROWS, PANEL_SIZE, TrainingPanels, ValidationPanels
from proda.handlers.teacher import EMATeacher
from tests import tiny
from tests.tiny import PRECISION, B, H, K, W

COLORS = np.random.default_rng(0).integers(0, 256, (K, 3), dtype=np.uint8)


def stage1_output() -> dict[str, torch.Tensor]:
    maps = torch.randn(B, K, H // 4, W // 4)
    out = {"target_logits": maps, "source_logits": torch.randn(B, K, H, W), "pseudo_labels": maps.argmax(1)}
    return out | {"rectified_labels": maps.argmax(1), "loss": torch.tensor(1.5), "loss_target": torch.tensor(0.5)}


def run(folder, output, *, iterations: int = 4, start: int = 0, teacher: bool = False) -> None:
    """A run of fake steps with a board and one validation in the middle."""

    def step(engine: Engine, batch: dict) -> dict:
        engine.state.batch, engine.state.output = batch, output()
        engine.fire_event(ProdaEvents.BACKWARD_DONE)
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return engine.state.output

    trainer, network = Trainer(step), tiny.network()
    evaluator = segmentation_evaluator(network, PRECISION)
    if teacher:
        EMATeacher(network, 0.25).attach(trainer)
    if start:
        trainer.load_state_dict({"epoch_length": 4, "max_iters": iterations, "iteration": start})
    optimizer = tiny.sgd(network, lr=0.125)
    # The board shows the learning rate of the step, not the one that the schedule sets after it.
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: optimizer.param_groups[0].update(lr=0.125))
    trainer.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED, lambda: optimizer.param_groups[0].update(lr=0.25))
    board = Board(folder, evaluator, {"student": optimizer}, COLORS)
    board.attach(trainer, every=1)
    board.open()

    @trainer.on(Events.STARTED)
    def new_labels() -> None:
        trainer.state.pseudo_label_scores = {"miou": 0.5, "iou": {"road": 0.25, "train": float("nan")}}
        trainer.fire_event(ProdaEvents.PSEUDO_LABELS_REFRESHED)

    @trainer.on(Events.ITERATION_COMPLETED(every=2))
    def validate() -> None:
        evaluator.run([tiny.batch()["source"]])
        trainer.state.scores = {"miou": 0.75, "iou": {"road": 0.5, "train": float("nan")}}
        trainer.fire_event(ProdaEvents.VALIDATED)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning for every written point would flood the log
        trainer.run([tiny.batch()] * 4, max_iters=iterations, epoch_length=4)
    board.close()


def board(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_scalars_and_panels_are_written_at_their_iterations(tmp_path, monkeypatch):
    monkeypatch.setattr("proda.handlers.board.PANELS", 3)
    run(tmp_path, stage1_output, teacher=True)
    events = board(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/loss_target", "train/ema_momentum", "student/lr/group_0"),
        *("val/miou", "val/iou/road", "pseudo_labels/miou", "pseudo_labels/iou/road"),
    }
    steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps == {"train/source": [1, 3], "train/target": [1, 3], "val/panel": [2, 4]}
    points = lambda tag: [(point.step, point.value) for point in events.Scalars(tag)]  # noqa: E731
    assert points("train/loss") == [(i, 1.5) for i in (1, 2, 3, 4)]
    assert points("student/lr/group_0") == [(i, 0.125) for i in (1, 2, 3, 4)]
    assert points("train/ema_momentum") == [(i, 0.25) for i in (1, 2, 3, 4)]
    assert points("val/miou") == [(2, 0.75), (4, 0.75)]
    assert points("pseudo_labels/miou") == [(0, 0.5)]


def test_a_resumed_run_hides_the_points_past_its_checkpoint(tmp_path):
    run(tmp_path, lambda: {"loss": torch.tensor(1.0)})
    for file in tmp_path.iterdir():
        file.rename(tmp_path / "events.out.tfevents.1000000000.earlier")  # names have seconds, and this takes less
    run(tmp_path, lambda: {"loss": torch.tensor(2.0)}, start=2)
    points = [(point.step, point.value) for point in board(tmp_path).Scalars("train/loss")]
    assert points == [(1, 1), (2, 1), (3, 2), (4, 2)]


def panels(output: dict, batch: dict | None = None, target: TargetView | None = None) -> dict[str, list[str]]:
    """Name of each panel -> its column titles."""
    rows = {}
    for name, titles, pictures in TrainingPanels(None, COLORS)._panels(batch or tiny.batch(), output, target):
        assert len(pictures) == B and all(len(row) == len(titles) for row in pictures)
        rows[name] = titles
    return rows


def without(out: dict, *names: str) -> dict:
    return {name: value for name, value in out.items() if name not in names}


def test_the_panels_of_each_stage():
    labels, out = ["prediction", "confidence", "pseudo label"], stage1_output()
    assert panels(out)["train/target"] == ["image", *labels, "rectified", "strong view"]
    second = without(out, "rectified_labels") | {"teacher_logits": out["target_logits"]}
    assert panels(second)["train/target"] == ["strong image", *labels]
    source = {"source": tiny.batch()["source"]}
    assert panels(without(out, "target_logits"), source) == {
        "train/source": ["source image", "ground truth", "prediction"]
    }


def test_a_panel_shows_what_handlers_have_put_in_the_place_of_the_target():
    batch, out = tiny.batch(), stage1_output()
    same = TargetView(batch["target"]["image"], batch["source"]["labels"].long())
    assert "trained on" not in panels(out, batch, same)["train/target"]
    titles = panels(out, batch, same._replace(image=same.image.clone()))["train/target"]
    assert titles[:4] == ["image", "trained on", "its labels", "prediction"]


@pytest.mark.parametrize("images", [1, PANEL_ROWS + 1])
def test_a_training_panel_has_a_row_for_each_of_the_first_images_in_their_shape(images):
    writer, engine = Writer(), Trainer(lambda *_: {})
    pixels = torch.zeros(images, 3, 100, 200, dtype=torch.uint8)
    logits = torch.zeros(images, K, 50, 100)  # at a lower resolution, as those of a network
    engine.state.batch = {"source": {"image": pixels, "labels": torch.zeros(images, 100, 200, dtype=torch.uint8)}}
    engine.state.output = {"source_logits": logits}
    TrainingPanels(writer, COLORS)(engine)
    (picture,) = writer.pictures
    rows, columns = min(images, PANEL_ROWS), 3
    assert picture.shape[0] // 100 == rows and picture.shape[1] // 200 == columns


def test_a_progress_bar_shows_the_iterations_of_all_epochs(tmp_path, terminal):
    run(tmp_path, stage1_output, iterations=10)  # two epochs and a half
    assert "iteration 10/10 100%" in terminal.getvalue().split("\r")[-1]


class Writer:
    """Keeps the pictures that it is given."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []

    def add_image(self, _tag: str, picture: np.ndarray, *_, **__) -> None:
        self.pictures.append(picture)


@pytest.mark.parametrize("batches", [1, 5])
def test_a_validation_panel_has_a_row_for_each_of_the_first_images(batches):
    trainer, writer = Trainer(lambda *_: {}), Writer()
    evaluator = segmentation_evaluator(tiny.network(), PRECISION)
    ValidationPanels(writer, COLORS).attach(trainer, evaluator)
    for _ in range(2):  # the second panel holds nothing of the first
        evaluator.run([tiny.batch()["source"]] * batches)
        trainer.fire_event(ProdaEvents.VALIDATED)
    rows = [len(picture) // PANEL_SIZE[1] for picture in writer.pictures]
    assert rows == [min(batches * B, PANEL_ROWS)] * 2


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_has_no_gpu_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: pytest.fail("asked for the memory of a GPU"))
    run(tmp_path, stage1_output)
