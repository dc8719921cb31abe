"""The rows and tables of ``experiments/ablation.py``, as data."""

from dataclasses import dataclass, field
from typing import Any

from proda.settings.presets import CAMVID_ORACLE, NO_TARGET_LOSS
from proda.studies.results import Difference, GapShare, ResultTable


@dataclass(frozen=True)
class Row:
    """A run with the preset of the ablation, streets or camvid."""

    experiment: str
    flags: dict[str, Any] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)  # flag -> model of another row, as ROW/FILE


WARMUP = {"weights": "warmup/last.pt"}
# All rows of stage 1 have the same soft labels and the same prototypes at the start, so one of them writes them.
SHARED = {**WARMUP, "pseudo_labels": "control/pseudo_labels", "prototypes": "control/prototypes.pt"}
BOTH = {"label_with": "warmup/last.pt"}  # label together with the teacher
STAGE1 = {"teacher": "structure/last.pt", **BOTH}
STAGE2 = {"teacher": "distillation/last.pt", "init_file": "distillation/last.pt", **BOTH}

# Conventional self-training ignores pixels whose label has a lower probability.
SELF_TRAINING_THRESHOLD = 0.9
# Cross entropy on the arg-max of the warm-up model's soft labels, which stay fixed. The regulariser MRKLD is added
# together with the symmetric cross entropy.
SELF_TRAINING = {**NO_TARGET_LOSS, "ce_weight": 0.5, "threshold": SELF_TRAINING_THRESHOLD}
NO_STRUCTURE = {"structure_weight": 0.0}

ROWS = {
    # The parts of the method. From "symmetric" on, the weights of the losses are those of the preset.
    "source_only": Row("source_only"),
    "warmup": Row("warmup", {}, {"init_file": "source_only/last.pt"}),
    "control": Row("stage1_denoise", NO_TARGET_LOSS, WARMUP),
    "self_training": Row("stage1_denoise", SELF_TRAINING, SHARED),
    "symmetric": Row("stage1_denoise", {**NO_STRUCTURE, "rectification": False}, SHARED),
    "fixed_prototypes": Row("stage1_denoise", {**NO_STRUCTURE, "prototype_momentum": 0.0}, SHARED),
    "moving_prototypes": Row("stage1_denoise", NO_STRUCTURE, SHARED),
    "structure": Row("stage1_denoise", {}, SHARED),
    "distillation": Row("stage2_distill", {}, {**STAGE1, "init_file": "structure/last.pt"}),
    "second_distillation": Row("stage3_distill", {}, STAGE2),
    "oracle": Row("source_only", {"train_on": "target"}),  # as many labelled images as source_only
}

# Parts of ProDA's successors (docs/successors.md), each over plain online self-training and over stage 1.
ADDED: dict[str, dict[str, Any]] = {
    "mixed": {"class_mix": True, "color_augmentation": True},
    "rare": {"rare_class_sampling": True},
    "distance": {"feature_distance": 0.005},
    "masked": {"masked_consistency": 1.0},
}
ADDED["every"] = {flag: value for flags in ADDED.values() for flag, value in flags.items()}
ADDED_TITLES = {
    "mixed": "ClassMix and colors",
    "rare": "rare class sampling",
    "distance": "feature distance",
    "masked": "masked consistency",
    "every": "all four",
}
FROM_SOURCE = {"init_file": "source_only/last.pt"}
ROWS["online"] = Row("online_self_training", {}, FROM_SOURCE)
for _name, _flags in ADDED.items():
    ROWS[f"online_{_name}"] = Row("online_self_training", _flags, FROM_SOURCE)
    ROWS[f"structure_{_name}"] = Row("stage1_denoise", _flags, SHARED)

