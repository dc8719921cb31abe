"""One step of the optimiser."""

import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision, StudentUpdate
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.teacher import EMATeacher
from proda.method.tensors import resize, to_float
from tests import tiny
from tests.tiny import CPU

FACTOR = 1024.0  # by which a loss is scaled


def weight(value: float = 0.0) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def trainer_of(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, precision: Precision) -> Engine:
    """Batches are numbers; the loss is the batch times the layer's only weight."""

    def step(engine: Engine, slope: float) -> dict:
        engine.state.output = {"class_means": torch.ones(1, 2, 1), "class_present": torch.ones(1, 2).bool()}
        optimizer.zero_grad()
        precision.backward(layer(torch.tensor([[slope]])).sum())
        StudentUpdate(layer, optimizer, precision).step(engine)
        return engine.state.output

    return Trainer(step)


def scaling() -> Precision:
    """Loss scaling, as in fp16 on a GPU."""
    precision = Precision(CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=FACTOR)
    return precision


def test_scaled_gradients_have_their_true_values_at_backward_done():
    layer, seen = weight(), []
    trainer = trainer_of(layer, tiny.sgd(layer, lr=0.5), scaling())
    trainer.add_event_handler(
        ProdaEvents.BACKWARD_DONE, lambda: seen.extend([layer.weight.grad.item(), layer.weight.item()])
    )
    trainer.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED, lambda: seen.append(layer.weight.item()))
    trainer.run([3.0])
    assert seen == [3, 0, -1.5]  # the weights change between the two events


@pytest.mark.parametrize("precision", [Precision(CPU), scaling()], ids=["off", "scaled"])
def test_clipped_gradients_change_the_weights_by_the_rate_times_the_limit(precision):
    layer = weight()
    trainer = trainer_of(layer, tiny.sgd(layer, lr=0.5), precision)
    ClipGradients(layer, 0.25).attach(trainer)
    trainer.run([8.0])
    assert layer.weight.item() == pytest.approx(-0.5 * 0.25, rel=1e-5)
    trainer.run([0.125], max_epochs=2)  # within the limit
    assert layer.weight.item() == pytest.approx(-0.5 * (0.25 + 0.125), rel=1e-5)
    free = weight()
    trainer = trainer_of(free, tiny.sgd(free, lr=1.0), Precision(CPU))
    ClipGradients(free, 0.0).attach(trainer)  # 0 clips nothing
    trainer.run([8.0])
    assert free.weight.item() == -8


def test_a_step_skipped_by_loss_scaling_changes_neither_schedule_nor_teacher_nor_prototypes():
    layer, precision, steps = weight(), scaling(), []
    optimizer, teacher, prototypes = tiny.sgd(layer, 1.0), EMATeacher(layer, 0.5), Prototypes(2, 1)
    trainer = trainer_of(layer, optimizer, precision)
    teacher.attach(trainer)
    PrototypeEMA(prototypes, 0.5).attach(trainer)
    PolynomialDecay(optimizer, 10).attach(trainer)
    trainer.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED, lambda engine: steps.append(engine.state.iteration))

    trainer.run([float("inf")], max_epochs=1)
    assert steps == [] and layer.weight.item() == 0
    assert teacher.ema_model.weight.item() == 0 and not prototypes.values.any() and not prototypes.counts.any()
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert precision.scaler.get_scale() == FACTOR / 2

    trainer.run([2.0], max_epochs=2)
    assert steps == [2] and layer.weight.item() == -2 and teacher.ema_model.weight.item() == -1
    assert prototypes.values.flatten().tolist() == [0.5, 0.5]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9**0.9)


def test_the_loss_scale_is_restored_and_a_state_without_scaling_keeps_it():
    precision, other = scaling(), scaling()
    layer = weight()
    trainer_of(layer, tiny.sgd(layer), precision).run([float("inf")])
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == FACTOR / 2
    other.load_state_dict(Precision(CPU).state_dict())
    assert other.scaler.get_scale() == FACTOR / 2


def test_images_are_in_zero_to_one_without_mean_or_deviation():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_resizing_aligns_corners_and_returns_float32():
    ramp = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).reshape(1, 1, 1, 2)
    resized = resize(ramp, (1, 5))
    assert resized.dtype == torch.float32 and resized.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_a_parameter_that_the_optimizer_lists_repeatedly_is_unscaled_once():
    parameter, precision = torch.nn.Parameter(torch.tensor([1.0])), scaling()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.SGD([{"params": [parameter] * 3}], lr=0.0)
    precision.backward((parameter * 2).sum())
    precision.unscale(optimizer)
    assert parameter.grad.item() == 2
    assert len(optimizer.param_groups[0]["params"]) == 3
    precision.step(optimizer)  # the scaler knows that it was unscaled


def test_losses_are_scaled_for_fp16_on_cuda_alone():
    assert not Precision("cpu", "fp16").scaler.is_enabled()
    assert not Precision("cpu").scaler.is_enabled()


@pytest.mark.parametrize(("loss", "found"), [(0.5, "float"), (torch.ones(2), r"\[2\]")])
def test_a_loss_that_is_no_scalar_tensor_is_named(loss, found):
    student = tiny.network()
    update = StudentUpdate(student, tiny.sgd(student), Precision(CPU))
    trainer = Trainer(lambda *_: {})
    trainer.state.output = {}
    with pytest.raises(ValueError, match=f"'mine': expected a scalar tensor, found {found}"):
        update.backward(trainer, {"mine": loss}, {})
