"""Stage 1: pseudo labels denoised online by prototypes, and a compact target space (ProDA).

Where the equations of the paper are used:
    - 3 and 4, rectified pseudo labels and prototype weights: ``_rectified_labels``.
    - Symmetric cross entropy and the regularizer MRKLD: ``_weak_view_losses``.
    - 6, moving average of the prototypes: ``proda.handlers.prototypes.PrototypeEMA``, after the optimizer's step.
    - Target structure learning: ``_structure_loss``.

The formulas are in ``proda.method``; ``step`` in ``denoise_trainer`` calls them in the order of an iteration.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import MeanTeacherOptions, Precision, append_slice, split
from proda.engines.supervised import source_backward, student_of, student_update
from proda.engines.target import TargetView, unweighted
from proda.method import IGNORE
from proda.method.losses import mrkld, structure_consistency, symmetric_cross_entropy
from proda.method.prototypes import class_means, distances, prototype_weights
from proda.method.pseudo_labels import hard_labels, rectify
from proda.method.tensors import resize, to_float
from proda.method.views import SCALE, crop_soft_label_batch, warp_to_strong_view, warp_to_weak_view
from proda.models.network import Segmentation, freeze_batch_norm
from proda.settings.options import FractionBelowOne, NonNegativeFloat, Temperature


@dataclass
class DenoiseOptions(MeanTeacherOptions):
    """Options of stage 1's trainer. The defaults are the published values."""

    # -- Recipe
    as_released: bool = False  # compute as the released code does where it departs from the paper (docs/fidelity.md)
    # -- Method
    rectification: bool = True  # weight the soft labels by the prototypes; False: train on them as they are
    temperature: Temperature = 1.0  # multiplies the distances to the prototypes
    threshold: FractionBelowOne = 0.0  # rectified labels with a lower probability are ignored
    ce_weight: NonNegativeFloat = 0.1  # weight of the cross entropy on the rectified labels
    rce_weight: NonNegativeFloat = 1.0  # weight of the reverse cross entropy on the rectified labels
    mrkld_weight: NonNegativeFloat = 0.1  # weight of the regularizer MRKLD: KL divergence from the uniform distribution
    structure_weight: NonNegativeFloat = 10.0  # weight of structure learning: consistency of weak and strong view

    @property
    def needs_teacher(self) -> bool:
        """Whether rectification or structure learning is on; without both the teacher does not run."""
        return self.rectification or self.structure_weight > 0


