"""Supervised training on one domain: the lower bound on source labels, the oracle on target labels.

    python run.py experiments/source_only.py
    python run.py experiments/source_only.py --train_on=target     # the oracle, trained on target labels

Loss: CE(source). Adaptation should score above source-only, and can hardly score far above the oracle.
"""

from dataclasses import dataclass
from typing import Literal

from proda.engines.supervised import supervised_trainer
from proda.run.config import InitConfig
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.presets import CAMVID_FROM_IMAGENET, STREETS


@dataclass
class Config(InitConfig):
    # -- Data
    train_on: Literal["source", "target"] = "source"  # domain to train on: source, or target for the oracle


PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "streets": {**STREETS, "init": "random", "lr": 0.05, "iterations": 2100, "val_every": 700},
    "camvid": {**CAMVID_FROM_IMAGENET, "iterations": 1000, "val_every": 1000},
}


def build(config: Config, data: Data, networks: Networks) -> Stage:
    crops = data.source_crops() if config.train_on == "source" else data.oracle_crops()
    batches = data.training_batches(crops, None)
    student = networks.initial()
    optimizer = make_optimizer(config, student)
    trainer = supervised_trainer(parallel(config, student), optimizer, networks.precision, config)
    return Stage(trainer, student, batches, {"student": optimizer})


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
