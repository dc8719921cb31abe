"""Supervised training on one domain: the lower bound on source labels, the oracle on target labels.

    python run.py experiments/source_only.py
    python run.py experiments/source_only.py --train_on=target     # the oracle: what target labels would give

Every adaptation has to beat the first and cannot hope to pass the second by much.
"""

from dataclasses import dataclass
from functools import partial

from proda.data.samples import SourceTraining
from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.engines.supervised import supervised_trainer
from proda.experiment import domains, networks, training
from proda.experiment.config import STREETS, TrainConfig
from proda.experiment.job import Job
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation


@dataclass
class Config(TrainConfig):
    train_on: str = "source"  # domain whose labels are learnt: source, or target for the oracle
    init: str = "imagenet"  # where the backbone starts: imagenet, simclr, random, or weights (all of --init_file)
    init_file: str = ""  # file for --init; torchvision's own ImageNet weights if empty


PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "streets": {**STREETS, "init": "random", "lr": 0.05, "iterations": 700, "val_every": 350},
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    if config.train_on == "source":
        source = domains.source_training(config)
    elif config.train_on == "target":
        source = SourceTraining(domains.target_set(config, "train", with_labels=True), **domains.views(config))
    else:
        raise ValueError(f"--train_on={config.train_on}: expected source or target")
    val = domains.whole_images(config, domains.validation_set(config))
    length = training.run_length(config, len(source))

    network = networks.initial_network(config, config.init, config.init_file)
    optimizer = networks.sgd(config, network)
    student = networks.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    precision = Precision(job.device, config.amp)
    schedule = polynomial_decay(optimizer, config.schedule_iterations or length.iterations)
    job.open(training.summary_lines(config, length))

    names = domains.label_space(config).names
    trainer = supervised_trainer(student, optimizer, precision, job.device, freeze_bn=config.freeze_bn)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    weights = partial(networks.network_content, config, network)
    validation = Validation(evaluator, val, names, weights, job.folder)

    training.attach_first(trainer, network, schedule, config)
    state = {"student": network, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    optimizers = {"student": optimizer}
    return training.train(job, trainer, source, None, validation, length, state=state, optimizers=optimizers)
