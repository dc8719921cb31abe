"""Warm-up: supervised training on the source, and adversarial alignment of the target predictions with the source's.

This is the output-space alignment of AdaptSegNet (ProDA's warm-up). For the discriminator, the source is
domain 0 and the target is domain 1.

One iteration: the student's gradients of the source loss, then of the adversarial loss, and the student's step; then
the gradients of the discriminator and its step. The losses are in ``proda.method.losses``.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision, StudentOptions, append_slice, micro_batches
from proda.engines.supervised import source_backward, student_of, student_update
from proda.method.losses import discriminator_loss, generator_loss
from proda.method.tensors import resize, to_float
from proda.settings.options import NonNegativeFloat


@dataclass
class AdversarialOptions(StudentOptions):
    """Options of the warm-up's trainer. The defaults are the published values."""

    # -- Network
    freeze_bn: bool = True  # keep the initial statistics, scales and shifts of the student's batch norm
    # -- Method
    adversarial_weight: NonNegativeFloat = 0.01  # weight of the adversarial loss next to the source cross entropy
    gan: Literal["lsgan", "vanilla"] = "lsgan"  # the adversarial loss: least squares, or binary cross entropy


def adversarial_trainer(
    student: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: AdversarialOptions | None = None,
) -> Trainer:
    """The trainer of the warm-up.

    Batches: ``{"source": {"image", "labels"}, "target": {"image"}}``.

    Output: ``loss`` and its parts ``loss_source`` and ``loss_adversarial`` (weighted), ``loss_discriminator``;
    ``source_logits`` and ``target_logits`` [B, K, H, W] at image size. At ``LOSSES_READY``, ``engine.state.graph``
    holds ``target_logits`` [B, K, H, W].

    The discriminator always runs in float32, because its gradients are small and it costs little. It is trained on the
    logits that were computed before the student's step.
    """
    options = options or AdversarialOptions()
    update = student_update(student, optimizer, precision, options)

    def step(engine: Trainer, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        target = batch["target"]["image"]
        update.start(engine)

        source_backward(engine, update, batch["source"])
        engine.fire_event(ProdaEvents.EXTRA_LOSSES)

        # The student is trained to make the discriminator classify target predictions as source predictions.
        discriminator.requires_grad_(False)
        for images in update.micro_batches(target):
            with precision.autocast():
                target_logits = student(to_float(images)).logits
            target_logits = resize(target_logits, target.shape[-2:])
            fooled = generator_loss(discriminator(target_logits.softmax(1)), kind=options.gan)
            append_slice(out, target_logits=target_logits.detach())
            losses = {"adversarial": options.adversarial_weight * fooled}
            update.backward(engine, losses, {"target_logits": target_logits})
        update.step(engine)

        # The discriminator is trained to distinguish the domains. Both go through it in one forward pass: it has no
        # batch statistics, and DDP expects one forward pass for each backward pass.
        discriminator.requires_grad_(True)
        discriminator_optimizer.zero_grad(set_to_none=True)
        both = {"source": out["source_logits"], "target": out["target_logits"]}
        for micro_batch in micro_batches(discriminator, both, options.accumulate):
            logits = torch.cat([micro_batch["source"], micro_batch["target"]])
            loss = discriminator_loss(*discriminator(logits.softmax(1)).chunk(2), kind=options.gan)
            loss = loss / options.accumulate
            loss.backward()
            out["loss_discriminator"] = out.get("loss_discriminator", 0) + loss.detach()
        discriminator_optimizer.step()
        engine.fire_event(ProdaEvents.DISCRIMINATOR_STEPPED)
        return out

    return Trainer(
        step,
        student=student_of(student),
        optimizer=optimizer,
        precision=precision,
        discriminator=student_of(discriminator),
        discriminator_optimizer=discriminator_optimizer,
    )