PARTS = ResultTable(
    {
        "source_only": "source only",
        "warmup": "warm-up",
        "control": "control: no target loss",
        "self_training": "conventional self-training",
        "symmetric": "symmetric cross entropy",
        "fixed_prototypes": "denoising, fixed prototypes",
        "moving_prototypes": "denoising, moving prototypes",
        "structure": "structure learning",
        "distillation": "distillation",
        "second_distillation": "second distillation",
        "oracle": "oracle",
    },
    (
        Difference("control", "warmup", "within", 1),
        Difference("self_training", "control", "above", 0),
        Difference("symmetric", "self_training"),
        Difference("fixed_prototypes", "self_training"),
        Difference("moving_prototypes", "self_training", "at least", 2, interval_above_zero=True),
        Difference("moving_prototypes", "control", "at least", 4, interval_above_zero=True),
        Difference("moving_prototypes", "fixed_prototypes", "at least", 0),
        Difference("structure", "moving_prototypes", "above", 0),
        Difference("distillation", "structure", "above", 0),
        Difference("second_distillation", "distillation", "above", 0),
        Difference("oracle", "warmup", "at least", 15),
    ),
    (
        GapShare("second_distillation", "source_only", "oracle", at_least=1 / 2),
        GapShare("second_distillation", "warmup", "oracle", at_least=1 / 3),
    ),
)
QUICKSTART = ResultTable(
    {
        "source_only": "source only",
        "warmup": "warm-up",
        "control": "control: stage 1 without target loss",
        "structure": "stage 1: denoised pseudo labels",
        "distillation": "stage 2: distillation",
        "second_distillation": "stage 3: second distillation",
        "oracle": "oracle, trained on target labels",
    },
    (
        Difference("warmup", "source_only"),
        Difference("control", "warmup"),
        Difference("structure", "warmup"),
        Difference("structure", "control", "above", 0),
        Difference("distillation", "structure"),
        Difference("second_distillation", "distillation"),
        Difference("oracle", "source_only"),
    ),
)
SUCCESSORS = ResultTable(
    {"source_only": "source only", "online": "online self-training"}
    | {f"online_{name}": f"online: {title}" for name, title in ADDED_TITLES.items()}
    | {"structure": "stage 1"}
    | {f"structure_{name}": f"stage 1: {title}" for name, title in ADDED_TITLES.items()},
    (
        Difference("online", "source_only"),
        *(Difference(f"online_{name}", "online") for name in ADDED),
        Difference("structure", "source_only"),
        *(Difference(f"structure_{name}", "structure") for name in ADDED),
        Difference("online_every", "structure"),
        Difference("structure_every", "online_every"),
    ),
)

# On photographs the student of the first distillation starts from ImageNet weights, and the oracle trains longer.
PHOTOGRAPHS_ROWS = ROWS | {
    "distillation": Row("stage2_distill", {}, STAGE1),
    "oracle": Row("source_only", CAMVID_ORACLE),
}
PHOTOGRAPHS = ResultTable(
    PARTS.rows,
    (
        Difference("warmup", "source_only"),
        Difference("control", "warmup"),
        Difference("self_training", "control"),
        Difference("symmetric", "self_training"),
        Difference("fixed_prototypes", "self_training"),
        Difference("moving_prototypes", "self_training", "at least", 2, interval_above_zero=True),
        Difference("moving_prototypes", "control", "at least", 2, interval_above_zero=True),
        Difference("moving_prototypes", "fixed_prototypes"),
        Difference("structure", "moving_prototypes", "above", 0),
        Difference("distillation", "structure", "above", 0),
        Difference("second_distillation", "distillation", "above", 0),
        Difference("second_distillation", "source_only"),
        Difference("oracle", "source_only"),
    ),
    (GapShare("second_distillation", "source_only", "oracle", at_least=0.4),),
)
# Without stage 1, which is in the table of the photographs. The only other run that these rows need is source-only.
PHOTOGRAPHS_ONLINE = ResultTable(
    {row: title for row, title in SUCCESSORS.rows.items() if not row.startswith("structure")},
    (
        Difference("online", "source_only"),
        *(Difference(f"online_{name}", "online") for name in ADDED),
        Difference("online_every", "source_only"),
    ),
)

# Value of --table, and name of the files of results -> table.
TABLES = {
    "parts": PARTS,
    "successors": SUCCESSORS,
    "quickstart": QUICKSTART,
    "photographs": PHOTOGRAPHS,
    "photographs_online": PHOTOGRAPHS_ONLINE,
}
ROWS_OF = {"streets": ROWS, "camvid": PHOTOGRAPHS_ROWS}  # by preset
FILES = {"parts": "ablation"}  # other files have the name of their table
