"""Supervised training on one domain: the lower bound on source labels, the oracle on target labels.

    python run.py experiments/source_only.py
    python run.py experiments/source_only.py --train_on=target     # the oracle, trained on target labels

Adaptation should score above source-only, and can hardly score far above the oracle.
"""

from dataclasses import dataclass
from typing import Literal

from proda.engines.inference import segmentation_evaluator
from proda.engines.options import StudentOptions
from proda.engines.supervised import supervised_trainer
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.nan import StopOnNan
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AverageStatistics
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import initial_network, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import InitConfig
from proda.settings.presets import STREETS


@dataclass
class Config(StudentOptions, InitConfig):
    # -- Data
    train_on: Literal["source", "target"] = "source"  # domain to train on: source, or target for the oracle


PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "streets": {**STREETS, "init": "random", "lr": 0.05, "iterations": 2100, "val_every": 700},
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)

    # Data: labelled crops of one domain.
    crops = data.source_crops() if config.train_on == "source" else data.oracle_crops()
    batches = data.training_batches(crops, None)

    # Network and engines: training and validation.
    student = initial_network(config, data.classes, job.device)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())
    optimizer, student_ddp, precision = make_optimizer(config, student), parallel(config, student), job.precision
    trainer = supervised_trainer(student_ddp, optimizer, precision, config)
    evaluator = segmentation_evaluator(student, precision)
    attach_successors(config, trainer, student, precision, data.classes.names)

    # Every training run: random numbers, learning rate and gradients; then stop on NaN, save, validate and log.
    SeedIterations(config.seed).attach(trainer)
    length = config.schedule_iterations or batches.iterations
    PolynomialDecay(optimizer, length, power=config.decay_power, warmup=config.warmup_iterations).attach(trainer)
    ClipGradients(student, config.grad_clip).attach(trainer)
    AverageStatistics(student).attach(trainer)
    StopOnNan().attach(trainer)
    checkpoints = Checkpoints(job.folder)
    checkpoints.attach(trainer, every=config.checkpoint_every)
    validation = Validation(evaluator, data.validation_batches(), data.classes.names)
    validation.attach(trainer, every=config.val_every)
    models = KeptModels(validation, student, fit.model_info(job, data), job.folder)
    models.attach(trainer)
    board = Board(job.folder, evaluator, {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
