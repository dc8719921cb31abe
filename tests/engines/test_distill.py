"""The iteration of stages 2 and 3."""

import torch

from tests import tiny


def test_the_distillation_term_is_never_negative_and_the_released_one_is():
    student, teacher = tiny.network(dropout=0.0), tiny.network(1)
    losses = [
        tiny.trainer("stage2", student, teacher, as_released=released).run([tiny.batch()]).output["loss_distillation"]
        for released in (False, True)
    ]
    assert losses[0] >= 0 > losses[1]


def test_the_distillation_weight_scales_its_loss():
    losses = []
    for weight in (1.0, 0.5):
        torch.manual_seed(3)
        trainer = tiny.trainer("stage2", tiny.network(dropout=0.0), distillation_weight=weight)
        losses.append(trainer.run([tiny.batch()]).output["loss_distillation"])
    torch.testing.assert_close(losses[1], losses[0] / 2)


def test_pseudo_labels_follow_the_strong_view():
    batch = tiny.batch()
    moved = tiny.trainer("stage2").run([batch]).output["pseudo_labels"]
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
    tiny.trainer("stage2", teacher=teacher).run([tiny.batch()] * 2)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_batch_without_a_confident_pixel_trains_on_the_other_losses():
    batch = tiny.batch()
    batch["target"]["pseudo_labels"].fill_(250)
    out = tiny.trainer("stage2").run([batch]).output
    assert out["loss_target"] == 0 and out["loss_distillation"] > 0 and out["loss"].isfinite()
