"""The rows and tables of ``experiments/ablation.py``, as data."""

from dataclasses import dataclass, field
from typing import Any

from proda.settings.presets import NO_TARGET_LOSS
from proda.studies.results import Difference, GapShare, ResultTable


@dataclass(frozen=True)
class Lengths:
    """The value of a flag that counts iterations, as a multiple of the run's own iterations."""

    factor: float


@dataclass(frozen=True)
class Row:
    """A run with the preset streets."""

    experiment: str
    flags: dict[str, Any] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)  # flag -> model of another row, as ROW/FILE


WARMUP = {"weights": "warmup/last.pt"}
BOTH = {"label_with": "warmup/last.pt"}  # label together with the teacher
STAGE1 = {"teacher": "structure/last.pt", **BOTH}
STAGE2 = {"teacher": "distillation/last.pt", "init_file": "distillation/last.pt", **BOTH}
# A student that does not start from its teacher needs statistics of its own.
OTHER_START = {"freeze_bn": False, "adabn": True, "lr": 0.03}

# Conventional self-training ignores pixels whose label has a lower probability.
SELF_TRAINING_THRESHOLD = 0.9
# Cross entropy on the arg-max of the warm-up model's soft labels, which stay fixed. The regulariser MRKLD is added
# together with the symmetric cross entropy.
SELF_TRAINING = {**NO_TARGET_LOSS, "ce_weight": 0.5, "threshold": SELF_TRAINING_THRESHOLD}
NO_STRUCTURE = {"structure_weight": 0.0}
RENEWED = {"renew_labels_every": 7}  # epochs between renewals of the soft labels
BY_TEACHER = {**RENEWED, "renew_labels_from": "teacher"}

ROWS = {
    # The parts of the method. From "symmetric" on, the weights of the losses are those of the preset.
    "source_only": Row("source_only"),
    "warmup": Row("warmup", {}, {"init_file": "source_only/last.pt"}),
    "control": Row("stage1_denoise", NO_TARGET_LOSS, WARMUP),
    "self_training": Row("stage1_denoise", SELF_TRAINING, WARMUP),
    "symmetric": Row("stage1_denoise", {**NO_STRUCTURE, "rectification": False}, WARMUP),
    "fixed_prototypes": Row("stage1_denoise", {**NO_STRUCTURE, "prototype_momentum": 0.0}, WARMUP),
    "moving_prototypes": Row("stage1_denoise", NO_STRUCTURE, WARMUP),
    "structure": Row("stage1_denoise", {}, WARMUP),
    "distillation": Row("stage2_distill", {}, {**STAGE1, "init_file": "structure/last.pt"}),
    "second_distillation": Row("stage3_distill", {}, STAGE2),
    "oracle": Row("source_only", {"train_on": "target"}),  # as many labelled images as source_only
    # Initial weights of the student of stage 2. With its teacher's weights it is the row "distillation".
    "pretrain": Row("pretrain"),
    "from_random": Row("stage2_distill", {**OTHER_START, "init": "random", "init_file": ""}, STAGE1),
    "from_source": Row("stage2_distill", OTHER_START, {**STAGE1, "init_file": "source_only/last.pt"}),
    "from_pretraining": Row(
        "stage2_distill",
        {**OTHER_START, "init": "simclr", "bn_pretrain": True},
        {**STAGE1, "init_file": "pretrain/last.pt"},
    ),
    # Soft labels renewed during stage 1. Without renewal it is the row "structure".
    "renewed_by_student": Row("stage1_denoise", RENEWED, WARMUP),
    "renewed_by_teacher": Row("stage1_denoise", BY_TEACHER, WARMUP),
    "renewed_with_prototypes": Row("stage1_denoise", {**BY_TEACHER, "renew_prototypes": True}, WARMUP),
}

# Parts of ProDA's successors (docs/parts.md), each over plain online self-training and over stage 1.
ADDED: dict[str, dict[str, Any]] = {
    "mixed": {"class_mix": True, "color_augmentation": True},
    "rare": {"rare_class_sampling": True},
    "distance": {"feature_distance": 0.005},
    "masked": {"masked_consistency": 1.0, "mask_block": 8},
}
ADDED["every"] = {flag: value for flags in ADDED.values() for flag, value in flags.items()}
ADDED_TITLES = {
    "mixed": "ClassMix and colours",
    "rare": "rare class sampling",
    "distance": "feature distance",
    "masked": "masked consistency",
    "every": "all four",
}
FROM_SOURCE = {"init_file": "source_only/last.pt"}
ROWS["online"] = Row("online_self_training", {}, FROM_SOURCE)
for _name, _flags in ADDED.items():
    ROWS[f"online_{_name}"] = Row("online_self_training", _flags, FROM_SOURCE)
    ROWS[f"structure_{_name}"] = Row("stage1_denoise", _flags, WARMUP)

