"""Scores of a run: those of a confusion matrix, and a score that does not need labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import ConfusionMatrix, Metric
from ignite.metrics.metric import sync_all_reduce
from torch import Tensor

from proda.data.labels import class_names as benchmark_names
from proda.data.labels import class_subset
from proda.method.label_quality import contingency
from proda.method.metrics import mutual_information, scores

NO_LABELED_PIXELS = "no pixel has a class in the label maps; all are ignored, by their ids or by the description"


def named_scores(confusion: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Scores of a confusion matrix [K, K] by their names in ``summary.json``: fractions, or NaN where undefined."""
    result = scores(confusion)
    values = {
        "miou": result.mean_iou.item(),
        "iou": dict(zip(class_names, result.iou.tolist(), strict=True)),
        "overall_accuracy": result.overall_accuracy.item(),
        "mean_accuracy": result.mean_accuracy.item(),
        "frequency_weighted_iou": result.frequency_weighted_iou.item(),
    }
    if list(class_names) == benchmark_names(16):
        values["miou_13"] = result.iou[class_subset(13, of=16)].nanmean().item()
    return values


def flatten(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores as one flat dict, with ``iou/NAME`` for each class. Undefined scores (NaN) are omitted."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        flat |= {f"{name}/{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return {name: value for name, value in flat.items() if value == value}


class LabelConfusion(ConfusionMatrix):
    """Ignite's confusion matrix, int64 [K, K] with true classes in rows, of label maps instead of logits.

    Ignite takes the arg-max itself, and ``argmax(1)`` takes three times as long as ``max(1)`` on a CPU. Expects
    (predicted classes, labels), integers [B, H, W]. Pixels with a label of K or more, such as ``IGNORE``, do not count.
    """

    def update(self, output: Sequence[Tensor]) -> None:
        predicted, labels = output
        self._num_examples += len(labels)
        pairs = contingency(labels, predicted, self.num_classes)[:-1, :-1]
        self.confusion_matrix += pairs.to(self.confusion_matrix)


class LabelFreeScore(Metric):
    """Scores predictions without labels: the mutual information of pixel and predicted class, in nats, 0..log K.

    Confident predictions increase it; predicting few classes decreases it. Expects (logits [B, K, H, W], any), whose
    softmax is the class probabilities.
    """

    def reset(self) -> None:
        self._mean = self._entropy = self._images = torch.zeros((), dtype=torch.float64, device=self._device)

    def update(self, output: Sequence[Tensor]) -> None:
        self._add(*mutual_information(output[0]), len(output[0]))

    def _add(self, mean: Tensor, entropy: Tensor, images: int) -> None:
        self._mean = self._mean + mean.to(self._device)
        self._entropy = self._entropy + entropy.to(self._device)
        self._images = self._images + images

    def compute(self) -> float:
        """The score. It is NaN without any image; a process may lack images that others have."""
        classes = int(idist.all_reduce(self._mean.numel(), "MAX"))
        self._mean = self._mean.expand(classes)  # a single zero until the first image
        return self._score_of_all_processes()

    @sync_all_reduce("_mean", "_entropy", "_images")
    def _score_of_all_processes(self) -> float:
        mean, entropy = self._mean / self._images, self._entropy / self._images
        return float(-(mean * mean.clamp_min(1e-12).log()).sum() - entropy)


class LabelFreeOfTerms(LabelFreeScore):
    """The same score. Expects (the two terms that ``mutual_information`` returns for a batch, its number of images)."""

    def update(self, output: tuple[Tensor, Tensor, int]) -> None:  # type: ignore[override]
        self._add(*output)
