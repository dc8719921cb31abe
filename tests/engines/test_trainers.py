"""What the trainers of all stages have in common: their events, their output, losses of users, and modes."""

import gc
import weakref

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from tests import tiny
from tests.tiny import CPU, STAGES, B, D, H, K, W

ORDER = {
    "supervised": "EXTRA_LOSSES SOURCE_LOSSES_READY LOSSES_READY SOURCE_BACKWARD_DONE BACKWARD_DONE OPTIMIZER_STEPPED",
    "warmup": "SOURCE_LOSSES_READY SOURCE_BACKWARD_DONE EXTRA_LOSSES LOSSES_READY BACKWARD_DONE OPTIMIZER_STEPPED "
    "DISCRIMINATOR_STEPPED",
    "stage1": "SOURCE_LOSSES_READY SOURCE_BACKWARD_DONE TEACHER_FORWARD_DONE LABELS_RECTIFIED EXTRA_LOSSES "
    "TARGET_READY LOSSES_READY BACKWARD_DONE OPTIMIZER_STEPPED PROTOTYPES_UPDATED",
    "stage2": "SOURCE_LOSSES_READY SOURCE_BACKWARD_DONE EXTRA_LOSSES TARGET_READY TEACHER_FORWARD_DONE LOSSES_READY "
    "BACKWARD_DONE OPTIMIZER_STEPPED",
    "online": "SOURCE_LOSSES_READY SOURCE_BACKWARD_DONE TEACHER_FORWARD_DONE EXTRA_LOSSES TARGET_READY LOSSES_READY "
    "BACKWARD_DONE OPTIMIZER_STEPPED",
}
# stage -> event -> what the output holds by then
KEYS = {
    "supervised": {"SOURCE_BACKWARD_DONE": {"loss", "loss_source", "source_logits"}},
    "warmup": {"BACKWARD_DONE": {"loss", "loss_adversarial", "target_logits"}},
    "stage1": {
        "TEACHER_FORWARD_DONE": {"class_means", "class_present"},
        "LABELS_RECTIFIED": {"pseudo_labels", "rectified", "rectified_labels", "prototype_weights"},
        "BACKWARD_DONE": {"loss", "loss_target", "loss_mrkld", "loss_structure", "target_logits"},
    },
    "stage2": {
        "TEACHER_FORWARD_DONE": {"teacher_logits"},
        "BACKWARD_DONE": {"loss", "pseudo_labels", "target_logits"},
    },
    "online": {"TEACHER_FORWARD_DONE": {"pseudo_labels", "confidence", "confident_fraction"}},
}
MAPS, HARD, WHOLE = (B, K, H // 4, W // 4), (B, H // 4, W // 4), (B, K, H, W)
# stage -> the output's shapes, beside those of the losses; the tiny network has a stride of 4, D features
SHAPES = {
    "supervised": {"source_logits": WHOLE},
    "warmup": {"source_logits": WHOLE, "target_logits": WHOLE},
    "stage1": {
        **{"class_means": (B, K, D), "class_present": (B, K), "full_logits": (B, K, 13, 25)},
        **{"prototype_weights": MAPS, "rectified": MAPS, "soft_labels": MAPS, "target_logits": MAPS},
        **{"pseudo_labels": HARD, "rectified_labels": HARD, "source_logits": WHOLE},
    },
    "stage2": {
        **{"pseudo_labels": HARD, "target_logits": MAPS, "teacher_logits": (B, K, H // 4 + 1, W // 4 + 1)},
        "source_logits": WHOLE,
    },
    "online": {
        **{"source_logits": WHOLE, "target_logits": WHOLE, "confident_fraction": (B,)},
        **dict.fromkeys(("pseudo_labels", "confidence"), (B, H, W)),
    },
}
LOSSES = {
    "supervised": ("source",),
    "warmup": ("source", "adversarial"),
    "stage1": ("source", "target", "mrkld", "structure"),
    "stage2": ("source", "target", "distillation"),
    "online": ("source", "target"),
}
# stage -> a tensor of its engine.state.graph
GRAPH = {"supervised": "source_logits", "warmup": "target_logits", "stage1": "target_features"}


@pytest.mark.parametrize("stage", STAGES)
def test_events_fire_in_their_order_and_the_output_grows_with_them(stage):
    prototypes = Prototypes(K, D)
    trainer = tiny.trainer(stage, prototypes=prototypes.values)
    spy = tiny.Spy(trainer)  # before the handler, which fires an event within the optimizer's
    if stage == "stage1":
        PrototypeEMA(prototypes).attach(trainer)
    trainer.run([tiny.batch()])
    assert spy.names == ["ITERATION_STARTED", *ORDER[stage].split(), "ITERATION_COMPLETED"]
    for event, keys in KEYS[stage].items():
        assert keys <= spy.keys[event], event
    assert "loss_discriminator" not in spy.keys["OPTIMIZER_STEPPED"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(
    ("stage", "options"),
    [*((stage, {}) for stage in STAGES), ("warmup", {"gan": "vanilla"}), ("stage1", {"structure_weight": 7.0})],
)
def test_the_output_is_as_documented_and_holds_no_graph(stage, options, amp):
    student = tiny.network(bn_pretrain=stage == "stage2")
    out = tiny.trainer(stage, student, precision=Precision(CPU, amp), **options).run([tiny.batch()]).output
    tiny.assert_detached(out)
    names = {"loss", *(f"loss_{name}" for name in LOSSES[stage])}
    assert {"loss_discriminator"} & out.keys() == ({"loss_discriminator"} if stage == "warmup" else set())
    out.pop("loss_discriminator", None)
    found = tiny.shapes(out)
    if stage == "stage2":
        assert found.pop("teacher_logits")[:2] == (B, K)
    assert found == dict.fromkeys(names, ()) | {k: v for k, v in SHAPES[stage].items() if k != "teacher_logits"}
    torch.testing.assert_close(out["loss"], sum(out[name] for name in names - {"loss"}))
    for name, value in out.items():
        if name == "class_present":
            assert value.dtype == torch.bool
        elif name.endswith("labels") and name != "soft_labels":
            assert value.dtype == torch.int64
        elif name not in ("full_logits", "teacher_logits"):
            assert value.dtype == torch.float32, name


@pytest.mark.parametrize("stage", STAGES)
def test_trainers_remember_student_optimizer_and_precision(stage):
    student = tiny.network()
    remembered = tiny.trainer(stage, student).state.remembered
    assert remembered["student"] is student and remembered["precision"] is tiny.PRECISION
    assert remembered["optimizer"].param_groups[0]["params"][0] is student.conv1.weight
    assert ("discriminator" in remembered) == ("discriminator_optimizer" in remembered) == (stage == "warmup")


@pytest.mark.parametrize("stage", STAGES)
def test_a_student_that_was_left_in_evaluation_mode_is_trained_in_training_mode(stage):
    student, modes = tiny.network().eval(), []
    student.register_forward_hook(lambda module, *_: modes.append(module.training))
    tiny.trainer(stage, student).run([tiny.batch()])
    assert modes and all(modes)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_batch_norm_keeps_statistics_and_scales_and_an_unfrozen_one_does_not(stage, freeze):
    student, untouched, teacher = tiny.network(), tiny.network(), tiny.network(1)
    tiny.trainer(stage, student, teacher, freeze_bn=freeze).run([tiny.batch()])
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert torch.equal(getattr(student.bn1, name), getattr(untouched.bn1, name)) == freeze, name
    assert not torch.equal(student.conv1.weight, untouched.conv1.weight)
    if stage in ("stage1", "online"):  # the mean teacher is in training mode as published
        assert teacher.bn1.training == (not freeze)


# Losses of users


def gradients(stage: str, batch: dict, term=None) -> tuple[list[torch.Tensor], dict, Engine]:
    """The student's gradients after one iteration without randomness, and the output."""
    torch.manual_seed(3)
    student = tiny.network(dropout=0.0)
    trainer = tiny.trainer(stage, student, tiny.network(1, dropout=0.0), prototypes=torch.ones(K, D))
    if term:
        trainer.add_event_handler(ProdaEvents.LOSSES_READY, term)
    out = trainer.run([batch]).output
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()], out, trainer


@pytest.mark.parametrize("stage", STAGES)
def test_a_users_loss_adds_its_gradient_and_is_part_of_the_loss(stage):
    """The gradients with the loss are the sum of those without it and its own, which autograd computes."""
    batch, key, own = tiny.batch(), GRAPH.get(stage, "target_logits"), []

    def brightness(engine: Engine) -> None:
        engine.state.losses["mine"] = 0.5 * engine.state.graph[key].square().mean()

    def differentiate(engine: Engine) -> None:
        student = engine.state.remembered["student"]
        learning = [p for p in student.parameters() if p.requires_grad]  # batch norm may be frozen
        term = 0.5 * engine.state.graph[key].square().mean()
        computed = iter(torch.autograd.grad(term, learning, retain_graph=True, materialize_grads=True))
        own.extend(next(computed) if p.requires_grad else torch.zeros_like(p) for p in student.parameters())

    without, before, _ = gradients(stage, batch)
    together, out, trainer = gradients(stage, batch, brightness)
    assert set(out) - set(before) == {"loss_mine"} and out["loss_mine"] > 0
    torch.testing.assert_close(out["loss"], before["loss"] + out["loss_mine"])
    tiny.assert_detached(out)
    assert trainer.state.losses is None and trainer.state.graph is None
    gradients(stage, batch, differentiate)
    assert any(gradient.abs().max() > 1e-6 for gradient in own)
    for ours, plain, mine in zip(together, without, own, strict=True):
        torch.testing.assert_close(ours, plain + mine, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_term_may_be_replaced_and_nothing_keeps_the_graph_afterwards(stage):
    name, kept, batch = LOSSES[stage][0 if stage == "supervised" else 1], [], tiny.batch()

    def halve(engine: Engine) -> None:
        engine.state.losses[name] = 0.5 * engine.state.losses[name]
        kept.extend(weakref.ref(tensor) for tensor in engine.state.graph.values())

    _, before, _ = gradients(stage, batch)
    _, after, _trainer = gradients(stage, batch, halve)
    torch.testing.assert_close(after[f"loss_{name}"], 0.5 * before[f"loss_{name}"])
    gc.collect()
    assert kept and all(reference() is None for reference in kept)
