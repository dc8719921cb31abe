"""An experiment of one's own: stage 1 without extras, and a diary of how many labels the prototypes change.

python run.py tests/experiments/my_experiment.py --weights=runs/warmup/last.pt
"""

from dataclasses import dataclass

from ignite.engine import Engine, Events

from proda import experiment as ex
from proda.config import TrainConfig
from proda.engines.denoise import denoise_trainer
from proda.engines.evaluate import segmentation_evaluator
from proda.engines.events import ProdaEvents
from proda.engines.update import Precision
from proda.handlers.ema import EMATeacher
from proda.handlers.prototypes import PrototypeEMA, prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import polynomial_decay
from proda.handlers.validation import Validation
from proda.job import Job


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
    source, images = ex.source_training(config), ex.target_set(config, "train")
    warm, student = (ex.network_from(config, config.weights, "weights")[0].to(job.device) for _ in range(2))
    epoch, iterations = ex.num_iterations(config, len(images))
    soft_labels = ex.label_store(config, "soft", job, images.names)
    job.open(ex.summary_lines(config, job, epoch, iterations))

    optimizer, precision = ex.sgd(config, student), Precision(job.device, config.amp)
    teacher, named = EMATeacher(student), ex.named_images(config, images)
    file = job.folder / "prototypes.pt"
    prototypes = prepare_prototypes(file, warm, named(images.names), precision, job.device)
    names = ex.label_space(config).names
    trainer = denoise_trainer(student, teacher.ema_model, prototypes.values, optimizer, precision, job.device)
    evaluator = segmentation_evaluator(student, len(names), precision, job.device)
    val, weights = ex.whole_images(config, ex.validation_set(config)), lambda: ex.network_content(config, student)
    validation, diary = Validation(evaluator, val, names, weights, job.folder), Diary()

    diary.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED, polynomial_decay(optimizer, iterations))
    PseudoLabels(soft_labels, warm, named, precision, job.device).attach(trainer)
    PrototypeEMA(prototypes).attach(trainer)
    teacher.attach(trainer)
    validation.attach(trainer, every=config.val_every)

    target = ex.target_training(config, full_image=True, strong=True, soft_labels=soft_labels)
    data = ex.batches(config, source, target, iterations=iterations, device=job.device)
    trainer.run(data, max_iters=iterations, epoch_length=epoch)
    return job.finish({**validation.summary(), "moments": diary.moments, "changed_labels": diary.changed})
