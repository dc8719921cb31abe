"""A user's experiment: stage 1 without extras, and a record of how many labels the prototypes change.

python run.py tests/experiments/my_experiment.py --weights=runs/warmup/last.pt
"""

from dataclasses import dataclass

from ignite.engine import Engine

from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.events import ProdaEvents
from proda.engines.inference import segmentation_evaluator
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.prototypes import PrototypeEMA, prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.schedule import PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.teacher import EMATeacher
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.config import TrainConfig
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import load_network, make_optimizer, parallel
from proda.settings.options import PathText


@dataclass
class Config(DenoiseOptions, TrainConfig):
    weights: PathText = "runs/warmup/last.pt"  # first student, first teacher, labels and prototypes
    lr: float = 1e-4  # of all parameters
    head_lr_factor: float = 1.0  # one parameter group
    pseudo_labels: PathText = ""  # folder of soft labels; OUTPUT/pseudo_labels if empty


class Diary:
    """Records the events in their order, and how many pixels get another label by rectification."""

    def __init__(self) -> None:
        self.moments: list[str] = []
        self.changed: list[float] = []

    def attach(self, trainer: Engine) -> None:
        for moment in ProdaEvents:
            trainer.add_event_handler(moment, lambda _, name: self.moments.append(name), moment.value)
        trainer.add_event_handler(ProdaEvents.LABELS_RECTIFIED, self.compare)
        trainer.state.summary["moments"] = self.moments  # goes to summary.json
        trainer.state.summary["changed_labels"] = self.changed

    def compare(self, trainer: Engine) -> None:
        before, after = trainer.state.output["pseudo_labels"], trainer.state.output["rectified_labels"]  # [B, h, w]
        self.changed.append((before != after).float().mean().item())


def run(local_rank: int, config: Config) -> dict:
    job, data = Job(config), Domains(config)
    first, network = (load_network(config, data.classes, job.device) for _ in range(2))
    store = data.label_store("soft", job.folder / "pseudo_labels", first)
    target = data.target_views(full_image=True, strong=True, soft_labels=store)
    batches = data.training_batches(data.source_crops(), target)
    job.open(fit.summary_lines(config, data, batches), data.fingerprints())

    optimizer, student, precision = make_optimizer(config, network), parallel(config, network), job.precision
    teacher, file, made_from = EMATeacher(network), job.folder / "prototypes.pt", data.made_from(first)
    prototypes = prepare_prototypes(file, first, data.whole_target(), precision, 1, made_from)
    trainer = denoise_trainer(student, teacher.ema_model, prototypes.values, optimizer, precision, config)
    evaluator = segmentation_evaluator(network, precision)

    Diary().attach(trainer)
    PseudoLabels(store, first, data.whole_target, precision, data.classes.names).attach(trainer)
    PrototypeEMA(prototypes).attach(trainer)
    teacher.attach(trainer)

    SeedIterations(config.seed).attach(trainer)
    PolynomialDecay(optimizer, batches.iterations).attach(trainer)
    checkpoints = Checkpoints(job.folder)
    checkpoints.attach(trainer, every=config.checkpoint_every)
    validation = Validation(evaluator, data.validation_batches(), data.classes.names)
    validation.attach(trainer, every=config.val_every)
    models = KeptModels(validation, network, fit.model_info(job, data), job.folder)
    models.attach(trainer)
    board = Board(job.folder, evaluator, {"student": optimizer}, data.classes.colors)
    board.attach(trainer, every=config.log_every, panels_every=config.panels_every)
    return fit.run(job, trainer, batches, checkpoints, validation, models, board)
