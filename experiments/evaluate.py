"""Evaluates a weights file, ours or a released .pkl: mean IoU on the target's validation images.

    python run.py experiments/evaluate.py --weights=runs/stage3_distill/last.pt
    python run.py experiments/evaluate.py --weights=from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl --flip
    python run.py experiments/evaluate.py --weights=... --target=my_photos.toml
    python run.py experiments/evaluate.py --weights=... --split=test --predictions=submission

The weights file says which backbone and which classes the network has (docs/predict.md). For 16 classes the mean IoU
over 13 of them is reported, too.

OUTPUT/confusion.png shows the confusion matrix. ``--predictions`` writes label ids under the file names that the
Cityscapes server and scripts expect.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ignite.distributed as idist
from ignite.engine import Engine, Events

from proda.data.labels import TRAIN_IDS_SUSPECTED, hold_train_ids
from proda.engines.inference import require_finite, segmentation_evaluator
from proda.handlers.predictions import SavePredictions
from proda.handlers.progress import show_progress
from proda.metrics import NO_LABELED_PIXELS, named_scores
from proda.models.weights import read_weights
from proda.run.config import UseConfig, parse_scales
from proda.run.data import check_same_size, whole_images
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import Networks
from proda.settings.options import PathText
from proda.settings.presets import CAMVID_DATA, EVALUATION_PRESETS, STREETS_DATA
from proda.utils.errors import UserError
from proda.visualization import confusion_picture


@dataclass
class Config(UseConfig):
    # -- Data
    split: Literal["val", "train", "test"] = "val"  # images to evaluate on; test has no labels
    # -- Method
    flip: bool = False  # average the predictions of the image and its mirror image
    scales: str = "1"  # scales of the image to average over, separated by commas: 0.75,1,1.25
    # -- Output
    predictions: PathText = ""  # folder for predictions, NAME_pred_labelIds.png; if empty, none are written


PRESETS = {**EVALUATION_PRESETS, "streets": STREETS_DATA, "camvid": CAMVID_DATA}


def run(local_rank: int, config: Config) -> dict:
    job, trained = Job(config), read_weights(config.weights)
    data = Domains(config, trained)
    names, scales = data.classes.names, parse_scales(config.scales, "scales")
    labelled = data.has_labels(config.split)
    images = data.images(config.split, with_labels=labelled)
    if len(images) < idist.get_world_size():
        raise UserError(f"fewer images than processes ({idist.get_world_size()}): start fewer processes")
    if config.val_batch_size > 1:
        check_same_size(config, images, config.split)
    network = Networks(config, data.classes, job.precision).load("weights", file=trained)
    job.open(
        {
            "weights": config.weights,
            "network": trained.info,
            "images": f"{len(images)} {config.target} {config.split}",
        }
    )

    evaluator = segmentation_evaluator(network, job.precision, flip=config.flip, scales=scales)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, refuse_nan)  # before anything is written
    if config.predictions:
        folder = Path(config.predictions)
        SavePredictions(folder, suffix="_pred_labelIds.png", ids=data.classes.ids).attach(evaluator)
    show_progress(evaluator, "evaluation, batch")
    evaluator.run(whole_images(config, images))

    metrics = evaluator.state.metrics
    result = named_scores(metrics["confusion"], names) | {"label_free": metrics["label_free"]}
    if labelled:
        if idist.get_rank() == 0:
            confusion_picture(metrics["confusion"].cpu().numpy(), names).save(job.folder / "confusion.png")
        if not metrics["confusion"].any():
            job.log.warning("no mIoU: %s", NO_LABELED_PIXELS)
        for name, iou in result["iou"].items():
            job.log.info("%-16s %s", name, "absent" if iou != iou else f"{100 * iou:6.2f}")
        for name in ("miou", "miou_13"):
            if result.get(name, math.nan) == result.get(name):  # not NaN
                job.log.info("%-16s %6.2f", name, 100 * result[name])
        if hold_train_ids(images.table, len(names), metrics["confusion"].sum(1).cpu().numpy()):
            job.log.warning("%s %s: %s", config.target, config.split, TRAIN_IDS_SUSPECTED)
    else:
        job.log.info("%s %s has no labels: no mIoU", config.target, config.split)
    job.log.info("%-16s %6.2f", "label-free score", result["label_free"])
    return job.finish(result)


def refuse_nan(evaluator: Engine) -> None:
    """Raises FloatingPointError if the network predicts NaN."""
    require_finite(evaluator.state.output["logits"].amax(1), evaluator.state.batch["name"])
