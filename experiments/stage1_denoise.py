"""Stage 1: train on pseudo labels that prototypes denoise as training goes (ProDA, arXiv:2101.10979).

    python run.py experiments/stage1_denoise.py --weights=runs/warmup/last.pt
    python run.py experiments/stage1_denoise.py --source=synthia

Soft labels and prototypes of the warm-up model are made at the start where they are not there yet.
GTA5 -> Cityscapes: the released code reports 53.7 mIoU with 4 GPUs of 16 GB (SYNTHIA: 51.9 over 16 classes).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ignite.engine import Events

from proda.engines.denoise import denoise_trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.experiment import domains, networks, training
from proda.experiment.config import STREETS_ADAPT, AdaptConfig, pick
from proda.experiment.job import Job
from proda.handlers.batch_norm import TargetStatistics
from proda.handlers.ema import EMATeacher
from proda.handlers.prototypes import PrototypeEMA, prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation
from proda.utils.files import sha256


@dataclass
class Config(AdaptConfig):
    weights: str = "runs/warmup/last.pt"  # warm-up model: first student, first teacher, labels and prototypes
    lr: float = 1e-4  # of all parameters
    head_lr_factor: float = 1.0  # one parameter group
    pseudo_labels: str = ""  # folder of its soft labels, written where they are missing; OUTPUT/pseudo_labels if empty
    prototypes: str = ""  # file of its prototypes, written if it is missing; OUTPUT/prototypes.pt if empty
    prototype_passes: int = 1  # passes over the target images for the first prototypes; 4 as released
    online_soft_labels: bool = False  # store none: the frozen warm-up model predicts them anew in every iteration
    renew_labels_every: int = 0  # epochs after which the student writes new soft labels; 0: never, as published
    teacher_momentum: float = 0.001  # share of the student that enters the teacher at every iteration
    teacher_mode: str = "train"  # train: batch statistics and dropout, as published; or eval
    prototype_momentum: float = 1e-4  # share of an image's class mean that enters its prototype; 0: fixed prototypes
    rectification: bool = True  # weigh the soft labels by the prototypes; without it: conventional self-training
    temperature: float = 1.0  # multiplies the distances to the prototypes
    threshold: float = 0.0  # rectified labels less probable than this are ignored
    ce_weight: float = 0.1  # cross entropy on rectified labels
    rce_weight: float = 1.0  # reverse cross entropy on rectified labels
    regularizer_weight: float = 0.1  # MRKLD
    consistency_weight: float = 10.0  # target structure learning between weak and strong view
    replay_as_released: bool = False  # strong view's geometry on maps with the released code's order and offsets


RELEASED = {
    "weights": "runs/warmup/best.pt",
    "schedule_iterations": 90_000,
    "prototype_passes": 4,
    "replay_as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
    "synthia_released": {**RELEASED, "source": "synthia", "regularizer_weight": 0.0},
    "streets": {
        **STREETS_ADAPT,
        "lr": 0.03,
        "iterations": 400,
        "val_every": 200,
        # 400 iterations are 1/150 of the published ones: teacher and prototypes must move faster to move at all
        "teacher_momentum": 0.02,
        "prototype_momentum": 0.01,
        # the reverse term learns slowly: with the published 0.1 and 1.0 thin classes are lost in so few iterations
        "ce_weight": 1.0,
        "rce_weight": 0.1,
        "consistency_weight": 1.0,  # with the published 10, too little of so short a training is left for the labels
    },
}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    source, labelled = domains.source_training(config), domains.labelled_if_possible(config, "train")
    val = domains.whole_images(config, domains.validation_set(config))
    warm, network = (networks.network_from(config, config.weights, dropout=config.dropout) for _ in range(2))
    length = training.run_length(config, len(labelled))
    if config.online_soft_labels and config.renew_labels_every:
        raise ValueError("--renew_labels_every renews stored labels; with --online_soft_labels there are none")
    soft_labels = None if config.online_soft_labels else domains.label_store(config, "soft", job, labelled.names)
    job.open(training.summary_lines(config, length))

    optimizer = networks.sgd(config, network)
    student = networks.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    teacher = EMATeacher(network, config.teacher_momentum)
    precision = Precision(job.device, config.amp)
    schedule = polynomial_decay(optimizer, config.schedule_iterations or length.iterations)

    names, images = domains.label_space(config).names, domains.named_images(config, labelled)
    target = domains.target_training(config, full_image=True, strong=True, soft_labels=soft_labels)
    file = Path(config.prototypes or job.folder / "prototypes.pt")
    made = {"passes": config.prototype_passes, "origin": sha256(config.weights)}
    prototypes = prepare_prototypes(file, warm.to(job.device), images(labelled.names), precision, job.device, **made)

    # the trainer's arguments have the flags' names
    settings = pick(config, "ce_weight", "rce_weight", "regularizer_weight", "consistency_weight", "freeze_bn")
    settings |= pick(config, "rectification", "temperature", "threshold", "teacher_mode", "replay_as_released")
    labeller = warm if config.online_soft_labels else None
    trainer = denoise_trainer(
        student, teacher.ema_model, prototypes.values, optimizer, precision, job.device, labeller=labeller, **settings
    )
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    weights = partial(networks.network_content, config, network, prototypes=prototypes.values)
    validation = Validation(evaluator, val, names, weights, job.folder)

    # Handlers of one event run in the order they are attached. The student has moved; now the prototypes, then the
    # teacher. `train` attaches last what judges and saves.
    training.attach_first(trainer, network, schedule, config)
    if config.target_statistics:
        statistics = TargetStatistics(network, domains.statistics_images(config), precision, job.device)
        statistics.attach(evaluator)
        if config.renew_labels_every:  # the student writes labels then
            statistics.attach(trainer, Events.ITERATION_COMPLETED(every=config.renew_labels_every * length.epoch))
    state = {"student": network, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    state |= {"teacher": teacher, "prototypes": prototypes}
    if soft_labels is not None:
        renewal = {"student": network, "folder": job.folder / "pseudo_labels"}
        renewal |= {"renew_data": partial(training.batches, config, source, target, length, job.device)}
        labels = PseudoLabels(soft_labels, warm, images, precision, job.device, class_names=names, **renewal)
        labels.attach(trainer, every=config.renew_labels_every)
        state["pseudo_labels"] = labels
    if config.prototype_momentum > 0 and (config.rectification or config.consistency_weight > 0):
        PrototypeEMA(prototypes, config.prototype_momentum).attach(trainer)
    teacher.attach(trainer)

    optimizers = {"student": optimizer}
    return training.train(job, trainer, source, target, validation, length, state=state, optimizers=optimizers)
