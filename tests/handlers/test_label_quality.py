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
from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.label_quality import KEPT_REPORTS, SAMPLES, LabelQuality, charts, tags
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.method import IGNORE
from proda.method.views import WeakView
from tests import tiny
from tests.tiny import FULL, B, H, K, W

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


def fake_run(
    watch: LabelQuality, outputs: list[dict[str, Any]], *, every: int = 1, start: int = 0, renewed_at: int = 0
) -> Engine:
    """The trainer of a run with one given output an iteration, resumed at ``start``."""

    def step(engine: Engine, _batch: dict[str, Any]) -> dict[str, Any]:
        if watch.prototypes is not None:
            watch.prototypes[0, 0] += 1
        return outputs[engine.state.iteration - 1]

    trainer = Trainer(step)
    watch.attach(trainer, every=every)
    if start:
        trainer.load_state_dict({"epoch_length": len(outputs), "max_epochs": 1, "iteration": start})
    if renewed_at:
        once = Events.ITERATION_COMPLETED(once=renewed_at)
        trainer.add_event_handler(once, lambda: trainer.fire_event(ProdaEvents.BEFORE_LABELS_WRITTEN))
    trainer.run([stage_1_batch([0, 0, 1, 2])] * len(outputs), max_epochs=1)
    return trainer


def reported(**settings: Any) -> dict[str, float]:
    """Figures of a run of one iteration: of four pixels one is set right, one is spoilt, one is not kept."""
    truth = np.array([0, 1, 1, 2], dtype=np.uint8).repeat(4)[None].repeat(4, 0)
    output = stage_1_output([0, 0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 3], [True, True, True, False])
    watch = LabelQuality(NAMES, truth=lambda name: truth, **settings)
    return fake_run(watch, [output]).state.summary["label_quality"]


def test_the_figures_of_an_iteration_by_hand():
    report = reported()
    last, classes = report["last"], report["classes"]
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
    expected = {"source": [1 / 2, 1 / 4, 1 / 4, 0, 0], "first": [1 / 2, 1 / 4, 1 / 4, 0, 0]}
    expected |= {"labels": [0.333333, 0.333333, 0.333333, 0, 0], "student": [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]}
    assert {share: [classes[name][share] for name in NAMES] for share in expected} == expected


def test_the_way_of_the_prototypes_and_their_neighbours():
    output = stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)
    watch = LabelQuality(NAMES, prototypes=torch.eye(K))
    found = fake_run(watch, [output] * 3, every=3).state.summary["label_quality"]
    assert found["last"]["prototypes_moved"] == pytest.approx(3 / K)
    assert [found["classes"][name]["moved"] for name in NAMES] == [3, 0, 0, 0, 0]
    assert found["classes"][NAMES[0]]["nearest"] == pytest.approx(math.sqrt(17), abs=1e-6)
    assert found["classes"][NAMES[1]]["nearest"] == pytest.approx(math.sqrt(2), abs=1e-6)


def test_a_report_covers_several_watched_iterations_and_no_others():
    changed = stage_1_output([0] * 4, [1, 1, 0, 0], [0] * 4, [True] * 4)
    same = stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)
    outputs = [same, changed] * SAMPLES + [changed, same] * SAMPLES  # every second iteration is looked at
    outputs += [changed] * 2  # a rest at the end is no report of its own
    trainer = fake_run(LabelQuality(NAMES), outputs, every=2)
    history = trainer.state.summary["label_quality"]["history"]
    assert [(entry["iteration"], entry["changed"]) for entry in history] == [(2 * SAMPLES, 0.5), (4 * SAMPLES, 0.0)]
    trainer = fake_run(LabelQuality(NAMES), outputs, every=0)
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


def died_out(outputs: list[dict[str, Any]], **settings: int) -> list[dict[str, Any]]:
    return fake_run(LabelQuality(NAMES), outputs, **settings).state.summary["label_quality"]["died_out"]


def test_a_class_that_dies_out_is_reported_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("proda"), "propagate", True)  # a run before may have set it to False
    caplog.set_level(logging.WARNING, "proda")
    outputs = [alive()] * SAMPLES + [alive(labels=False)] * (4 * SAMPLES)
    gone = {"class": "class 1", "of": ["labels"], "iteration": 2 * SAMPLES, "share_before": 1 / 4}
    assert died_out(outputs) == [gone]
    # pytest attaches its handler to a logger that does not propagate, too, and may so catch a record twice
    (line,) = [record.getMessage() for record in {id(record): record for record in caplog.records}.values()]
    assert line.startswith(f"iteration {3 * SAMPLES}: the class class 1 has died out of labels: 25.00 %")
    assert f"since iteration {2 * SAMPLES}" in line


def test_whether_a_class_has_died_out_depends_on_the_first_labels_and_on_two_reports():
    lost = died_out([alive(student=False)] * 2 * SAMPLES)
    assert [(entry["class"], entry["of"]) for entry in lost] == [("class 1", ["student"])]
    missing_once = [alive(labels=False)] * SAMPLES + [alive()] * SAMPLES + [alive(labels=False)] * SAMPLES
    assert died_out(missing_once) == []
    never = [stage_1_output([0] * 4, [0] * 4, [0] * 4, [True] * 4)] * 2 * SAMPLES
    assert died_out(never) == []
    renewed = died_out([alive()] * SAMPLES + never, renewed_at=SAMPLES)  # the first labels still count
    assert [entry["class"] for entry in renewed] == ["class 1"]


