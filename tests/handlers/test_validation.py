"""Validation during training, and which model is kept."""

import json
import math

import pytest
import torch
from ignite.engine import Engine

from proda.data.labels import class_names
from proda.engines.events import ProdaEvents, proda_engine
from proda.handlers.checkpoints import checkpoints, resume
from proda.handlers.validation import Validation, report
from proda.utils.files import save_json

CLASSES = ["road", "sky", "train"]


def confusion(correct: int, wrong: int = 0) -> torch.Tensor:
    """Three classes, the last of them absent: ``correct`` pixels of each of the others and ``wrong`` of one."""
    return torch.tensor([[correct, 0, 0], [wrong, correct, 0], [0, 0, 0]], dtype=torch.float64)


class Judge(Engine):
    """An evaluator whose scores are given: (correct of 10, label-free) for each validation in turn."""

    def __init__(self, *scores: tuple[int, float]) -> None:
        super().__init__(lambda *_: None)
        self.scores = list(scores)

    def run(self, *_):
        correct, label_free = self.scores.pop(0)
        self.state.metrics = {"confusion": confusion(correct, 10 - correct), "label_free": label_free}


def train(folder, *scores: tuple[int, float], every: int = 1, iterations: int | None = None) -> Validation:
    trainer = proda_engine(lambda *_: None)
    weights = lambda: {"model": torch.tensor(trainer.state.iteration)}  # noqa: E731
    validation = Validation(Judge(*scores), [], CLASSES, weights, folder)
    validation.trainer = trainer
    validation.attach(trainer, every=every)
    trainer.run([None] * (iterations or len(scores)))
    return validation


def kept(folder) -> dict[str, int]:
    """File -> iteration of its weights."""
    return {path.stem: torch.load(path, weights_only=True)["model"].item() for path in folder.glob("*.pt")}


def test_an_absent_class_is_no_zero():
    result = report(confusion(8, 2), CLASSES)
    assert result["iou"]["road"] == 8 / 10 and result["iou"]["sky"] == 8 / 10
    assert math.isnan(result["iou"]["train"])
    assert result["miou"] == pytest.approx(0.8)


def test_sixteen_classes_have_a_thirteen_class_score_beside_them():
    matrix = torch.eye(16, dtype=torch.float64)
    matrix[3, 3], matrix[3, 0] = 0, 1  # wall is wrong: it is not among the thirteen, but takes half of road
    result = report(matrix, class_names(16))
    assert result["miou"] == pytest.approx((14 + 0.5) / 16)
    assert result["miou_13"] == pytest.approx((12 + 0.5) / 13)
    assert "miou_13" not in report(torch.eye(3), CLASSES)


def test_the_last_the_best_and_the_label_free_model_are_kept(tmp_path):
    validation = train(tmp_path, (5, 0.1), (9, 0.2), (7, 0.9), (6, 0.3))
    assert kept(tmp_path) == {"last": 4, "best": 2, "label_free": 3}
    summary = validation.summary()
    assert (summary["iteration"], summary["best_iteration"], summary["label_free_iteration"]) == (4, 2, 3)
    assert summary["miou"] < summary["label_free_miou"] < summary["best_miou"] == pytest.approx(0.9)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["iteration"] == 2 and content["miou"] == pytest.approx(0.9)


def test_of_equals_the_first_is_the_best(tmp_path):
    train(tmp_path, (5, 0.1), (5, 0.1))
    assert kept(tmp_path) == {"last": 2, "best": 1, "label_free": 1}


def test_the_end_of_training_is_validated_once(tmp_path):
    assert [r["iteration"] for r in train(tmp_path, (5, 0.1), (6, 0.1), every=2, iterations=4).results] == [2, 4]
    assert [r["iteration"] for r in train(tmp_path, (5, 0.1), (6, 0.1), every=2, iterations=3).results] == [2, 3]


def test_scores_are_on_the_trainer_when_the_event_fires_without_absent_classes(tmp_path):
    trainer, seen = proda_engine(lambda *_: None), []
    validation = Validation(Judge((8, 0.5)), [], CLASSES, dict, tmp_path)
    validation.attach(trainer, every=1)
    trainer.add_event_handler(ProdaEvents.VALIDATED, lambda engine: seen.append(dict(engine.state.metrics)))
    trainer.run([None])
    assert seen[0]["miou"] == pytest.approx(0.8) and seen[0]["label_free"] == 0.5
    assert {name for name in seen[0] if name.startswith("iou/")} == {"iou/road", "iou/sky"}


def test_its_memory_goes_through_a_checkpoint_so_the_best_stays_the_best(tmp_path):
    first = train(tmp_path, (9, 0.1), (5, 0.2))
    trainer = proda_engine(lambda *_: None)
    second = Validation(Judge((6, 0.3)), [], CLASSES, lambda: {"model": torch.tensor(99)}, tmp_path)
    second.load_state_dict(first.state_dict())
    trainer.state.iteration = 3
    second(trainer)
    assert kept(tmp_path) == {"last": 99, "best": 1, "label_free": 99}
    assert second.summary()["best_iteration"] == 1


def test_the_last_checkpoint_holds_the_last_validation(tmp_path):
    """It runs when the checkpoint of the same iteration is on the disk already."""
    trainer = proda_engine(lambda *_: None)
    validation = Validation(Judge((5, 0.1)), [], CLASSES, lambda: {"model": torch.zeros(1)}, tmp_path)
    validation.attach(trainer, every=10)
    checkpoints({"trainer": trainer, "validation": validation}, tmp_path, trainer, every=1)
    trainer.run([None] * 2)
    again = Validation(Judge(), [], CLASSES, dict, tmp_path)
    resume({"trainer": proda_engine(lambda *_: None), "validation": again}, tmp_path)
    assert [result["iteration"] for result in again.results] == [2]


def test_a_network_that_predicts_nan_ends_the_run_and_replaces_no_file(tmp_path):
    with pytest.raises(FloatingPointError, match="the network predicts NaN at iteration 2"):
        train(tmp_path, (5, 0.1), (9, math.nan), (9, 0.1))
    assert kept(tmp_path) == {"last": 1, "best": 1, "label_free": 1}


def test_a_full_disk_keeps_the_file_before_it(tmp_path, monkeypatch):
    train(tmp_path, (5, 0.1))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("proda.handlers.validation.save_tensors", full)
    assert len(train(tmp_path, (6, 0.1), (7, 0.1)).results) == 2  # training goes on
    assert kept(tmp_path)["last"] == 1


def test_a_summary_with_an_absent_class_is_valid_json(tmp_path):
    summary = train(tmp_path, (8, 0.5)).summary()
    save_json(summary, tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["iou"]["train"] is None and read["iou"]["road"] == pytest.approx(0.8)


def test_without_labels_there_is_no_best_model(tmp_path):
    trainer = proda_engine(lambda *_: None)
    judge = Judge((0, 0.5))
    judge.run = lambda *_: judge.state.metrics.update(confusion=torch.zeros(3, 3), label_free=0.5)
    validation = Validation(judge, [], CLASSES, lambda: {"model": torch.tensor(1)}, tmp_path)
    validation.attach(trainer, every=1)
    trainer.run([None])
    assert kept(tmp_path) == {"last": 1, "label_free": 1}
    assert trainer.state.metrics == {"label_free": 0.5}
