"""Moving weights."""

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.optimization import Precision, images, move, resize, seeded_by_iteration
from tests import tiny
from tests.tiny import CPU


def test_the_weights_move_between_the_two_events():
    weight, seen = torch.nn.Linear(1, 1, bias=False), []

    def step(engine: Engine, _batch: None) -> None:
        weight(torch.ones(1, 1)).sum().backward()
        move(engine, weight, tiny.sgd(weight, lr=1.0), Precision(CPU))

    trainer, start = proda_engine(step), weight.weight.item()
    for event in (ProdaEvents.BACKWARD_DONE, ProdaEvents.OPTIMIZER_STEPPED):
        trainer.add_event_handler(event, lambda: seen.append(weight.weight.item()))
    trainer.run([None])
    assert seen == pytest.approx([start, start - 1])


def test_images_are_in_zero_to_one_without_mean_or_deviation():
    assert images({"image": torch.tensor([0, 51, 255], dtype=torch.uint8)}).tolist() == pytest.approx([0, 0.2, 1])


def test_resizing_aligns_corners_and_returns_float32():
    ramp = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).reshape(1, 1, 1, 2)
    resized = resize(ramp, (1, 5))
    assert resized.dtype == torch.float32 and resized.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_random_numbers_follow_from_seed_and_iteration_alone():
    def draws(seed: int, first: int) -> list[float]:
        engine, found = Engine(lambda *_: found.append(torch.rand(()).item())), []
        engine.state.iteration = first
        reseed = seeded_by_iteration(seed)
        for iteration in range(first, 4):
            engine.state.iteration = iteration
            reseed(engine)
            found.append(torch.rand(()).item())
        return found

    whole = draws(0, 0)
    assert draws(0, 2) == whole[2:] and draws(1, 0) != whole and len(set(whole)) == 4


def test_a_parameter_that_the_optimizer_lists_repeatedly_is_unscaled_once():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    precision = Precision(CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.SGD([{"params": [parameter] * 3}], lr=0.0)
    precision.backward((parameter * 2).sum())
    precision.unscale(optimizer)
    assert parameter.grad.item() == 2
    assert len(optimizer.param_groups[0]["params"]) == 3
    precision.scaler.step(optimizer)  # the scaler knows that it was unscaled
    precision.scaler.update()