@pytest.mark.parametrize("stop", [1, SAMPLES, 2 * SAMPLES + 3])
def test_a_watch_that_is_resumed_goes_on_where_it_was(stop):
    torch.manual_seed(0)
    draw = lambda: torch.randint(0, K, (4,)).tolist()  # noqa: E731
    outputs = [stage_1_output(draw(), draw(), draw(), [True] * 4) for _ in range(4 * SAMPLES)]
    whole, first = (LabelQuality(NAMES, prototypes=torch.eye(K)) for _ in range(2))
    fake_run(whole, outputs)
    first.finish = lambda engine: None  # stopped: training does not end here
    fake_run(first, outputs[:stop])
    resumed = LabelQuality(NAMES, prototypes=first.prototypes)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    fake_run(resumed, outputs, start=stop)
    assert resumed.history == whole.history and resumed.summary() == whole.summary()


def denoising(**more: Any) -> tuple[Engine, Prototypes]:
    prototypes = Prototypes(K, tiny.D)
    torch.manual_seed(1)
    prototypes.values.normal_()
    trainer = tiny.trainer("stage1", prototypes=prototypes.values, **more)
    if "rectification" not in more:
        PrototypeEMA(prototypes, 0.1).attach(trainer)
    return trainer, prototypes


def last_report(trainer: Engine, batch: dict[str, Any], **settings: Any) -> dict[str, float]:
    """The figures of one iteration."""
    watch = LabelQuality(NAMES, **settings)
    watch.attach(trainer, every=1)
    trainer.run([batch])
    return watch.history[-1]


def test_watching_changes_no_bit_of_training():
    for stage in ("stage1", "stage2", "online"):
        one, other = tiny.network(), tiny.network()
        for student in (one, other):
            trainer = tiny.trainer(stage, student, prototypes=torch.ones(K, tiny.D))
            if student is one:
                LabelQuality(NAMES, truth=whole_truth).attach(trainer, every=1)
            torch.manual_seed(3)
            trainer.run([tiny.batch() for _ in range(3)])
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()), stage


def test_the_truth_of_stage_1_is_where_the_soft_labels_are():
    batch = tiny.batch()
    rows, columns = (torch.linspace(0, side - 1, side // 4).round().long() for side in (H, W))
    labels = weak_truth(batch)[:, rows][:, :, columns].long()
    batch["target"]["soft_labels"] = torch.nn.functional.one_hot(labels, K).permute(0, 3, 1, 2).float()
    trainer, prototypes = denoising()
    last = last_report(trainer, batch, prototypes=prototypes.values, truth=whole_truth)
    assert last["miou_before"] == 1 and last["confidence_before"] == 1
    assert last["changed"] == 0 and last["kept"] == 1 and last["prototypes_moved"] > 0
    assert 1 / K < last["prototype_weight"] < 1
    assert 0 < last["miou_student"] < 1 and 0 < last["miou_teacher"] < 1


def test_without_rectification_labels_stay_as_they_are_and_there_may_be_no_teacher():
    trainer, _ = denoising(rectification=False, structure_weight=0.0)
    last = last_report(trainer, tiny.batch(), truth=whole_truth)
    assert last["changed"] == 0 and last["miou_before"] == last["miou_labels"]
    assert not {"prototype_weight", "changed_to_right", "confidence_teacher", "miou_teacher"} & last.keys()


def test_the_truth_of_stage_2_is_warped_with_its_labels():
    batch = tiny.batch()
    labels = weak_truth(batch)
    labels[:, : H // 2] = IGNORE  # not confident
    batch["target"]["pseudo_labels"] = labels
    trainer = tiny.trainer("stage2")
    last = last_report(trainer, batch, truth=whole_truth)
    out = trainer.state.output
    assert last["miou_labels"] == 1 and last["miou_student"] < 1
    moved = torch.tensor([W // 4 - 2, W // 4])  # columns: the first strong view is moved by two pixels of the maps
    valid = moved.sum() * H // 4 - 4 * 4  # and the second has a cutout of 4 x 4
    assert last["kept"] == pytest.approx((out["pseudo_labels"] != IGNORE).sum().item() / valid.item(), abs=1e-6)
    assert "changed" not in last and "miou_before" not in last
    without = last_report(tiny.trainer("stage2"), tiny.batch())  # photographs without ground truth
    assert not [name for name in without if name.startswith(("miou", "changed_to"))]
    assert {"kept", "agreement_student_labels", "confidence_teacher"} <= without.keys()


def test_a_label_map_that_cannot_be_read_counts_for_nothing():
    trainer = tiny.trainer("stage2")
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


def test_a_trainer_of_another_kind_has_no_reports_and_one_warning(caplog):
    trainer = Trainer(lambda engine, batch: {"loss": torch.zeros(()), "confidence": torch.ones(1)})
    LabelQuality(["road"]).attach(trainer, every=1)
    trainer.run([{"source": {}, "target": {}}] * 6)
    assert "label_quality" not in trainer.state.summary
    assert sum("no label reports" in message for message in caplog.messages) == 1
