"""An experiment of one's own: stage 1 without extras, and a diary of how many labels the prototypes change.

python run.py tests/experiments/my_experiment.py --weights=runs/warmup/last.pt
"""

from dataclasses import dataclass
from functools import partial

from ignite.engine import Engine
from proda.handlers.ema import EMATeacher

from proda.engines.denoise import denoise_trainer
from proda.engines.events import ProdaEvents
from proda.engines.inference import segmentation_evaluator
from proda.engines.optimization import Precision
from proda.experiment import domains, networks, training
from proda.experiment.config import TrainConfig
from proda.experiment.job import Job
from proda.handlers.prototypes import PrototypeEMA, prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation


@dataclass
class Config(TrainConfig):
    weights: str = "runs/warmup/last.pt"  # first student, first teacher, labels and prototypes
    lr: float = 1e-4  # of all parameters
    head_lr_factor: float = 1.0  # one parameter group
    pseudo_labels: str = ""  # folder of soft labels; OUTPUT/pseudo_labels if empty


class Diary:
    """Notes each moment of the method as it comes, and how many pixels get another label by rectification."""

    def __init__(self) -> None:
        self.moments: list[str] = []
        self.changed: list[float] = []

    def attach(self, trainer: Engine) -> None:
        for moment in ProdaEvents:
            trainer.add_event_handler(moment, lambda _, name: self.moments.append(name), moment.value)
        trainer.add_event_handler(ProdaEvents.LABELS_RECTIFIED, self.compare)

    def compare(self, trainer: Engine) -> None:
        before, after = trainer.state.output["pseudo_labels"], trainer.state.output["rectified_labels"]  # [B, h, w]
        self.changed.append((before != after).float().mean().item())


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    source, images = domains.source_training(config), domains.target_set(config, "train")
    val = domains.whole_images(config, domains.validation_set(config))
    warm, network = (networks.network_from(config, config.weights, dropout=config.dropout) for _ in range(2))
    length = training.run_length(config, len(images))
    soft_labels = domains.label_store(config, "soft", job, images.names)
    target = domains.target_training(config, full_image=True, strong=True, soft_labels=soft_labels)
    job.open(training.summary_lines(config, length))

    optimizer, precision = networks.sgd(config, network), Precision(job.device, config.amp)
    schedule = polynomial_decay(optimizer, config.schedule_iterations or length.iterations)
    student = networks.parallel(network, job.device, sync_bn=config.sync_bn, freeze_bn=config.freeze_bn)
    teacher, named = EMATeacher(network), domains.named_images(config, images)
    file = job.folder / "prototypes.pt"
    prototypes = prepare_prototypes(file, warm.to(job.device), named(images.names), precision, job.device)
    moved = (student, teacher.ema_model, prototypes.values, optimizer)
    trainer = denoise_trainer(*moved, precision, job.device, freeze_bn=config.freeze_bn)
    names, weights = domains.label_space(config).names, partial(networks.network_content, config, network)
    evaluator = segmentation_evaluator(network, len(names), precision, job.device)
    validation, diary = Validation(evaluator, val, names, weights, job.folder), Diary()

    diary.attach(trainer)
    training.attach_first(trainer, network, schedule, config)
    PseudoLabels(soft_labels, warm, named, precision, job.device).attach(trainer)
    PrototypeEMA(prototypes).attach(trainer)
    teacher.attach(trainer)

    state = {"student": network, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    state |= {"teacher": teacher, "prototypes": prototypes}
    notes, optimizers = {"moments": diary.moments, "changed_labels": diary.changed}, {"student": optimizer}
    return training.train(
        job, trainer, source, target, validation, length, state=state, optimizers=optimizers, notes=notes
    )
