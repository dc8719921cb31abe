"""Online self-training with a mean teacher, and the parts that DAFormer and MIC add to it.

    python run.py experiments/online_self_training.py --preset=mic
    python run.py experiments/online_self_training.py --preset=daformer --source=synthia

In each iteration the teacher labels the target crop, and the student is trained on it, with a weight that grows as the
teacher becomes sure. One iteration is in proda/engines/online.py, and this file attaches its handlers. Its model can be
the --teacher of stage 2.

Published, GTA5 -> Cityscapes (SYNTHIA, 16 classes), in mIoU: dacs (arXiv:2007.08702) 52.1 (48.3); daformer
(arXiv:2111.14887) 68.3 (60.9); mic (arXiv:2212.01322) 75.9 (67.3) with HRDA's two resolutions, which are not offered.
The last two had the backbone MiT-B5, whose weights are not free for commercial use. The presets have ConvNeXt instead;
nobody has measured them at full size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from proda.engines.inference import segmentation_evaluator
from proda.engines.online import online_trainer
from proda.engines.options import OnlineOptions
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.handlers.teacher import EMATeacher
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import compile_network, initial_network, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import InitConfig, PseudoLabelConfig
from proda.settings.options import NonNegativeInt, PositiveFraction, Scale
from proda.settings.presets import STREETS_ADAPT


@dataclass
class Config(OnlineOptions, InitConfig, PseudoLabelConfig):
    # -- Method
    teacher_momentum: PositiveFraction = 0.001  # weight of the student in the teacher's moving average, in the end
    # -- Data
    val_scale: Scale = 1.0  # factor by which validation images are resized
    # -- Output
    validate_teacher: bool = False  # validate the mean teacher as well as the student, and keep it as teacher.pt
    label_report_every: NonNegativeInt = 25  # iterations between those whose labels are evaluated (docs/watching.md)

    def problems(self) -> Iterator[str]:
        """One line for each value that no run can use."""
        yield from super().problems()
        if self.ignore_top + self.ignore_bottom >= self.crop_height:
            yield (
                f"--ignore_top={self.ignore_top} and --ignore_bottom={self.ignore_bottom}: nothing is left of crops of "
                f"{self.crop_height} rows"
            )


# All images are resized to one size, photographs to half of it: a crop of 512 x 512 pixels has their height.
VIEWS = {
    "batch_size": 2,
    "mean_width": 1024,
    "source_width": 1280,
    "width_jitter": 0.0,
    "crop_width": 512,
    "val_scale": 0.5,
}
MIXED = {**VIEWS, "class_mix": True, "color_augmentation": True}
DAFORMER = {
    **MIXED,
    "ignore_top": 15,
    "ignore_bottom": 120,
    "backbone": "convnext_base",
    "head": "daformer",
    "rare_class_sampling": True,
    "feature_distance": 0.005,
    "iterations": 40_000,
    "optimizer": "adamw",
    "lr": 6e-5,
    "weight_decay": 0.01,
    "warmup_iterations": 1500,
    "decay_power": 1.0,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "dacs": {**MIXED, "iterations": 250_000, "weight_decay": 5e-4},
    "daformer": DAFORMER,
    "mic": {**DAFORMER, "masked_consistency": 1.0},
    "streets": {
        **STREETS_ADAPT,
        "init": "weights",
        "init_file": "runs/source_only/last.pt",
        "lr": 0.05,
        "iterations": 1200,
        "val_every": 400,
        "teacher_momentum": 0.02,
        "mask_block": 8,
        "validate_teacher": True,
        "label_report_every": 5,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)

    # Data: labelled source crops, rare classes more often if asked for, and crops of target photographs.
    batches = data.training_batches(data.source_crops(), data.target_views())

    # Networks: the mean teacher starts as a copy of the student.
    student = initial_network(config, data.classes, job.device)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())
    optimizer, student_ddp, precision = make_optimizer(config, student), parallel(config, student), job.precision
    teacher = EMATeacher(student, config.teacher_momentum, start_as_mean=True)
    compile_network(config, teacher.ema_model)

    # Engines: training and validation. Config inherits the fields of OnlineOptions.
    trainer = online_trainer(student_ddp, teacher.ema_model, optimizer, precision, config)
    judged = {"student": student} | ({"teacher": teacher.ema_model} if config.validate_teacher else {})
    scales = (config.val_scale,)
    evaluators = {name: segmentation_evaluator(network, precision, scales=scales) for name, network in judged.items()}

    # The method: ClassMix, colours, masks and feature distance as the flags say; the teacher after each step.
    attach_successors(config, trainer, student, precision, data.classes.names)
    teacher.attach(trainer)
    if config.adabn:
        for name, network in judged.items():
            AdaBN(network, data.statistics_batches(), precision).attach(evaluators[name])
    watch = LabelQuality(data.classes.names, truth=data.target_truth())
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
    kept = {"teacher": judged.get("teacher")}
    models = KeptModels(validation, student, fit.model_info(job, data), job.folder, **kept)
    models.attach(trainer)
    board = Board(job.folder, evaluators["student"], {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
