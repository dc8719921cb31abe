"""Stage 2: distil the stage-1 model into a student that starts from self-supervised weights (ProDA, arXiv:2101.10979).

    python run.py experiments/stage2_distill.py --teacher=runs/stage1_denoise/last.pt --init_file=r101_1x_sk0.pth
    python run.py experiments/stage2_distill.py --source=synthia --init_file=r101_1x_sk0.pth

Missing hard pseudo labels of the teacher are written at the start. One iteration is in proda/engines/distill.py, and
this file attaches its handlers.
GTA5 -> Cityscapes: the released code reports 56.9 mIoU (SYNTHIA: 54.6 over 16 classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from proda.engines.distill import distill_trainer
from proda.engines.inference import segmentation_evaluator
from proda.engines.labelling import Averaging
from proda.engines.options import DistillOptions
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import initial_network, load_teacher, make_optimizer, parallel
from proda.run.successors import attach_successors
from proda.settings.config import InitConfig, InitKind, PseudoLabelConfig, parse_scales
from proda.settings.options import FractionBelowOne, LearningRate, NonNegativeInt, PathText
from proda.settings.presets import STREETS_ADAPT


@dataclass
class Config(DistillOptions, InitConfig, PseudoLabelConfig):
    # -- Network
    teacher: PathText = "runs/stage1_denoise/last.pt"  # weights of the frozen teacher, which also writes the labels
    init: InitKind = "simclr"  # initial student: simclr, imagenet, random, or weights (all of --init_file)
    bn_pretrain: bool = True  # batch norm after the backbone, for the scale of self-supervised features
    # -- Optimisation
    lr: LearningRate = 6e-4  # learning rate of the student's backbone at the start of training
    # -- Pseudo labels
    pseudo_labels: PathText = ""  # folder of hard labels; missing ones are written; if empty, OUTPUT/pseudo_labels
    flip: bool = True  # pseudo labels average the predictions of the image and its mirror image
    scales: str = "1"  # scales of the image that they are averaged over, separated by commas: 0.75,1,1.25
    label_with: PathText = ""  # weights of a second network; pseudo labels average its predictions with the teacher's
    threshold: FractionBelowOne = 0.95  # pseudo labels whose confidence is not above this are ignored
    threshold_as_released: bool = False  # compare confidences in float16
    # -- Output
    label_report_every: NonNegativeInt = 25  # iterations between those whose labels are evaluated (docs/watching.md)

    def problems(self) -> Iterator[str]:
        """One line for each value that no run can use."""
        from proda.data.label_store import check_threshold  # imports torch, which --help does not need

        yield from super().problems()
        check_threshold(self.threshold)


RELEASED = {
    "teacher": "runs/stage1_denoise/best.pt",
    "repeat_backbone_parameters": True,
    "schedule_iterations": 90_000,
    "threshold_as_released": True,
    "distillation_as_released": True,
    "replay_as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {**RELEASED, "gta5_size_as_released": True},
    "synthia_released": {**RELEASED, "source": "synthia"},
    "streets": {
        **STREETS_ADAPT,
        "init": "weights",  # the teacher's: no self-supervised weights exist for so small a network
        "init_file": "runs/stage1_denoise/last.pt",
        "bn_pretrain": False,
        "threshold": 0.0,  # after so little training, 0.95 would exclude all pixels of thin classes
        # The student ends a little below its labels, so they have to be better than the teacher's predictions.
        "scales": "0.75,1,1.25",
        "label_with": "runs/warmup/last.pt",
        # In evaluation mode, as the teacher predicts: small batches of strong views have other statistics.
        "freeze_bn": True,
        "adabn": False,
        "lr": 0.005,
        "iterations": 500,
        "val_every": 250,
        "label_report_every": 5,
    },
}


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)

    # Networks: the student starts from self-supervised weights (stage 2) or from its teacher (stage 3).
    teacher = load_teacher(config, data.classes, job.device)
    ensemble = [load_teacher(config, data.classes, job.device, flag="label_with")] if config.label_with else []
    student = initial_network(config, data.classes, job.device, bn_pretrain=config.bn_pretrain)

    # Data: labelled source crops; strong views of target photographs with the teacher's confident labels.
    averaging = Averaging(config.flip, parse_scales(config.scales), ensemble)
    fit.check_training(config, data)  # before the label store writes to its folder
    store = data.label_store("hard", job.folder / "pseudo_labels", teacher, **averaging.settings())
    confident = {"threshold": config.threshold, "threshold_as_released": config.threshold_as_released}
    target = data.target_views(strong=True, pseudo_labels=store, **confident)
    batches = data.training_batches(data.source_crops(), target)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())

    # Engines: training and validation. Config inherits the fields of DistillOptions.
    optimizer, student_ddp, precision = make_optimizer(config, student), parallel(config, student), job.precision
    trainer = distill_trainer(student_ddp, teacher, optimizer, precision, config)
    evaluator = segmentation_evaluator(student, precision)

    # The method: hard labels of the teacher before the first iteration; the teacher does not change.
    names = data.classes.names
    PseudoLabels(store, teacher, data.whole_target, precision, names, **averaging._asdict()).attach(trainer)
    attach_successors(config, trainer, student, precision, names)
    watch = LabelQuality(names, truth=data.target_truth(), replay_as_released=config.replay_as_released)
    watch.attach(trainer, every=config.label_report_every)
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
    models = KeptModels(validation, student, fit.model_info(job, data), job.folder)
    models.attach(trainer)
    board = Board(job.folder, evaluator, {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
