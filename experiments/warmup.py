"""Warm-up: source labels, and target predictions that a discriminator cannot tell from source predictions.

    python run.py experiments/warmup.py                       # GTA5; the released code reports 43.3 mIoU
    python run.py experiments/warmup.py --source=synthia      # 41.4 over 16 classes

The model it ends with is the first student, teacher and labeller of stage 1.
"""

from dataclasses import dataclass

import torch
from ignite.engine import Events

from proda.engines.adversarial import adversarial_trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.experiment import domains, networks, training
from proda.experiment.config import STREETS_ADAPT, AdaptConfig, pick
from proda.experiment.job import Job
from proda.handlers.batch_norm import TargetStatistics
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation
from proda.models.discriminator import Discriminator


@dataclass
class Config(AdaptConfig):
    init: str = "imagenet"  # where the network starts: imagenet, simclr, random, or weights (all of --init_file)
    init_file: str = ""  # file for --init; torchvision's own ImageNet weights if empty
    freeze_bn: bool = True  # the student's batch norm keeps the statistics and scales it starts with
    adversarial_weight: float = 0.01  # of the generator's loss beside the source cross entropy
    gan: str = "lsgan"  # lsgan or vanilla
    discriminator_lr: float = 1e-4  # Adam with betas 0.9, 0.99


RELEASED = {"repeat_backbone_parameters": True, "schedule_iterations": 90_000}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": {
        **STREETS_ADAPT,
        "init": "weights",  # source-only stands in for ImageNet
        "freeze_bn": False,  # the statistics it starts with are the source's own, and fit no other images
        "init_file": "runs/source_only/last.pt",
        "lr": 0.01,
        "iterations": 200,
        "val_every": 100,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    source, target = domains.source_training(config), domains.target_training(config)
    val = domains.whole_images(config, domains.validation_set(config))
    length = training.run_length(config, len(target))

    network = networks.initial_network(config, config.init, config.init_file)
    optimizer = networks.sgd(config, network)
    student = networks.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    names = domains.label_space(config).names
    judge = Discriminator(len(names))
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99))
    discriminator = networks.parallel(judge, job.device, sync_bn=False)
    precision = Precision(job.device, config.amp)
    horizon = config.schedule_iterations or length.iterations
    schedule, judge_schedule = polynomial_decay(optimizer, horizon), polynomial_decay(judge_optimizer, horizon)
    job.open(training.summary_lines(config, length))

    settings = pick(config, "adversarial_weight", "gan", "freeze_bn")
    trainer = adversarial_trainer(student, discriminator, optimizer, judge_optimizer, precision, job.device, **settings)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    weights = lambda: networks.network_content(config, network, discriminator=judge.state_dict())  # noqa: E731
    validation = Validation(evaluator, val, names, weights, job.folder)

    # Handlers of one event run in the order they are attached; `train` attaches last what judges and saves.
    training.attach_first(trainer, network, schedule, config)
    if config.target_statistics:
        statistics = TargetStatistics(network, domains.statistics_images(config), precision, job.device)
        statistics.attach(evaluator)
    trainer.add_event_handler(Events.ITERATION_STARTED, judge_schedule)

    state = {"student": network, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    state |= {"discriminator": judge, "discriminator_optimizer": judge_optimizer}
    state |= {"discriminator_schedule": judge_schedule}
    optimizers = {"student": optimizer, "discriminator": judge_optimizer}
    return training.train(job, trainer, source, target, validation, length, state=state, optimizers=optimizers)
