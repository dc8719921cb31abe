"""Pretraining: a backbone learns from the images of both domains, without any label (for stage 2, --init=simclr).

    python run.py experiments/pretrain.py --preset=streets
    python run.py experiments/pretrain.py --init=imagenet          # starts from ImageNet weights
    python run.py experiments/stage2_distill.py --init=simclr --init_file=runs/pretrain/last.pt

The published stage 2 starts from SimCLRv2 weights, learnt from ImageNet. This is for a backbone or images of your own.
The method is SimCLR at two levels, images and regions; proda/engines/contrastive.py says why, and holds one iteration.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from proda.engines.contrastive import contrastive_evaluator, contrastive_trainer
from proda.engines.options import ContrastiveOptions
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.nan import StopOnNan
from proda.handlers.pretraining import ContrastiveValidation, KeptBackbone
from proda.handlers.schedule import ClipGradients, WarmupCosine
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AverageStatistics
from proda.models.contrastive import ContrastiveNetwork
from proda.run import fit
from proda.run.domains import UnlabelledDomains
from proda.run.job import Job
from proda.run.networks import network_to_pretrain, parallel
from proda.settings.config import LoopConfig
from proda.settings.options import Bounds, Fraction, LearningRate, NonNegativeInt, PathText, Pixels, PositiveInt
from proda.settings.presets import STREETS_DATA, STREETS_VIEWS


@dataclass
class Config(ContrastiveOptions, LoopConfig):
    # -- Network
    init: Literal["random", "imagenet", "simclr"] = "random"  # initial backbone: random, imagenet, or simclr
    init_file: PathText = ""  # weights file for --init; if empty, torchvision downloads its ImageNet weights
    projection_width: Annotated[int, Bounds(1, 65536)] = 2048  # hidden channels of the projections
    projection_dimensions: Annotated[int, Bounds(1, 65536)] = 128  # dimensions of an embedding
    # -- Data
    batch_size: PositiveInt = 16  # images per iteration and domain, split over the processes; two views of each
    mean_width: Pixels = 1100  # in pixels: images are resized to 0.5 to 1.5 times this width, then cropped
    crop_width: Pixels = 448  # width of crops, and of views, which are parts of crops; pixels
    crop_height: Pixels = 256  # height of crops and views, pixels
    # -- Length
    epochs: PositiveInt = 400  # passes over the target training images
    # -- Optimisation
    lr: LearningRate = 0.04  # learning rate after the warm-up: DenseCL's 0.3 for 256 images, for 32 of them
    warmup_iterations: NonNegativeInt = 1850  # linear warm-up of the learning rate: 10 epochs of Cityscapes, as SimCLR
    weight_decay: Fraction = 1e-4  # weight decay of SGD
    # -- Method
    smallest_view: Annotated[float, Bounds(0.01, 1)] = 0.2  # smallest share of a crop's area in a view
    color_strength: Annotated[float, Bounds(0, 2.5)] = 0.5  # strength of the colour jitter; 1 is SimCLR's, 0.5 MoCo's

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.labelled_only:
            yield "--labelled_only has no effect on pretraining, which reads no labels; remove it"
        if self.accumulate > 1:
            yield f"--accumulate={self.accumulate}: pretraining compares all images of a batch with one another; use 1"
        if self.compile:
            yield "--compile has no effect on pretraining; remove it"


PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "streets": {
        **STREETS_DATA,
        **STREETS_VIEWS,
        "projection_width": 256,  # as many as the tiny backbone has channels
        "batch_size": 8,
        "lr": 0.1,
        "iterations": 400,
        "warmup_iterations": 30,
        "val_every": 200,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), UnlabelledDomains(config)

    # Data: pairs of augmented views of the images of both domains.
    batches = data.training_batches(data.view_pairs(data.source), data.view_pairs(data.target))

    # Network and engines: the backbone with projection heads; training and validation.
    backbone = network_to_pretrain(config)
    network = ContrastiveNetwork(backbone, hidden=config.projection_width, dimensions=config.projection_dimensions)
    network.to(job.device).to(memory_format=torch.channels_last)
    images = {"images": f"{len(data.source)} of {config.source}, {len(data.target)} of {config.target}"}
    lines = {"preset": config.preset, **images, **data.skip_lines(), **fit.loop_lines(config, batches)}
    job.open(lines, data.fingerprints())
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    network_ddp, precision = parallel(config, network), job.precision
    trainer = contrastive_trainer(network_ddp, optimizer, precision, config)
    evaluator = contrastive_evaluator(network, precision, config)

    # Every training run: random numbers, learning rate and gradients; then stop on NaN, save, validate and log.
    SeedIterations(config.seed).attach(trainer)
    length = config.schedule_iterations or batches.iterations
    WarmupCosine(optimizer, length, warmup=config.warmup_iterations).attach(trainer)
    ClipGradients(network, config.grad_clip).attach(trainer)
    AverageStatistics(network).attach(trainer)
    StopOnNan().attach(trainer)
    checkpoints = Checkpoints(job.folder)
    checkpoints.attach(trainer, every=config.checkpoint_every)
    validation = ContrastiveValidation(evaluator, data.validation_batches(), ())
    validation.attach(trainer, every=config.val_every)
    models = KeptBackbone(validation, backbone, job.folder)
    models.attach(trainer)
    board = Board(job.folder, None, {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
