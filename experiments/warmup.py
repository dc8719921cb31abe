"""Warm-up: source labels, and target predictions that a discriminator cannot tell from source predictions.

    python run.py experiments/warmup.py                       # GTA5; the released code reports 43.3 mIoU
    python run.py experiments/warmup.py --source=synthia      # 41.4 over 16 classes

The model it ends with is the first student, teacher and labeller of stage 1.
"""

from dataclasses import dataclass

import torch
from ignite.engine import Events

from proda import experiment as ex
from proda.config import STREETS, AdaptConfig
from proda.engines.adversarial import adversarial_trainer
from proda.engines.evaluate import segmentation_evaluator
from proda.engines.update import Precision, seeded_by_iteration
from proda.handlers.batch_norm import shared_statistics, target_statistics
from proda.handlers.checkpoints import checkpoints, resume
from proda.handlers.monitoring import StopOnNan
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation
from proda.job import Job
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
        **STREETS,
        "init": "weights",  # source-only stands in for ImageNet
        "init_file": "runs/source_only/last.pt",
        "lr": 0.01,
        "iterations": 200,
        "val_every": 100,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    source, target = ex.source_training(config), ex.target_training(config)
    val = ex.whole_images(config, ex.validation_set(config))
    epoch, iterations = ex.num_iterations(config, len(target))
    horizon = config.schedule_iterations or iterations

    network = ex.initial_network(config, config.init, config.init_file)
    optimizer = ex.sgd(config, network)
    student = ex.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    judge = Discriminator(len(ex.label_space(config).names))
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99))
    discriminator = ex.parallel(judge, job.device, sync_bn=False)
    precision = Precision(job.device, config.amp)
    schedule, judge_schedule = polynomial_decay(optimizer, horizon), polynomial_decay(judge_optimizer, horizon)
    job.open(ex.summary_lines(config, job, epoch, iterations))

    names = ex.label_space(config).names
    trainer = adversarial_trainer(
        student,
        discriminator,
        optimizer,
        judge_optimizer,
        precision,
        job.device,
        adversarial_weight=config.adversarial_weight,
        gan=config.gan,
        freeze_bn=config.freeze_bn,
    )
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    content = lambda: ex.network_content(config, network, discriminator=judge.state_dict())  # noqa: E731
    validation = Validation(evaluator, val, names, content, job.folder)

    trainer.add_event_handler(Events.ITERATION_STARTED, seeded_by_iteration(config.seed))
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    shared_statistics(trainer, network)
    if config.target_statistics:
        target_statistics(trainer, network)
    trainer.add_event_handler(Events.ITERATION_STARTED, judge_schedule)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, StopOnNan())
    ex.clip_gradients(trainer, network, config.grad_clip)
    validation.attach(trainer, every=config.val_every)
    state = {"trainer": trainer, "student": network, "optimizer": optimizer, "schedule": schedule}
    state |= {
        "discriminator": judge,
        "discriminator_optimizer": judge_optimizer,
        "discriminator_schedule": judge_schedule,
    }
    state |= {"precision": precision, "validation": validation}
    start = resume(state, job.folder) if config.resume else 0
    board = ex.watch(config, job, trainer, evaluator, student=optimizer, discriminator=judge_optimizer)
    checkpoints(state, job.folder, trainer, every=config.checkpoint_every)

    data = ex.batches(config, source, target, iterations=iterations, device=job.device, start=start)
    ex.train(trainer, data, board, iterations=iterations, epoch=epoch, stop_after=config.stop_after)
    return job.finish(validation.summary(), iterations=iterations, images=2 * (iterations - start) * config.batch_size)
