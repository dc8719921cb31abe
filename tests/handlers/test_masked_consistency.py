"""Masked image consistency: an additional loss with a forward pass of its own."""

import pytest
import torch

from proda.engines.events import ProdaEvents
from proda.handlers import masked_consistency
from proda.handlers.class_mix import ClassMix
from proda.handlers.masked_consistency import MaskedConsistency
from proda.method import IGNORE
from proda.method.online import weighted_cross_entropy
from proda.method.tensors import resize
from tests import tiny
from tests.tiny import PRECISION, H, K, W


@pytest.fixture(autouse=True)
def own_colors(monkeypatch):
    monkeypatch.setattr(masked_consistency, "augmented", lambda images: 255 - images)


def online(student):
    return tiny.trainer("online", student, lr=0.0, confidence=0.21, ignore_top=2, ignore_bottom=3)


def spied(trainer, handler):
    """The target and, for each image, what the student sees in the pass of the handler."""
    seen, student = {}, handler.network
    hook = student.register_forward_pre_hook(lambda _, inputs: seen.setdefault("images", []).append(inputs[0].detach()))
    trainer.add_event_handler(ProdaEvents.EXTRA_LOSSES, lambda e: seen.update(images=[], target=e.state.target))
    handler.attach(trainer)
    trainer.add_event_handler(ProdaEvents.EXTRA_LOSSES, lambda _: seen.update(masked=seen["images"][0]))
    seen["output"] = trainer.run([tiny.batch()]).output
    hook.remove()
    return seen


def made(student, **options):
    handler = MaskedConsistency(student, PRECISION, block=8, **options)
    handler.network = student  # for the spy
    return handler


def test_the_student_sees_the_augmented_image_with_squares_in_the_neutral_colour():
    student = tiny.network(dropout=0.0)
    student.neutral_color = (0.25, 0.5, 0.75)
    seen = spied(online(student), made(student))
    color = torch.tensor(student.neutral_color)[:, None, None]
    squares = seen["masked"].unfold(2, 8, 8).unfold(3, 8, 8).movedim(1, 3)  # [B, rows, columns, 3, 8, 8]
    masked = (squares == color).flatten(3).all(3)
    assert 0.3 < masked.float().mean() < 0.95
    expected = ((255 - seen["target"].image) / 255).unfold(2, 8, 8).unfold(3, 8, 8).movedim(1, 3)
    assert squares[~masked].equal(expected[~masked])


def test_the_loss_is_the_weighted_cross_entropy_with_the_labels_of_the_whole_image():
    student = tiny.network(dropout=0.0)
    seen = spied(online(student), made(student, weight=0.3))
    with torch.no_grad():
        logits = resize(tiny.network(dropout=0.0).train()(seen["masked"]).logits, (H, W))
    target = seen["target"]
    expected = 0.3 * weighted_cross_entropy(logits, target.labels, target.weights)
    assert 0 < seen["output"]["confident_fraction"].min() < 1
    assert seen["output"]["loss_masked"].item() == pytest.approx(expected.item(), rel=1e-4)
    total = sum(value for name, value in seen["output"].items() if name.startswith("loss_"))
    torch.testing.assert_close(seen["output"]["loss"], total)


def test_its_gradients_reach_the_student():
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        student = tiny.network(dropout=0.0)
        trainer = online(student)
        trainer.add_event_handler(
            ProdaEvents.BACKWARD_DONE, lambda _, s=student: gradients.append(s.conv1.weight.grad.clone())
        )
        torch.manual_seed(5)
        made(student, weight=weight).attach(trainer)
        trainer.run([tiny.batch()])
    without, once, twice = gradients
    assert (once - without).abs().max() > 1e-6
    torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-3, atol=1e-6)


def test_it_uses_the_image_before_mixing(monkeypatch):
    monkeypatch.setattr(masked_consistency, "RATIO", 0.0)
    student = tiny.network(dropout=0.0)
    trainer = online(student)
    ClassMix(K).attach(trainer)  # attached first, and yet later
    seen = spied(trainer, made(student))
    assert seen["masked"].equal((255 - seen["target"].image) / 255)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_stages_without_weights_weight_an_image_by_the_share_of_its_sure_labels(stage):
    student, weights = tiny.network(dropout=0.0), []
    trainer, handler = tiny.trainer(stage, student), made(student, confidence=0.5)
    trainer.add_event_handler(ProdaEvents.EXTRA_LOSSES, lambda engine: weights.append(handler._weights(engine)))
    seen = spied(trainer, handler)
    output = seen["output"]
    sure = output["rectified"].max(1).values >= 0.5 if stage == "stage1" else seen["target"].labels != IGNORE
    share = sure.float().mean((1, 2))
    assert 0 < share.min() < 1 and output["loss_masked"] > 0
    assert weights[0].equal(share[:, None, None].expand(2, H // 4, W // 4))
