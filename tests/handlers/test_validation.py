"""Validation during training, and which model is kept."""

import errno
import json
import math

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import RunningAverage

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.inference import segmentation_evaluator
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.utils.files import save_json, save_tensors
from tests import tiny
from tests.tiny import PRECISION, K

CLASSES = ["road", "sky", "train"]


def confusion(correct: int, wrong: int = 0) -> torch.Tensor:
    """Three classes, the last one absent: ``correct`` pixels of each other class, and ``wrong`` pixels of one."""
    return torch.tensor([[correct, 0, 0], [wrong, correct, 0], [0, 0, 0]], dtype=torch.float64)


class Judge(Engine):
    """An evaluator whose scores are given: (correct of 10, label-free) for each validation in turn."""

    def __init__(self, *scores: tuple[int, float]) -> None:
        super().__init__(lambda *_: None)
        self.scores = list(scores)

    def run(self, *_):
        correct, label_free = self.scores.pop(0)
        self.state.metrics = {"confusion": confusion(correct, 10 - correct), "label_free": label_free}


class Run:
    """A run whose network contains the iteration in its only buffer."""

    def __init__(
        self, folder, evaluator: Engine, *, every: int = 1, checkpoint_every: int = 0, teacher: Engine | None = None
    ) -> None:
        self.network = tiny.network()
        self.network.register_buffer("iteration", torch.tensor(0))
        self.trainer = Trainer(self.step)
        self.folder = folder
        if checkpoint_every:
            Checkpoints(folder).attach(self.trainer, every=checkpoint_every)
        self.validation = Validation(evaluator, [None], CLASSES, teacher=teacher)
        self.validation.attach(self.trainer, every=every)
        self.mean_teacher = tiny.network(1)
        self.mean_teacher.register_buffer("iteration", torch.tensor(0))
        parts = {"prototypes": torch.ones(3, 2), "teacher": None if teacher is None else self.mean_teacher}
        self.models = KeptModels(
            self.validation, self.network, ModelInfo(class_names=tuple("abcde"), recipe="streets"), folder, **parts
        )
        self.models.attach(self.trainer)

    def step(self, engine: Engine, _batch: None) -> dict:
        self.network.iteration.fill_(engine.state.iteration)
        self.mean_teacher.iteration.fill_(100 + engine.state.iteration)
        return {}


def train(folder, *scores: tuple[int, float], every: int = 1, iterations: int | None = None) -> Validation:
    run = Run(folder, Judge(*scores), every=every)
    run.trainer.run([None] * (iterations or len(scores)))
    return run.validation


def kept(folder) -> dict[str, int]:
    """File -> iteration of its weights."""
    return {path.stem: torch.load(path, weights_only=True)["model"]["iteration"].item() for path in folder.glob("*.pt")}


