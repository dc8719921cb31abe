"""Stage 3: distil once more, from the stage-2 model into a student that starts as its copy (ProDA, arXiv:2101.10979).

    python run.py experiments/stage3_distill.py --teacher=runs/stage2_distill/last.pt
    python run.py experiments/stage3_distill.py --source=synthia

Loss and iteration are those of stage 2. The teacher is the student of stage 2, and the new student starts as its copy.
GTA5 -> Cityscapes: the released code reports 57.5 mIoU (SYNTHIA: 55.5 over 16 classes, 62.0 over 13).
"""

from dataclasses import dataclass

from experiments.stage2_distill import PRESETS as STAGE2_PRESETS
from experiments.stage2_distill import Config as Stage2Config
from experiments.stage2_distill import build, run
from proda.run.config import InitKind
from proda.settings.options import PathText

__all__ = ["PRESETS", "Config", "build", "run"]


@dataclass
class Config(Stage2Config):
    # -- Network
    teacher: PathText = "runs/stage2_distill/last.pt"  # weights of the frozen teacher, which also writes the labels
    init: InitKind = "weights"  # initial student: weights (all of --init_file), simclr, imagenet or random
    init_file: PathText = "runs/stage2_distill/last.pt"  # file for --init: the stage-2 model, as published


_FILES = {"teacher": "runs/stage2_distill/best.pt", "init_file": "runs/stage2_distill/best.pt"}
PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {**STAGE2_PRESETS["gta5_released"], **_FILES},
    "synthia_released": {**STAGE2_PRESETS["synthia_released"], **_FILES},
    "streets": {**STAGE2_PRESETS["streets"], "init_file": "runs/stage2_distill/last.pt"},
    "camvid": {
        **STAGE2_PRESETS["camvid"],
        "init": "weights",
        "init_file": "runs/stage2_distill/last.pt",
        "lr": 2e-4,
        "iterations": 200,
        "val_every": 200,
    },
}
