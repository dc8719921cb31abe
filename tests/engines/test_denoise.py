"""The iteration of stage 1."""

import pytest
import torch
from ignite.engine import Events

from proda.engines.events import ProdaEvents
from proda.method import IGNORE
from proda.method.losses import symmetric_cross_entropy
from proda.method.views import WeakView, crop_soft_labels
from tests import tiny
from tests.tiny import B, D, H, K, W

QUARTER = (H // 4, W // 4)


def test_rectified_labels_follow_prototypes_and_soft_labels():
    batch = tiny.batch()
    out = tiny.trainer("stage1").run([batch]).output
    product = batch["target"]["soft_labels"] * out["prototype_weights"]
    torch.testing.assert_close(out["rectified"], product / product.sum(1, keepdim=True))
    assert torch.equal(out["rectified_labels"], product.argmax(1))
    assert torch.equal(out["pseudo_labels"], batch["target"]["soft_labels"].argmax(1))


def test_without_rectification_the_stored_labels_are_trained_on():
    batch = tiny.batch()
    out = tiny.trainer("stage1", rectification=False).run([batch]).output
    assert "prototype_weights" not in out and "class_means" in out  # the consistency term still needs the teacher
    assert torch.equal(out["rectified_labels"], out["pseudo_labels"])
    assert torch.equal(out["rectified"], batch["target"]["soft_labels"])


def test_without_consistency_no_strong_view_is_computed():
    student, batch, passes = tiny.network(), tiny.batch(), []
    del batch["target"]["strong_image"], batch["target"]["strong_view"]
    student.register_forward_hook(lambda *_: passes.append(1))
    out = tiny.trainer("stage1", student, structure_weight=0.0).run([batch]).output
    assert "loss_structure" not in out and len(passes) == 2  # source and weak view


def test_with_neither_the_teacher_is_not_run():
    teacher = tiny.network(1)
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    trainer = tiny.trainer("stage1", teacher=teacher, rectification=False, structure_weight=0.0)
    spy = tiny.Spy(trainer)
    out = trainer.run([tiny.batch()]).output
    assert "TEACHER_FORWARD_DONE" not in spy.names and "class_means" not in out


def test_pixels_below_the_threshold_are_ignored():
    out = tiny.trainer("stage1", threshold=0.6).run([tiny.batch()]).output
    sure = out["rectified"].amax(1) >= 0.6
    assert torch.equal(out["rectified_labels"] == 250, ~sure) and sure.any() and not sure.all()


def test_a_handler_may_replace_the_rectified_labels():
    losses = {}
    for own in (False, True):
        torch.manual_seed(3)
        batch = tiny.batch()
        trainer = tiny.trainer(
            "stage1", tiny.network(dropout=0.0), tiny.network(1, dropout=0.0), prototypes=torch.ones(K, D)
        )
        if own:
            trainer.add_event_handler(
                ProdaEvents.LABELS_RECTIFIED,
                lambda engine: engine.state.output.update(rectified_labels=torch.full((B, *QUARTER), 250)),
            )
        losses[own] = trainer.run([batch]).output["loss_target"].item()
    assert losses[True] == 0 < losses[False]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_teacher_runs_in_its_mode_without_gradient_and_keeps_its_weights(mode):
    teacher, modes = tiny.network(1), []
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    tiny.trainer("stage1", teacher=teacher, teacher_mode=mode).run([tiny.batch()])
    assert modes == [mode == "train"]
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in teacher.named_parameters())


def test_prototypes_are_read_at_every_iteration_not_copied():
    prototypes, weights = torch.randn(K, D), []
    trainer = tiny.trainer("stage1", prototypes=prototypes)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: weights.append(engine.state.output["prototype_weights"])
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: prototypes.fill_(1.0))
    batch = tiny.batch()
    trainer.run([batch, batch])
    assert weights[0].std() > 0
    torch.testing.assert_close(weights[1], torch.full_like(weights[1], 1 / K))  # all equally far


def test_labels_predicted_online_are_those_that_a_store_would_have_held():
    labeller, batch = tiny.network(2).eval(), tiny.batch()
    online = {**batch, "target": {name: value for name, value in batch["target"].items() if name != "soft_labels"}}
    with torch.no_grad():
        soft = labeller(batch["target"]["full_image"].float() / 255).logits.softmax(1)
    views = [WeakView(*(field[i] for field in batch["target"]["weak_view"])) for i in range(B)]
    batch["target"]["soft_labels"] = torch.stack([crop_soft_labels(soft[i], view) for i, view in enumerate(views)])
    prototypes, outputs = torch.randn(K, D), []
    for data, options in ((batch, {}), (online, {"labeller": labeller.train()})):
        torch.manual_seed(0)  # dropout
        outputs.append(
            tiny.trainer("stage1", tiny.network(), tiny.network(1), prototypes=prototypes, **options).run([data]).output
        )
    tiny.assert_detached(outputs[1])
    torch.testing.assert_close(outputs[0]["rectified"], outputs[1]["rectified"])
    assert outputs[0]["loss"] == pytest.approx(outputs[1]["loss"].item(), abs=1e-5)


def test_each_loss_is_multiplied_by_its_weight():
    prototypes, losses = torch.randn(K, D), []
    for factor in (1.0, 0.5):
        torch.manual_seed(3)
        students = tiny.network(dropout=0.0), tiny.network(1, dropout=0.0)
        weights = {"ce": 0.1, "rce": 1.0, "mrkld": 0.1, "structure": 1.0}
        options = {f"{name}_weight": factor * weight for name, weight in weights.items()}
        losses.append(tiny.trainer("stage1", *students, prototypes=prototypes, **options).run([tiny.batch()]).output)
    for name in ("loss_target", "loss_mrkld", "loss_structure"):
        assert losses[1][name] == pytest.approx(losses[0][name].item() / 2) != 0


def test_the_mean_of_the_target_loss_is_over_the_pixels_that_are_not_ignored():
    trainer, logits = tiny.trainer("stage1", threshold=0.6), []
    trainer.add_event_handler(
        ProdaEvents.LOSSES_READY, lambda engine: logits.append(engine.state.graph["target_logits"].detach())
    )
    out = trainer.run([tiny.batch()]).output
    labels = out["rectified_labels"]
    assert 0 < (labels == IGNORE).sum() < labels.numel()
    assert out["loss_target"] == pytest.approx(symmetric_cross_entropy(logits[0], labels).item())
