"""Supervised training on one domain: the lower bound on source labels, the oracle on target labels.

    python run.py experiments/source_only.py
    python run.py experiments/source_only.py --train_on=target     # the oracle: what target labels would give

Every adaptation has to beat the first and cannot hope to pass the second by much.
"""

from dataclasses import dataclass

from ignite.engine import Events

from proda import experiment as ex
from proda.config import STREETS, TrainConfig
from proda.data.loaders import SourceTraining
from proda.engines.evaluate import segmentation_evaluator
from proda.engines.supervised import supervised_trainer
from proda.engines.update import Precision, seeded_by_iteration
from proda.handlers.batch_norm import shared_statistics
from proda.handlers.checkpoints import checkpoints, resume
from proda.handlers.monitoring import StopOnNan
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation
from proda.job import Job


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
        source = ex.source_training(config)
    elif config.train_on == "target":
        source = SourceTraining(ex.target_set(config, "train", with_labels=True), **ex.views(config))
    else:
        raise ValueError(f"--train_on={config.train_on}: expected source or target")
    val = ex.whole_images(config, ex.validation_set(config))
    epoch, iterations = ex.num_iterations(config, len(source))

    network = ex.initial_network(config, config.init, config.init_file)
    optimizer = ex.sgd(config, network)
    student = ex.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    precision = Precision(job.device, config.amp)
    schedule = polynomial_decay(optimizer, config.schedule_iterations or iterations)
    job.open(ex.summary_lines(config, job, epoch, iterations))

    names = ex.label_space(config).names
    trainer = supervised_trainer(student, optimizer, precision, job.device, freeze_bn=config.freeze_bn)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    validation = Validation(evaluator, val, names, lambda: ex.network_content(config, network), job.folder)

    trainer.add_event_handler(Events.ITERATION_STARTED, seeded_by_iteration(config.seed))
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    shared_statistics(trainer, network)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, StopOnNan())
    ex.clip_gradients(trainer, network, config.grad_clip)
    validation.attach(trainer, every=config.val_every)
    state = {"trainer": trainer, "student": network, "optimizer": optimizer, "schedule": schedule}
    state |= {"precision": precision, "validation": validation}
    start = resume(state, job.folder) if config.resume else 0
    board = ex.watch(config, job, trainer, evaluator, student=optimizer)
    checkpoints(state, job.folder, trainer, every=config.checkpoint_every)

    data = ex.batches(config, source, None, iterations=iterations, device=job.device, start=start)
    ex.train(trainer, data, board, iterations=iterations, epoch=epoch, stop_after=config.stop_after)
    return job.finish(validation.summary(), iterations=iterations, images=(iterations - start) * config.batch_size)
