"""The learning-rate schedule."""

import pytest
import torch
from ignite.engine import Engine, Events

from proda.handlers.schedule import PolynomialDecay


def rates(iterations: int, horizon: int, base: float = 2.0, resume_at: int = 0) -> list[float]:
    """Rates that the optimizer holds during each iteration; through a state dict if ``resume_at`` is given."""
    found = []

    def run(engine: Engine, count: int, state: dict | None) -> dict:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
        schedule = PolynomialDecay(optimizer, horizon)
        if state:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        engine.add_event_handler(Events.ITERATION_STARTED, schedule)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(optimizer.param_groups[0]["lr"]))
        engine.run([None] * count)
        return {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}

    state = run(Engine(lambda *_: None), resume_at, None) if resume_at else None
    run(Engine(lambda *_: None), iterations - resume_at, state)
    return found


def test_it_follows_its_closed_form():
    assert rates(10, 10) == pytest.approx([2.0 * (1 - i / 10) ** 0.9 for i in range(10)], rel=1e-12)


def test_the_first_iteration_has_the_base_rate_and_past_the_horizon_it_is_zero():
    found = rates(5, 3)
    assert found[0] == 2.0 and found[3:] == [0.0, 0.0]


@pytest.mark.parametrize("at", [1, 4])
def test_a_resumed_schedule_goes_on_where_it_was(at):
    assert rates(8, 8, resume_at=at) == pytest.approx(rates(8, 8), rel=1e-12)


def test_every_group_keeps_its_ratio():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 10.0}], lr=1.0)
    engine = Engine(lambda *_: None)
    engine.add_event_handler(Events.ITERATION_STARTED, PolynomialDecay(optimizer, 4))
    engine.run([None] * 3)
    one, ten = (group["lr"] for group in optimizer.param_groups)
    assert one == pytest.approx(0.5**0.9) and ten == pytest.approx(10 * one)
