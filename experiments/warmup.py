"""Warm-up: supervised source training with adversarial alignment of the target predictions (AdaptSegNet).

    python run.py experiments/warmup.py                       # GTA5; the released code reports 43.3 mIoU
    python run.py experiments/warmup.py --source=synthia      # 41.4 over 16 classes

Loss: CE(source) + 0.01 LS-GAN (on the target's softmax output); the discriminator has the LS-GAN loss of both domains.
The terms are in proda/method/losses.py. Stage 1 takes this model as
its initial student and teacher, and for its soft labels and prototypes. One iteration is in
proda/engines/adversarial.py, and this file attaches the handlers of the stage.
"""

from dataclasses import dataclass

import torch

from proda.engines.adversarial import AdversarialOptions, adversarial_trainer
from proda.engines.events import ProdaEvents
from proda.handlers.schedule import PolynomialDecay
from proda.models.discriminator import Discriminator
from proda.run.config import AdaptConfig, InitConfig
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.options import LearningRate
from proda.settings.presets import CAMVID, STREETS_ADAPT


@dataclass
class Config(AdversarialOptions, InitConfig, AdaptConfig):
    # -- Optimization
    discriminator_lr: LearningRate = 1e-4  # learning rate of the discriminator's Adam, betas 0.9 and 0.99


RELEASED = {"as_released": True, "schedule_iterations": 90_000}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
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
    "camvid": {
        **CAMVID,
        "init": "weights",
        "init_file": "runs/source_only/last.pt",
        "iterations": 100,
        "val_every": 100,
    },
}


def build(config: Config, data: Data, networks: Networks) -> Stage:
    # Data: labelled source crops, and crops of target photographs.
    batches = data.training_batches(data.source_crops(), data.target_views())

    # The segmentation network, and a discriminator that classifies the domain of its predictions.
    student = networks.initial()
    discriminator = networks.place("discriminator", Discriminator(len(data.classes.names)))
    optimizer = make_optimizer(config, student)
    critic_optimizer = torch.optim.Adam(discriminator.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99))
    student_ddp, critic_ddp = parallel(config, student), parallel(config, discriminator)
    trainer = adversarial_trainer(student_ddp, critic_ddp, optimizer, critic_optimizer, networks.precision, config)

    # The method: the discriminator's learning rate decays with its own steps.
    schedule = PolynomialDecay(critic_optimizer, config.schedule_iterations or batches.iterations)
    schedule.attach(trainer, ProdaEvents.DISCRIMINATOR_STEPPED, name="discriminator_schedule")
    optimizers = {"student": optimizer, "discriminator": critic_optimizer}
    return Stage(trainer, student, batches, optimizers)


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