# The quirks of the released code (docs/fidelity.md). Each is put back into the rows of the recipe that it touches, and
# these rows and all that build on them are trained again.
RECIPE = ("warmup", "structure", "distillation", "second_distillation")
STAGE_TITLES = dict(zip(RECIPE, ("warm-up", "stage 1", "stage 2", "stage 3"), strict=True))


@dataclass(frozen=True)
class Quirk:
    """What differs from the recipe."""

    title: str
    flags: dict[str, Any] = field(default_factory=dict)
    rows: tuple[str, ...] = ()  # of the recipe, to which the flags are added
    model: str = "last.pt"  # of a row of the recipe, from which the next one starts


QUIRKS = {
    "passes": Quirk("four passes for the prototypes", {"prototype_passes": 4}, ("structure",)),
    "replay": Quirk("replay of strong views", {"replay_as_released": True}, RECIPE[1:]),
    # 62,412 iterations are the 84 published epochs
    "horizon": Quirk("horizon of the schedule", {"schedule_iterations": Lengths(90_000 / 62_412)}, RECIPE),
    "repeats": Quirk(
        "repeated parameters", {"repeat_backbone_parameters": True}, ("warmup", "distillation", "second_distillation")
    ),
    "threshold": Quirk("threshold in float16", {"threshold_as_released": True}, RECIPE[2:]),
    "divergence": Quirk("distillation term", {"distillation_as_released": True}, RECIPE[2:]),
    "best": Quirk("best model passed on", model="best.pt"),
    "mrkld": Quirk("no MRKLD (SYNTHIA only)", {"mrkld_weight": 0.0}, ("structure",)),
}
EVERY_QUIRK = [quirk for name, quirk in QUIRKS.items() if name != "mrkld"]  # of the released code for GTA5


def _intended(name: str, row: str) -> str:
    """The row of the recipe that a row with a quirk takes the place of."""
    return row.removeprefix(f"quirk_{name}_")


def rows_with(name: str, quirks: list[Quirk]) -> dict[str, Row]:
    """The rows of the recipe that differ with these quirks, each under the name ``quirk_NAME_ROW``."""
    found: dict[str, Row] = {}
    model = next((quirk.model for quirk in quirks if quirk.model != "last.pt"), "last.pt")
    for intended in RECIPE:
        row, start = ROWS[intended], dict(ROWS[intended].start)
        flags = {key: value for quirk in quirks if intended in quirk.rows for key, value in quirk.flags.items()}
        for flag, place in start.items():
            before = place.split("/")[0]
            if before in RECIPE:
                changed = f"quirk_{name}_{before}"
                start[flag] = f"{changed if changed in found else before}/{model}"
        if flags or start != row.start:
            found[f"quirk_{name}_{intended}"] = Row(row.experiment, {**row.flags, **flags}, start)
    return found


QUIRK_ROWS = {name: rows_with(name, [quirk]) for name, quirk in QUIRKS.items()}
QUIRK_ROWS["all"] = rows_with("all", EVERY_QUIRK)
for _rows in QUIRK_ROWS.values():
    ROWS |= _rows

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
INIT = ResultTable(
    {
        "structure": "teacher: the model of stage 1",
        "distillation": "weights of its teacher",
        "from_random": "random weights",
        "from_source": "weights of source only",
        "from_pretraining": "self-supervised weights",
    },
    (
        Difference("distillation", "structure"),
        Difference("from_random", "distillation"),
        Difference("from_source", "distillation"),
        Difference("from_pretraining", "distillation"),
        Difference("from_pretraining", "from_random"),
        Difference("from_pretraining", "from_source"),
    ),
)
RENEWAL = ResultTable(
    {
        "structure": "labels of the warm-up",
        "renewed_by_student": "renewed by the student",
        "renewed_by_teacher": "renewed by the EMA teacher",
        "renewed_with_prototypes": "renewed by the EMA teacher, with prototypes",
    },
    (
        Difference("renewed_by_student", "structure"),
        Difference("renewed_by_teacher", "structure"),
        Difference("renewed_with_prototypes", "structure"),
        Difference("renewed_by_teacher", "renewed_by_student"),
    ),
)
QUIRKS_TABLE = ResultTable(
    STAGE_TITLES
    | {
        row: f"{QUIRKS[name].title if name in QUIRKS else 'all of them (GTA5)'}: {STAGE_TITLES[_intended(name, row)]}"
        for name, rows in QUIRK_ROWS.items()
        for row in rows
    },
    tuple(Difference(row, _intended(name, row)) for name, rows in QUIRK_ROWS.items() for row in rows),
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

# Value of --table, and name of the files of results -> table.
TABLES = {
    "parts": PARTS,
    "init": INIT,
    "renewal": RENEWAL,
    "quirks": QUIRKS_TABLE,
    "successors": SUCCESSORS,
    "quickstart": QUICKSTART,
}
FILES = {"parts": "ablation", "init": "pretraining"}  # other files have the name of their table
