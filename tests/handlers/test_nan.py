"""Losses that are not finite."""

import math

import pytest
import torch
from ignite.engine import Engine, Events

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.nan import StopOnNan


def trainer_of(*, every: int | None = None) -> Engine:
    trainer = Trainer(lambda engine, value: {"loss": torch.tensor(value), "name": "x"})
    StopOnNan(every).attach(trainer)
    return trainer


@pytest.mark.parametrize("event", [ProdaEvents.BEFORE_WEIGHTS_USED, ProdaEvents.BEFORE_LABELS_WRITTEN])
def test_elsewhere_it_ends_before_the_weights_are_used(event):
    trainer, used = trainer_of(every=20), []
    trainer.add_event_handler(event, lambda engine: used.append(engine.state.iteration))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda engine: engine.fire_event(event))
    with pytest.raises(FloatingPointError, match="at iteration 3"):
        trainer.run([1.0, 2.0, math.nan, 1.0, 1.0])
    assert used == [2] and trainer.state.iteration == 4


def test_it_ends_within_the_given_number_of_iterations_and_at_the_end():
    trainer = trainer_of(every=5)
    with pytest.raises(FloatingPointError, match="at iteration 2; files"):  # without the losses of iteration 5
        trainer.run([1.0, math.nan] + [1.0] * 10)
    assert trainer.state.iteration == 5
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        trainer_of(every=5).run([1.0, math.nan, 1.0])


@pytest.mark.parametrize("name", ["loss", "loss_discriminator"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_on_a_cpu_the_run_ends_at_once_before_anything_is_saved(name, bad):
    outputs = iter([-1e30, bad, 1.0])
    saved = []
    engine = Trainer(lambda *_: {"loss": torch.tensor(1.0)} | {name: torch.tensor(next(outputs))})
    StopOnNan().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: saved.append(engine.state.iteration))
    engine.add_event_handler(Events.COMPLETED, lambda: saved.append("the end"))
    with pytest.raises(FloatingPointError, match=rf"not a finite number at iteration 2 .*{name} {bad}.*--grad_clip"):
        engine.run([None] * 3)
    assert saved == [1]


def test_another_handlers_request_to_stop_is_not_taken_for_nan():
    engine = Trainer(lambda *_: {"loss": torch.tensor(1.0)})
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate)
    StopOnNan().attach(engine)
    assert engine.run([None] * 5).iteration == 2
