"""The warm-up's iteration."""

import pytest
import torch

from proda.engines.adversarial import AdversarialOptions, adversarial_trainer
from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.models.discriminator import Discriminator
from tests import tiny
from tests.tiny import CPU, PRECISION, B, H, K, W


def trainer_of(student, discriminator, precision=PRECISION, **options):
    adam = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    options = AdversarialOptions(**options)
    return adversarial_trainer(student, discriminator, tiny.sgd(student), adam, precision, options)


def test_events_fire_in_their_order():
    trainer = trainer_of(tiny.network(), Discriminator(K, width=4))
    spy = tiny.Spy(trainer)
    trainer.run([tiny.batch()])
    assert spy.names == [
        "ITERATION_STARTED",
        "SOURCE_LOSSES_READY",
        "SOURCE_BACKWARD_DONE",
        "EXTRA_LOSSES",
        "LOSSES_READY",
        "BACKWARD_DONE",
        "OPTIMIZER_STEPPED",
        "DISCRIMINATOR_STEPPED",
        "ITERATION_COMPLETED",
    ]
    assert {"loss", "loss_adversarial", "target_logits"} <= spy.keys["BACKWARD_DONE"]
    assert "loss_discriminator" not in spy.keys["OPTIMIZER_STEPPED"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("gan", ["lsgan", "vanilla"])
def test_the_output_is_as_documented_and_holds_no_graph(amp, gan):
    trainer = trainer_of(tiny.network(), Discriminator(K, width=4), Precision(CPU, amp), gan=gan)
    out = trainer.run([tiny.batch()]).output
    tiny.assert_detached(out)
    logits, scalars = (B, K, H, W), ("loss", "loss_source", "loss_adversarial", "loss_discriminator")
    assert tiny.shapes(out) == {"source_logits": logits, "target_logits": logits} | dict.fromkeys(scalars, ())
    assert out["loss"].item() == pytest.approx((out["loss_source"] + out["loss_adversarial"]).item())


def test_the_adversarial_weight_scales_its_loss_and_zero_disables_it():
    losses = {}
    for weight in (0.0, 0.01, 0.02):
        torch.manual_seed(1)
        discriminator, batch = Discriminator(K, width=4), tiny.batch()
        trainer = trainer_of(tiny.network(), discriminator, adversarial_weight=weight)
        torch.manual_seed(2)  # the same dropout
        losses[weight] = trainer.run([batch]).output["loss_adversarial"].item()
    assert losses[0.0] == 0
    assert losses[0.02] == pytest.approx(2 * losses[0.01]) and losses[0.01] > 0


def test_student_and_discriminator_each_update_only_their_own_weights():
    student, discriminator = tiny.network(), Discriminator(K, width=4)
    trainer = trainer_of(student, discriminator)
    before = discriminator.conv1.weight.clone()
    gradients = []
    trainer.add_event_handler(
        ProdaEvents.BACKWARD_DONE, lambda: gradients.extend(p.grad for p in discriminator.parameters())
    )
    trainer.run([tiny.batch()])
    assert gradients and all(
        gradient is None for gradient in gradients
    )  # the generator's loss leaves nothing in the discriminator
    assert not torch.equal(before, discriminator.conv1.weight)
    assert all(p.requires_grad for p in discriminator.parameters())


def test_frozen_batch_norm_keeps_statistics_and_scales_and_an_unfrozen_one_does_not():
    for freeze in (True, False):
        student, untouched = tiny.network(), tiny.network()
        trainer_of(student, Discriminator(K, width=4), freeze_bn=freeze).run([tiny.batch()])
        for name in ("running_mean", "running_var", "weight", "bias"):
            assert torch.equal(getattr(student.bn1, name), getattr(untouched.bn1, name)) == freeze, (freeze, name)