def test_the_last_the_best_and_the_label_free_model_are_kept(tmp_path):
    validation = train(tmp_path, (5, 0.1), (9, 0.2), (7, 0.9), (9, 0.3))  # the first of equal scores is the best
    assert kept(tmp_path) == {"last": 4, "best": 2, "label_free": 3}
    summary = validation.summary()
    assert (summary["iteration"], summary["best_iteration"], summary["label_free_iteration"]) == (4, 2, 3)
    assert summary["label_free_miou"] < summary["miou"] == summary["best_miou"] == pytest.approx(0.9)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["iteration"] == 2 and content["miou"] == pytest.approx(0.9) and content["label_free"] == 0.2
    assert content["recipe"] == "streets" and content["class_names"] == list("abcde")
    assert torch.equal(content["prototypes"], torch.ones(3, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "label_free.pt", "last.pt"]


def test_the_end_of_training_is_validated_once(tmp_path):
    assert [r["iteration"] for r in train(tmp_path, (5, 0.1), (6, 0.1), every=2, iterations=4).results] == [2, 4]
    assert [r["iteration"] for r in train(tmp_path, (5, 0.1), (6, 0.1), every=2, iterations=3).results] == [2, 3]


def test_scores_are_on_the_trainer_when_the_event_fires_without_absent_classes(tmp_path):
    run, seen = Run(tmp_path, Judge((8, 0.5), (9, 0.5))), []
    run.trainer.add_event_handler(
        ProdaEvents.VALIDATED, lambda engine: seen.append((engine.state.scores, dict(engine.state.metrics)))
    )
    # A user's metrics stay: one that is computed again in every iteration, one that is not.
    RunningAverage(output_transform=lambda _: 2.0).attach(run.trainer, "mine")
    run.trainer.add_event_handler(Events.STARTED, lambda: run.trainer.state.metrics.update(once=3.0))
    run.trainer.run([None] * 2)
    assert [metrics["once"] for _, metrics in seen] == [3.0] * 2 and run.trainer.state.metrics["mine"] == 2.0
    assert run.trainer.state.metrics["miou"] == pytest.approx(0.9)
    (scores, metrics), _ = seen
    assert metrics["miou"] == scores["miou"] == pytest.approx(0.8) and metrics["label_free"] == 0.5
    assert {name for name in metrics if name.startswith("iou/")} == {"iou/road", "iou/sky"}
    assert set(scores["iou"]) == set(CLASSES)


def test_validation_leaves_the_network_in_its_modes(tmp_path):
    network = tiny.network().train()
    network.bn1.eval()  # as frozen batch norm is
    evaluator, modes = segmentation_evaluator(network, PRECISION), []
    trainer = Trainer(lambda *_: {})
    validation = Validation(evaluator, [tiny.batch()["source"]], [f"class {k}" for k in range(K)])
    validation.attach(trainer, every=1)
    for event in (ProdaEvents.VALIDATED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: modes.append((network.training, network.bn1.training)))
    trainer.run([None])
    assert modes == [(True, False)] * 2
    assert evaluator.state.output is None and evaluator.state.batch is None


def test_its_results_are_in_the_checkpoint_so_the_best_stays_the_best(tmp_path):
    first = train(tmp_path, (9, 0.1), (5, 0.2))
    second = Run(tmp_path, Judge((6, 0.3)))
    assert second.trainer.state.remembered == {"validation": second.validation}
    second.validation.load_state_dict(first.state_dict())
    second.network.iteration.fill_(99)
    second.trainer.state.iteration = 3
    second.validation(second.trainer)
    assert kept(tmp_path) == {"last": 99, "best": 1, "label_free": 99}
    assert second.validation.summary()["best_iteration"] == 1


class Interrupted(Judge):
    """A run of three validations that is stopped during its first."""

    def run(self, *_) -> None:
        super().run()
        self.should_terminate = "skip_completed" if len(self.scores) == 2 else False


INTERRUPTED = ((1, 0.1), (2, 0.2), (3, 0.3))


def resumed(folder, evaluator: Engine, **options) -> tuple[Run, list[int]]:
    """A run that goes on at iteration 2 and ends at 4, and the iterations of its validations."""
    again, seen = Run(folder, evaluator, every=2, **options), []
    assert Checkpoints(folder).resume(again.trainer) == 2
    again.trainer.add_event_handler(ProdaEvents.VALIDATED, lambda engine: seen.append(engine.state.iteration))
    again.trainer.run([None] * 4)
    return again, seen


@pytest.mark.parametrize("of_teacher", [False, True])
def test_an_interrupted_validation_is_discarded_and_repeated_when_the_run_is_resumed(tmp_path, of_teacher):
    judges = (Judge((5, 0.1)), Interrupted(*INTERRUPTED)) if of_teacher else (Interrupted(*INTERRUPTED), None)
    first = Run(tmp_path, judges[0], teacher=judges[1], every=2, checkpoint_every=1)
    first.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: first.trainer.terminate(skip_completed=True)
    )
    first.trainer.add_event_handler(ProdaEvents.VALIDATED, lambda: pytest.fail("validated"))
    first.trainer.run([None] * 4)
    assert first.validation.results == [] and not (tmp_path / "last.pt").exists()
    again, seen = resumed(
        tmp_path, Judge((6, 0.1), (7, 0.2)), teacher=Judge((4, 0.1), (3, 0.1)) if of_teacher else None
    )
    assert seen == [2, 4] and [result["miou"] for result in again.validation.results] == pytest.approx([0.6, 0.7])
    if of_teacher:
        assert [result["teacher_miou"] for result in again.validation.results] == pytest.approx([0.4, 0.3])


def test_a_finished_validation_is_not_repeated_when_the_run_is_resumed(tmp_path):
    """The validation runs after the checkpoint of the same iteration was saved for the first time."""
    first = Run(tmp_path, Judge((5, 0.1)), every=2, checkpoint_every=1)
    first.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: first.trainer.terminate(skip_completed=True)
    )
    first.trainer.run([None] * 4)
    again, seen = resumed(tmp_path, Judge((6, 0.2)))
    assert seen == [4] and [result["iteration"] for result in again.validation.results] == [2, 4]


def test_a_validation_that_a_signal_ends_after_the_last_iteration_saves_no_model(tmp_path):
    run = Run(tmp_path, Interrupted(*INTERRUPTED), every=9)
    run.trainer.run([None] * 2)
    assert run.validation.results == [] and not kept(tmp_path)


