"""Which images the running statistics of batch norm come from."""

import pytest
import torch

from proda.engines.denoise import denoise_trainer
from proda.engines.distill import distill_trainer
from proda.engines.events import ProdaEvents
from proda.engines.update import images
from proda.handlers.batch_norm import target_statistics
from tests import tiny
from tests.tiny import CPU, PRECISION


def statistics(network) -> torch.Tensor:
    return torch.cat([buffer for name, buffer in network.named_buffers() if "running" in name]).clone()


def trained(batch, *, attach: bool, freeze_bn: bool = False):
    student = tiny.network(dropout=0.0)
    trainer = distill_trainer(student, tiny.network(1), tiny.sgd(student), PRECISION, CPU, freeze_bn=freeze_bn)
    if attach:
        target_statistics(trainer, student)
    moments = []
    trainer.add_event_handler(ProdaEvents.SOURCE_BACKWARD_DONE, lambda: moments.append(statistics(student)))
    output = trainer.run([batch]).output
    return student, moments[0], output


def test_running_statistics_are_those_of_one_pass_over_the_target_alone():
    batch = tiny.batch()
    student, after_source, output = trained(batch, attach=True)
    alone = tiny.network(dropout=0.0)
    before = statistics(alone)
    torch.testing.assert_close(after_source, before, rtol=0, atol=0)
    alone(images(batch["target"], "strong_image"))
    torch.testing.assert_close(statistics(student), statistics(alone))
    assert not torch.allclose(statistics(student), before)
    # the source is normalised by its own statistics as before, so losses and gradients do not change
    other, _, expected = trained(batch, attach=False)
    torch.testing.assert_close(output["loss"], expected["loss"], rtol=0, atol=0)
    assert not torch.allclose(statistics(other), statistics(student))
    for ours, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_in_stage_1_strong_views_leave_no_trace():
    batch, student = tiny.batch(), tiny.network(dropout=0.0)
    prototypes = torch.randn(tiny.K, 32)
    trainer = denoise_trainer(student, tiny.network(1), prototypes, tiny.sgd(student), PRECISION, CPU)
    target_statistics(trainer, student)
    trainer.run([batch])
    alone = tiny.network(dropout=0.0)
    alone(images(batch["target"]))
    torch.testing.assert_close(statistics(student), statistics(alone))


def test_every_iteration_ends_with_the_momentum_that_the_layers_had():
    student, *_ = trained(tiny.batch(), attach=True)
    assert {module.momentum for module in student.modules() if hasattr(module, "running_mean")} == {0.1}


@pytest.mark.parametrize("attach", [True, False])
def test_frozen_batch_norm_stays_as_it_is(attach):
    student, *_ = trained(tiny.batch(), attach=attach, freeze_bn=True)
    torch.testing.assert_close(statistics(student), statistics(tiny.network(dropout=0.0)), rtol=0, atol=0)
