"""The options of the trainers. A stage's ``Config`` inherits those of its trainer.

They are apart from the trainers because ``--help`` needs them and PyTorch takes seconds to import: this module imports
nothing that imports it.
"""

from dataclasses import dataclass
from typing import Literal

from proda.settings.options import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    PositiveInt,
    Temperature,
)


@dataclass
class StudentOptions(Options):
    """Options of the student, common to all trainers."""

    # -- Network
    sync_bn: bool = True  # batch statistics over all processes (GPU only)
    freeze_bn: bool = False  # keep the initial statistics, scales and shifts of batch norm
    # -- Machine
    accumulate: PositiveInt = 1  # each process's batch goes through the networks in this many parts, to save memory


@dataclass
class AdversarialOptions(StudentOptions):
    """Options of the warm-up's trainer. The defaults are the published values."""

    # -- Network
    freeze_bn: bool = True  # keep the initial statistics, scales and shifts of the student's batch norm
    # -- Method
    adversarial_weight: NonNegativeFloat = 0.01  # weight of the adversarial loss next to the source cross entropy
    gan: Literal["lsgan", "vanilla"] = "lsgan"  # the adversarial loss: least squares, or binary cross entropy


@dataclass
class DenoiseOptions(StudentOptions):
    """Options of stage 1's trainer. The defaults are the published values."""

    # -- Method
    rectification: bool = True  # weight the soft labels by the prototypes; False: conventional self-training
    temperature: Temperature = 1.0  # multiplies the distances to the prototypes
    threshold: FractionBelowOne = 0.0  # rectified labels with a lower probability are ignored
    ce_weight: NonNegativeFloat = 0.1  # weight of the cross entropy on the rectified labels
    rce_weight: NonNegativeFloat = 1.0  # weight of the reverse cross entropy on the rectified labels
    mrkld_weight: NonNegativeFloat = 0.1  # weight of the regulariser MRKLD: KL divergence from the uniform distribution
    structure_weight: NonNegativeFloat = 10.0  # weight of structure learning: consistency of weak and strong view
    teacher_mode: Literal["train", "eval"] = "train"  # train: batch statistics and dropout, as published; eval: neither
    joint_views: bool = False  # weak and strong view in one pass of the student; its batch statistics mix the two
    replay_as_released: bool = False  # warp maps to the strong view with the released code's order and offsets

    @property
    def needs_teacher(self) -> bool:
        """Whether rectification or structure learning is on; without both the teacher does not run."""
        return self.rectification or self.structure_weight > 0


@dataclass
class DistillOptions(StudentOptions):
    """Options of the trainer of stages 2 and 3. The defaults are the published values."""

    # -- Method
    distillation_weight: NonNegativeFloat = 1.0  # weight of the KL divergence from the teacher's output
    distillation_as_released: bool = False  # pass probabilities where log-probabilities belong
    replay_as_released: bool = False  # warp maps to the strong view with the released code's order and offsets


@dataclass
class OnlineOptions(StudentOptions):
    """Options of the trainer of online self-training."""

    # -- Method
    confidence: Fraction = 0.968  # a pixel is sure from this probability on; the share of sure pixels weights an image
    target_weight: NonNegativeFloat = 1.0  # weight of the cross entropy on the pseudo labels
    ignore_top: NonNegativeInt = 0  # rows at the top of target crops whose pseudo labels have no weight
    ignore_bottom: NonNegativeInt = 0  # rows at the bottom of target crops whose pseudo labels have no weight
    teacher_mode: Literal["train", "eval"] = "train"  # train: batch statistics, as published; never with dropout


@dataclass
class ContrastiveOptions(StudentOptions):
    """Options of the trainer of pretraining. The defaults are DenseCL's."""

    # -- Method
    temperature: Temperature = 0.2  # temperature of the contrastive losses
    region_weight: Fraction = 0.5  # weight of the regions' loss, the images' has the rest; 0: SimCLR alone
