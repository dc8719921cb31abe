"""What is reported about pseudo labels while they are trained on."""

import copy
import logging
import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from proda.data.augment import weak_view_of_labels
from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.distill import distill_trainer
from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.label_quality import KEPT_REPORTS, SAMPLES, LabelQuality, charts, tags
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.method import IGNORE
from proda.method.views import WeakView
from tests import tiny
from tests.tiny import FULL, PRECISION, B, H, K, W

NAMES = [f"class {k}" for k in range(K)]
SURE = 30.0  # a logit whose softmax is 1 in float32


def whole_truth(name: str) -> np.ndarray:
    """Ground truth of the photographs "a" and "b" of tiny.batch: areas larger than a pixel of the maps."""
    coarse = np.random.default_rng(ord(name)).integers(0, K, (FULL[0] // 8, FULL[1] // 8), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def weak_truth(batch: dict[str, Any]) -> torch.Tensor:
    """That of the weak views of a batch, uint8 [B, H, W]."""
    target = batch["target"]
    views = [WeakView(*(field[i] for field in target["weak_view"])) for i in range(B)]
    truth = [torch.from_numpy(whole_truth(name)) for name in target["name"]]
    return torch.stack([weak_view_of_labels(*pair) for pair in zip(truth, views, strict=True)])


def one_hot(labels: list[int]) -> torch.Tensor:
    """Logits [1, K, 1, w] that are sure of these classes."""
    return SURE * torch.nn.functional.one_hot(torch.tensor(labels), K).float().T.reshape(1, K, 1, -1)


def stage_1_output(before: list[int], after: list[int], student: list[int], kept: list[bool]) -> dict[str, Any]:
    """Output of a fake iteration on maps of 1 x 4 pixels."""
    labels = torch.tensor(after).reshape(1, 1, -1)
    return {
        "loss": torch.zeros(()),
        "soft_labels": one_hot(before).softmax(1),
        "pseudo_labels": torch.tensor(before).reshape(1, 1, -1),
        "rectified": one_hot(after).softmax(1),
        "rectified_labels": labels.where(torch.tensor(kept).reshape(labels.shape), IGNORE),
        "target_logits": one_hot(student),
    }


def stage_1_batch(source: list[int]) -> dict[str, Any]:
    one = torch.tensor([1])
    view = WeakView(4 * one, 16 * one, 0 * one, 0 * one, 4 * one, 16 * one, one == 0)
    target = {"image": torch.zeros(1, 3, 4, 16), "name": ["a"], "weak_view": view}
    labels = torch.tensor(source, dtype=torch.uint8).repeat_interleave(4).expand(1, 4, 16)
    return {"source": {"labels": labels}, "target": target}


def fake_run(watch: LabelQuality, outputs: list[dict[str, Any]], *, every: int = 1, source: list[int] | None = None):
    """The trainer of a run with one given output an iteration."""
    trainer = Trainer(lambda engine, batch: outputs[engine.state.iteration - 1])
    watch.attach(trainer, every=every)
    trainer.run([stage_1_batch(source or [0, 0, 1, 2])] * len(outputs), max_epochs=1)
    return trainer


def reported(**settings: Any) -> dict[str, float]:
    """Figures of a run of one iteration: of four pixels one is set right, one is spoilt, one is not kept."""
    truth = np.array([0, 1, 1, 2], dtype=np.uint8).repeat(4)[None].repeat(4, 0)
    output = stage_1_output([0, 0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 3], [True, True, True, False])
    watch = LabelQuality(NAMES, truth=lambda name: truth, **settings)
    return fake_run(watch, [output]).state.summary["label_quality"]


def test_the_figures_of_an_iteration_by_hand():
    last = reported()["last"]
    assert last["iteration"] == 1
    assert last["changed"] == 2 / 4 and last["kept"] == 3 / 4
    assert last["agreement_student_labels"] == 1  # on the pixels that are kept
    assert last["confidence_before"] == last["confidence_labels"] == pytest.approx(1)
    assert last["entropy_student"] == pytest.approx(0, abs=1e-6)
    assert last["changed_to_right"] == last["changed_to_wrong"] == 1 / 2
    assert last["miou_before"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3, abs=1e-6)  # truth 0 1 1 2, labels 0 0 1 2
    assert last["miou_labels"] == pytest.approx((1 + 1 / 2 + 0) / 3)  # labels 0 1 2
    assert last["miou_student"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)  # predictions 0 1 2 3
    assert "miou_teacher" not in last and "prototypes_moved" not in last  # there are none


def test_the_shares_of_the_classes_stand_beside_those_of_the_source():
    classes = reported()["classes"]
    assert [classes[name]["source"] for name in NAMES] == [1 / 2, 1 / 4, 1 / 4, 0, 0]
    assert [classes[name]["first"] for name in NAMES] == [1 / 2, 1 / 4, 1 / 4, 0, 0]
    assert [classes[name]["labels"] for name in NAMES] == [0.333333, 0.333333, 0.333333, 0, 0]
    assert [classes[name]["student"] for name in NAMES] == [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]


def test_the_way_of_the_prototypes_and_their_neighbours():
    prototypes = torch.eye(K)
    watch = LabelQuality(NAMES, prototypes=prototypes)
    prototypes[0] *= 4
    output = stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)
    found = fake_run(watch, [output]).state.summary["label_quality"]
    assert found["last"]["prototypes_moved"] == pytest.approx(3 / K)
    assert [found["classes"][name]["moved"] for name in NAMES] == [3, 0, 0, 0, 0]
    assert found["classes"][NAMES[0]]["nearest"] == pytest.approx(math.sqrt(17), abs=1e-6)
    assert found["classes"][NAMES[1]]["nearest"] == pytest.approx(math.sqrt(2), abs=1e-6)


def test_a_report_covers_several_watched_iterations_and_no_others():
    changed = stage_1_output([0] * 4, [1, 1, 0, 0], [0] * 4, [True] * 4)
    same = stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)
    outputs = [same, changed] * SAMPLES + [changed, same] * SAMPLES  # every second iteration is looked at
    trainer = fake_run(LabelQuality(NAMES), outputs, every=2)
    history = trainer.state.summary["label_quality"]["history"]
    assert [(entry["iteration"], entry["changed"]) for entry in history] == [(2 * SAMPLES, 0.5), (4 * SAMPLES, 0.0)]


