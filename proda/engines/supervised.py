"""Supervised training: the source loss that all stages share, and the trainer of source-only and oracle."""

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.optimization import (
    Precision,
    backward,
    mean_over_processes,
    no_grad_sync,
    optimizer_step,
    resize,
    set_train_mode,
    to_float,
)
from proda.engines.options import StudentOptions
from proda.method import IGNORE
from proda.method.losses import cross_entropy


def source_loss(student: nn.Module, source: dict[str, Any], precision: Precision) -> tuple[Tensor, Tensor]:
    """Cross entropy (scalar) on a labelled batch at full crop resolution, and the upsampled logits [B, K, H, W]."""
    labels = source["labels"].long()
    with precision.autocast():
        logits = student(to_float(source["image"])).logits
    logits = resize(logits, labels.shape[-2:])
    return cross_entropy(logits, labels, pixels=mean_over_processes((labels != IGNORE).sum())), logits


def source_backward(engine: Engine, student: nn.Module, source: dict[str, Any], precision: Precision) -> Tensor:
    """Computes the gradients of the source loss and fires ``SOURCE_BACKWARD_DONE``.

    Processes do not exchange these gradients here; the backward pass of the target losses exchanges the sum of both.
    Adds ``loss_source`` (scalar) and ``source_logits`` [B, K, H, W] float32 to ``engine.state.output``.
    Returns the detached logits.
    """
    with no_grad_sync(student):
        loss, logits = source_loss(student, source, precision)
        precision.backward(loss)
    engine.state.output.update(loss_source=loss.detach(), source_logits=logits.detach())
    engine.fire_event(ProdaEvents.SOURCE_BACKWARD_DONE)
    return logits.detach()


def supervised_trainer(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: StudentOptions | None = None,
) -> Engine:
    """The trainer of source-only and oracle.

    Batches: ``{"source": {"image", "labels"}}``. Output: ``loss``, ``loss_source``, ``source_logits`` [B, K, H, W].
    At ``LOSSES_READY``, ``engine.state.graph`` holds ``source_logits`` [B, K, H, W]. The source loss is the only loss
    here, so ``SOURCE_BACKWARD_DONE`` fires after ``LOSSES_READY``.
    """
    options = options or StudentOptions()

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        set_train_mode(student, freeze_bn=options.freeze_bn)
        optimizer.zero_grad(set_to_none=True)

        loss, logits = source_loss(student, batch["source"], precision)
        out.update(source_logits=logits.detach())
        out.update(backward(engine, {"source": loss}, {"source_logits": logits}, precision))
        engine.fire_event(ProdaEvents.SOURCE_BACKWARD_DONE)
        optimizer_step(engine, optimizer, precision)
        return out

    return proda_engine(step, student=student_of(student), optimizer=optimizer, precision=precision)


def student_of(student: nn.Module) -> nn.Module:
    """The network itself, without the DDP wrapper if there is one."""
    return student.module if isinstance(student, nn.parallel.DistributedDataParallel) else student
