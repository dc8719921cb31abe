"""Pseudo labels of the target training images, by themselves: soft ones for stage 1, hard ones for stages 2 and 3.

    python run.py experiments/pseudo_labels.py --weights=runs/warmup/last.pt --kind=soft
    python run.py experiments/pseudo_labels.py --weights=runs/stage1_denoise/last.pt --kind=hard

Give the folder to a stage with --pseudo_labels. Run again after an interruption, it completes what is missing.
"""

from dataclasses import dataclass

from proda.engines.step import Precision
from proda.experiment import domains, networks
from proda.experiment.config import STREETS_DATA, DataConfig
from proda.experiment.job import Job
from proda.handlers.pseudo_labels import missing_labels, write_pseudo_labels


@dataclass
class Config(DataConfig):
    weights: str = "runs/warmup/last.pt"  # the network that predicts them
    kind: str = "soft"  # soft: probabilities at network resolution; hard: arg-max and confidence at image size
    pseudo_labels: str = ""  # folder for them; OUTPUT/pseudo_labels if empty
    flip: bool = True  # hard labels average the image's and its mirror image's prediction


RELEASED = {"weights": "runs/warmup/best.pt"}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": STREETS_DATA,
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    if config.kind not in ("soft", "hard"):
        raise ValueError(f"--kind={config.kind}: expected soft or hard")
    images = domains.labelled_if_possible(config, "train")
    network = networks.network_from(config, config.weights).to(job.device)
    settings = {"flip": config.flip} if config.kind == "hard" else {}
    store = domains.label_store(config, config.kind, job, images.names, **settings)
    job.open({"weights": config.weights, "images": len(images)})

    missing = missing_labels(store, images.names)
    scores = write_pseudo_labels(
        store,
        network,
        domains.named_images(config, images)(missing),
        Precision(job.device, config.amp),
        job.device,
        flip=config.flip,
        class_names=domains.label_space(config).names,
    )
    return job.finish({"written": len(missing), "images": len(images), **scores})
