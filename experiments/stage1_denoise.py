"""Stage 1: self-training on pseudo labels that prototypes denoise online (ProDA, arXiv:2101.10979).

    python run.py experiments/stage1_denoise.py --weights=runs/warmup/last.pt
    python run.py experiments/stage1_denoise.py --source=synthia

Missing soft labels and prototypes of the warm-up model are computed at the start. One iteration is in
proda/engines/denoise.py, and this file attaches its handlers.
GTA5 -> Cityscapes: the released code reports 53.7 mIoU with 4 GPUs of 16 GB (SYNTHIA: 51.9 over 16 classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proda.engines.denoise import denoise_trainer
from proda.engines.events import ProdaEvents
from proda.engines.inference import segmentation_evaluator
from proda.engines.options import DenoiseOptions
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.prototypes import PrototypeEMA, RenewPrototypes, prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.handlers.teacher import EMATeacher
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import compile_network, load_network, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import PseudoLabelConfig
from proda.settings.options import (
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PassCount,
    PathText,
    PositiveFraction,
)
from proda.settings.presets import STREETS_ADAPT


@dataclass
class Config(DenoiseOptions, PseudoLabelConfig):
    # -- Network
    weights: PathText = "runs/warmup/last.pt"  # warm-up model, for initial student, teacher, soft labels, prototypes
    # -- Optimisation
    lr: LearningRate = 1e-4  # learning rate at the start of training
    head_lr_factor: NonNegativeFloat = 1.0  # ratio of the learning rates of head and backbone; 1: one parameter group
    # -- Method
    prototypes: PathText = ""  # file of prototypes; written if missing; if empty, OUTPUT/prototypes.pt
    prototype_passes: PassCount = 1  # passes over the target images for the initial prototypes; 4 as released
    prototype_momentum: Fraction = 1e-4  # weight of the new class mean in the moving average; 0: fixed prototypes
    teacher_momentum: PositiveFraction = 0.001  # weight of the student in the teacher's moving average
    # -- Pseudo labels
    pseudo_labels: PathText = ""  # folder of soft labels; missing ones are written; if empty, OUTPUT/pseudo_labels
    online_soft_labels: bool = False  # store no labels; the frozen warm-up model predicts them in each iteration
    flip: bool = False  # stored soft labels average the predictions of the image and its mirror image
    renew_labels_every: NonNegativeInt = 0  # epochs between renewals of the soft labels; 0: never, which is advised
    renew_labels_from: Literal["student", "teacher"] = "student"  # network that writes the renewed soft labels
    renew_prototypes: bool = False  # compute new prototypes from its predictions, too; otherwise the moving ones stay
    # -- Output
    validate_teacher: bool = False  # validate the mean teacher as well as the student, and keep it as teacher.pt
    label_report_every: NonNegativeInt = 25  # iterations between those whose labels are evaluated (docs/watching.md)

    @property
    def moves_teacher(self) -> bool:
        """Whether anything uses the teacher: the losses, the validation or the renewal of the labels."""
        writes_labels = self.renew_labels_every > 0 and self.renew_labels_from == "teacher"
        return self.needs_teacher or self.validate_teacher or writes_labels

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.online_soft_labels and self.renew_labels_every:
            yield "--renew_labels_every renews stored labels; with --online_soft_labels none are stored"
        if self.online_soft_labels and self.flip:
            yield "--flip is for stored labels; with --online_soft_labels none are stored"
        if self.renew_prototypes and not (self.renew_labels_every and self.needs_teacher):
            yield (
                "--renew_prototypes needs --renew_labels_every, and losses that use prototypes (--rectification=True "
                "or --structure_weight)"
            )


RELEASED = {
    "weights": "runs/warmup/best.pt",
    "schedule_iterations": 90_000,
    "prototype_passes": 4,
    "replay_as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {**RELEASED, "gta5_size_as_released": True},
    "synthia_released": {**RELEASED, "source": "synthia", "mrkld_weight": 0.0},
    "streets": {
        **STREETS_ADAPT,
        "lr": 0.06,
        "iterations": 800,
        "val_every": 400,
        "validate_teacher": True,
        "label_report_every": 5,
        # 800 iterations are 1/78 of the published number, so teacher and prototypes need faster moving averages
        "teacher_momentum": 0.02,
        "prototype_momentum": 0.01,
        # The reverse term learns slowly: with the published 0.1 and 1.0, so few iterations would lose thin classes.
        # With more weight on the target in all, so small a network loses what it has learnt from the source.
        "ce_weight": 0.5,
        "rce_weight": 0.05,
        "mrkld_weight": 0.05,
        "structure_weight": 0.3,  # with the published 10, structure learning would dominate so short a training
        "temperature": 2.0,  # chosen among 0.3, 1, 2 and 3; distances depend on the number of features, here 32
    },
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)

    # Data: labelled source crops; target photographs as weak, strong and whole views, with their soft labels.
    warmup, student = (load_network(config, data.classes, job.device) for _ in range(2))
    fit.check_training(config, data, full_image=True)  # before the label store writes to its folder
    store = None
    if not config.online_soft_labels:
        flip = {"flip": True} if config.flip else {}  # manifests of labels without it do not mention it
        store = data.label_store("soft", job.folder / "pseudo_labels", warmup, **flip)
    target = data.target_views(full_image=True, strong=True, soft_labels=store)
    batches = data.training_batches(data.source_crops(), target)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())

    # Networks: student, mean teacher and prototypes all start from the warm-up model.
    optimizer, student_ddp, precision = make_optimizer(config, student), parallel(config, student), job.precision
    teacher = EMATeacher(student, config.teacher_momentum)
    compile_network(config, teacher.ema_model)
    labeller = teacher.ema_model if config.renew_labels_from == "teacher" else student
    file, made_from = Path(config.prototypes or job.folder / "prototypes.pt"), data.made_from(warmup)
    prototypes = prepare_prototypes(file, warmup, data.whole_target(), precision, config.prototype_passes, made_from)

    # Engines: training and validation. Config inherits the fields of DenoiseOptions.
    trainer = denoise_trainer(student_ddp, teacher.ema_model, prototypes.values, optimizer, precision, config, warmup)
    judged = {"student": student} | ({"teacher": teacher.ema_model} if config.validate_teacher else {})
    evaluators = {name: segmentation_evaluator(network, precision) for name, network in judged.items()}

    # The method: soft labels before the first iteration; after each step, the prototypes (equation 6) and the teacher.
    if store is not None:
        labels = PseudoLabels(store, warmup, data.whole_target, precision, data.classes.names, flip=config.flip)
        labels.attach(trainer, config.renew_labels_every, labeller=labeller, batches=batches, folder=job.folder)
    if config.adabn:
        for name, network in judged.items():
            AdaBN(network, data.statistics_batches(), precision).attach(evaluators[name])
        AdaBN(labeller, data.statistics_batches(), precision).attach(trainer, ProdaEvents.BEFORE_LABELS_WRITTEN)
    if config.renew_prototypes:  # after AdaBN
        renewal = RenewPrototypes(prototypes, labeller, data.whole_target(), precision, passes=config.prototype_passes)
        renewal.attach(trainer)
    if config.needs_teacher:
        PrototypeEMA(prototypes, config.prototype_momentum).attach(trainer)
    if config.moves_teacher:
        teacher.attach(trainer)
    attach_successors(config, trainer, student, precision, data.classes.names)
    watch = LabelQuality(data.classes.names, prototypes=prototypes.values, truth=data.target_truth())
    watch.attach(trainer, every=config.label_report_every)

    # Every training run: random numbers, learning rate and gradients; then stop on NaN, save, validate and log.
    SeedIterations(config.seed).attach(trainer)
    length = config.schedule_iterations or batches.iterations
    PolynomialDecay(optimizer, length, power=config.decay_power, warmup=config.warmup_iterations).attach(trainer)
    ClipGradients(student, config.grad_clip).attach(trainer)
    AverageStatistics(student).attach(trainer)
    StopOnNan().attach(trainer)
    checkpoints = Checkpoints(job.folder)
    checkpoints.attach(trainer, every=config.checkpoint_every)
    validation = Validation(
        evaluators["student"], data.validation_batches(), data.classes.names, teacher=evaluators.get("teacher")
    )
    validation.attach(trainer, every=config.val_every)
    parts = {"prototypes": prototypes.values, "teacher": judged.get("teacher")}
    models = KeptModels(validation, student, fit.model_info(job, data), job.folder, **parts)
    models.attach(trainer)
    board = Board(job.folder, evaluators["student"], {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
