"""A batch in parts gives the gradients of the whole batch, and moves everything else once an iteration."""

from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents
from proda.engines.optimization import split
from proda.handlers.class_mix import ClassMix
from proda.handlers.color_augmentation import ColorAugmentation
from proda.handlers.feature_distance import FeatureDistance
from proda.handlers.masked_consistency import MaskedConsistency
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.handlers.schedule import PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.teacher import EMATeacher
from proda.method import IGNORE
from proda.models.discriminator import Discriminator
from proda.models.network import freeze_batch_norm
from tests import tiny
from tests.tiny import CPU, PRECISION, B, D, K

FROZEN = {"freeze_bn": True}  # batch statistics are those of a part


def in_parallel(network: nn.Module) -> nn.Module:
    if idist.get_world_size() == 1:
        return network
    return nn.parallel.DistributedDataParallel(network)


def student() -> nn.Module:
    network = tiny.network(dropout=0.0)
    freeze_batch_norm(network)
    return network


def made(stage: str, **options: Any) -> tuple[Engine, list]:
    """A trainer with the handlers that have a state, and whatever is compared; "self_training" is "online" with parts.

    The threshold of stage 1 leaves a different number of pixels in each image.
    """
    network, discriminator, prototypes = student(), Discriminator(K), Prototypes(K, D)
    torch.manual_seed(1)
    prototypes.values.copy_(torch.randn(K, D))
    teacher = EMATeacher(network, 0.1, start_as_mean=stage == "self_training")
    options |= {
        "warmup": {"adversarial_weight": 1.0, "discriminator": in_parallel(discriminator)},
        "stage1": {"threshold": 0.5, "teacher_mode": "eval", "rce_weight": 0.5, "prototypes": prototypes.values},
        "unstored": {"teacher_mode": "eval", "labeller": tiny.network(2)},  # stage 1 without stored labels
        "self_training": {"confidence": 0.3, "teacher_mode": "eval"},
    }.get(stage, {})
    moving = teacher.ema_model if stage in ("stage1", "self_training") else tiny.network(1)
    name = {"unstored": "stage1", "self_training": "online"}.get(stage, stage)
    trainer = tiny.trainer(name, in_parallel(network), moving, **options)
    if stage == "unstored":
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: trainer.state.batch["target"].pop("soft_labels", 0))
    if stage == "self_training":
        SeedIterations(0).attach(trainer)
        FeatureDistance(network, PRECISION, [0, 1, 2], weight=0.1).attach(trainer)
        MaskedConsistency(network, PRECISION, block=8).attach(trainer)
        ClassMix(K).attach(trainer)
        ColorAugmentation().attach(trainer)
        teacher.attach(trainer)
    if stage == "stage1":
        PrototypeEMA(prototypes, 0.1).attach(trainer)
        teacher.attach(trainer)
        PolynomialDecay(trainer.state.remembered["optimizer"], 5).attach(trainer)
    compared = {"warmup": [discriminator], "stage1": [teacher, prototypes], "self_training": [teacher]}
    return trainer, [network, *compared.get(stage, [])]


STAGES = ("supervised", "warmup", "stage1", "unstored", "stage2", "self_training")


def batches(rank: int = 0) -> list[dict[str, Any]]:
    """Two of them, in float64, with another number of labelled pixels in each image."""
    found = []
    for seed in range(2):
        torch.manual_seed(10 * seed + rank)
        batch = tiny.batch()
        batch["source"]["labels"][0, : 8 + 4 * rank] = IGNORE
        batch["target"]["pseudo_labels"][1, :, 20 + 8 * rank :] = IGNORE
        found.append(batch)
    return found


def results(stage: str, rank: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    """Gradients, losses and states after two iterations."""
    torch.manual_seed(0)
    trainer, parts = made(stage, **FROZEN, **options)
    found: dict[str, torch.Tensor] = {}

    def note(engine: Engine) -> None:
        for name, parameter in parts[0].named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name} {engine.state.iteration}"] = parameter.grad.clone()

    trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, note)
    output = trainer.run(batches(rank), max_epochs=1).output
    for number, part in enumerate(parts):
        found |= {f"{number} {name}": value.clone() for name, value in part.state_dict().items()}
    return found | output


@pytest.fixture
def double(monkeypatch):
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # what the method raises half precision by
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("stage", STAGES)
def test_two_parts_give_the_results_of_one(stage, double):
    one, two = results(stage), results(stage, accumulate=2)
    assert any(name.startswith("gradient of conv1") and value.any() for name, value in one.items())
    assert_same(two, one)


def both(rank: int, stage: str) -> list[dict[str, torch.Tensor]]:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    return [results(stage, rank, accumulate=number) for number in (1, 2)]


def in_group(rank: int, folder: str) -> None:
    torch.save({stage: both(rank, stage) for stage in STAGES}, f"{folder}/{rank}.pt")


def test_two_processes_with_two_parts_each_give_the_results_of_one_part(tmp_path):
    with idist.Parallel(backend="gloo", nproc_per_node=2) as group:
        group.run(in_group, str(tmp_path))
    of_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found in of_rank:
        for one, two in found.values():
            assert_same(two, one)
    one, other = (found["stage1"][1] for found in of_rank)
    assert_same(
        {name: value for name, value in one.items() if name.startswith("0 ")},
        {name: value for name, value in other.items() if name.startswith("0 ")},
    )


def test_events_fire_once_an_iteration_but_losses_ready_for_every_part():
    trainer, _ = made("stage1", **FROZEN, accumulate=2)
    spy, seen = tiny.Spy(trainer), []
    trainer.add_event_handler(
        ProdaEvents.LOSSES_READY, lambda engine: seen.append(len(engine.state.graph["target_logits"]))
    )
    trainer.run(batches()[:1])
    assert seen == [B // 2] * 2
    expected = ["SOURCE_LOSSES_READY"] * 2 + ["LOSSES_READY"] * 2
    assert [name for name in spy.names if spy.names.count(name) > 1] == expected
    assert trainer.state.output["target_logits"].shape[0] == B


def test_a_users_loss_is_the_mean_over_the_parts():
    def mean_logit(engine):
        engine.state.losses["mine"] = engine.state.graph["target_logits"].mean()

    def run(**options):
        trainer, _ = made("stage2", **FROZEN, **options)
        trainer.add_event_handler(ProdaEvents.LOSSES_READY, mean_logit)
        return trainer.run(batches()[:1]).output

    one, two = run(), run(accumulate=2)
    torch.testing.assert_close(two["loss_mine"], one["loss_mine"])
    torch.testing.assert_close(two["loss"], one["loss"])


def test_split_keeps_the_order_and_refuses_unequal_parts():
    batch = to_device(tiny.batch(), CPU)
    first, second = split({"view": batch["target"]["weak_view"], "image": batch["source"]["image"]}, 2)
    assert first["view"].flipped.tolist() == [False] and second["view"].flipped.tolist() == [True]
    assert torch.equal(torch.cat([first["image"], second["image"]]), batch["source"]["image"])
    with pytest.raises(ValueError, match="3 equal parts"):
        split(batch["source"]["image"], 3)
