"""Batch-norm running statistics."""

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.engines.events import ProdaEvents
from proda.engines.inference import segmentation_evaluator
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.method.tensors import to_float
from tests import tiny
from tests.tiny import PRECISION

VALIDATION = [{"image": torch.zeros(1, 3, 32, 64, dtype=torch.uint8)}]


def statistics(network) -> torch.Tensor:
    return torch.cat([buffer for name, buffer in network.named_buffers() if "running" in name]).clone()


def whole_images(count: int = 3) -> list[dict]:
    torch.manual_seed(1)
    return [{"image": tiny.pictures(*tiny.FULL)} for _ in range(count)]


def trained(batches, *, freeze_bn: bool = False, iterations: int = 1, every: int = 1):
    """A student after training and validations with the handler (without, for no batches), and its statistics.

    These are noted at the end of each iteration, before a validation that falls on it, and after all.
    """
    torch.manual_seed(0)
    batch, student = tiny.batch(), tiny.network(dropout=0.5)
    trainer = tiny.trainer("stage2", student, freeze_bn=freeze_bn)
    evaluator = segmentation_evaluator(student, PRECISION)
    if batches:
        AdaBN(student, batches, PRECISION).attach(evaluator)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(statistics(student)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), lambda: evaluator.run(VALIDATION))
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: torch.manual_seed(2))
    trainer.run([batch] * iterations)
    return student, [*seen, statistics(student)]


def test_one_batch_leaves_its_own_statistics_in_every_layer():
    (batch,) = whole_images(1)
    student, (_, found) = trained([batch])
    student.train()
    student.layer5.head[0].p = 0.0
    for module in student.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1.0
    student(to_float(batch["image"]))
    torch.testing.assert_close(found, statistics(student), rtol=1e-4, atol=1e-5)


def test_several_batches_count_as_one_in_the_first_layer():
    batches = whole_images(3)
    student, _ = trained(batches)
    everything = student.conv1(torch.cat([to_float(batch["image"]) for batch in batches]))
    torch.testing.assert_close(student.bn1.running_mean, everything.mean((0, 2, 3)))
    torch.testing.assert_close(student.bn1.running_var, everything.var((0, 2, 3)), rtol=1e-3, atol=1e-6)


def test_training_itself_does_not_change():
    with_it, _ = trained(whole_images(), iterations=2)
    without, _ = trained([], iterations=2)
    for ours, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert {module.momentum for module in with_it.modules() if hasattr(module, "running_mean")} == {0.1}


def test_statistics_are_recomputed_only_before_a_validation():
    _, without = trained([], iterations=3, every=2)
    student, seen = trained(whole_images(), iterations=3, every=2)
    assert torch.equal(seen[0], without[0]) and torch.equal(seen[1], without[1])  # the validation follows
    assert not torch.allclose(seen[2], without[2])
    before = statistics(student)
    AdaBN(student, whole_images(), PRECISION)(None)  # the student is in training mode
    assert not torch.allclose(statistics(student), before)


def test_what_it_leaves_depends_on_the_weights_alone_and_networks_that_do_not_train_batch_norm_keep_theirs():
    student, _ = trained(whole_images())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    AdaBN(student, whole_images(), PRECISION)(None)  # again
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    student.eval()
    AdaBN(student, whole_images(1), PRECISION)(None)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    frozen, _ = trained(whole_images(), freeze_bn=True)
    assert torch.equal(statistics(frozen), statistics(tiny.network()))
    counting = nn.Sequential(nn.BatchNorm2d(3))  # torch's layer counts its batches
    AdaBN(counting, whole_images(), PRECISION)(None)
    assert counting[0].num_batches_tracked == 0 and counting[0].running_mean.any()


def _average(rank: int, folder) -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(1))
    frozen = network[1].eval()
    for layer in network:
        layer.running_mean.fill_(1.0 + rank)
        layer.running_var.fill_(2.0 + 4 * rank)
    trainer = Engine(lambda *_: None)
    trainer.register_events(*ProdaEvents)
    AverageStatistics(network).attach(trainer)
    trainer.fire_event(ProdaEvents.BACKWARD_DONE)
    found = {"trained": torch.cat([network[0].running_mean, network[0].running_var]), "frozen": frozen.running_mean}
    torch.save(found, folder / f"{rank}.pt")


def test_statistics_are_averaged_over_processes_where_they_are_learnt(tmp_path):
    idist.spawn("gloo", _average, args=(tmp_path,), nproc_per_node=2, start_method="spawn")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["trained"].tolist() == [1.5, 1.5, 4, 4]
        assert found["frozen"].tolist() == [1 + rank]
