"""Stages 2 and 3: a frozen teacher's hard pseudo labels and its soft output, into a new student (ProDA section 3.3)."""

from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from proda.data.loaders import to_device
from proda.engines.denoise import SCALE
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.step import Precision, accumulate_only, images, learn, mean_over_processes, move, resize
from proda.engines.supervised import source_backward
from proda.method import IGNORE
from proda.method.losses import cross_entropy, distillation
from proda.method.views import downscale_labels, warp_to_strong_view


def distill_trainer(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    *,
    distillation_weight: float = 1.0,
    distillation_as_released: bool = False,
    freeze_bn: bool = False,
    replay_as_released: bool = False,
) -> Engine:
    """The distilling engine; the teacher is in evaluation mode and never changes.

    Batches: ``{"source": {"image", "labels"}, "target": {"strong_image", "strong_view", "pseudo_labels"}}``; pseudo
    labels uint8 [B, H, W] of the weak view, ``IGNORE`` where not confident.

    Output: ``loss`` and its parts ``loss_source``, ``loss_target``, ``loss_distillation`` (unweighted): scalars;
    ``pseudo_labels`` long [B, H/4, W/4] moved to the strong view, ``target_logits`` [B, K, H/4, W/4] of the student and
    ``teacher_logits`` [B, K, H/8, W/8], both on the strong view; ``source_logits`` [B, K, H, W].
    """

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        batch = to_device(batch, device)
        engine.state.batch, engine.state.output = batch, {}
        out = engine.state.output
        source, target = batch["source"], batch["target"]

        learn(student, freeze_bn=freeze_bn)
        optimizer.zero_grad(set_to_none=True)
        with accumulate_only(student):
            source_backward(engine, student, source, precision)

        strong = images(target, "strong_image")
        teacher.eval()
        with torch.no_grad(), precision.autocast():
            teacher_logits = teacher(strong).logits
        out.update(teacher_logits=teacher_logits)
        engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)

        labels = downscale_labels(target["pseudo_labels"].long(), scale=SCALE)
        labels, _ = warp_to_strong_view(
            labels.unsqueeze(1), target["strong_view"], scale=SCALE, released=replay_as_released
        )
        labels = labels.squeeze(1)
        out.update(pseudo_labels=labels)

        with precision.autocast():
            logits = student(strong).logits
        quarter = resize(logits, labels.shape[-2:])
        loss_target = cross_entropy(quarter, labels, pixels=mean_over_processes((labels != IGNORE).sum()))
        loss_distillation = distillation(
            quarter, resize(teacher_logits, labels.shape[-2:]), as_released=distillation_as_released
        )
        loss = loss_target + distillation_weight * loss_distillation
        precision.backward(loss)
        out.update(
            loss=out["loss_source"] + loss.detach(),
            loss_target=loss_target.detach(),
            loss_distillation=loss_distillation.detach(),
            target_logits=quarter.detach(),
        )
        move(engine, student, optimizer, precision)
        return out

    return proda_engine(step)
