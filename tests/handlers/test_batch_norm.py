"""Which images the running statistics of batch norm come from."""

import torch
from ignite.engine import Events

from proda.engines.distill import distill_trainer
from proda.engines.update import images
from proda.handlers.batch_norm import TargetStatistics
from tests import tiny
from tests.tiny import CPU, PRECISION


def statistics(network) -> torch.Tensor:
    return torch.cat([buffer for name, buffer in network.named_buffers() if "running" in name]).clone()


def whole_images(count: int = 3) -> list[dict]:
    torch.manual_seed(1)
    return [{"image": tiny.pictures(*tiny.FULL)} for _ in range(count)]


def trained(batches, *, every: int = 1, freeze_bn: bool = False, iterations: int = 1):
    """A student after training with the handler (without, for no batches), and its statistics after each iteration."""
    torch.manual_seed(0)
    batch, student = tiny.batch(), tiny.network(dropout=0.5)
    trainer = distill_trainer(student, tiny.network(1), tiny.sgd(student), PRECISION, CPU, freeze_bn=freeze_bn)
    if batches:
        TargetStatistics(student, batches, PRECISION, CPU).attach(trainer, every=every)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(statistics(student)))
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: torch.manual_seed(2))
    trainer.run([batch] * iterations)
    return student, seen


def test_one_batch_leaves_its_own_statistics_in_every_layer():
    (batch,) = whole_images(1)
    student, _ = trained([batch])
    found, modules = statistics(student), [m for m in student.modules() if hasattr(m, "running_mean")]
    student.train()
    student.layer5.head[0].p = 0.0
    for module in modules:
        module.momentum = 1.0
    student(images(batch))
    torch.testing.assert_close(found, statistics(student), rtol=1e-4, atol=1e-5)


def test_several_batches_count_as_one():
    batches = whole_images(3)
    student, _ = trained(batches)
    everything = student.conv1(torch.cat([images(batch) for batch in batches]))
    torch.testing.assert_close(student.bn1.running_mean, everything.mean((0, 2, 3)))
    torch.testing.assert_close(student.bn1.running_var, everything.var((0, 2, 3)), rtol=1e-3, atol=1e-6)


def test_training_goes_on_as_without_it():
    with_it, _ = trained(whole_images(), iterations=2)
    without, _ = trained([], iterations=2)
    for ours, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert with_it.training
    assert {module.momentum for module in with_it.modules() if hasattr(module, "running_mean")} == {0.1}


def test_statistics_are_made_anew_before_each_validation_and_at_the_end():
    _, without = trained([], iterations=3)
    student, seen = trained(whole_images(), every=2, iterations=3)
    assert torch.equal(seen[0], without[0]) and not torch.allclose(seen[1], without[1])
    mixed = statistics(student)
    TargetStatistics(student, whole_images(), PRECISION, CPU)(None)
    torch.testing.assert_close(mixed, statistics(student), rtol=0, atol=0)
    assert not torch.equal(mixed, seen[2])


def test_frozen_batch_norm_stays_as_it_is():
    student, _ = trained(whole_images(), freeze_bn=True)
    torch.testing.assert_close(statistics(student), statistics(tiny.network()), rtol=0, atol=0)
