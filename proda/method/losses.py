"""The losses of ProDA (arXiv:2101.10979), each with its source.

Every loss returns an unweighted float32 scalar; the caller multiplies it by the weight of the term. Half-precision
inputs are converted to float32 first, because bfloat16 loses the logarithms of small probabilities. Class labels are
integers of any type; pixels labelled ``IGNORE`` are left out.

Means over pixels divide by the number of pixels that count, or by ``denominator`` (a scalar tensor): the mean of that
number over processes whose gradients are averaged, so that every pixel of the batch has the same weight.

B batch, K classes, h w height and width of the maps.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from proda.method import IGNORE

GanKind = Literal["lsgan", "vanilla"]

SMALLEST_PROBABILITY = 1e-7  # lower bound on predicted probabilities in the reverse cross entropy
SMALLEST_LABEL = 1e-4  # stands for the zeros of a one-hot label there, so that they have a logarithm


def cross_entropy(logits: Tensor, labels: Tensor, *, denominator: Tensor | None = None, empty: float = 0.0) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored.

    ``logits`` [B, K, h, w], ``labels`` [B, h, w] in 0..K-1 or ``IGNORE``. If every pixel is ignored, the loss is
    ``empty`` with zero gradients; PyTorch and the released code return NaN, which would end a run.
    """
    # On a GPU the sum over pixels is deterministic only if it is computed outside of torch's loss function.
    whole = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction=whole).sum()
    denominator = (labels != IGNORE).sum() if denominator is None else denominator
    return total / divisor(denominator) + torch.where(denominator > 0, 0.0, empty)


def reverse_cross_entropy(logits: Tensor, labels: Tensor, *, denominator: Tensor | None = None) -> Tensor:
    """Cross entropy with prediction p and label q exchanged, -sum p log q. It is bounded: wrong labels cost little.

    Shapes as in ``cross_entropy``; 0 if every pixel is ignored. Source: the second term of symmetric cross entropy
    (Wang et al. 2019, arXiv:1908.06112), with the clamps of the released code.
    """
    valid = labels != IGNORE
    p = logits.float().softmax(1).clamp(SMALLEST_PROBABILITY, 1)
    p_label = p.gather(1, labels.long().where(valid, 0).unsqueeze(1)).squeeze(1)
    # log q is 0 at the label and the same large negative number at every other class.
    per_pixel = -math.log(SMALLEST_LABEL) * (p.sum(1) - p_label)
    return (per_pixel * valid).sum() / divisor(valid.sum() if denominator is None else denominator)


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    denominator: Tensor | None = None,
    empty: float = 0.0,
) -> Tensor:
    """Weighted sum of cross entropy and reverse cross entropy: the loss on rectified pseudo labels in stage 1.

    Shapes as in ``cross_entropy``; if every pixel is ignored, the loss is ``ce_weight * empty``. Source: Wang et al.
    2019 (arXiv:1908.06112), used in ProDA section 3.1 (denoising of pseudo labels).
    """
    ce = cross_entropy(logits, labels, denominator=denominator, empty=empty)
    return ce_weight * ce + rce_weight * reverse_cross_entropy(logits, labels, denominator=denominator)


def mrkld(logits: Tensor) -> Tensor:
    """Regulariser that keeps predictions from becoming one-hot: mean of -log p over classes and all pixels.

    ``logits`` [B, K, h, w]. Source: the regulariser MRKLD of CRST (Zou et al. 2019, arXiv:1908.09822), used in stage 1.
    """
    return -logits.float().log_softmax(1).mean()


def structure_consistency(
    student_distances: Tensor,
    teacher_distances: Tensor,
    valid: Tensor,
    *,
    temperature: float = 1.0,
    denominator: Tensor | None = None,
) -> Tensor:
    """KL divergence between the prototypical assignments of two views, averaged over valid pixels and classes.

    ``student_distances`` [B, K, h, w]: distances of the strong view's features to the prototypes;
    ``teacher_distances`` [B, K, h, w]: those of the weak view to the same prototypes, warped to the strong view;
    ``valid`` bool [B, h, w] or [B, 1, h, w]: false where the strong view shows padding. The teacher receives no
    gradient. The assignment is softmax(-temperature * distance), as in ``prototypes.prototype_weights``. Source:
    target structure learning by consistent prototypical assignments, ProDA section 3.2.
    """
    log_student = (-temperature * student_distances.float()).log_softmax(1)
    teacher = (-temperature * teacher_distances.detach().float()).softmax(1)
    divergence = F.kl_div(log_student, teacher, reduction="none").sum(1)
    valid = valid.reshape(divergence.shape).bool()
    denominator = divisor(valid.sum() if denominator is None else denominator)
    return divergence.where(valid, 0).sum() / (denominator * student_distances.shape[1])


def distillation(student_logits: Tensor, teacher_logits: Tensor, *, as_released: bool = False) -> Tensor:
    """KL divergence of the student from the fixed teacher, averaged over pixels and classes (stages 2 and 3).

    Both [B, K, h, w]; padding counts too. The teacher receives no gradient. ``as_released`` takes the student's
    probabilities in place of their logarithms, as the published runs did: a bug, as the authors confirmed; the value
    is then negative. Source: ProDA section 3.3 (distillation).
    """
    student = student_logits.float()
    student = student.softmax(1) if as_released else student.log_softmax(1)
    return F.kl_div(student, teacher_logits.detach().float().softmax(1), reduction="none").mean()


def generator_loss(disc_target: Tensor, *, kind: GanKind = "lsgan") -> Tensor:
    """Adversarial loss of the segmentation network: its predictions on the target should look like source (warm-up).

    ``disc_target``: raw output of the discriminator on the target prediction, any shape. Source: AdaptSegNet
    (arXiv:1802.10349).
    """
    return _domain_loss(disc_target, 0.0, kind)


def discriminator_loss(disc_source: Tensor, disc_target: Tensor, *, kind: GanKind = "lsgan") -> Tensor:
    """Loss of the discriminator, whose raw outputs may have any shape: labels are 0 for source and 1 for target."""
    return _domain_loss(disc_source, 0.0, kind) + _domain_loss(disc_target, 1.0, kind)


def divisor(denominator: Tensor) -> Tensor:
    """The number of pixels to divide by; 1 if there are none, because their sum is 0 anyway."""
    return torch.where(denominator > 0, denominator, 1).float()


def _domain_loss(output: Tensor, domain: float, kind: GanKind) -> Tensor:
    output = output.float()
    expected = torch.full_like(output, domain)
    if kind == "lsgan":
        return F.mse_loss(output, expected)
    if kind == "vanilla":
        return F.binary_cross_entropy_with_logits(output, expected)
    raise ValueError(f'the kind of adversarial loss must be "lsgan" or "vanilla", got "{kind}"')
