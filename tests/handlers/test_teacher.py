"""The mean teacher."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.teacher import EMATeacher


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def run(network: nn.Module, teacher: EMATeacher, iterations: int) -> Engine:
    """Every iteration adds 1 to all parameters and runs the network on a batch."""

    def step(engine: Engine, _batch: None) -> dict:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1.0)
        network.train()(torch.randn(8, 2))
        teacher.ema_model.train()(torch.randn(8, 2) + 100)  # what it writes into its own statistics is overwritten
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    engine = Trainer(step)
    teacher.attach(engine)
    engine.run([None] * iterations)
    return engine


@pytest.mark.parametrize(("momentum", "iterations"), [(0.25, 4), (0.001, 1), (1.0, 2)])
def test_after_n_steps_of_one_the_teacher_lags_by_its_closed_form(momentum, iterations):
    network = student()
    start = network[0].weight.detach().clone()
    teacher = EMATeacher(network, momentum=momentum)
    assert not any(p.requires_grad for p in teacher.ema_model.parameters())
    engine = run(network, teacher, iterations)
    # the student is at 1, 2, ...; the distance to it follows d <- (1 - momentum) (d + 1)
    lag = sum((1 - momentum) ** i for i in range(1, iterations + 1))
    torch.testing.assert_close(teacher.ema_model[0].weight, start + iterations - lag, atol=1e-6, rtol=0)
    assert engine.state.ema_momentum == momentum


def test_buffers_are_copied_by_value_and_never_shared():
    network = student()
    teacher = EMATeacher(network, momentum=0.1)
    run(network, teacher, 2)
    norm, ours = network[1], teacher.ema_model[1]
    assert torch.equal(ours.running_mean, norm.running_mean) and norm.running_mean.any()
    before = norm.running_mean.clone()
    teacher.ema_model.train()(torch.randn(8, 2) + 100)  # writes into the teacher's own statistics
    assert torch.equal(norm.running_mean, before) and not torch.equal(ours.running_mean, before)
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in teacher.ema_model.state_dict().values())


def test_it_continues_from_its_state():
    network = student()
    teacher = EMATeacher(network, momentum=0.25)
    engine = run(network, teacher, 2)
    assert engine.state.remembered == {"teacher": teacher}
    other = EMATeacher(network, momentum=0.25)
    other.load_state_dict(teacher.state_dict())
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in other.ema_model.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 1.5])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(student(), momentum=momentum)
