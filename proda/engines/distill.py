"""Stages 2 and 3: knowledge distillation from a frozen teacher into a new student (ProDA).

One iteration: gradients of the source loss; then, on the strong view of the target, the cross entropy on the teacher's
hard pseudo labels and the KL divergence from the teacher's output; then the optimizer's step. The losses are in
``proda.method.losses``. Pseudo labels are stored before training and do not change during it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision, StudentOptions, append_slice, split
from proda.engines.supervised import source_backward, student_of, student_update
from proda.engines.target import TargetView, unweighted
from proda.method import IGNORE
from proda.method.losses import cross_entropy, distillation
from proda.method.tensors import resize, to_float
from proda.method.views import downscale_labels, warp_to_strong_view
from proda.settings.options import NonNegativeFloat


@dataclass
class DistillOptions(StudentOptions):
    """Options of the trainer of stages 2 and 3. The defaults are the published values."""

    # -- Recipe
    as_released: bool = False  # compute as the released code does where it departs from the paper (docs/fidelity.md)
    # -- Method
    distillation_weight: NonNegativeFloat = 1.0  # weight of the KL divergence from the teacher's output


def distill_trainer(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: DistillOptions | None = None,
) -> Trainer:
    """The trainer of stages 2 and 3. The teacher is in evaluation mode and never changes.

    Batches: ``{"source": {"image", "labels"}, "target": {"strong_image", "strong_view", "pseudo_labels"}}``; pseudo
    labels are uint8 [B, H, W] of the weak view and ``IGNORE`` where the teacher is not confident.

    Output: ``loss`` and its parts ``loss_source``, ``loss_target``, ``loss_distillation`` (weighted): scalars;
    ``pseudo_labels`` long [B, H/4, W/4] warped to the strong view; ``target_logits`` [B, K, H/4, W/4] of the student
    and ``teacher_logits`` [B, K, H/8, W/8], both on the strong view; ``source_logits`` [B, K, H, W].
    A handler of ``TARGET_READY`` may replace ``engine.state.target``: the strong view and its labels, which teacher and
    student then see. ``engine.state.graph`` at ``LOSSES_READY``: ``target_logits`` [B, K, H/4, W/4] and
    ``target_features`` [B, D, H/8, W/8] of the student.
    """
    options = options or DistillOptions()
    update = student_update(student, optimizer, precision, options)

    def step(engine: Trainer, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        target = batch["target"]
        update.start(engine)

        source_backward(engine, update, batch["source"])

        out.update(pseudo_labels=_labels_of_strong_view(target, options))
        engine.state.target = TargetView(target["strong_image"], out["pseudo_labels"])
        engine.fire_event(ProdaEvents.EXTRA_LOSSES)
        engine.fire_event(ProdaEvents.TARGET_READY)

        teacher.eval()
        for images in split(engine.state.target.image, options.accumulate):
            with torch.no_grad(), precision.autocast():
                append_slice(out, teacher_logits=teacher(to_float(images)).logits)
        engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)

        image, labels = unweighted(engine.state.target)  # a handler may have mixed them
        denominator, size = update.loss_denominator((labels != IGNORE).sum()), tuple(labels.shape[-2:])
        views = {"image": image, "labels": labels, "teacher_logits": out["teacher_logits"]}
        for micro_batch in update.micro_batches(views):
            with precision.autocast():
                prediction = student(to_float(micro_batch["image"]))
            logits = resize(prediction.logits, size)
            divergence = precision.compiled(distillation)(
                logits, resize(micro_batch["teacher_logits"], size), as_released=options.as_released
            )
            losses = {
                "target": precision.compiled(cross_entropy)(logits, micro_batch["labels"], denominator=denominator),
                "distillation": options.distillation_weight * divergence,
            }
            append_slice(out, target_logits=logits.detach())
            update.backward(engine, losses, {"target_logits": logits, "target_features": prediction.features})
        update.step(engine)
        return out

    return Trainer(step, student=student_of(student), optimizer=optimizer, precision=precision)


def _labels_of_strong_view(target: dict[str, Any], options: DistillOptions) -> Tensor:
    """Pseudo labels of the weak view, downscaled to a quarter of the size and warped to the strong view."""
    labels = downscale_labels(target["pseudo_labels"].long())
    moved, _ = warp_to_strong_view(labels.unsqueeze(1), target["strong_view"], released=options.as_released)
    return moved.squeeze(1)
