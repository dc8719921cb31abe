"""Values that presets of several experiments share."""

from typing import Any

# Presets of commands that do not train: only the source domain differs.
EVALUATION_PRESETS = {
    "gta5": {"source": "gta5"},
    "synthia": {"source": "synthia"},
    "gta5_released": {"source": "gta5", "as_released": True},
    "synthia_released": {"source": "synthia", "as_released": True},
}
# Images of the built-in data set Streets have an eighth of the width and height of Cityscapes. So do the views.
STREETS_DATA = {
    "data_root": "data/streets",
    "num_classes": 13,
    "backbone": "tiny",
    "num_workers": 0,
    "val_batch_size": 10,
}
STREETS_VIEWS = {"mean_width": 275, "crop_width": 112, "crop_height": 64, "log_every": 10}
STREETS = {
    **STREETS_DATA,
    **STREETS_VIEWS,
    "dropout": 0.0,  # 32 feature channels are too few for dropout
    "head_lr_factor": 1.0,  # the backbone is trained from scratch like the head
}
# Batch norm of a network trained from scratch has statistics of both domains mixed, which fit neither domain.
STREETS_ADAPT = {**STREETS, "adabn": True}
# CamVid photographs are read at 384 x 288 pixels, for two CPU cores. The sides of these and of crops are multiples
# of 32, to which encoders fill images up. The network starts from ImageNet weights.
CAMVID_DATA = {
    "source": "scenes",
    "target": "camvid",
    "backbone": "timm:tf_efficientnet_lite0",
    "head": "light",
    "num_workers": 0,
    "val_batch_size": 8,
}
CAMVID = {
    **CAMVID_DATA,
    "mean_width": 384,
    "width_jitter": 0.25,
    "crop_width": 256,
    "crop_height": 192,
    "freeze_bn": True,  # four small crops are too few for statistics of their own
    "head_lr_factor": 1.0,
    "lr": 0.01,
    "log_every": 10,
}
# From ImageNet weights AdamW learns faster than SGD: stage 2 had 43.2 instead of 35.5 % mIoU after 300 iterations.
CAMVID_FROM_IMAGENET = {**CAMVID, "optimizer": "adamw", "lr": 4e-4, "head_lr_factor": 5.0, "weight_decay": 0.01}
# On the photographs the network learns longer than on the scenes: 60.0 % mIoU on val after 1,000 iterations, 63.2 after
# 2,000.
CAMVID_ORACLE = {"train_on": "target", "iterations": 2000, "val_every": 2000}
# Presets in which a pipeline trains source-only, control and oracle as well, and whose lengths can be scaled.
DEMONSTRATIONS = ("streets", "camvid")
# Stage 1 without any loss on the target: its control, which shows what longer training on the source contributes.
NO_TARGET_LOSS = {
    "rectification": False,
    "structure_weight": 0.0,
    "ce_weight": 0.0,
    "rce_weight": 0.0,
    "mrkld_weight": 0.0,
}


def scaled(preset: dict[str, Any], factor: float) -> dict[str, int]:
    """The numbers of iterations of a preset for demonstration, times ``factor``."""
    return {name: max(1, round(factor * preset[name])) for name in ("iterations", "val_every")}
