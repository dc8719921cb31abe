"""Stage 1: pseudo labels denoised online by prototypes, and a target space made compact (ProDA sections 3.1, 3.2)."""

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.step import Precision, accumulate_only, images, learn, mean_over_processes, move, resize
from proda.engines.supervised import source_backward
from proda.method import IGNORE
from proda.method.losses import mrkld, structure_consistency, symmetric_cross_entropy
from proda.method.prototypes import class_means, distances, prototype_weights
from proda.method.pseudo_labels import hard_labels, rectify
from proda.method.views import crop_soft_label_batch, warp_to_strong_view, warp_to_weak_view

SCALE = 4  # label maps and features of target views live at a quarter of the image's resolution


def denoise_trainer(
    student: nn.Module,
    teacher: nn.Module,
    prototypes: Tensor,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    *,
    rectification: bool = True,
    temperature: float = 1.0,
    threshold: float = 0.0,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    regularizer_weight: float = 0.1,
    consistency_weight: float = 10.0,
    teacher_mode: str = "train",
    freeze_bn: bool = False,
    replay_as_released: bool = False,
    labeller: nn.Module | None = None,
) -> Engine:
    """The denoising engine. ``prototypes`` float32 [K, D] is read here and moved by a handler.

    Batches: ``{"source": {"image", "labels"}, "target": {"image", "strong_image", "full_image", "soft_labels",
    "weak_view", "strong_view"}}``; soft labels at the crop's quarter resolution (or above: they are reduced).

    Output, h and w being a quarter of the crop:
        ``loss`` and its parts ``loss_source``, ``loss_target`` (symmetric cross entropy), ``loss_regularizer``,
        ``loss_consistency``: scalars; the parts are unweighted, but for ``loss_target``.
        ``class_means`` float32 [B, K, D] and ``class_present`` bool [B, K]: of the teacher's features on each full
        image, under its own arg-max.
        ``prototype_weights`` [B, K, h, w] (equation 4), ``rectified`` [B, K, h, w] probabilities (equation 3),
        ``pseudo_labels`` long [B, h, w] before, ``rectified_labels`` long [B, h, w] after rectification.
        ``target_logits`` [B, K, h, w] of the student on the weak view, ``source_logits`` [B, K, H, W].

    With ``labeller``, the frozen network of the stage before, soft labels are its prediction on the full image, made
    anew in every iteration, and batches hold none. With ``rectification=False`` the soft labels are trained on as they
    are (conventional self-training), and with ``consistency_weight=0`` no strong view is computed; with neither, the
    teacher is not run.
    """
    needs_teacher = rectification or consistency_weight > 0

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        batch = to_device(batch, device)
        engine.state.batch, engine.state.output = batch, {}
        out = engine.state.output
        source, target = batch["source"], batch["target"]
        size = tuple(side // SCALE for side in target["image"].shape[-2:])

        learn(student, freeze_bn=freeze_bn)
        optimizer.zero_grad(set_to_none=True)
        with accumulate_only(student):
            source_backward(engine, student, source, precision)

        if needs_teacher:
            teacher.train(teacher_mode == "train")
            teacher_distances = _teacher_forward(teacher, prototypes, target, precision, out)
            engine.fire_event(ProdaEvents.TEACHER_FORWARD_DONE)

        soft_labels = target["soft_labels"] if labeller is None else _predict_soft_labels(labeller, target, precision)
        soft_labels = resize(soft_labels, size)
        rectified = soft_labels
        if rectification:
            weights = prototype_weights(teacher_distances, temperature=temperature)
            rectified = rectify(soft_labels, weights)
            out.update(prototype_weights=weights)
        labels = hard_labels(rectified, threshold=threshold)
        out.update(rectified=rectified, pseudo_labels=soft_labels.argmax(1), rectified_labels=labels)
        engine.fire_event(ProdaEvents.LABELS_RECTIFIED)
        labels = out["rectified_labels"]  # a handler may have put its own in their place

        with precision.autocast():
            logits = student(images(target)).logits
        logits = resize(logits, size)
        out.update(target_logits=logits.detach())
        loss_target = symmetric_cross_entropy(
            logits,
            labels,
            ce_weight=ce_weight,
            rce_weight=rce_weight,
            pixels=mean_over_processes((labels != IGNORE).sum()),
        )
        loss_regularizer = mrkld(logits)
        loss = loss_target + regularizer_weight * loss_regularizer
        loss_consistency = torch.zeros((), device=device)
        if consistency_weight > 0:
            with precision.autocast():
                features = student(images(target, "strong_image")).features
            moved, valid = warp_to_strong_view(
                teacher_distances, target["strong_view"], scale=SCALE, released=replay_as_released
            )
            valid = valid.squeeze(1)
            loss_consistency = structure_consistency(
                distances(resize(features, size), prototypes),
                moved,
                valid,
                temperature=temperature,
                pixels=mean_over_processes(valid.sum()),
            )
            loss = loss + consistency_weight * loss_consistency
        precision.backward(loss)
        out.update(
            loss=out["loss_source"] + loss.detach(),
            loss_target=loss_target.detach(),
            loss_regularizer=loss_regularizer.detach(),
            loss_consistency=loss_consistency.detach(),
        )
        move(engine, student, optimizer, precision)
        return out

    return proda_engine(step)


@torch.no_grad()
def _teacher_forward(
    teacher: nn.Module, prototypes: Tensor, target: dict[str, Any], precision: Precision, out: dict[str, Any]
) -> Tensor:
    """The teacher on the full image: class means for the prototypes, and distances [B, K, h, w] in the weak view."""
    with precision.autocast():
        full = teacher(images(target, "full_image"))
    full_size = tuple(side // SCALE for side in target["full_image"].shape[-2:])
    features = resize(full.features, full_size)
    means = class_means(features, resize(full.logits, full_size))
    out.update(class_means=means.means, class_present=means.present)
    return distances(warp_to_weak_view(features, target["weak_view"], scale=SCALE), prototypes)


@torch.no_grad()
def _predict_soft_labels(labeller: nn.Module, target: dict[str, Any], precision: Precision) -> Tensor:
    """Probabilities [B, K, h, w] in the weak view: what a store would have held, sampled as the loader would have."""
    labeller.eval()
    with precision.autocast():
        probabilities = labeller(images(target, "full_image")).logits.float().softmax(1)
    return crop_soft_label_batch(probabilities, target["weak_view"], tuple(target["image"].shape[-2:]), scale=SCALE)
