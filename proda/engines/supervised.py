"""Supervised training: the source loss that all stages share, and the trainer of source-only and oracle."""

from typing import Any

import torch
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision, StudentOptions, StudentUpdate, append_slice
from proda.method import IGNORE
from proda.method.losses import cross_entropy
from proda.method.tensors import resize, to_float


def student_update(
    student: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, options: StudentOptions
) -> StudentUpdate:
    """The update of the student that the options describe."""
    return StudentUpdate(student, optimizer, precision, freeze_bn=options.freeze_bn, accumulate=options.accumulate)


def source_backward(engine: Trainer, update: StudentUpdate, source: dict[str, Any], *, only_loss: bool = False) -> None:
    """Computes the gradients of the source loss, between ``SOURCE_LOSSES_READY`` and ``SOURCE_BACKWARD_DONE``.

    It is the cross entropy at full crop resolution. Processes do not exchange these gradients here; the backward pass
    of the target losses exchanges the sum of both. With ``only_loss`` there are none: ``LOSSES_READY`` fires too, and
    the gradients are exchanged.
    At ``SOURCE_LOSSES_READY``, ``engine.state.graph`` holds ``source_logits`` [B, K, H, W], ``source_image`` uint8
    [B, 3, H, W] and ``source_labels`` [B, H, W]. Adds ``loss_source`` (scalar) and ``source_logits`` [B, K, H, W]
    float32 to ``engine.state.output``.
    """
    events = [ProdaEvents.SOURCE_LOSSES_READY, *([ProdaEvents.LOSSES_READY] if only_loss else [])]
    denominator = update.loss_denominator((source["labels"] != IGNORE).sum())
    labelled = {name: source[name] for name in ("image", "labels")}
    for micro_batch in update.micro_batches(labelled, exchange=only_loss):
        images, labels = micro_batch["image"], micro_batch["labels"]
        with update.precision.autocast():
            logits = update.student(to_float(images)).logits
        logits = resize(logits, labels.shape[-2:])
        loss = update.precision.compiled(cross_entropy)(logits, labels.long(), denominator=denominator)
        append_slice(engine.state.output, source_logits=logits.detach())
        graph = {"source_logits": logits, "source_image": images, "source_labels": labels}
        update.backward(engine, {"source": loss}, graph, events=events)
    engine.fire_event(ProdaEvents.SOURCE_BACKWARD_DONE)


def supervised_trainer(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: StudentOptions | None = None,
) -> Trainer:
    """The trainer of source-only and oracle.

    Batches: ``{"source": {"image", "labels"}}``. Output: ``loss``, ``loss_source``, ``source_logits`` [B, K, H, W].
    ``engine.state.graph`` at ``SOURCE_LOSSES_READY`` and ``LOSSES_READY`` is as in :func:`source_backward`. The source
    loss is the only loss here, so ``SOURCE_BACKWARD_DONE`` fires after ``LOSSES_READY``.
    """
    update = student_update(student, optimizer, precision, options or StudentOptions())

    def step(engine: Trainer, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        update.start(engine)

        engine.fire_event(ProdaEvents.EXTRA_LOSSES)
        source_backward(engine, update, batch["source"], only_loss=True)
        update.step(engine)
        return out

    return Trainer(step, student=student_of(student), optimizer=optimizer, precision=precision)


def student_of(student: nn.Module) -> nn.Module:
    """The network itself, without the DDP wrapper if there is one."""
    return student.module if isinstance(student, nn.parallel.DistributedDataParallel) else student
