"""Stage 2: distil the stage-1 model into a student that starts from self-supervised weights (ProDA, arXiv:2101.10979).

    python run.py experiments/stage2_distill.py --teacher=runs/stage1_denoise/last.pt --init_file=r101_1x_sk0.pth
    python run.py experiments/stage2_distill.py --source=synthia --init_file=r101_1x_sk0.pth

Loss: CE(source) + CE(hard pseudo labels) + 1.0 KL(teacher || student), in proda/method/losses.py. One iteration is in
proda/engines/distill.py; this file attaches the handlers of the stage. Missing hard labels of the teacher are written
at the start.
GTA5 -> Cityscapes: the released code reports 56.9 mIoU (SYNTHIA: 54.6 over 16 classes).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from proda.data.label_store import threshold_problem
from proda.engines.distill import DistillOptions, distill_trainer
from proda.engines.labelling import Averaging
from proda.handlers.pseudo_labels import PseudoLabels
from proda.run.config import InitConfig, InitKind, PseudoLabelConfig, parse_scales
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.options import FractionBelowOne, LearningRate, PathText
from proda.settings.presets import CAMVID_FROM_IMAGENET, STREETS_ADAPT


@dataclass
class Config(DistillOptions, InitConfig, PseudoLabelConfig):
    # -- Network
    teacher: PathText = "runs/stage1_denoise/last.pt"  # weights of the frozen teacher, which also writes the labels
    init: InitKind = "simclr"  # initial student: simclr, imagenet, random, or weights (all of --init_file)
    bn_pretrain: bool = True  # batch norm after the backbone, for the scale of self-supervised features
    # -- Optimization
    lr: LearningRate = 6e-4  # learning rate of the student's backbone at the start of training
    # -- Pseudo labels
    pseudo_labels: PathText = ""  # folder of hard labels; missing ones are written; if empty, OUTPUT/pseudo_labels
    flip: bool = True  # pseudo labels average the predictions of the image and its mirror image
    scales: str = "1"  # scales of the image that they are averaged over, separated by commas: 0.75,1,1.25
    label_with: PathText = ""  # weights of a second network; pseudo labels average its predictions with the teacher's
    threshold: FractionBelowOne = 0.95  # pseudo labels whose confidence is not above this are ignored

    def problems(self) -> Iterator[str]:
        """One line for each value that no run can use."""
        yield from super().problems()
        if problem := threshold_problem(self.threshold):
            yield problem


RELEASED = {
    "teacher": "runs/stage1_denoise/best.pt",
    "schedule_iterations": 90_000,
    "as_released": True,
}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": RELEASED,
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
        # Batch norm stays in evaluation mode, as in the teacher: small batches of strong views have other statistics.
        "freeze_bn": True,
        "adabn": False,
        "lr": 0.005,
        "iterations": 500,
        "val_every": 250,
        "label_report_every": 5,
    },
    "camvid": {
        **CAMVID_FROM_IMAGENET,
        "init": "imagenet",
        "bn_pretrain": False,
        "threshold": 0.0,
        "scales": "0.75,1,1.25",
        "label_with": "runs/warmup/last.pt",  # on val it found more cars and people than stage 1 (docs/photographs.md)
        "iterations": 1000,
        "val_every": 1000,
        "label_report_every": 5,
    },
}


def build(config: Config, data: Data, networks: Networks) -> Stage:
    # The student starts from self-supervised weights (stage 2), or from its teacher (stage 3, and the preset streets).
    teacher = networks.frozen("teacher")
    ensemble = [networks.frozen("label_with")] if config.label_with else []
    student = networks.initial(bn_pretrain=config.bn_pretrain)

    # Data: labelled source crops; strong views of target photographs with the teacher's confident labels.
    averaging = Averaging(config.flip, parse_scales(config.scales), ensemble)
    store = data.label_store("hard", teacher, **averaging.settings())
    confident = {"threshold": config.threshold, "threshold_as_released": config.as_released}
    target = data.target_views(strong=True, pseudo_labels=store, **confident)
    batches = data.training_batches(data.source_crops(), target)

    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    trainer = distill_trainer(student_ddp, teacher, optimizer, networks.precision, config)

    # The method: hard labels of the teacher before the first iteration; the teacher does not change.
    labels = PseudoLabels(
        store, teacher, data.whole_target, networks.precision, data.classes.names, **averaging._asdict()
    )
    labels.attach(trainer)
    return Stage(trainer, student, batches, {"student": optimizer}, labels=labels)


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
