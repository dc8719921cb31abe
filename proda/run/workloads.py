"""The work of a stage without its data and weights: fresh networks, the stage's trainer, and one made-up batch.

Networks, optimisers, trainers and handlers come from the functions that the stages use. Samples come from the data sets
and loaders that the stages use, on images of random pixels. So a workload takes the time and memory of the stage, on
whatever device it is built. Learning rates, files and scores play no part in it.

The stage is recognised by the options that its ``Config`` inherits, so this also works for your own experiments, whose
``Config`` may lack the other fields of the stage. What an experiment adds in its ``run`` is not part of the workload.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.resnet import Bottleneck

from proda.data.labelled_files import Example
from proda.data.loaders import collate, training_batches
from proda.data.samples import EvaluationSamples, SourceTraining, TargetTraining
from proda.data.view_pairs import FixedViewPairs, ViewPairs
from proda.engines.adversarial import adversarial_trainer
from proda.engines.contrastive import contrastive_evaluator, contrastive_trainer
from proda.engines.denoise import denoise_trainer
from proda.engines.distill import distill_trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.online import online_trainer
from proda.engines.optimization import Precision
from proda.engines.options import (
    AdversarialOptions,
    ContrastiveOptions,
    DenoiseOptions,
    DistillOptions,
    OnlineOptions,
    StudentOptions,
)
from proda.engines.supervised import supervised_trainer
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.handlers.teacher import EMATeacher
from proda.method.feature_distance import THINGS
from proda.models.build import build_network
from proda.models.contrastive import ContrastiveNetwork, he_initialise
from proda.models.discriminator import Discriminator
from proda.models.network import SegmentationNetwork
from proda.run.domains import view_settings
from proda.run.live_bytes import built
from proda.run.networks import compile_network, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import TrainConfig
from proda.utils.errors import UserError


class Sizes(NamedTuple):
    """What a workload's size depends on, apart from the flags."""

    num_classes: int  # K
    full_image: tuple[int, int]  # height and width of a target training image
    validation_image: tuple[int, int]  # height and width of a validation image
    images: int  # of each domain in the batch of one process
    teachers: Mapping[str, tuple[str, str]] = {}  # flag -> backbone and head of the network in its file, if it is there


