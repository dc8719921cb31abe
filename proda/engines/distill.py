"""Stages 2 and 3: knowledge distillation from a frozen teacher into a new student (ProDA).

One iteration: gradients of the source loss; then, on the strong view of the target, the cross entropy on the teacher's
hard pseudo labels and the KL divergence from the teacher's output; then the optimizer's step. The losses are in
``proda.method.losses``. Pseudo labels are stored before training and do not change during it.
"""

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
    optimizer_step,
    resize,
    set_train_mode,
    to_float,
)
from proda.engines.options import DistillOptions
from proda.engines.supervised import source_backward, student_of
from proda.method import IGNORE
from proda.method.losses import cross_entropy, distillation
from proda.method.views import downscale_labels, warp_to_strong_view


def distill_trainer(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: DistillOptions | None = None,
) -> Engine:
    """The trainer of stages 2 and 3. The teacher is in evaluation mode and never changes.

    Batches: ``{"source": {"image", "labels"}, "target": {"strong_image", "strong_view", "pseudo_labels"}}``; pseudo
    labels are uint8 [B, H, W] of the weak view and ``IGNORE`` where the teacher is not confident.

    Output: ``loss`` and its parts ``loss_source``, ``loss_target``, ``loss_distillation`` (weighted): scalars;
    ``pseudo_labels`` long [B, H/4, W/4] warped to the strong view; ``target_logits`` [B, K, H/4, W/4] of the student
    and ``teacher_logits`` [B, K, H/8, W/8], both on the strong view; ``source_logits`` [B, K, H, W].
    ``engine.state.graph`` at ``LOSSES_READY``: ``target_logits`` [B, K, H/4, W/4] and ``target_features``
    [B, D, H/8, W/8] of the student.
    """
    options = options or DistillOptions()

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        target = batch["target"]
        set_train_mode(student, freeze_bn=options.freeze_bn)
        optimizer.zero_grad(set_to_none=True)

        source_backward(engine, student, batch["source"], precision)

        strong_image = to_float(target["strong_image"])
        teacher.eval()
        with torch.no_grad(), precision.autocast():
            out.update(teacher_logits=teacher(strong_image).logits)
        engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)
        out.update(pseudo_labels=_labels_of_strong_view(target, options))

        with precision.autocast():
            prediction = student(strong_image)
        labels, size = out["pseudo_labels"], tuple(out["pseudo_labels"].shape[-2:])
        logits = resize(prediction.logits, size)
        losses = {
            "target": cross_entropy(logits, labels, pixels=mean_over_processes((labels != IGNORE).sum())),
            "distillation": options.distillation_weight
            * distillation(logits, resize(out["teacher_logits"], size), as_released=options.distillation_as_released),
        }
        out.update(target_logits=logits.detach())
        graph = {"target_logits": logits, "target_features": prediction.features}
        out.update(backward(engine, losses, graph, precision))
        out["loss"] = out["loss_source"] + out["loss"]
        optimizer_step(engine, optimizer, precision)
        return out

    return proda_engine(step, student=student_of(student), optimizer=optimizer, precision=precision)


def _labels_of_strong_view(target: dict[str, Any], options: DistillOptions) -> Tensor:
    """Pseudo labels of the weak view, downscaled to a quarter of the size and warped to the strong view."""
    labels = downscale_labels(target["pseudo_labels"].long())
    moved, _ = warp_to_strong_view(labels.unsqueeze(1), target["strong_view"], released=options.replay_as_released)
    return moved.squeeze(1)
