"""The learning rates of ``schedule.json`` (case 9)."""

import json

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.schedule import PolynomialDecay
from proda.models.deeplab import DeepLab
from proda.run.networks import make_optimizer
from tests.golden.arrays import DATA

GOLDEN = json.loads((DATA / "schedule.json").read_text())
REL = 1e-9


class Settings:
    """What ``make_optimizer`` reads of a stage's settings: published values but for the rate."""

    head_lr_factor, weight_decay = 10.0, 2e-4
    optimizer, amp, as_released = "sgd", "off", False

    def __init__(self, lr: float) -> None:
        self.lr = lr


def network() -> DeepLab:
    return DeepLab(2, blocks=(1, 1, 1, 1), width=2, head_channels=8, dilations=(1,))


def rates_after(optimizer: torch.optim.Optimizer, total: int, iterations: list[int]) -> list[list[float]]:
    """Rates that the optimizer holds after so many finished iterations, without running all 90,000 of them."""
    scheduler, found = PolynomialDecay(optimizer, total).scheduler, []
    for iteration in iterations:
        scheduler.last_epoch = iteration - 1
        optimizer.step()
        scheduler.step()
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['base_lr']:g}")
def test_published_rates_of_backbone_and_head(case):
    values = case["values"]
    found = rates_after(
        make_optimizer(Settings(case["base_lr"]), network()), case["total_iterations"], [v["iteration"] for v in values]
    )
    for value, (backbone, head) in zip(values, found, strict=True):
        assert backbone == pytest.approx(value["lr_group_1x"], rel=REL)
        assert head == pytest.approx(value["lr_group_10x"], rel=REL)


def test_a_short_run_through_the_handler():
    optimizer, found = torch.optim.SGD([torch.zeros(1)], lr=1e-4), []
    expected = GOLDEN["short_run_total_10"]["values"]

    def step(engine: Engine, _batch: None) -> dict:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    engine = Trainer(step)
    PolynomialDecay(optimizer, 10).attach(engine)
    engine.run([None] * (len(expected) + 2))
    assert found[: len(expected)] == pytest.approx(expected, rel=REL)
    assert found[len(expected) :] == [0.0, 0.0]  # the released code raises an error past its end


def test_the_optimizers_are_the_recorded_ones():
    expected = GOLDEN["backbone"]
    optimizer = make_optimizer(Settings(1e-4), network())
    assert type(optimizer).__name__ == expected["optimiser"]
    for group in optimizer.param_groups:
        assert {name: group[name] for name in ("momentum", "weight_decay", "nesterov")} == {
            name: expected[name] for name in ("momentum", "weight_decay", "nesterov")
        }
    from experiments.warmup import Config

    assert Config().discriminator_lr == GOLDEN["discriminator"]["base_lr"]
    assert GOLDEN["discriminator"]["optimiser"] == "Adam" and GOLDEN["discriminator"]["betas"] == [0.9, 0.99]
