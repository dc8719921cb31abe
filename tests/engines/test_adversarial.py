"""The warm-up's iteration."""

import pytest
import torch

from proda.engines.events import ProdaEvents
from proda.models.discriminator import Discriminator
from tests import tiny
from tests.tiny import K


def test_the_adversarial_weight_scales_its_loss_and_zero_disables_it():
    losses = {}
    for weight in (0.0, 0.01, 0.02):
        torch.manual_seed(1)
        discriminator, batch = Discriminator(K, width=4), tiny.batch()
        trainer = tiny.trainer("warmup", discriminator=discriminator, adversarial_weight=weight)
        torch.manual_seed(2)  # the same dropout
        losses[weight] = trainer.run([batch]).output["loss_adversarial"].item()
    assert losses[0.0] == 0
    assert losses[0.02] == pytest.approx(2 * losses[0.01]) and losses[0.01] > 0


def test_student_and_discriminator_each_update_only_their_own_weights():
    discriminator, gradients = Discriminator(K, width=4), []
    trainer = tiny.trainer("warmup", discriminator=discriminator)
    before = discriminator.conv1.weight.clone()
    trainer.add_event_handler(
        ProdaEvents.BACKWARD_DONE, lambda: gradients.extend(p.grad for p in discriminator.parameters())
    )
    trainer.run([tiny.batch()])
    assert gradients and all(gradient is None for gradient in gradients)  # the generator's loss leaves nothing
    assert not torch.equal(before, discriminator.conv1.weight)
    assert all(p.requires_grad for p in discriminator.parameters())
