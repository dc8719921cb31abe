"""Inference: predictions at the resolution of the labels, and the evaluator that computes their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import ConfusionMatrix, Metric
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.optimization import Precision, resize, to_float
from proda.method import IGNORE
from proda.method.pseudo_labels import flip_averaged
from proda.metrics import LabelFreeScore
from proda.models.network import SegmentationNetwork


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

    They are averaged over the ``scales`` of the image and, with ``flip``, over the image and its mirror image. By
    default the logits are resized to ``size``, as in the released code's validation. With ``softmax_first`` the
    probabilities are resized instead, as in the released code's pseudo labels; confidence is then lower at the
    boundaries between classes.
    """

    def probabilities_of(image: Tensor) -> Tensor:
        logits = network(image).logits.float()
        return resize(logits.softmax(1), size) if softmax_first else resize(logits, size).softmax(1)

    total = torch.zeros((), device=image.device)
    for scale in scales:
        scaled = image
        if scale != 1.0:
            scaled = resize(image, tuple(round(side * scale) for side in image.shape[-2:]))
        probabilities = probabilities_of(scaled)
        if flip:
            probabilities = flip_averaged(probabilities, probabilities_of(scaled.flip(-1)))
        total = total + probabilities
    return total / len(scales)


def segmentation_evaluator(
    network: SegmentationNetwork,
    precision: Precision,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Engine:
    """The evaluator.

    Batches: ``{"image", "labels", "name"}``. Output: ``probabilities`` [B, K, H, W] and ``labels`` long [B, H, W].

    Metrics: ``confusion`` (float64 [K, K], true classes in rows) and ``label_free`` (see ``LabelFreeScore``). Batches
    may lack labels; these are then ``IGNORE`` everywhere, and only ``label_free`` is meaningful.
    The network is in evaluation mode during the run; afterwards, or when it is stopped, each module returns to its
    previous mode. The last output is released then, because full-size probabilities are the largest tensors of a run.
    """

    @torch.no_grad()
    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Tensor]:
        engine.state.batch = batch = to_device(batch, precision.device)
        network.eval()
        image = batch["image"]
        with precision.autocast():
            probabilities = predict(network, to_float(image), tuple(image.shape[-2:]), flip=flip, scales=scales)
        labels = batch["labels"].long() if "labels" in batch else torch.full_like(image[:, 0], IGNORE).long()
        return {"probabilities": probabilities, "labels": labels}

    engine = Engine(step)
    modes: dict[nn.Module, bool] = {}

    @engine.on(Events.STARTED)
    def note_modes() -> None:
        modes.update((module, module.training) for module in network.modules())

    @engine.on(Events.COMPLETED | Events.TERMINATE)  # the second alone if a signal ends the run
    def restore(engine: Engine) -> None:
        for module, training in modes.items():
            module.training = training
        engine.state.output = engine.state.batch = None

    def probabilities_and_labels(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return output["probabilities"], output["labels"]

    # ConfusionMatrix ignores labels that are not a class, such as IGNORE.
    metrics: dict[str, Metric] = {
        "confusion": ConfusionMatrix(network.num_classes, output_transform=probabilities_and_labels),
        "label_free": LabelFreeScore(output_transform=probabilities_and_labels),
    }
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine
