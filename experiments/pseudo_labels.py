"""Computes only the pseudo labels of the target training images: soft for stage 1, hard for stages 2 and 3.

    python run.py experiments/pseudo_labels.py --weights=runs/warmup/last.pt --kind=soft
    python run.py experiments/pseudo_labels.py --weights=runs/stage1_denoise/last.pt --kind=hard

Pass the folder to a stage with --pseudo_labels. After an interruption, the same command writes the missing labels.
"""

from dataclasses import dataclass
from typing import Literal

import ignite.distributed as idist
from torch.utils.data import Subset

from proda.engines.labelling import Averaging, missing_labels, write_pseudo_labels
from proda.run.config import DataConfig, parse_scales
from proda.run.data import check_same_size, label_store, whole_images
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import Networks
from proda.settings.options import PathText
from proda.settings.presets import CAMVID_DATA, STREETS_DATA


@dataclass
class Config(DataConfig):
    # -- Network
    weights: PathText = "runs/warmup/last.pt"  # the network that predicts them
    # -- Pseudo labels
    kind: Literal["soft", "hard"] = "soft"  # soft: probabilities at network resolution; hard: arg-max at image size
    pseudo_labels: PathText = ""  # folder to write to; if empty, OUTPUT/pseudo_labels
    flip: bool = True  # hard labels only: average the predictions of the image and its mirror image
    scales: str = "1"  # hard labels only: scales of the image to average over, separated by commas: 0.75,1,1.25
    label_with: PathText = ""  # hard labels only: weights of a second network whose predictions are averaged in


RELEASED = {"weights": "runs/warmup/best.pt"}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": STREETS_DATA,
    "camvid": CAMVID_DATA,
}


def run(local_rank: int, config: Config) -> dict:
    job, domains = Job(config), Domains(config)
    networks, targets = Networks(config, domains.classes, job.precision), domains.target.names
    network, averaging, settings = networks.load("weights"), Averaging(), {}
    if config.kind == "hard":
        ensemble = [networks.load("label_with")] if config.label_with else []
        averaging = Averaging(config.flip, parse_scales(config.scales), ensemble)
        settings = averaging.settings()
    store = label_store(config, domains, config.kind, network, **settings)
    if config.val_batch_size > 1:
        check_same_size(config, domains.target, "training")
    store.check()
    job.open({"weights": config.weights, "images": len(targets)})

    with idist.one_rank_first():
        store.open()
    missing = missing_labels(store, targets)
    images = whole_images(config, Subset(domains.labelled_target, domains.labelled_target.indices(missing)))
    names = domains.classes.names
    scores = write_pseudo_labels(store, network, images, job.precision, class_names=names, **averaging._asdict())
    return job.finish({"written": len(missing), "images": len(targets), **scores})
