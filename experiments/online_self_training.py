"""Online self-training with a mean teacher, and the parts that DAFormer and MIC add to it.

    python run.py experiments/online_self_training.py --preset=mic
    python run.py experiments/online_self_training.py --preset=daformer --source=synthia

Loss: CE(source) + q CE(the teacher's labels), where q is the share of pixels of which the teacher is confident. One
iteration is in proda/engines/online.py; this file attaches the handlers of the stage. Its model can be the --teacher of
stage 2.

Published, GTA5 -> Cityscapes (SYNTHIA, 16 classes), in mIoU: dacs (arXiv:2007.08702) 52.1 (48.3); daformer
(arXiv:2111.14887) 68.3 (60.9); mic (arXiv:2212.01322) 75.9 (67.3) with HRDA's two resolutions, which are not offered.
The last two had the backbone MiT-B5, whose weights are not free for commercial use. The presets have ConvNeXt instead;
nobody has measured them at full size.
"""

from dataclasses import dataclass

from proda.engines.online import OnlineOptions, online_trainer
from proda.run.config import InitConfig, MeanTeacherConfig
from proda.run.data import Data
from proda.run.fit import fit
from proda.run.networks import Networks, make_optimizer, parallel
from proda.run.stage import Stage
from proda.settings.options import Scale
from proda.settings.presets import CAMVID, STREETS_ADAPT
from proda.utils.errors import UserError


@dataclass
class Config(OnlineOptions, InitConfig, MeanTeacherConfig):
    # -- Data
    val_scale: Scale = 1.0  # factor by which validation images are resized


# All images are resized to one size, photographs to half of it: a crop of 512 x 512 pixels has their height.
VIEWS = {
    "batch_size": 2,
    "mean_width": 1024,
    "source_width": 1280,
    "width_jitter": 0.0,
    "crop_width": 512,
    "crop_height": 512,
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
        "validate_teacher": True,
        "label_report_every": 5,
    },
    "camvid": {
        **CAMVID,
        "init": "weights",
        "init_file": "runs/source_only/last.pt",
        "iterations": 250,
        "val_every": 250,
        "teacher_momentum": 0.01,
        "label_report_every": 5,
    },
}


def build(config: Config, data: Data, networks: Networks) -> Stage:
    if config.ignore_top + config.ignore_bottom >= config.crop_height:
        raise UserError(
            f"--ignore_top={config.ignore_top} and --ignore_bottom={config.ignore_bottom}: nothing is left of crops of "
            f"{config.crop_height} rows"
        )
    batches = data.training_batches(data.source_crops(), data.target_views())

    # The mean teacher starts as a copy of the student.
    student = networks.initial()
    optimizer, student_ddp = make_optimizer(config, student), parallel(config, student)
    teacher = networks.mean_teacher(student, config.teacher_momentum, start_as_mean=True)
    trainer = online_trainer(student_ddp, teacher.ema_model, optimizer, networks.precision, config)
    teacher.attach(trainer)
    return Stage(trainer, student, batches, {"student": optimizer}, teacher=teacher, val_scale=config.val_scale)


def run(local_rank: int, config: Config) -> dict:
    return fit(config, build)
