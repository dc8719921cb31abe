"""Computes only the class prototypes of the target training images: mean features by the network's own arg-max.

    python run.py experiments/prototypes.py --weights=runs/warmup/last.pt

Pass OUTPUT/prototypes.pt to stage 1 with --prototypes.
"""

from dataclasses import dataclass

import ignite.distributed as idist

from proda.handlers.prototypes import Prototypes, initial_prototypes
from proda.models.weights import save_prototypes
from proda.run.config import DataConfig
from proda.run.data import check_same_size, made_from, whole_images
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import Networks
from proda.settings.options import PassCount, PathText
from proda.settings.presets import CAMVID_DATA, STREETS_DATA


@dataclass
class Config(DataConfig):
    # -- Network
    weights: PathText = "runs/warmup/last.pt"  # the network whose features are averaged
    # -- Method
    passes: PassCount = 1  # passes over the images; the released code makes 4


RELEASED = {"weights": "runs/warmup/best.pt", "passes": 4}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": STREETS_DATA,
    "camvid": CAMVID_DATA,
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)
    network = Networks(config, data.classes, job.precision).load("weights")
    if config.val_batch_size > 1:
        check_same_size(config, data.target, "training")
    job.open({"weights": config.weights, "images": len(data.target)})

    prototypes = Prototypes(network.num_classes, network.num_features, job.device)
    initial_prototypes(
        prototypes, network, whole_images(config, data.labelled_target), job.precision, passes=config.passes
    )
    if idist.get_rank() == 0:
        record = {**made_from(config, data, network), "passes": config.passes}
        save_prototypes(job.folder / "prototypes.pt", prototypes.values, prototypes.counts, made_from=record)
    counts = dict(zip(data.classes.names, prototypes.counts.tolist(), strict=True))
    for name, count in counts.items():
        job.log.info("%-16s in %4.0f images", name, count)
    return job.finish({"images_with_class": counts})
