"""Class prototypes of the target training images, by themselves: mean features under the network's own arg-max.

    python run.py experiments/prototypes.py --weights=runs/warmup/last.pt

Give OUTPUT/prototypes.pt to stage 1 with --prototypes.
"""

from dataclasses import dataclass

import ignite.distributed as idist

from proda.engines.step import Precision
from proda.experiment import domains, networks
from proda.experiment.config import STREETS_DATA, DataConfig
from proda.experiment.job import Job
from proda.handlers.prototypes import Prototypes, initial_prototypes
from proda.utils.files import sha256


@dataclass
class Config(DataConfig):
    weights: str = "runs/warmup/last.pt"  # the network whose features are averaged
    passes: int = 1  # passes over the images; 4 as released


RELEASED = {"weights": "runs/warmup/best.pt", "passes": 4}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": STREETS_DATA,
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    images = domains.whole_images(config, domains.target_set(config, "train"))
    network = networks.network_from(config, config.weights).to(job.device)
    job.open({"weights": config.weights, "images": len(images.dataset)})

    prototypes = Prototypes.of(network, job.device)
    initial_prototypes(prototypes, network, images, Precision(job.device, config.amp), job.device, passes=config.passes)
    if idist.get_rank() == 0:
        prototypes.save(job.folder / "prototypes.pt", origin=sha256(config.weights))
    names = domains.label_space(config).names
    counts = dict(zip(names, prototypes.counts.tolist(), strict=True))
    for name, count in counts.items():
        job.log.info("%-16s in %4.0f images", name, count)
    return job.finish({"images_with_class": counts})