@pytest.mark.parametrize(("student", "teacher", "who"), [(math.nan, 0.1, "network"), (0.1, math.nan, "teacher")])
def test_a_network_that_predicts_nan_ends_the_run_and_replaces_no_file(tmp_path, student, teacher, who):
    run = Run(tmp_path, Judge((5, 0.1), (9, student)), teacher=Judge((5, 0.1), (9, teacher)))
    with pytest.raises(FloatingPointError, match=f"the {who} predicts NaN at iteration 2"):
        run.trainer.run([None] * 3)
    assert kept(tmp_path) == {"last": 1, "best": 1, "label_free": 1, "teacher": 101}


def test_a_teacher_is_judged_beside_the_student_and_kept_as_it_was_last(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("proda.handlers.validation.log.propagate", True)
    caplog.set_level("INFO", logger="proda")
    run, seen = Run(tmp_path, Judge((9, 0.5), (8, 0.4)), teacher=Judge((5, 0.2), (6, 0.3))), []
    run.trainer.add_event_handler(ProdaEvents.VALIDATED, lambda engine: seen.append(dict(engine.state.metrics)))
    run.trainer.run([None] * 2)
    assert caplog.messages[-1] == (
        "iteration 2: mIoU 80.00 % (best 90.00 %), label-free score 0.4000; "
        "teacher: mIoU 60.00 %, label-free score 0.3000"
    )
    assert kept(tmp_path) == {"last": 2, "best": 1, "label_free": 1, "teacher": 102}
    assert torch.load(tmp_path / "teacher.pt", weights_only=True)["miou"] == pytest.approx(0.6)
    summary = run.validation.summary()
    assert (summary["miou"], summary["teacher_miou"]) == pytest.approx((0.8, 0.6))
    assert set(summary["teacher_iou"]) == set(CLASSES) and summary["teacher_label_free"] == 0.3
    assert summary["best_iteration"] == 1  # the student's
    assert seen[-1]["teacher_miou"] == summary["teacher_miou"] and "teacher_iou/sky" in seen[-1]


def full_disk(monkeypatch, refused: list[str]) -> None:
    """Files of these names cannot be written."""

    def attempt(content, path) -> None:
        if path.name in refused:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_tensors(content, path)

    monkeypatch.setattr("proda.handlers.kept_models.save_tensors", attempt)


def test_a_full_disk_keeps_the_file_before_it(tmp_path, monkeypatch):
    train(tmp_path, (5, 0.1))
    full_disk(monkeypatch, ["last.pt", "best.pt", "label_free.pt"])
    assert len(train(tmp_path, (6, 0.1), (7, 0.1)).results) == 2  # training continues
    assert kept(tmp_path)["last"] == 1


def test_a_failed_save_is_not_forgotten_until_a_better_model_makes_up_for_it(tmp_path, monkeypatch):
    refused = ["best.pt"]
    full_disk(monkeypatch, refused)
    run = Run(tmp_path, Judge((9, 0.1), (5, 0.1), (6, 0.1), (10, 0.1)))
    run.trainer.add_event_handler(ProdaEvents.VALIDATED, refused.clear)  # the next file can be written again

    @run.trainer.on(ProdaEvents.VALIDATED(once=3))
    def third() -> None:
        assert kept(tmp_path) == {"last": 3, "label_free": 1}
        with pytest.raises(OSError, match=r"No space left on device.*best\.pt"):
            run.models.raise_failures()

    run.trainer.run([None] * 4)
    assert kept(tmp_path)["best"] == 4
    run.models.raise_failures()


def test_handlers_that_are_attached_in_another_order_than_they_act_are_refused(tmp_path):
    run, fresh = Run(tmp_path, Judge()), Trainer(lambda *_: {})
    with pytest.raises(ValueError, match="attach KeptModels after Validation"):
        run.models.attach(fresh)
    for handler, options in (
        (StopOnNan(), {}),
        (Checkpoints(tmp_path), {"every": 1}),
        (LabelQuality([]), {"every": 1}),
    ):
        with pytest.raises(ValueError, match=f"attach {type(handler).__name__} before Validation"):
            handler.attach(run.trainer, **options)


def test_a_summary_with_an_absent_class_is_valid_json(tmp_path):
    summary = train(tmp_path, (8, 0.5)).summary()
    save_json(summary, tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["iou"]["train"] is None and read["iou"]["road"] == pytest.approx(0.8)


def test_without_labels_there_is_no_best_model(tmp_path):
    judge = Judge()
    judge.run = lambda *_: judge.state.metrics.update(confusion=torch.zeros(3, 3), label_free=0.5)
    run = Run(tmp_path, judge)
    run.trainer.run([None])
    assert kept(tmp_path) == {"last": 1, "label_free": 1}
    assert run.trainer.state.metrics == {"label_free": 0.5}
    run.validation.results.append({"miou": 0.1, "iteration": 2})  # one without a score is never the best
    assert run.validation.best()["iteration"] == 2
