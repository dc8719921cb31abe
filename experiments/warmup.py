"""Warm-up: supervised source training with adversarial alignment of the target predictions (AdaptSegNet).

    python run.py experiments/warmup.py                       # GTA5; the released code reports 43.3 mIoU
    python run.py experiments/warmup.py --source=synthia      # 41.4 over 16 classes

Stage 1 takes this model as its initial student and teacher, and for its soft labels and prototypes. One iteration is in
proda/engines/adversarial.py, and this file attaches its handlers.
"""

from dataclasses import dataclass

import torch

from proda.engines.adversarial import adversarial_trainer
from proda.engines.events import ProdaEvents
from proda.engines.inference import segmentation_evaluator
from proda.engines.options import AdversarialOptions
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.nan import StopOnNan
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.handlers.validation import Validation
from proda.models.discriminator import Discriminator
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import initial_network, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import AdaptConfig, InitConfig
from proda.settings.options import LearningRate
from proda.settings.presets import STREETS_ADAPT


@dataclass
class Config(AdversarialOptions, InitConfig, AdaptConfig):
    # -- Optimisation
    discriminator_lr: LearningRate = 1e-4  # learning rate of the discriminator's Adam, betas 0.9 and 0.99


RELEASED = {"repeat_backbone_parameters": True, "schedule_iterations": 90_000}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {**RELEASED, "gta5_size_as_released": True},
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": {
        **STREETS_ADAPT,
        "init": "weights",  # the source-only model replaces ImageNet weights
        "freeze_bn": False,  # the initial statistics are of the source and do not fit the target
        "init_file": "runs/source_only/last.pt",
        "lr": 0.03,
        "iterations": 400,
        "val_every": 200,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)

    # Data: labelled source crops, and crops of target photographs.
    batches = data.training_batches(data.source_crops(), data.target_views())

    # Networks: the segmentation network, and a discriminator that classifies the domain of its predictions.
    student = initial_network(config, data.classes, job.device)
    critic = Discriminator(len(data.classes.names)).to(job.device)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())
    optimizer, student_ddp, precision = make_optimizer(config, student), parallel(config, student), job.precision
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99))

    # Engines: training and validation. Config inherits the fields of AdversarialOptions.
    discriminator = parallel(config, critic)
    trainer = adversarial_trainer(student_ddp, discriminator, optimizer, critic_optimizer, precision, config)
    evaluator = segmentation_evaluator(student, precision)

    # The method: the discriminator's learning rate decays with its own steps.
    attach_successors(config, trainer, student, precision, data.classes.names)
    schedule = PolynomialDecay(critic_optimizer, config.schedule_iterations or batches.iterations)
    schedule.attach(trainer, ProdaEvents.DISCRIMINATOR_STEPPED, name="discriminator_schedule")
    if config.adabn:
        AdaBN(student, data.statistics_batches(), precision).attach(evaluator)

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
    models = KeptModels(validation, student, fit.model_info(job, data), job.folder, discriminator=critic)
    models.attach(trainer)
    board = Board(job.folder, evaluator, {"student": optimizer, "discriminator": critic_optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
