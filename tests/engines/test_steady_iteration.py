"""What a GPU needs of an iteration: no wait for its results, and no breaks in compiled code.

Fake tensors have a shape and no values. An iteration that runs on them asks for no value: it never waits for a GPU.
"""

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from proda.engines.adversarial import AdversarialOptions, adversarial_trainer
from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.distill import DistillOptions, distill_trainer
from proda.engines.events import ProdaEvents
from proda.engines.online import OnlineOptions, online_trainer
from proda.engines.optimization import Precision
from proda.engines.supervised import supervised_trainer
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
from tests.tiny import H, K, W

D = 32  # features of the tiny network
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


def trainers(mode: FakeTensorMode, stage: str, amp: str, **options: Any) -> Engine:
    precision, student = Precision("cpu", amp), tiny.network()
    teacher = EMATeacher(student, 0.1)
    on_fake(mode, teacher.ema_model)
    optimizer = tiny.sgd(on_fake(mode, student))
    if stage == "supervised":
        trainer = supervised_trainer(student, optimizer, precision)
    elif stage == "warmup":
        discriminator = on_fake(mode, Discriminator(K))
        adam = torch.optim.Adam(discriminator.parameters())
        trainer = adversarial_trainer(student, discriminator, optimizer, adam, precision, AdversarialOptions(**options))
    elif stage == "distill":
        other = on_fake(mode, tiny.network(1))
        trainer = distill_trainer(student, other, optimizer, precision, DistillOptions(**options))
    elif stage == "self_training":
        trainer = online_trainer(student, teacher.ema_model, optimizer, precision, OnlineOptions(**options))
        distance = FeatureDistance(tiny.network(), precision, [0, 1])
        distance.network = student
        on_fake(mode, distance.frozen)
        distance.attach(trainer)
        with mode:
            MaskedConsistency(student, precision, block=8).attach(trainer)
        ClassMix(K).attach(trainer)
        ColorAugmentation().attach(trainer)
        teacher.attach(trainer)
    else:
        with mode:
            means = Prototypes(K, D)
        labeller = on_fake(mode, tiny.network(1)) if stage == "online" else None
        trainer = denoise_trainer(
            *(student, teacher.ema_model, means.values, optimizer, precision, DenoiseOptions(**options), labeller)
        )
        PrototypeEMA(means).attach(trainer)
        teacher.attach(trainer)
    PolynomialDecay(optimizer, 100).attach(trainer)
    ClipGradients(student, 1.0).attach(trainer)
    return trainer


def fake_batch(mode: FakeTensorMode, *, soft_labels: bool = True) -> dict[str, Any]:
    with mode:
        batch = tiny.batch()
    if not soft_labels:
        del batch["target"]["soft_labels"]
    return batch


RELEASED = {"replay_as_released": True}


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("supervised", {}),
        ("warmup", {"accumulate": 2}),
        ("denoise", {"threshold": 0.5}),
        ("denoise", {"accumulate": 2, "joint_views": True, **RELEASED}),
        ("online", {}),
        ("distill", {}),
        ("distill", {"distillation_as_released": True, **RELEASED}),
        ("self_training", {}),
        ("self_training", {"accumulate": 2}),
    ],
)
def test_no_iteration_asks_for_a_value(stage, options, amp):
    mode, done = FakeTensorMode(), []
    trainer = trainers(mode, stage, amp, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(set(engine.state.output)))
    with mode:
        trainer.run([fake_batch(mode, soft_labels=stage != "online")] * 2)
    assert len(done) == 2 and "loss" in done[-1]


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.nonzero, bool])
def test_fake_tensors_find_a_handler_that_asks_for_a_value(ask):
    mode = FakeTensorMode()
    trainer = trainers(mode, "supervised", "off")
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
        precision, optimizer = Precision("cpu", compile=compile), tiny.sgd(student)
        trainer = denoise_trainer(student, teacher.ema_model, torch.randn(K, D), optimizer, precision)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: found.append({n: v.item() for n, v in engine.state.output.items() if n.startswith("loss")}),
        )
        trainer.run([tiny.batch()] * 3)
        return found

    for plain, compiled in zip(run(False), run(True), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3)
