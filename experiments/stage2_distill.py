"""Stage 2: distil the stage-1 model into a student that starts from self-supervised weights (ProDA, arXiv:2101.10979).

    python run.py experiments/stage2_distill.py --weights=runs/stage1_denoise/last.pt --init_file=r101_1x_sk0.pth
    python run.py experiments/stage2_distill.py --source=synthia --init_file=r101_1x_sk0.pth

Hard pseudo labels of the teacher are made at the start where they are not there yet.
GTA5 -> Cityscapes: the released code reports 56.9 mIoU (SYNTHIA: 54.6 over 16 classes).
"""

from dataclasses import dataclass
from functools import partial

from proda.data.label_store import check_threshold
from proda.engines.distill import distill_trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.experiment import domains, networks, training
from proda.experiment.config import STREETS_ADAPT, AdaptConfig, pick
from proda.experiment.job import Job
from proda.handlers.batch_norm import TargetStatistics
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation


@dataclass
class Config(AdaptConfig):
    weights: str = "runs/stage1_denoise/last.pt"  # the teacher: frozen, and the maker of the pseudo labels
    init: str = "simclr"  # where the student starts: simclr, imagenet, random, or weights (all of --init_file)
    init_file: str = ""  # file for --init: SimCLRv2 r101 1x, converted to PyTorch
    bn_pretrain: bool = True  # one more batch norm after the backbone: self-supervised features have another scale
    lr: float = 6e-4  # of the student's backbone at the start
    pseudo_labels: str = ""  # folder of hard labels, written where they are missing; OUTPUT/pseudo_labels if empty
    flip: bool = True  # pseudo labels average the image's and its mirror image's prediction
    threshold: float = 0.95  # pseudo labels that are not more confident than this are ignored
    threshold_as_released: bool = False  # compare confidences in float16
    distillation_weight: float = 1.0  # of the KL divergence from the teacher's output
    distillation_as_released: bool = False  # probabilities where the student's log-probabilities belong
    replay_as_released: bool = False  # strong view's geometry on maps with the released code's order and offsets


RELEASED = {
    "weights": "runs/stage1_denoise/best.pt",
    "repeat_backbone_parameters": True,
    "schedule_iterations": 90_000,
    "threshold_as_released": True,
    "distillation_as_released": True,
    "replay_as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": {
        **STREETS_ADAPT,
        "init": "weights",  # the teacher's own: nothing this small stands in for self-supervised weights of ImageNet
        "init_file": "runs/stage1_denoise/last.pt",
        "bn_pretrain": False,
        "threshold": 0.5,  # so young a network is rarely sure of thin classes: at 0.95 none of their pixels would stay
        "lr": 0.05,
        "iterations": 500,
        "val_every": 250,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    check_threshold(config.threshold)
    source, labelled = domains.source_training(config), domains.labelled_if_possible(config, "train")
    val = domains.whole_images(config, domains.validation_set(config))
    teacher = networks.network_from(config, config.weights, dropout=config.dropout)
    network = networks.initial_network(config, config.init, config.init_file, bn_pretrain=config.bn_pretrain)
    length = training.run_length(config, len(labelled))
    hard_labels = domains.label_store(config, "hard", job, labelled.names, flip=config.flip)
    job.open(training.summary_lines(config, length))

    optimizer = networks.sgd(config, network)
    student = networks.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    precision = Precision(job.device, config.amp)
    schedule = polynomial_decay(optimizer, config.schedule_iterations or length.iterations)

    names, images = domains.label_space(config).names, domains.named_images(config, labelled)
    thresholds = pick(config, "threshold", "threshold_as_released")
    target = domains.target_training(config, strong=True, pseudo_labels=hard_labels, **thresholds)

    settings = pick(config, "distillation_weight", "distillation_as_released", "freeze_bn", "replay_as_released")
    trainer = distill_trainer(student, teacher.to(job.device), optimizer, precision, job.device, **settings)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    weights = partial(networks.network_content, config, network)
    validation = Validation(evaluator, val, names, weights, job.folder)
    labels = PseudoLabels(hard_labels, teacher, images, precision, job.device, flip=config.flip, class_names=names)

    # Handlers of one event run in the order they are attached; `train` attaches last what judges and saves.
    training.attach_first(trainer, network, schedule, config)
    if config.target_statistics:
        statistics = TargetStatistics(network, domains.statistics_images(config), precision, job.device)
        statistics.attach(evaluator)
    labels.attach(trainer)

    state = {"student": network, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    optimizers = {"student": optimizer}
    return training.train(job, trainer, source, target, validation, length, state=state, optimizers=optimizers)
