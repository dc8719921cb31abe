"""Stage 1: self-training on pseudo labels that prototypes denoise online (ProDA, arXiv:2101.10979).

    python run.py experiments/stage1_denoise.py --weights=runs/warmup/last.pt
    python run.py experiments/stage1_denoise.py --source=synthia

Loss: CE(source) + 0.1 CE + 1.0 RCE (both on the rectified labels) + 0.1 MRKLD + 10 KL (structure learning); the terms
are in proda/method/losses.py. One iteration is in proda/engines/denoise.py; this file attaches the stage's handlers.
Missing soft labels and prototypes of the warm-up model are computed at the start.
GTA5 -> Cityscapes: the released code reports 53.7 mIoU with 4 GPUs of 16 GB (SYNTHIA: 51.9 over 16 classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.handlers.prototypes import InitialPrototypes, PrototypeEMA, Prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.run.config import MeanTeacherConfig
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.options import Fraction, LearningRate, NonNegativeFloat, NonNegativeInt, PathText
from proda.settings.presets import CAMVID, STREETS_ADAPT


@dataclass
class Config(DenoiseOptions, MeanTeacherConfig):
    # -- Network
    weights: PathText = "runs/warmup/last.pt"  # warm-up model, for initial student, teacher, soft labels, prototypes
    # -- Optimization
    lr: LearningRate = 1e-4  # learning rate at the start of training
    head_lr_factor: NonNegativeFloat = 1.0  # ratio of the learning rates of head and backbone; 1: one parameter group
    # -- Method
    prototypes: PathText = ""  # file of prototypes; written if missing; if empty, OUTPUT/prototypes.pt
    prototype_momentum: Fraction = 1e-4  # weight of the new class mean in the moving average; 0: fixed prototypes
    # -- Pseudo labels
    pseudo_labels: PathText = ""  # folder of soft labels; missing ones are written; if empty, OUTPUT/pseudo_labels
    online_soft_labels: bool = False  # store no labels; the frozen warm-up model predicts them in each iteration
    renew_labels_every: NonNegativeInt = 0  # epochs between renewals by the student; 0: never (recommended)

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.online_soft_labels and self.renew_labels_every:
            yield "--renew_labels_every renews stored labels; with --online_soft_labels none are stored"


RELEASED = {
    "weights": "runs/warmup/best.pt",
    "schedule_iterations": 90_000,
    "as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
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
        # The reverse term learns slowly: with the published 0.1 and 1.0, thin classes are lost in so few iterations.
        # With more weight on the target in all, a network this small forgets the source.
        "ce_weight": 0.5,
        "rce_weight": 0.05,
        "mrkld_weight": 0.05,
        "structure_weight": 0.3,  # with the published 10, structure learning would dominate so short a training
        "temperature": 2.0,  # chosen among 0.3, 1, 2 and 3; distances depend on the number of features, here 32
    },
    "camvid": {
        **CAMVID,
        "iterations": 250,
        "val_every": 250,
        "label_report_every": 5,
        "teacher_momentum": 0.01,
        "prototype_momentum": 0.01,
        "ce_weight": 0.5,
        "rce_weight": 0.05,
        "mrkld_weight": 0.05,
        "structure_weight": 0.3,
    },
}


def build(config: Config, data: Data, networks: Networks) -> Stage:
    warmup, student = networks.load("weights"), networks.load("weights", name="student")
    precision, names = networks.precision, data.classes.names

    # Data: labelled source crops; target photographs as weak, strong and full views, with their soft labels.
    store = None if config.online_soft_labels else data.label_store("soft", warmup)
    target = data.target_views(full_image=True, strong=True, soft_labels=store)
    batches = data.training_batches(data.source_crops(), target)

    # The student and its mean teacher start from the warm-up model, and so do the prototypes.
    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    teacher = networks.mean_teacher(student, config.teacher_momentum)
    prototypes = Prototypes(student.num_classes, student.num_features, networks.device)
    trainer = denoise_trainer(student_ddp, teacher.ema_model, prototypes.values, optimizer, precision, config, warmup)

    # The method: labels and prototypes before the first iteration; after each step the prototypes, then the teacher.
    labels = None
    if store is not None:
        labels = PseudoLabels(store, warmup, data.whole_target, precision, names)
        labels.attach(trainer, config.renew_labels_every, labeller=student, batches=batches, folder=config.output)
    initial = InitialPrototypes(
        prototypes,
        warmup,
        data.whole_target(),
        precision,
        file=config.prototypes or Path(config.output) / "prototypes.pt",
        made_from=data.made_from(warmup),
        passes=4 if config.as_released else 1,
    )
    initial.attach(trainer)
    if config.needs_teacher:
        PrototypeEMA(prototypes, config.prototype_momentum).attach(trainer)  # equation 6
    if config.needs_teacher or config.validate_teacher:
        teacher.attach(trainer)
    return Stage(trainer, student, batches, {"student": optimizer}, labels=labels, prototypes=initial, teacher=teacher)


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