@dataclass
class Workload:
    """One iteration of a stage. ``trainer`` is run on batches like ``batch``; the other parts are for reports."""

    trainer: Engine
    batch: dict[str, Any]
    networks: dict[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    evaluator: Engine
    validation_batch: dict[str, Any]
    labellers: Sequence[nn.Module] = field(default_factory=tuple)  # networks that write pseudo labels


def stage_kind(config: Any) -> type[StudentOptions]:
    """The options class that says which stage ``config`` belongs to.

    Raises:
        UserError: it inherits none of them.
    """
    for options in _BUILDERS:
        if isinstance(config, options):
            return options
    raise UserError(f"{type(config).__name__} has no options of a trainer, so its iterations are unknown")


def batches(config: Any, sizes: Sizes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Made-up batches for training and for validation, on the CPU, as the stage's loaders give them."""
    examples = MadeUpImages(sizes.full_image, sizes.num_classes, sizes.images)
    views = view_settings(config, "target")
    kind = stage_kind(config)
    source: Dataset = SourceTraining(examples, **view_settings(config, "source"))
    target: Dataset | None = None
    whole = MadeUpImages(sizes.validation_image, sizes.num_classes, config.val_batch_size)
    validation: Dataset = EvaluationSamples(whole)
    if kind in (AdversarialOptions, OnlineOptions):
        target = TargetTraining(examples, **views)
    elif kind is DenoiseOptions:
        stored = None if getattr(config, "online_soft_labels", False) else MadeUpSoftLabels(sizes)
        target = TargetTraining(examples, **views, full_image=True, strong=True, soft_labels=stored)
    elif kind is DistillOptions:
        target = TargetTraining(examples, **views, strong=True, pseudo_labels=MadeUpHardLabels(sizes))
    elif kind is ContrastiveOptions:
        del views["jitter"]
        views |= {"smallest_view": config.smallest_view, "color_strength": config.color_strength}
        source, target = ViewPairs(examples, **views), ViewPairs(examples, **views)
        validation = FixedViewPairs(ViewPairs(whole, **views))
    training = next(iter(training_batches(source, target, batch_size=sizes.images, iterations=1, seed=config.seed)))
    return training, collate([validation[index] for index in range(config.val_batch_size)])


def workload(
    config: Any,
    sizes: Sizes,
    precision: Precision,
    training_batch: dict[str, Any],
    validation_batch: dict[str, Any],
) -> Workload:
    """The stage's trainer with fresh networks on ``precision.device``. The batches are those of :func:`batches`.

    The networks have as many parameters as the stage's, and random ones. A network that the stage loads from a file
    has the extra batch norm if ``--bn_pretrain`` is set.
    """
    build = _BUILDERS[stage_kind(config)]
    trainer, networks, optimizers, labellers = build(config, sizes, precision)
    student = networks["student"]
    if isinstance(student, ContrastiveNetwork):
        evaluator = contrastive_evaluator(student, precision, config)
    else:
        evaluator = segmentation_evaluator(student, precision, scales=(getattr(config, "val_scale", 1.0),))
    return Workload(trainer, training_batch, networks, optimizers, evaluator, validation_batch, labellers)


_Parts = tuple[Engine, dict[str, Any], list[torch.optim.Optimizer], list[nn.Module]]


def _supervised(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    student = _network(config, sizes, precision)
    optimizer = make_optimizer(config, student)
    trainer = supervised_trainer(parallel(config, student), optimizer, precision, config)
    _attach_successors(config, trainer, student, precision)
    return trainer, {"student": student}, [optimizer], []


def _adversarial(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    student = _network(config, sizes, precision)
    with torch.device(precision.device):
        critic = Discriminator(sizes.num_classes)
    optimizer = make_optimizer(config, student)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.9, 0.99))
    networks = parallel(config, student), parallel(config, critic)
    trainer = adversarial_trainer(*networks, optimizer, critic_optimizer, precision, config)
    _attach_successors(config, trainer, student, precision)
    return trainer, {"student": student, "discriminator": critic}, [optimizer, critic_optimizer], []


def _denoise(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    warmup, student = (_network(config, sizes, precision) for _ in range(2))
    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    teacher = EMATeacher(student)
    compile_network(config, teacher.ema_model)
    prototypes = Prototypes(sizes.num_classes, student.num_features, precision.device)
    trainer = denoise_trainer(student_ddp, teacher.ema_model, prototypes.values, optimizer, precision, config, warmup)
    if config.needs_teacher:
        PrototypeEMA(prototypes).attach(trainer)
    if getattr(config, "moves_teacher", config.needs_teacher):
        teacher.attach(trainer)
    _attach_successors(config, trainer, student, precision)
    networks = {"student": student, "teacher": teacher.ema_model, "warm-up model": warmup}
    return trainer, networks, [optimizer], [] if getattr(config, "online_soft_labels", False) else [warmup]


def _distill(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    teacher, student = _network(config, sizes, precision, "teacher"), _network(config, sizes, precision)
    others = (
        {"label_with": _network(config, sizes, precision, "label_with")} if getattr(config, "label_with", "") else {}
    )
    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    trainer = distill_trainer(student_ddp, teacher, optimizer, precision, config)
    _attach_successors(config, trainer, student, precision)
    networks = {"student": student, "teacher": teacher, **others}
    return trainer, networks, [optimizer], [teacher, *others.values()]


def _online(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    student = _network(config, sizes, precision)
    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    teacher = EMATeacher(student, start_as_mean=True)
    compile_network(config, teacher.ema_model)
    trainer = online_trainer(student_ddp, teacher.ema_model, optimizer, precision, config)
    _attach_successors(config, trainer, student, precision)
    teacher.attach(trainer)
    return trainer, {"student": student, "teacher": teacher.ema_model}, [optimizer], []


def _contrastive(config: Any, sizes: Sizes, precision: Precision) -> _Parts:
    backbone = _network(config, sizes, precision)
    with torch.device(precision.device):
        network = ContrastiveNetwork(backbone, hidden=config.projection_width, dimensions=config.projection_dimensions)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    trainer = contrastive_trainer(parallel(config, network), optimizer, precision, config)
    return trainer, {"student": network}, [optimizer], []


_BUILDERS: dict[type[StudentOptions], Callable[[Any, Sizes, Precision], _Parts]] = {
    AdversarialOptions: _adversarial,
    DenoiseOptions: _denoise,
    DistillOptions: _distill,
    OnlineOptions: _online,
    ContrastiveOptions: _contrastive,
    StudentOptions: _supervised,  # the base of all others
}


def _attach_successors(config: Any, trainer: Engine, student: SegmentationNetwork, precision: Precision) -> None:
    """As the stages do. Which classes are objects makes no difference to time and memory."""
    if isinstance(config, TrainConfig):
        names = [*THINGS, *map(str, range(student.num_classes))][: student.num_classes]
        attach_successors(replace(config, thing_classes=""), trainer, student, precision, names)


def _network(config: Any, sizes: Sizes, precision: Precision, flag: str = "") -> SegmentationNetwork:
    """A network as the stage has it, with weights that neither vanish nor explode from layer to layer.

    ``flag``: the one that names its file, for a network that may have another architecture than the student.
    """
    backbone, head = sizes.teachers.get(flag, (config.backbone, config.head))
    bn_pretrain, dropout = getattr(config, "bn_pretrain", False), getattr(config, "dropout", 0.0)

    def build() -> SegmentationNetwork:
        return build_network(backbone, sizes.num_classes, head=head, bn_pretrain=bn_pretrain, dropout=dropout)

    network = built(build, precision.device)
    he_initialise(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Bottleneck):  # with 1, and frozen batch norm, features would double in every block
                module.get_parameter("bn3.weight").fill_(0.2)
        for parameter in network.parameters():  # as network.to(memory_format=...), which fake tensors do not support
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    network.checkpoint_activations = getattr(config, "checkpoint_activations", False)
    compile_network(config, network)
    return network


class MadeUpImages:
    """Labelled images of random pixels and of one size (height, width), in place of the files of a domain."""

    def __init__(self, size: tuple[int, int], num_classes: int, number: int) -> None:
        self.size, self.num_classes, self.number = size, num_classes, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int, /) -> Example:
        rng, (height, width) = np.random.default_rng(index), self.size
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        labels = rng.integers(0, self.num_classes, (height, width), dtype=np.uint8)
        return Example(image, labels, f"image_{index}", (width, height))


class MadeUpSoftLabels:
    """Random soft labels, read as from a ``SoftLabelStore``."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def read(self, name: str) -> Tensor:
        height, width = (side // 8 + 1 for side in self.sizes.full_image)  # samples do not depend on the resolution
        return torch.randn(self.sizes.num_classes, height, width).softmax(0)


class MadeUpHardLabels:
    """Random labels, read as from a ``HardLabelStore``; the confidence is 1 everywhere."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        size = self.sizes.full_image
        labels = torch.randint(0, self.sizes.num_classes, size, dtype=torch.uint8)
        return labels, torch.ones(size)
