"""Warm-up: supervised training on the source, and adversarial alignment of the target predictions with the source's.

This is the output-space alignment of AdaptSegNet (ProDA's warm-up). For the discriminator, the source is
domain 0 and the target is domain 1.

One iteration: the student's gradients of the source loss, then of the adversarial loss, and the student's step; then
the gradients of the discriminator and its step. The losses are in ``proda.method.losses``.
"""

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.optimization import Precision, backward, optimizer_step, resize, set_train_mode, to_float
from proda.engines.options import AdversarialOptions
from proda.engines.supervised import source_backward, student_of
from proda.method.losses import discriminator_loss, generator_loss


def adversarial_trainer(
    student: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: AdversarialOptions | None = None,
) -> Engine:
    """The trainer of the warm-up.

    Batches: ``{"source": {"image", "labels"}, "target": {"image"}}``.

    Output: ``loss`` and its parts ``loss_source`` and ``loss_adversarial`` (weighted), ``loss_discriminator``;
    ``source_logits`` and ``target_logits`` [B, K, H, W] at image size. At ``LOSSES_READY``, ``engine.state.graph``
    holds ``target_logits`` [B, K, H, W].

    The discriminator always runs in float32, because its gradients are small and it costs little. It is trained on the
    logits that were computed before the student's step.
    """
    options = options or AdversarialOptions()

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        target = batch["target"]["image"]
        set_train_mode(student, freeze_bn=options.freeze_bn)
        optimizer.zero_grad(set_to_none=True)

        source_logits = source_backward(engine, student, batch["source"], precision)

        # The student is trained to make the discriminator classify target predictions as source predictions.
        discriminator.requires_grad_(False)
        with precision.autocast():
            target_logits = student(to_float(target)).logits
        target_logits = resize(target_logits, target.shape[-2:])
        fooled = generator_loss(discriminator(target_logits.softmax(1)), kind=options.gan)
        losses = {"adversarial": options.adversarial_weight * fooled}
        out.update(target_logits=target_logits.detach())
        out.update(backward(engine, losses, {"target_logits": target_logits}, precision))
        out["loss"] = out["loss_source"] + out["loss"]
        optimizer_step(engine, optimizer, precision)

        # The discriminator is trained to distinguish the domains. Both go through it in one forward pass: it has no
        # batch statistics, and DDP expects one forward pass for each backward pass.
        discriminator.requires_grad_(True)
        discriminator_optimizer.zero_grad(set_to_none=True)
        logits = torch.cat([source_logits, target_logits.detach()])
        loss = discriminator_loss(*discriminator(logits.softmax(1)).chunk(2), kind=options.gan)
        loss.backward()
        discriminator_optimizer.step()
        out.update(loss_discriminator=loss.detach())
        engine.fire_event(ProdaEvents.DISCRIMINATOR_STEPPED)
        return out

    return proda_engine(
        step,
        student=student_of(student),
        optimizer=optimizer,
        precision=precision,
        discriminator=student_of(discriminator),
        discriminator_optimizer=discriminator_optimizer,
    )
