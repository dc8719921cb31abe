"""Evaluation: predictions at the labels' resolution, compared without gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import ConfusionMatrix, Metric
from ignite.metrics.metric import sync_all_reduce
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.step import Precision, images, resize
from proda.method import IGNORE
from proda.method.metrics import mutual_information
from proda.method.pseudo_labels import flip_averaged


class LabelFreeScore(Metric):
    """How good predictions look without labels: mutual information of pixel and class, in nats, 0..log K.

    Confident predictions raise it, predicting few classes lowers it. Output: (probabilities [B, K, H, W], anything).
    """

    def reset(self) -> None:
        self._mean = torch.zeros((), dtype=torch.float64, device=self._device)
        self._entropy = torch.zeros((), dtype=torch.float64, device=self._device)
        self._images = torch.zeros((), dtype=torch.float64, device=self._device)

    def update(self, output: Sequence[Tensor]) -> None:
        mean, entropy = mutual_information(output[0])
        self._mean = self._mean + mean.to(self._device)
        self._entropy = self._entropy + entropy.to(self._device)
        self._images = self._images + len(output[0])

    @sync_all_reduce("_mean", "_entropy", "_images")
    def compute(self) -> float:
        mean, entropy = self._mean / self._images, self._entropy / self._images
        return float(-(mean * mean.clamp_min(1e-12).log()).sum() - entropy)


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

    Averaged over the ``scales`` of the image and, with ``flip``, over the image and its mirror image. Logits are
    enlarged to ``size``, as the released code does for validation; with ``softmax_first`` probabilities are, as it
    does for pseudo labels, whose confidence is lower then where classes meet.
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
    network: nn.Module,
    num_classes: int,
    precision: Precision,
    device: torch.device,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Engine:
    """Batches: ``{"image", "labels", "name"}``. Output: ``probabilities`` [B, K, H, W] and ``labels`` long [B, H, W].

    Metrics: ``confusion`` (float64 [K, K], rows true) and ``label_free`` (see ``LabelFreeScore``). Batches may come
    without labels: these are then ``IGNORE`` everywhere, and of the metrics only ``label_free`` says anything.
    """

    @torch.no_grad()
    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Tensor]:
        batch = to_device(batch, device)
        engine.state.batch = batch
        network.eval()
        with precision.autocast():
            size = batch["image"].shape[-2:]
            probabilities = predict(network, images(batch), size, flip=flip, scales=scales)
        labels = batch["labels"].long() if "labels" in batch else torch.full_like(batch["image"][:, 0], IGNORE).long()
        return {"probabilities": probabilities, "labels": labels}

    engine = Engine(step)
    # ConfusionMatrix leaves out labels that are no class, IGNORE among them.
    metrics: dict[str, Metric] = {
        "confusion": ConfusionMatrix(num_classes, output_transform=lambda out: (out["probabilities"], out["labels"])),
        "label_free": LabelFreeScore(output_transform=lambda out: (out["probabilities"], out["labels"])),
    }
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return engine
