"""Mean IoU of any weights file, ours or a released .pkl, on the target's validation images.

python run.py experiments/evaluate.py --weights=runs/stage3_distill/last.pt
python run.py experiments/evaluate.py --weights=from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl --flip
"""

from dataclasses import dataclass

from ignite.handlers import ProgressBar

from proda import experiment as ex
from proda.config import STREETS_DATA, DataConfig, resolve_num_classes
from proda.data.labels import class_names
from proda.engines.evaluate import segmentation_evaluator
from proda.engines.update import Precision
from proda.handlers.validation import report
from proda.job import Job


@dataclass
class Config(DataConfig):
    weights: str = ""  # the network to judge
    split: str = "val"  # images to judge it on: val or train
    flip: bool = False  # average the image's and its mirror image's prediction
    scales: str = "1"  # sizes of the image to average over, separated by commas: 0.75,1,1.25


PRESETS = {"gta5": {}, "synthia": {"source": "synthia"}, "streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    scales = ex.numbers(config.scales, "scales")
    images = ex.whole_images(config, ex.target_set(config, config.split, with_labels=True))
    network = ex.network_from(config, config.weights, "weights")[0].to(job.device)
    job.open({"weights": config.weights, "images": len(images.dataset)})

    names = class_names(resolve_num_classes(config))
    precision = Precision(job.device, config.amp)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device, flip=config.flip, scales=scales)
    if local_rank == 0:
        ProgressBar(desc="evaluation").attach(evaluator)
    evaluator.run(images)

    metrics = evaluator.state.metrics
    result = report(metrics["confusion"], names) | {"label_free": metrics["label_free"]}
    for name, iou in result["iou"].items():
        job.log.info("%-16s %s", name, "absent" if iou != iou else f"{100 * iou:6.2f}")
    for name in ("miou", "miou_13"):
        if name in result:
            job.log.info("%-16s %6.2f", name, 100 * result[name])
    return job.finish(result)
