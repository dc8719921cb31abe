"""A user's experiment: stage 1 without extras, and a record of how many labels the prototypes change.

python run.py tests/experiments/my_experiment.py --weights=runs/warmup/last.pt
"""

from dataclasses import dataclass
from pathlib import Path

from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.prototypes import InitialPrototypes, PrototypeEMA, Prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.teacher import EMATeacher
from proda.run.config import MeanTeacherConfig
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.options import PathText


@dataclass
class Config(DenoiseOptions, MeanTeacherConfig):
    weights: PathText = "runs/warmup/last.pt"  # first student, first teacher, labels and prototypes
    pseudo_labels: PathText = ""  # folder of soft labels; OUTPUT/pseudo_labels if empty


class Diary:
    """Records the events in their order, and how many pixels get another label by rectification."""

    def attach(self, trainer: Trainer) -> None:
        moments = trainer.state.summary["moments"] = []  # goes to summary.json
        self.changed = trainer.state.summary["changed_labels"] = []
        for moment in ProdaEvents:
            trainer.add_event_handler(moment, lambda _, name: moments.append(name), moment.value)
        trainer.add_event_handler(ProdaEvents.LABELS_RECTIFIED, self.compare)

    def compare(self, trainer: Trainer) -> None:
        before, after = trainer.state.output["pseudo_labels"], trainer.state.output["rectified_labels"]  # [B, h, w]
        self.changed.append((before != after).float().mean().item())


def build(config: Config, data: Data, networks: Networks) -> Stage:
    first, student, precision = networks.load("weights"), networks.load("weights", name="student"), networks.precision
    store = data.label_store("soft", first)
    target = data.target_views(full_image=True, strong=True, soft_labels=store)
    batches = data.training_batches(data.source_crops(), target)

    optimizer, student_ddp, teacher = make_optimizer(config, student), parallel(config, student), EMATeacher(student)
    means = Prototypes(student.num_classes, student.num_features, networks.device)
    trainer = denoise_trainer(student_ddp, teacher.ema_model, means.values, optimizer, precision, config)
    Diary().attach(trainer)

    labels = PseudoLabels(store, first, data.whole_target, precision, data.classes.names)
    labels.attach(trainer)
    file = Path(config.output) / "prototypes.pt"
    initial = InitialPrototypes(means, first, data.whole_target(), precision, file, data.made_from(first))
    initial.attach(trainer)
    PrototypeEMA(means).attach(trainer)
    teacher.attach(trainer)
    return Stage(trainer, student, batches, {"student": optimizer}, labels=labels, prototypes=initial, teacher=teacher)


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
