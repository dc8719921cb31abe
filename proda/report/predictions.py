"""Where the model of a run fails: its confusion matrix and the validation images with the lowest scores."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from proda.data.labelled_files import LabelledFiles
from proda.data.labels import LabelSpace
from proda.data.loaders import evaluation_loader, to_device
from proda.data.samples import EvaluationSamples
from proda.engines.inference import classes_and_logits
from proda.engines.optimization import Precision
from proda.method.label_quality import contingency
from proda.method.metrics import scores
from proda.method.tensors import to_float
from proda.models.weights import load_network
from proda.report.runs import Run
from proda.run.config import DataConfig
from proda.run.domains import Domains
from proda.settings.reading import make_config
from proda.utils.errors import UserError
from proda.utils.words import counted
from proda.visualization import image_picture

MODEL = "last.pt"


@dataclass(frozen=True)
class ImageResult:
    """The prediction of one validation image."""

    name: str
    miou: float  # over the classes in its labels or its prediction
    accuracy: float  # share of its labelled pixels that are right
    confusion: Tensor  # int64 [K, K], true classes in rows
    picture: np.ndarray  # uint8 [H, W, 3]
    truth: np.ndarray  # uint8 [H, W], train ids
    predicted: np.ndarray  # uint8 [H, W], train ids


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run's last model on validation images."""

    classes: LabelSpace
    confusion: Tensor  # int64 [K, K], true classes in rows
    images: int  # looked at
    available: int
    worst: list[ImageResult]  # the lowest mIoU first

    @property
    def miou(self) -> float:
        return scores(self.confusion).mean_iou.item()


def open_data(run: Run, data_root: str = "") -> Domains:
    """The data of a run, from where it read them, or from ``data_root``; for one process of several.

    No data set is drawn.

    Raises:
        UserError: a flag of the run or a description of data cannot be used.
    """
    wanted = {field.name for field in fields(DataConfig)} - {"preset"}  # the preset streets would draw missing data
    values = {name: value for name, value in run.config.items() if name in wanted}
    return Domains(
        make_config(DataConfig, values | ({"data_root": data_root} if data_root else {})), single_process=True
    )


@torch.no_grad()
def look_at_predictions(
    run: Run, data: Domains, device: torch.device, *, worst: int = 4, max_images: int = 100, num_workers: int = 0
) -> Predictions:
    """Predicts validation images with ``MODEL`` of a run, in the run's precision and at the size of its validations.

    Works on one process of several, without waiting for the others.

    Args:
        worst: number of images to keep.
        max_images: number of images to predict, spread evenly over the set; 0 for all.

    Raises:
        UserError: there are no labelled validation images, or the model or the images cannot be read.
    """
    images = data.validation
    if not isinstance(images, LabelledFiles) or not images.label_files:
        raise UserError("the validation images have no labels")
    chosen = np.arange(len(images))
    if 0 < max_images < len(images):
        chosen = np.linspace(0, len(images) - 1, max_images).astype(int)
    names = data.classes.names
    network = load_network(run.folder / MODEL, class_names=names)  # what a folder names is not executed
    network.to(device).to(memory_format=torch.channels_last).eval()
    precision, scales = Precision(device, run.config.get("amp", "off")), (run.config.get("val_scale", 1.0),)
    total, kept = torch.zeros(len(names), len(names), dtype=torch.int64), list[ImageResult]()
    for batch in evaluation_loader(
        EvaluationSamples(Subset(images, chosen.tolist())),
        batch_size=data.config.val_batch_size,
        num_workers=num_workers,
    ):
        inputs = to_device(batch["image"], device)
        with precision.autocast():
            predicted, _ = classes_and_logits(network, to_float(inputs), tuple(inputs.shape[-2:]), scales=scales)
        predictions = predicted.byte().cpu()
        for name, image, truth, predicted in zip(
            batch["name"], batch["image"], batch["labels"], predictions, strict=True
        ):
            confusion = contingency(truth, predicted, len(names))[:-1, :-1]
            total += confusion
            if confusion.sum() == 0:
                continue  # without a labelled pixel, the image has no score
            result, pictures = scores(confusion), (image_picture(image), truth.numpy(), predicted.numpy())
            kept.append(ImageResult(name, result.mean_iou.item(), result.overall_accuracy.item(), confusion, *pictures))
        kept = sorted(kept, key=lambda result: result.miou)[:worst]
    return Predictions(data.classes, total, len(chosen), len(images), kept)


def error_picture(result: ImageResult) -> np.ndarray:
    """Orange where the prediction is wrong, dark grey where there is no label, else the image in pale grey.

    uint8 [H, W, 3]; of sixteen greys, so that the file is small.
    """
    grey = result.picture.mean(2) // 16 * 16
    picture = np.repeat((150 + 0.4 * grey).astype(np.uint8)[..., None], 3, axis=2)
    labelled = result.truth < len(result.confusion)
    picture[labelled & (result.truth != result.predicted)] = (213, 94, 0)
    picture[~labelled] = (96, 96, 96)
    return picture


def confusions(confusion: Tensor, most: int) -> list[tuple[int, int, float, float]]:
    """The most frequent confusions: true class, predicted class, share of the true class, share of all errors."""
    wrong = confusion.clone().fill_diagonal_(0).double()
    total, of_class = wrong.sum().item(), confusion.sum(1).tolist()
    order = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
    pairs = [(place // len(wrong), place % len(wrong)) for place in order]
    return [
        (true, predicted, wrong[true, predicted].item() / of_class[true], wrong[true, predicted].item() / total)
        for true, predicted in pairs
        if wrong[true, predicted] > 0
    ]


def data_counts(run: Run, data: Domains) -> list[tuple[str, str]]:
    """What the run was trained and validated on: part -> number of images, or why it is not known.

    Says so where the files are not those that the run recorded.
    """
    recorded: Mapping[str, Any] = run.provenance.get("data", {})
    rows = []
    for part in ("source", "target", "validation"):
        try:
            images = getattr(data, part)
            text = counted(len(images), "image")
            fingerprint = recorded.get(f"{part} images")
            if isinstance(images, LabelledFiles) and fingerprint and images.fingerprint() != fingerprint:
                text += "; not the files of the run, which have been changed since or are elsewhere"
        except UserError as error:
            text = f"not known, since the data cannot be read: {error}"
        rows.append((part, text))
    return rows
