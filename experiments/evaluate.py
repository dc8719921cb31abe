"""Mean IoU of any weights file, ours or a released .pkl, on the target's validation images.

    python run.py experiments/evaluate.py --weights=runs/stage3_distill/last.pt
    python run.py experiments/evaluate.py --weights=from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl --flip
    python run.py experiments/evaluate.py --source=synthia --weights=...       # 16 classes, and the mean of 13 of them
    python run.py experiments/evaluate.py --weights=... --split=test --predictions=submission

OUTPUT/confusion.png shows which class is taken for which. ``--predictions`` writes label ids under the file names that
the Cityscapes server and scripts expect.
"""

from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
from ignite.handlers import ProgressBar

from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.experiment import domains, networks
from proda.experiment.config import SOURCES, STREETS_DATA, DataConfig, numbers
from proda.experiment.job import Job
from proda.handlers.predictions import SavePredictions
from proda.handlers.validation import report
from proda.visualization import confusion_picture


@dataclass
class Config(DataConfig):
    weights: str = ""  # the network to judge
    split: str = "val"  # images to judge it on: val, train, or test, which has no labels
    flip: bool = False  # average the image's and its mirror image's prediction
    scales: str = "1"  # sizes of the image to average over, separated by commas: 0.75,1,1.25
    predictions: str = ""  # folder for predictions as label ids, NAME_pred_labelIds.png; none if empty


PRESETS = {**SOURCES, "streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    scales, space = numbers(config.scales, "scales"), domains.label_space(config)
    own = domains.own_data(config.target)
    labelled = own.has_labels(config.split) if own else config.split != "test"
    images = domains.whole_images(config, domains.target_set(config, config.split, with_labels=labelled))
    network = networks.network_from(config, config.weights).to(job.device)
    job.open({"weights": config.weights, "images": f"{len(images.dataset)} {config.target} {config.split}"})

    precision = Precision(job.device, config.amp)
    evaluator = segmentation_evaluator(
        network, len(space.names), precision, job.device, flip=config.flip, scales=scales
    )
    if config.predictions:
        SavePredictions(Path(config.predictions), suffix="_pred_labelIds.png", ids=space.ids).attach(evaluator)
    if idist.get_rank() == 0:
        ProgressBar(desc="evaluation").attach(evaluator)
    evaluator.run(images)

    metrics = evaluator.state.metrics
    result = report(metrics["confusion"], space.names) | {"label_free": metrics["label_free"]}
    if labelled:
        if idist.get_rank() == 0:
            confusion_picture(metrics["confusion"].cpu().numpy(), space.names).save(job.folder / "confusion.png")
        for name, iou in result["iou"].items():
            job.log.info("%-16s %s", name, "absent" if iou != iou else f"{100 * iou:6.2f}")
        for name in ("miou", "miou_13"):
            if name in result:
                job.log.info("%-16s %6.2f", name, 100 * result[name])
    else:
        job.log.info("%s %s has no labels: no mIoU", config.target, config.split)
    job.log.info("%-16s %6.2f", "label-free score", result["label_free"])
    return job.finish(result)
