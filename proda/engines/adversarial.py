"""Warm-up: source labels, and a discriminator that makes target predictions look like source predictions.

AdaptSegNet-style output-space alignment (ProDA section 4, "warm up"); source is domain 0, target domain 1.
"""

from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.step import Precision, accumulate_only, images, learn, move, resize
from proda.engines.supervised import source_backward
from proda.method.losses import discriminator_loss, generator_loss


def adversarial_trainer(
    student: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    *,
    adversarial_weight: float = 0.01,
    gan: str = "lsgan",
    freeze_bn: bool = True,
) -> Engine:
    """Batches: ``{"source": {"image", "labels"}, "target": {"image"}}``.

    Output: ``loss`` = ``loss_source`` + ``loss_adversarial`` (weighted), ``loss_discriminator``, ``source_logits`` and
    ``target_logits`` [B, K, H, W] at image size.

    The discriminator always runs in float32: its gradients are small and it costs little. It learns from the logits
    computed before the student's step. With ``freeze_bn`` batch norm normalises by its running statistics and learns
    nothing.
    """

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        batch = to_device(batch, device)
        engine.state.batch, engine.state.output = batch, {}
        out = engine.state.output
        source, target = batch["source"], batch["target"]

        learn(student, freeze_bn=freeze_bn)
        optimizer.zero_grad(set_to_none=True)
        with accumulate_only(student):
            source_logits = source_backward(engine, student, source, precision)

        discriminator.requires_grad_(False)
        with precision.autocast():
            target_logits = student(images(target)).logits
        target_logits = resize(target_logits, target["image"].shape[-2:])
        judged = discriminator(target_logits.softmax(1))
        loss_adversarial = adversarial_weight * generator_loss(judged, kind=gan)
        precision.backward(loss_adversarial)
        target_logits = target_logits.detach()
        out.update(
            loss_adversarial=loss_adversarial.detach(),
            loss=out["loss_source"] + loss_adversarial.detach(),
            target_logits=target_logits,
        )
        move(engine, student, optimizer, precision)

        discriminator.requires_grad_(True)
        discriminator_optimizer.zero_grad(set_to_none=True)
        # one forward pass for both domains: the network has no batch statistics, and DDP wants one a backward
        judged_source, judged_target = discriminator(torch.cat([source_logits, target_logits]).softmax(1)).chunk(2)
        loss_discriminator = discriminator_loss(judged_source, judged_target, kind=gan)
        loss_discriminator.backward()
        discriminator_optimizer.step()
        out.update(loss_discriminator=loss_discriminator.detach())
        engine.fire_event(ProdaEvents.DISCRIMINATOR_STEPPED)
        return out

    return proda_engine(step)
