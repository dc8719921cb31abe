"""The learning-rate schedules, and the limit on gradients."""

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.schedule import PolynomialDecay
from tests import small_runs, tiny


def trainer_of(optimizer: torch.optim.Optimizer, found: list) -> Engine:
    """Each iteration is a step of the optimizer; its learning rates are appended to ``found``."""

    def step(engine: Engine, _batch: None) -> dict:
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    return Trainer(step, optimizer=optimizer)


def rates(iterations: int, resume_at: int = 0) -> list[list[float]]:
    """Learning rates of each iteration; with ``resume_at``, the run is saved and resumed there."""
    found: list[list[float]] = []

    def run(count: int, states: dict) -> dict:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
        engine = trainer_of(optimizer, found)
        PolynomialDecay(optimizer, iterations).attach(engine)
        parts = engine.state.remembered
        for name, state in states.items():
            parts[name].load_state_dict(state)
        engine.run([None] * count)
        return {name: part.state_dict() for name, part in parts.items()}

    states = run(resume_at, {}) if resume_at else {}
    run(iterations - resume_at, states)
    return found


@pytest.mark.parametrize(("power", "warmup"), [(0.9, 0), (1.0, 4), (0.0, 0)])
def test_the_rates_follow_their_closed_form_in_every_group_and_are_zero_past_the_horizon(power, warmup):
    optimizer, found = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)], "lr": 20.0}], 2.0), []
    engine = trainer_of(optimizer, found)
    PolynomialDecay(optimizer, 10, power=power, warmup=warmup).attach(engine)
    engine.run([None] * 12)
    rises = [min(1, (i + 1) / warmup) if warmup else 1 for i in range(10)]
    expected = [2.0 * rise * (1 - i / 10) ** power for i, rise in enumerate(rises)] + [0.0, 0.0]
    assert [one for one, _ in found] == pytest.approx(expected, rel=1e-12)
    assert [ten for _, ten in found] == pytest.approx([10 * rate for rate in expected], rel=1e-12)


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_schedule_continues_where_it_was(at):
    assert rates(8, resume_at=at) == rates(8)


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
    plain = {"lr": 0.5, "head_lr_factor": 1.0, "weight_decay": 0.0, "iterations": 1}
    small_runs.train("source_only", data, weights, tmp_path / "run", grad_clip=0.25, val_every=100, **plain)
    start = torch.load(weights, weights_only=True)["model"]
    end = small_runs.checkpoint(tmp_path / "run", 1)["student"]
    names = [name for name, _ in tiny.network().named_parameters()]
    moved = torch.stack([(end[name] - start[name]).double().norm() for name in names]).norm()
    assert moved.item() == pytest.approx(0.5 * 0.25, rel=1e-3)
