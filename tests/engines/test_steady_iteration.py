"""What a GPU needs of an iteration: no wait for its results, and no breaks in compiled code.

Fake tensors have a shape and no values. An iteration that runs on them asks for no value: it never waits for a GPU.
"""

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.handlers.class_mix import ClassMix
from proda.handlers.color_augmentation import ColorAugmentation
from proda.handlers.feature_distance import FeatureDistance
from proda.handlers.masked_consistency import MaskedConsistency
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.teacher import EMATeacher
from proda.method import losses, prototypes, pseudo_labels, views
from proda.models.discriminator import Discriminator
from tests import tiny
from tests.tiny import D, H, K, W

MAPS = (2, K, H // 4, W // 4)


def on_fake(mode: FakeTensorMode, network: nn.Module) -> nn.Module:
    """The network with fake parameters and buffers."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach())
                module._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return network


def trainer_of(mode: FakeTensorMode, stage: str, amp: str, **options: Any) -> Engine:
    precision, student = Precision("cpu", amp), tiny.network()
    teacher = EMATeacher(student, 0.1)
    distance = FeatureDistance(tiny.network(), precision, [0, 1])
    distance.network = on_fake(mode, student)
    for network in (teacher.ema_model, distance.frozen):
        on_fake(mode, network)
    with mode:
        means = Prototypes(K, D)
    others = {"discriminator": on_fake(mode, Discriminator(K)), "prototypes": means.values}
    if stage == "unstored":
        options["labeller"] = on_fake(mode, tiny.network(1))
    moving = on_fake(mode, tiny.network(1)) if stage == "stage2" else teacher.ema_model
    name = {"unstored": "stage1"}.get(stage, stage)
    trainer = tiny.trainer(name, student, moving, precision=precision, **others, **options)
    if name == "online":
        distance.attach(trainer)
        with mode:
            MaskedConsistency(student, precision, block=8).attach(trainer)
        ClassMix(K).attach(trainer)
        ColorAugmentation().attach(trainer)
    if name == "stage1":
        PrototypeEMA(means).attach(trainer)
    if name in ("stage1", "online"):
        teacher.attach(trainer)
    PolynomialDecay(trainer.state.remembered["optimizer"], 100).attach(trainer)
    ClipGradients(student, 1.0).attach(trainer)
    return trainer


def fake_batch(mode: FakeTensorMode, *, soft_labels: bool = True) -> dict[str, Any]:
    with mode:
        batch = tiny.batch()
    if not soft_labels:
        del batch["target"]["soft_labels"]
    return batch


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("supervised", {}),
        ("warmup", {"accumulate": 2}),
        ("stage1", {"threshold": 0.5}),
        ("stage1", {"accumulate": 2, "as_released": True}),
        ("unstored", {}),
        ("stage2", {}),
        ("stage2", {"as_released": True}),
        ("online", {}),
        ("online", {"accumulate": 2}),
    ],
)
def test_no_iteration_asks_for_a_value(stage, options, amp):
    mode, done = FakeTensorMode(), []
    trainer = trainer_of(mode, stage, amp, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(set(engine.state.output)))
    with mode:
        trainer.run([fake_batch(mode, soft_labels=stage != "unstored")] * 2)
    assert len(done) == 2 and "loss" in done[-1]


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.nonzero, bool])
def test_fake_tensors_find_a_handler_that_asks_for_a_value(ask):
    mode = FakeTensorMode()
    trainer = trainer_of(mode, "supervised", "off")
    trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, lambda engine: ask(engine.state.output["loss_source"]))
    with mode, pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        trainer.run([fake_batch(mode)])


def functions() -> dict[str, tuple]:
    """The functions of the method that an iteration compiles, with their arguments."""
    torch.manual_seed(0)
    target = tiny.batch()["target"]
    maps, features, full = torch.rand(MAPS), torch.rand(2, D, *MAPS[2:]), torch.rand(2, D, 12, 24)
    labels, count, valid = maps.max(1).indices, torch.tensor(100), torch.ones(2, 1, *MAPS[2:]).bool()
    prototype = torch.rand(K, D)
    return {
        "class_means": (prototypes.class_means, full, torch.rand(2, K, 12, 24)),
        "distances": (prototypes.distances, features, prototype),
        "prototype_weights": (prototypes.prototype_weights, maps),
        "rectify": (pseudo_labels.rectify, maps, maps),
        "weak view": (lambda f: views.warp_to_weak_view(f, target["weak_view"], size=(H, W)), full),
        "soft labels": (lambda f: views.crop_soft_label_batch(f, target["weak_view"], (H, W)), full),
        "strong view": (lambda f: views.warp_to_strong_view(f, target["strong_view"]), maps),
        "strong view as released": (
            lambda f: views.warp_to_strong_view(f, target["strong_view"], released=True),
            maps,
        ),
        "cross entropy": (lambda x: losses.cross_entropy(x, labels, denominator=count), maps),
        "symmetric cross entropy": (lambda x: losses.symmetric_cross_entropy(x, labels, denominator=count), maps),
        "mrkld": (losses.mrkld, maps),
        "structure": (lambda x: losses.structure_consistency(x, maps, valid, denominator=count), maps + 1),
        "distillation": (lambda x: losses.distillation(x, maps), maps + 1),
    }


@pytest.mark.parametrize("name", functions())
def test_the_compiler_takes_a_function_of_the_method_in_one_piece(name):
    function, *arguments = functions()[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, dynamic=False, fullgraph=True, backend="eager")  # raises at a break
    torch.testing.assert_close(compiled(*arguments), function(*arguments))


@pytest.fixture(params=[False, True], ids=["alone", "in a group of processes"])
def group(request, tmp_path):
    """Dropout asks for the rank and the number of processes."""
    if request.param:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if request.param:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [False, True])
def test_the_compiler_takes_the_network_in_one_piece(training, group):
    network, image = tiny.network(dropout=0.1).train(training), torch.rand(2, 3, H, W)
    torch._dynamo.reset()
    torch.manual_seed(0)
    expected = network(image)
    names = list(network.state_dict())
    network.compile(dynamic=False, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    torch.testing.assert_close(network(image), expected)
    assert list(network.state_dict()) == names


@pytest.mark.slow
def test_compiled_training_agrees():
    """With the compiler that users get; it needs a C++ compiler and a minute."""

    def run(compile: bool) -> list[dict[str, float]]:
        student, found = tiny.network(dropout=0.0), []
        teacher = EMATeacher(student, 0.1)
        if compile:
            for network in (student, teacher.ema_model):
                network.compile(dynamic=False)
        torch.manual_seed(1)
        trainer = tiny.trainer("stage1", student, teacher.ema_model, precision=Precision("cpu", compile=compile))
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: found.append({n: v.item() for n, v in engine.state.output.items() if n.startswith("loss")}),
        )
        trainer.run([tiny.batch()] * 3)
        return found

    for plain, compiled in zip(run(False), run(True), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3)