def denoise_trainer(
    student: nn.Module,
    teacher: nn.Module,
    prototypes: Tensor,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: DenoiseOptions | None = None,
    labeller: nn.Module | None = None,
) -> Trainer:
    """The trainer of stage 1. It only reads ``prototypes`` float32 [K, D]; handlers update them and the teacher.

    Batches: ``{"source": {"image", "labels"}, "target": {"image", "strong_image", "full_image", "soft_labels",
    "weak_view", "strong_view"}}``; soft labels are [B, K, h, w] of the crop, where h and w are a quarter of its height
    and width.

    Output:
        ``loss`` and the weighted terms that it is the sum of: ``loss_source``, ``loss_target`` (symmetric cross
        entropy), ``loss_mrkld``, ``loss_structure``; all are scalars.
        If the teacher runs: ``class_means`` float32 [B, K, D] and ``class_present`` bool [B, K], means of its features
        on each full image, per class of its own arg-max; ``full_logits`` [B, K, h', w'], its output there.
        ``soft_labels`` and ``rectified`` [B, K, h, w], probabilities before and after rectification (equation 3), and
        their arg-max: ``pseudo_labels`` and ``rectified_labels``, long [B, h, w]. With rectification,
        ``prototype_weights`` [B, K, h, w] (equation 4).
        ``target_logits`` [B, K, h, w] of the student on the weak view, ``source_logits`` [B, K, H, W].
    ``engine.state.graph`` at ``LOSSES_READY``:
        ``target_logits`` [B, K, h, w] and ``target_features`` [B, D, h', w'] (network stride) of the weak view, and
        ``strong_features`` [B, D, h, w] of the strong view where structure learning is on.

    A handler of ``LABELS_RECTIFIED`` may replace ``output["rectified_labels"]``, and one of ``TARGET_READY``
    ``engine.state.target``, the weak view and its labels. Where batches contain no soft labels,
    ``labeller``, the frozen network of the previous stage, predicts them from the full image in every iteration.
    Without rectification, the student is trained on the arg-max of the soft labels (conventional self-training). With
    ``structure_weight=0`` the strong view is not used. If both are off, the teacher does not run.
    """
    options = options or DenoiseOptions()
    update = student_update(student, optimizer, precision, options)

    def step(engine: Trainer, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        target = batch["target"]
        update.start(engine)

        source_backward(engine, update, batch["source"])

        teacher_distances: Tensor | None = None  # needed by rectification and by structure learning
        if options.needs_teacher:
            teacher.train(options.teacher_mode == "train")
            if options.freeze_bn:
                freeze_batch_norm(teacher)
            teacher_distances = _teacher_distances(engine, teacher, prototypes, target, precision, options)
        soft_labels = target.get("soft_labels")
        if soft_labels is None:
            if labeller is None:
                raise ValueError("the batch contains no soft labels, and there is no labeller to predict them")
            soft_labels = _predict_soft_labels(labeller, target, precision, options)
        soft_labels = resize(soft_labels, _map_size(target["image"]))
        labels = _rectified_labels(engine, soft_labels, teacher_distances, precision, options)

        engine.state.target = TargetView(target["image"], labels)
        engine.fire_event(ProdaEvents.EXTRA_LOSSES)
        engine.fire_event(ProdaEvents.TARGET_READY)
        image, labels = unweighted(engine.state.target)  # a handler may have mixed them

        views = {"image": image, "labels": labels}
        denominator = {"labels": update.loss_denominator((labels != IGNORE).sum())}
        if options.structure_weight > 0:
            assert teacher_distances is not None
            moved, valid = precision.compiled(warp_to_strong_view)(
                teacher_distances, target["strong_view"], released=options.as_released
            )
            views |= {"strong_image": target["strong_image"], "teacher_distances": moved, "valid": valid}
            denominator["valid"] = update.loss_denominator(valid.sum())
        for micro_batch in update.micro_batches(views):
            images = [micro_batch[name] for name in ("image", "strong_image") if name in micro_batch]
            with precision.autocast():
                weak, *strong = [student(to_float(view)) for view in images]
            losses, graph = _weak_view_losses(weak, micro_batch["labels"], denominator["labels"], precision, options)
            append_slice(out, target_logits=graph["target_logits"].detach())
            if strong:
                structure, graph["strong_features"] = _structure_loss(
                    strong[0].features, micro_batch, prototypes, denominator["valid"], precision, options
                )
                losses["structure"] = options.structure_weight * structure
            update.backward(engine, losses, graph)
        update.step(engine)
        return out

    return Trainer(step, student=student_of(student), optimizer=optimizer, precision=precision)


@torch.no_grad()
def _teacher_distances(
    engine: Trainer,
    teacher: nn.Module,
    prototypes: Tensor,
    target: dict[str, Any],
    precision: Precision,
    options: DenoiseOptions,
) -> Tensor:
    """Distances [B, K, h, w] from the teacher's features to the prototypes, in the weak view.

    As in the released code, the teacher sees the full image. Its features also provide the class means from which the
    prototypes are updated.
    """
    size, found = _map_size(target["full_image"]), []
    crop = (target["image"].shape[-2], target["image"].shape[-1])
    views = {"image": target["full_image"], "weak_view": target["weak_view"]}
    for micro_batch in split(views, options.accumulate):
        with precision.autocast():
            full = teacher(to_float(micro_batch["image"]))
        features = resize(full.features, size)
        means = precision.compiled(class_means)(features, resize(full.logits, size))
        append_slice(engine.state.output, class_means=means.means, class_present=means.present, full_logits=full.logits)
        features = precision.compiled(warp_to_weak_view)(features, micro_batch["weak_view"], size=crop)
        found.append(precision.compiled(distances)(features, prototypes))
    engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)
    return torch.cat(found)