def test_a_rest_at_the_end_is_no_report_of_its_own():
    output = stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)
    trainer = fake_run(LabelQuality(NAMES), [output] * (SAMPLES + 1))
    assert [entry["iteration"] for entry in trainer.state.summary["label_quality"]["history"]] == [SAMPLES]


def test_nothing_is_watched_with_an_interval_of_zero():
    trainer = fake_run(LabelQuality(NAMES), [{"loss": torch.zeros(())}], every=0)
    assert "label_quality" not in trainer.state.remembered | trainer.state.summary


@pytest.mark.parametrize("reports", [1, KEPT_REPORTS, KEPT_REPORTS + 1, 3 * KEPT_REPORTS + 7])
def test_the_summary_is_short_and_ends_with_the_last_report(reports):
    watch = LabelQuality(NAMES)
    watch.history = [{"iteration": i} for i in range(reports)]
    history = watch.summary()["history"]
    assert history[-1] == watch.summary()["last"] == {"iteration": reports - 1}
    assert min(reports, KEPT_REPORTS // 2) <= len(history) <= KEPT_REPORTS
    assert len({two["iteration"] - one["iteration"] for one, two in pairwise(history)}) <= 1


def alive(*, labels: bool = True, student: bool = True) -> dict[str, Any]:
    """An iteration in which the class 1 is, or is not, in the labels and in the predictions."""
    return stage_1_output([0, 0, 0, 1], [0, 0, 0, int(labels)], [0, 0, 0, int(student)], [True] * 4)


def test_a_class_that_dies_out_is_reported_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("proda"), "propagate", True)  # a run before may have set it to False
    caplog.set_level(logging.WARNING, "proda")
    outputs = [alive()] * SAMPLES + [alive(labels=False)] * (4 * SAMPLES)
    found = fake_run(LabelQuality(NAMES), outputs).state.summary["label_quality"]["died_out"]
    assert found == [{"class": "class 1", "of": ["labels"], "iteration": 2 * SAMPLES, "share_before": 1 / 4}]
    # pytest attaches its handler to a logger that does not propagate, too, and may so catch a record twice
    (line,) = [record.getMessage() for record in {id(record): record for record in caplog.records}.values()]
    assert line.startswith(f"iteration {3 * SAMPLES}: the class class 1 has died out of labels: 25.00 %")
    assert f"since iteration {2 * SAMPLES}" in line


