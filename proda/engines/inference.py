"""Inference: predictions at the resolution of the labels, and the evaluator that computes their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.optimization import Precision
from proda.method import IGNORE
from proda.method.pseudo_labels import flip_averaged
from proda.method.tensors import resize, to_float
from proda.metrics import LabelConfusion, LabelFreeScore
from proda.models.network import SegmentationNetwork, evaluation_mode


def predict(
    network: nn.Module,
    image: Tensor,
    size: tuple[int, int],
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    softmax_first: bool = False,
) -> Tensor:
    """Class probabilities [B, K, *size] of images [B, 3, H, W] in 0..1.

    They are averaged over the ``scales`` of the image and, with ``flip``, over the image and its mirror image. The
    logits are resized to ``size``, as in the released code's validation; with ``softmax_first`` the probabilities, as
    in its pseudo labels, whose confidence is lower at the boundaries between classes.
    """

    def probabilities_of(image: Tensor) -> Tensor:
        if softmax_first:
            return resize(network(image).logits.float().softmax(1), size)
        return resized_logits(network, image, size).softmax(1)

    def at_scale(scale: float) -> Tensor:
        scaled = image
        if scale != 1.0:
            scaled = resize(image, tuple(max(1, round(side * scale)) for side in image.shape[-2:]))
        probabilities = probabilities_of(scaled)
        return flip_averaged(probabilities, probabilities_of(scaled.flip(-1))) if flip else probabilities

    first, *others = scales
    total = at_scale(first)
    for scale in others:
        total = total + at_scale(scale)
    return total / len(scales) if others else total


def resized_logits(network: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, *size], float32, of images [B, 3, H, W] in 0..1.

    The memory of the network's output may be channels-last; the result's is not, because softmax over classes would
    take three times as long there.
    """
    return resize(network(image).logits.float().contiguous(), size)


def classes_and_logits(
    network: nn.Module,
    image: Tensor,
    size: tuple[int, int],
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """The most probable classes, long [B, *size], and logits [B, K, *size] whose softmax is that of ``predict``."""
    averaged = flip or tuple(scales) != (1.0,)
    if averaged:
        scores = predict(network, image, size, flip=flip, scales=scales)
    else:
        scores = resized_logits(network, image, size)
    classes = scores.max(1).indices  # argmax(1) takes three times as long on a CPU
    return classes, scores.log_() if averaged else scores


def require_finite(scores: Tensor, names: Sequence[str] = ()) -> None:
    """Raises FloatingPointError if scores of the images with these names hold NaN or infinity; waits for a GPU."""
    if not scores.sum().isfinite():
        found = f"the network predicts NaN{' for ' if names else ''}{', '.join(names)}"
        raise FloatingPointError(f"{found}: try --amp=off, or weights of another iteration")


def segmentation_evaluator(
    network: SegmentationNetwork,
    precision: Precision,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Engine:
    """The evaluator.

    Batches: ``{"image", "labels", "name"}``. Output: ``predicted``, the most probable classes, long [B, H, W];
    ``logits``, float32 [B, K, H, W], whose softmax is the class probabilities (see ``predict``); and ``labels``, long
    [B, H, W].

    Metrics: ``confusion`` (int64 [K, K], true classes in rows) and ``label_free`` (see ``LabelFreeScore``). Batches
    may lack labels; these are then ``IGNORE`` everywhere, and only ``label_free`` is meaningful.
    The network predicts in evaluation mode; after each batch every module returns to its previous mode. An output is
    released before the next batch and after the run, because full-size logits are the largest tensors of a run.
    """

    @torch.no_grad()
    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Tensor]:
        engine.state.output = None
        engine.state.batch = batch = to_device(batch, precision.device)
        image = batch["image"]
        size = tuple(image.shape[-2:])
        with precision.autocast(), evaluation_mode(network):
            predicted, logits = classes_and_logits(network, to_float(image), size, flip=flip, scales=scales)
        labels = batch["labels"].long() if "labels" in batch else torch.full_like(image[:, 0], IGNORE).long()
        return {"predicted": predicted, "logits": logits, "labels": labels}

    engine = Engine(step)

    @engine.on(Events.COMPLETED | Events.TERMINATE)  # the second alone if a signal ends the run
    def release(engine: Engine) -> None:
        engine.state.output = engine.state.batch = None

    metrics: dict[str, Metric] = {
        "confusion": LabelConfusion(
            network.num_classes, output_transform=lambda out: (out["predicted"], out["labels"])
        ),
        "label_free": LabelFreeScore(output_transform=lambda out: (out["logits"], out["labels"])),
    }
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine
