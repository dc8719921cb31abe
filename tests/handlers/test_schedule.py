"""The learning-rate schedules, and the limit on gradients."""

import math

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.schedule import PolynomialDecay, WarmupCosine
from tests import small_runs, tiny


def trainer_of(optimizer: torch.optim.Optimizer, found: list[float]) -> Engine:
    """Each iteration is a step of the optimizer; its learning rates are appended to ``found``."""

    def step(engine: Engine, _batch: None) -> dict:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    return Trainer(step, optimizer=optimizer)


def rates(iterations: int, horizon: int, base: float = 2.0, resume_at: int = 0) -> list[float]:
    """Learning rates of each iteration; with ``resume_at``, the run is saved and resumed there."""
    found: list[float] = []

    def run(count: int, states: dict) -> dict:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
        engine = trainer_of(optimizer, found)
        PolynomialDecay(optimizer, horizon).attach(engine)
        parts = engine.state.remembered
        for name, state in states.items():
            parts[name].load_state_dict(state)
        engine.run([None] * count)
        return {name: part.state_dict() for name, part in parts.items()}

    states = run(resume_at, {}) if resume_at else {}
    run(iterations - resume_at, states)
    return found


def test_it_follows_its_closed_form():
    assert rates(10, 10) == pytest.approx([2.0 * (1 - i / 10) ** 0.9 for i in range(10)], rel=1e-12)


def test_the_first_iteration_has_the_base_rate_and_past_the_horizon_it_is_zero():
    found = rates(5, 3)
    assert found[0] == 2.0 and found[3:] == [0.0, 0.0]


def test_a_linear_warm_up_multiplies_the_decay_whose_power_is_chosen():
    optimizer, found = torch.optim.SGD([torch.zeros(1)], lr=2.0), []
    engine = trainer_of(optimizer, found)
    PolynomialDecay(optimizer, 10, power=1.0, warmup=4).attach(engine)
    engine.run([None] * 12)
    expected = [2.0 * min(1, (i + 1) / 4) * (1 - i / 10) for i in range(10)] + [0.0, 0.0]
    assert found == pytest.approx(expected, rel=1e-12)
    constant = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = PolynomialDecay(constant, 10, power=0.0).scheduler
    assert [schedule.lr_lambdas[0](i) for i in (0, 9, 10)] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_schedule_continues_where_it_was(at):
    assert rates(8, 8, resume_at=at) == pytest.approx(rates(8, 8), rel=1e-12)


def test_every_group_keeps_its_ratio():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 10.0}], lr=1.0)
    engine = trainer_of(optimizer, [])
    PolynomialDecay(optimizer, 4).attach(engine)
    engine.run([None] * 2)
    one, ten = (group["lr"] for group in optimizer.param_groups)
    assert one == pytest.approx(0.5**0.9) and ten == pytest.approx(10 * one)


def test_two_schedules_follow_the_steps_of_their_own_optimizers_and_are_remembered_by_name():
    first, second = (torch.optim.SGD([torch.zeros(1)], lr=1.0) for _ in range(2))
    engine = trainer_of(first, [])
    PolynomialDecay(first, 4).attach(engine)
    PolynomialDecay(second, 4).attach(engine, ProdaEvents.DISCRIMINATOR_STEPPED, name="critic_schedule")
    engine.run([None] * 2)
    assert first.param_groups[0]["lr"] == pytest.approx(0.5**0.9) and second.param_groups[0]["lr"] == 1.0
    assert {"schedule", "critic_schedule"} <= engine.state.remembered.keys()


def test_the_flag_for_clipping_limits_what_a_step_of_a_stage_moves(tmp_path):
    """All parameters together move by the rate times the limit, which is far below the norm of any gradient here."""
    data, weights = small_runs.write_data(tmp_path / "data", num_val=1), small_runs.write_weights(tmp_path / "w.pt")
    plain = {"lr": 0.5, "head_lr_factor": 1.0, "momentum": 0.0, "weight_decay": 0.0, "iterations": 1}
    small_runs.train("source_only", data, weights, tmp_path / "run", grad_clip=0.25, val_every=100, **plain)
    start = torch.load(weights, weights_only=True)["model"]
    end = small_runs.checkpoint(tmp_path / "run", 1)["student"]
    names = [name for name, _ in tiny.network().named_parameters()]
    moved = torch.stack([(end[name] - start[name]).double().norm() for name in names]).norm()
    assert moved.item() == pytest.approx(0.5 * 0.25, rel=1e-3)


def warm_rates(iterations: int, horizon: int, warmup: int) -> list[float]:
    optimizer, found = torch.optim.SGD([torch.zeros(1)], lr=2.0), []
    engine = trainer_of(optimizer, found)
    WarmupCosine(optimizer, horizon, warmup=warmup).attach(engine)
    engine.run([None] * iterations)
    return found


def test_warm_up_is_linear_and_the_rest_half_a_cosine():
    found = warm_rates(12, 12, 4)
    assert found[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert found[4:] == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(8)])
    assert warm_rates(5, 3, 0)[3:] == [0, 0] and warm_rates(3, 3, 0)[0] == 2.0


def test_a_run_that_is_shorter_than_its_warm_up_rises_all_along():
    assert warm_rates(3, 3, 4) == pytest.approx([0.5, 1.0, 1.5])