def test_a_class_that_the_student_alone_has_lost_is_reported_too():
    found = fake_run(LabelQuality(NAMES), [alive(student=False)] * 2 * SAMPLES).state.summary["label_quality"]
    assert [(entry["class"], entry["of"]) for entry in found["died_out"]] == [("class 1", ["student"])]


def test_a_class_that_is_missing_once_or_was_never_predicted_has_not_died_out():
    outputs = [alive(labels=False)] * SAMPLES + [alive()] * SAMPLES + [alive(labels=False)] * SAMPLES
    assert fake_run(LabelQuality(NAMES), outputs).state.summary["label_quality"]["died_out"] == []


def test_after_labels_were_renewed_the_first_ones_still_count():
    outputs = [alive()] * SAMPLES + [stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)] * 2 * SAMPLES
    watch = LabelQuality(NAMES)
    trainer = Trainer(lambda engine, batch: outputs[engine.state.iteration - 1])
    watch.attach(trainer, every=1)

    @trainer.on(Events.ITERATION_COMPLETED(once=SAMPLES))
    def renew() -> None:
        trainer.fire_event(ProdaEvents.BEFORE_LABELS_WRITTEN)

    trainer.run([stage_1_batch([0] * 4)] * len(outputs), max_epochs=1)
    assert [entry["class"] for entry in watch.died_out] == ["class 1"]


@pytest.mark.parametrize("stop", [1, SAMPLES, 2 * SAMPLES + 3])
def test_a_watch_that_is_resumed_goes_on_where_it_was(stop):
    torch.manual_seed(0)
    draw = lambda: torch.randint(0, K, (4,)).tolist()  # noqa: E731
    outputs = [stage_1_output(draw(), draw(), draw(), [True] * 4) for _ in range(4 * SAMPLES)]
    whole = LabelQuality(NAMES, prototypes=torch.eye(K))
    fake_run(whole, outputs)
    first = LabelQuality(NAMES, prototypes=torch.eye(K))
    first.finish = lambda engine: None  # stopped: training does not end here
    fake_run(first, outputs[:stop])
    resumed = LabelQuality(NAMES, prototypes=2 * torch.eye(K))  # moved before
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.prototypes = torch.eye(K)
    trainer = fake_run(resumed, outputs[stop:])
    for entry in trainer.state.summary["label_quality"]["history"]:
        entry.pop("iteration")  # the second engine counts from one
    for entry in whole.history:
        entry.pop("iteration")
    assert resumed.history == whole.history


def denoising(**more: Any) -> tuple[Engine, torch.nn.Module, Prototypes]:
    prototypes, student = Prototypes(K, 32), tiny.network()
    torch.manual_seed(1)
    prototypes.values.normal_()
    options = DenoiseOptions(**more)
    trainer = denoise_trainer(student, tiny.network(1), prototypes.values, tiny.sgd(student), PRECISION, options)
    if options.needs_teacher:
        PrototypeEMA(prototypes, 0.1).attach(trainer)
    return trainer, student, prototypes


def distilling() -> tuple[Engine, torch.nn.Module]:
    student = tiny.network()
    return distill_trainer(student, tiny.network(1), tiny.sgd(student), PRECISION), student


