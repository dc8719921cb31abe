"""One iteration of online self-training."""

import pytest
import torch

from proda.engines.events import ProdaEvents
from proda.handlers.teacher import EMATeacher
from proda.method.losses import cross_entropy
from proda.method.online import weighted_cross_entropy
from proda.method.tensors import resize, to_float
from tests import tiny
from tests.tiny import B, H, W


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_step_is_plain_gradient_descent_on_the_two_losses(mode):
    student, reference, teacher = tiny.network(dropout=0.0), tiny.network(dropout=0.0), tiny.network(1, dropout=0.5)
    judge, batch = tiny.network(1, dropout=0.0), tiny.batch()
    options = {"confidence": 0.21, "ignore_top": 3, "ignore_bottom": 4, "target_weight": 0.7, "teacher_mode": mode}
    output = tiny.trainer("online", student, teacher, lr=0.5, **options).run([batch]).output

    judge.train(mode == "train")
    image = batch["target"]["image"]
    with torch.no_grad():
        confidence, labels = resize(judge(to_float(image)).logits, (H, W)).softmax(1).max(1)
    confident_fraction = (confidence >= 0.21).float().mean((1, 2))
    assert 0 < confident_fraction.min() < 1
    weights = confident_fraction[:, None, None].repeat(1, H, W)
    weights[:, :3], weights[:, H - 4 :] = 0, 0
    assert output["pseudo_labels"].equal(labels) and output["confident_fraction"].equal(confident_fraction)

    source = resize(reference(to_float(batch["source"]["image"])).logits, (H, W))
    target = resize(reference(to_float(image)).logits, (H, W))
    loss = cross_entropy(source, batch["source"]["labels"])
    loss = loss + 0.7 * weighted_cross_entropy(target, labels, weights)
    loss.backward()
    for (name, moved), still in zip(student.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, still - 0.5 * still.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert output["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert not teacher.layer5.head[0].training  # dropout


def online(**options):
    return tiny.trainer("online", tiny.network(dropout=0.0), **options)


def test_a_teacher_that_is_never_sure_leaves_only_the_source_loss():
    output = online(confidence=1.0).run([tiny.batch()]).output
    assert not output["confident_fraction"].any() and output["loss_target"] == 0 and output["loss_source"] > 0


def test_the_student_is_trained_on_what_a_handler_puts_in_the_place_of_the_target():
    seen = []
    trainer = online(confidence=0.0)

    @trainer.on(ProdaEvents.TARGET_READY)
    def only_class_two(engine):
        target = engine.state.target
        seen.append(target)
        engine.state.target = target._replace(labels=torch.full_like(target.labels, 2), image=0 * target.image)

    @trainer.on(ProdaEvents.LOSSES_READY)
    def keep(engine):
        seen.append(engine.state.losses["target"].item())

    trainer.run([tiny.batch()])
    with torch.no_grad():
        student = tiny.network(dropout=0.0).train()
        logits = resize(student(torch.zeros(B, 3, H, W)).logits, (H, W))
    weights = seen[0].weights
    assert weights.shape == (B, H, W) and seen[1] == pytest.approx(
        weighted_cross_entropy(logits, torch.full((B, H, W), 2), weights).item(), rel=1e-4
    )


def test_a_target_without_weights_counts_fully():
    losses = []
    for weights in (None, torch.ones(B, H, W)):
        trainer = online()
        trainer.add_event_handler(
            ProdaEvents.TARGET_READY,
            lambda e, w=weights: setattr(e.state, "target", e.state.target._replace(weights=w)),
        )
        losses.append(trainer.run([tiny.batch()]).output["loss_target"])
    assert losses[0] == losses[1] > 0


def test_the_teacher_starts_as_the_mean_of_all_students():
    student = tiny.network(dropout=0.0)
    teacher = EMATeacher(student, 0.01, start_as_mean=True)
    trainer = tiny.trainer("online", student, teacher.ema_model, lr=0.5)
    teacher.attach(trainer)
    weights = [student.conv1.weight.detach().clone()]
    trainer.add_event_handler(
        ProdaEvents.OPTIMIZER_STEPPED, lambda: weights.append(student.conv1.weight.detach().clone())
    )
    trainer.run([tiny.batch()] * 3)
    assert not weights[0].equal(weights[-1])
    torch.testing.assert_close(teacher.ema_model.conv1.weight, torch.stack(weights).mean(0))
