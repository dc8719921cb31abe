"""The iteration of stages 2 and 3."""

import pytest
import torch

from proda.engines.distill import DistillOptions, distill_trainer
from proda.engines.optimization import Precision
from tests import tiny
from tests.tiny import CPU, PRECISION, B, H, K, W


def trainer_of(student=None, teacher=None, precision=PRECISION, **options):
    student, teacher = student or tiny.network(), teacher or tiny.network(1)
    return distill_trainer(student, teacher, tiny.sgd(student), precision, DistillOptions(**options))


def test_events_fire_in_their_order():
    trainer = trainer_of()
    spy = tiny.Spy(trainer)
    trainer.run([tiny.batch()])
    assert spy.names == [
        "ITERATION_STARTED",
        "SOURCE_LOSSES_READY",
        "SOURCE_BACKWARD_DONE",
        "EXTRA_LOSSES",
        "TARGET_READY",
        "TEACHER_FORWARD_DONE",
        "LOSSES_READY",
        "BACKWARD_DONE",
        "OPTIMIZER_STEPPED",
        "ITERATION_COMPLETED",
    ]
    assert "teacher_logits" in spy.keys["TEACHER_FORWARD_DONE"]
    assert {"loss", "pseudo_labels", "target_logits"} <= spy.keys["BACKWARD_DONE"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_the_output_is_as_documented_and_holds_no_graph(amp, bn_pretrain):
    student = tiny.network(bn_pretrain=bn_pretrain)
    out = trainer_of(student, precision=Precision(CPU, amp)).run([tiny.batch()]).output
    tiny.assert_detached(out)
    teacher_logits = out.pop("teacher_logits")  # at network stride, which is 4 here
    assert teacher_logits.shape[:2] == (B, K)
    assert tiny.shapes(out) == {
        **dict.fromkeys(("loss", "loss_source", "loss_target", "loss_distillation"), ()),
        **{"pseudo_labels": (B, H // 4, W // 4), "target_logits": (B, K, H // 4, W // 4)},
        "source_logits": (B, K, H, W),
    }
    assert out["pseudo_labels"].dtype == torch.int64


def test_the_loss_is_the_weighted_sum_of_its_parts():
    out = trainer_of(distillation_weight=0.5).run([tiny.batch()]).output
    torch.testing.assert_close(out["loss"], out["loss_source"] + out["loss_target"] + out["loss_distillation"])


def test_the_distillation_term_is_never_negative_and_the_released_one_is():
    student, teacher = tiny.network(dropout=0.0), tiny.network(1)
    assert trainer_of(student, teacher).run([tiny.batch()]).output["loss_distillation"] >= 0
    released = trainer_of(student, teacher, distillation_as_released=True).run([tiny.batch()]).output
    assert released["loss_distillation"] < 0


def test_pseudo_labels_follow_the_strong_view():
    batch = tiny.batch()
    moved = trainer_of().run([batch]).output["pseudo_labels"]
    stored = batch["target"]["pseudo_labels"].long()[:, ::4, ::4]
    assert torch.equal(moved[0, :, :-2], stored[0, :, 2:])  # 8 pixels to the left are 2 of the quarter map
    assert (moved[0, :, -2:] == 250).all()
    mirrored = stored[1].flip(-1)
    inside = torch.zeros_like(mirrored, dtype=torch.bool)
    inside[2:6, 2:6] = True  # the cutout
    assert torch.equal(moved[1], mirrored.masked_fill(inside, 250))


def test_the_teacher_is_frozen_in_evaluation_mode():
    teacher = tiny.network(1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer_of(teacher=teacher).run([tiny.batch()] * 2)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_batch_without_a_confident_pixel_trains_on_the_other_losses():
    batch = tiny.batch()
    batch["target"]["pseudo_labels"].fill_(250)
    out = trainer_of().run([batch]).output
    assert out["loss_target"] == 0 and out["loss_distillation"] > 0 and out["loss"].isfinite()