def test_watching_changes_no_bit_of_training():
    weights = {}
    for watched in (True, False):
        for stage in ("denoise", "distill"):
            trainer, student = denoising()[:2] if stage == "denoise" else distilling()
            if watched:
                LabelQuality(NAMES, truth=whole_truth).attach(trainer, every=1)
            torch.manual_seed(3)
            trainer.run([tiny.batch() for _ in range(3)])
            weights[stage, watched] = student.state_dict()
    for stage in ("denoise", "distill"):
        one, other = weights[stage, True], weights[stage, False]
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_truth_of_stage_1_is_where_the_soft_labels_are():
    batch = tiny.batch()
    rows, columns = (torch.linspace(0, side - 1, side // 4).round().long() for side in (H, W))
    labels = weak_truth(batch)[:, rows][:, :, columns].long()
    batch["target"]["soft_labels"] = torch.nn.functional.one_hot(labels, K).permute(0, 3, 1, 2).float()
    trainer, _, prototypes = denoising()
    watch = LabelQuality(NAMES, prototypes=prototypes.values, truth=whole_truth)
    watch.attach(trainer, every=1)
    trainer.run([batch])
    last = watch.history[-1]
    assert last["miou_before"] == 1 and last["confidence_before"] == 1
    assert last["changed"] == 0 and last["kept"] == 1 and last["prototypes_moved"] > 0
    assert 1 / K < last["prototype_weight"] < 1
    assert 0 < last["miou_student"] < 1 and 0 < last["miou_teacher"] < 1


def test_without_rectification_labels_stay_as_they_are_and_there_may_be_no_teacher():
    trainer, *_ = denoising(rectification=False, structure_weight=0.0)
    watch = LabelQuality(NAMES, truth=whole_truth)
    watch.attach(trainer, every=1)
    trainer.run([tiny.batch()])
    last = watch.history[-1]
    assert last["changed"] == 0 and last["miou_before"] == last["miou_labels"]
    assert not {"prototype_weight", "changed_to_right", "confidence_teacher", "miou_teacher"} & last.keys()


def test_the_truth_of_stage_2_is_warped_with_its_labels():
    batch = tiny.batch()
    labels = weak_truth(batch)
    labels[:, : H // 2] = IGNORE  # not confident
    batch["target"]["pseudo_labels"] = labels
    trainer, _ = distilling()
    watch = LabelQuality(NAMES, truth=whole_truth)
    watch.attach(trainer, every=1)
    trainer.run([batch])
    last, out = watch.history[-1], trainer.state.output
    assert last["miou_labels"] == 1 and last["miou_student"] < 1
    moved = torch.tensor([W // 4 - 2, W // 4])  # columns: the first strong view is moved by two pixels of the maps
    valid = moved.sum() * H // 4 - 4 * 4  # and the second has a cutout of 4 x 4
    assert last["kept"] == pytest.approx((out["pseudo_labels"] != IGNORE).sum().item() / valid.item(), abs=1e-6)
    assert "changed" not in last and "miou_before" not in last


def test_photographs_without_ground_truth_have_the_other_figures_alone():
    trainer, _ = distilling()
    watch = LabelQuality(NAMES)
    watch.attach(trainer, every=1)
    trainer.run([tiny.batch()])
    assert not [name for name in watch.history[-1] if name.startswith(("miou", "changed_to"))]
    assert {"kept", "agreement_student_labels", "confidence_teacher"} <= watch.history[-1].keys()


def test_a_label_map_that_cannot_be_read_counts_for_nothing():
    trainer, _ = distilling()
    watch = LabelQuality(NAMES, truth=lambda name: whole_truth(name) if name == "a" else None)
    watch.attach(trainer, every=1)
    output = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: output.append(watch.sums))
    trainer.run([tiny.batch()])
    alone = output[0]["truth student"][:-1].sum()
    assert 0 < alone <= H // 4 * W // 4  # of one of two photographs


def test_tags_are_grouped_and_shares_in_percent():
    figures = {"kept": 0.5, "agreement_student_labels": 0.25, "miou_labels": 0.75, "prototypes_moved": 3.0}
    assert tags(figures, {"road": {"labels": 0.125, "moved": 2.0}}) == {
        "labels_percent/kept": 50,
        "agreement_percent/student_labels": 25,
        "truth_percent/miou_labels": 75,
        "prototypes/mean/moved": 3,
        "classes_percent/road/labels": 12.5,
        "prototypes/road/moved": 2,
    }


def test_every_curve_of_a_class_is_in_one_chart_of_its_name_alone():
    names = ["road", "road (wet)"]
    written = tags({}, {name: dict.fromkeys(("first", "labels", "moved"), 0.5) for name in names})
    for group in list(charts(names).values())[1:]:
        for name in names:
            kind, (pattern,) = group[name]
            shown = [tag for tag in written if re.fullmatch(pattern, tag)]
            assert kind == "Multiline" and shown
            assert {tag.split("/")[1] for tag in shown} == {name.replace(" ", "_").replace("(", "_").replace(")", "_")}