def _rectified_labels(
    engine: Trainer,
    soft_labels: Tensor,
    teacher_distances: Tensor | None,
    precision: Precision,
    options: DenoiseOptions,
) -> Tensor:
    """Denoised pseudo labels, long [B, h, w]: soft labels [B, K, h, w] times prototype weights (equations 3 and 4)."""
    out, rectified = engine.state.output, soft_labels
    if options.rectification:
        assert teacher_distances is not None
        weights = precision.compiled(prototype_weights)(teacher_distances, temperature=options.temperature)
        rectified = precision.compiled(rectify)(soft_labels, weights)
        out.update(prototype_weights=weights)
    labels = hard_labels(rectified, threshold=options.threshold)
    out.update(soft_labels=soft_labels, rectified=rectified)
    out.update(pseudo_labels=soft_labels.max(1).indices, rectified_labels=labels)
    engine.fire_event(ProdaEvents.LABELS_RECTIFIED)
    return out["rectified_labels"]  # a handler may have replaced them


def _weak_view_losses(
    prediction: Segmentation, labels: Tensor, denominator: Tensor, precision: Precision, options: DenoiseOptions
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weighted symmetric cross entropy on the labels and the weighted regularizer, and the tensors behind them.

    Source: the paper for the symmetric cross entropy; CRST (arXiv:1908.09822) for MRKLD.
    """
    logits = resize(prediction.logits, tuple(labels.shape[-2:]))
    symmetric = precision.compiled(symmetric_cross_entropy)(
        logits, labels, ce_weight=options.ce_weight, rce_weight=options.rce_weight, denominator=denominator
    )
    losses = {"target": symmetric, "mrkld": options.mrkld_weight * precision.compiled(mrkld)(logits)}
    return losses, {"target_logits": logits, "target_features": prediction.features}


def _structure_loss(
    features: Tensor,
    micro_batch: dict[str, Tensor],
    prototypes: Tensor,
    denominator: Tensor,
    precision: Precision,
    options: DenoiseOptions,
) -> tuple[Tensor, Tensor]:
    """KL divergence between the teacher's prototypical assignment of the weak view and the student's of the strong one.

    Returns the loss and the student's features [B, D, h, w] of the strong view.
    """
    moved = micro_batch["teacher_distances"]
    features = resize(features, tuple(moved.shape[-2:]))
    compiled = precision.compiled
    apart, temperature = compiled(distances)(features, prototypes), options.temperature
    loss = compiled(structure_consistency)(
        apart, moved, micro_batch["valid"], temperature=temperature, denominator=denominator
    )
    return loss, features


@torch.no_grad()
def _predict_soft_labels(
    labeller: nn.Module, target: dict[str, Any], precision: Precision, options: DenoiseOptions
) -> Tensor:
    """Probabilities [B, K, h, w] in the weak view, sampled as the loader samples stored soft labels."""
    labeller.eval()
    found = []
    for images in split(target["full_image"], options.accumulate):
        with precision.autocast():
            found.append(labeller(to_float(images)).logits.float().softmax(1))
    size = (target["image"].shape[-2], target["image"].shape[-1])
    return precision.compiled(crop_soft_label_batch)(torch.cat(found), target["weak_view"], size)


def _map_size(images: Tensor) -> tuple[int, int]:
    """Height and width of the maps for images [B, 3, H, W]: a quarter of the images' height and width."""
    return images.shape[-2] // SCALE, images.shape[-1] // SCALE
