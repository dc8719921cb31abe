"""Online self-training with a mean teacher (DACS, arXiv:2007.08702; DAFormer, arXiv:2111.14887).

One iteration: gradients of the source loss; the teacher's pseudo labels of the target crop, and how sure it is of them;
the cross entropy on these; then the optimizer's step. The formulas are in ``proda.method.online``. ClassMix, color
augmentation, masked image consistency and the feature distance are handlers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import MeanTeacherOptions, Precision, append_slice, split
from proda.engines.supervised import source_backward, student_of, student_update
from proda.engines.target import TargetView
from proda.method.online import confident_fraction, pixel_weights, weighted_cross_entropy
from proda.method.tensors import resize, to_float
from proda.models.network import disable_dropout, freeze_batch_norm
from proda.settings.options import Fraction, NonNegativeFloat, NonNegativeInt


@dataclass
class OnlineOptions(MeanTeacherOptions):
    """Options of the trainer of online self-training."""

    # -- Method
    confidence: Fraction = 0.968  # probability from which a pixel counts as confident; their share weights the image
    target_weight: NonNegativeFloat = 1.0  # weight of the cross entropy on the pseudo labels
    ignore_top: NonNegativeInt = 0  # rows at the top of target crops whose pseudo labels have no weight
    ignore_bottom: NonNegativeInt = 0  # rows at the bottom of target crops whose pseudo labels have no weight


def online_trainer(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: OnlineOptions | None = None,
) -> Trainer:
    """The trainer of online self-training. A handler moves the teacher, which never has dropout.

    Batches: ``{"source": {"image", "labels"}, "target": {"image"}}``.

    Output: ``loss`` and its parts ``loss_source`` and ``loss_target`` (weighted): scalars; ``pseudo_labels`` long
    [B, H, W] and their ``confidence`` float32 [B, H, W], of the teacher on the target crop;
    ``confident_fraction`` float32 [B]; ``target_logits`` [B, K, H, W] of the student; ``source_logits`` [B, K, H, W].
    A handler of ``TARGET_READY`` may replace ``engine.state.target``: the crop, its labels and the weights of its
    pixels, which the student is trained on. ``engine.state.graph`` at ``LOSSES_READY``: ``target_logits`` [B, K, H, W]
    and ``target_features`` [B, D, h', w'] (network stride) of the student.
    """
    options = options or OnlineOptions()
    update = student_update(student, optimizer, precision, options)

    def step(engine: Trainer, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        image = batch["target"]["image"]
        update.start(engine)

        source_backward(engine, update, batch["source"])

        _pseudo_labels(engine, teacher, image, precision, options)
        size = (image.shape[-2], image.shape[-1])
        rows = {"ignore_top": options.ignore_top, "ignore_bottom": options.ignore_bottom}
        engine.state.target = TargetView(
            image, out["pseudo_labels"], pixel_weights(out["confident_fraction"], size, **rows)
        )
        engine.fire_event(ProdaEvents.EXTRA_LOSSES)
        engine.fire_event(ProdaEvents.TARGET_READY)

        target = engine.state.target
        if target.weights is None:
            target = target._replace(weights=torch.ones_like(target.labels, dtype=torch.float32))
        for micro_batch in update.micro_batches(target):
            with precision.autocast():
                prediction = student(to_float(micro_batch.image))
            logits = resize(prediction.logits, size)
            loss = precision.compiled(weighted_cross_entropy)(logits, micro_batch.labels, micro_batch.weights)
            append_slice(out, target_logits=logits.detach())
            graph = {"target_logits": logits, "target_features": prediction.features}
            update.backward(engine, {"target": options.target_weight * loss}, graph)
        update.step(engine)
        return out

    return Trainer(step, student=student_of(student), optimizer=optimizer, precision=precision)


@torch.no_grad()
def _pseudo_labels(
    engine: Trainer, teacher: nn.Module, image: Tensor, precision: Precision, options: OnlineOptions
) -> None:
    """Adds the teacher's arg-max, its probability, and the share of sure pixels to the output."""
    teacher.train(options.teacher_mode == "train")
    if options.freeze_bn:
        freeze_batch_norm(teacher)
    disable_dropout(teacher)
    for images in split(image, options.accumulate):
        with precision.autocast():
            logits = teacher(to_float(images)).logits
        confidence, labels = resize(logits, image.shape[-2:]).softmax(1).max(1)
        append_slice(engine.state.output, confidence=confidence, pseudo_labels=labels)
    engine.state.output["confident_fraction"] = confident_fraction(
        engine.state.output["confidence"], options.confidence
    )
    engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)
