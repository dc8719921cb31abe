"""Ablation: what each part of the method contributes on Streets, as in the paper's table. Takes an hour on a CPU.

    python run.py experiments/ablation.py                      # 3 seeds
    python run.py experiments/ablation.py --seeds=1 --scale=0.5

Each row adds one part to the row before it. OUTPUT/ablation.md and OUTPUT/summary.json are updated after every run.
The same command again continues where an earlier one stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist

from proda.experiment.config import DataConfig
from proda.experiment.domains import data_root
from proda.experiment.launch import load_experiment
from proda.experiment.recipes import STREETS_DATA
from proda.experiment.tables import compare, comparison_page
from proda.experiment.up_to_date import run_if_outdated
from proda.utils.errors import UserError
from proda.utils.files import save_json
from proda.utils.options import PositiveFloat, PositiveInt

# Conventional self-training: cross entropy on the arg-max of the warm-up model's soft labels, which stay fixed. The
# regulariser MRKLD is added together with the symmetric cross entropy.
CONVENTIONAL = {
    "rectification": False,
    "structure_weight": 0.0,
    "ce_weight": 1.0,
    "rce_weight": 0.0,
    "mrkld_weight": 0.0,
}
NO_TARGET_LOSS = {**CONVENTIONAL, "ce_weight": 0.0}  # what longer training on the source alone contributes
SYMMETRIC = {"rectification": False, "structure_weight": 0.0}  # from here on, the loss weights of the preset
FIXED = {"prototype_momentum": 0.0, "structure_weight": 0.0}
MOVING = {"structure_weight": 0.0}
# Row -> title, experiment, flags, and flags that take the last model of an earlier row.
ROWS = {
    "source_only": ("source only", "source_only", {}, {}),
    "warmup": ("warm-up", "warmup", {}, {"init_file": "source_only"}),
    "no_target_loss": ("control: no target loss", "stage1_denoise", NO_TARGET_LOSS, {"weights": "warmup"}),
    "self_training": ("conventional self-training", "stage1_denoise", CONVENTIONAL, {"weights": "warmup"}),
    "symmetric": ("+ symmetric cross entropy", "stage1_denoise", SYMMETRIC, {"weights": "warmup"}),
    "fixed_prototypes": ("+ denoising, fixed prototypes", "stage1_denoise", FIXED, {"weights": "warmup"}),
    "moving_prototypes": ("+ moving prototypes", "stage1_denoise", MOVING, {"weights": "warmup"}),
    "structure": ("+ structure learning", "stage1_denoise", {}, {"weights": "warmup"}),
    "distillation": ("+ distillation", "stage2_distill", {}, {"teacher": "structure", "init_file": "structure"}),
    "second_distillation": (
        "+ second distillation",
        "stage3_distill",
        {},
        {"teacher": "distillation", "init_file": "distillation"},
    ),
}
CONTROL = "no_target_loss"  # not a row of the paper; gains are computed without it
PASSED_ON = ("source", "num_classes", "backbone", "device", "num_workers", "val_batch_size", "amp")
NOTE = (
    "The mIoU is that of the last model on the target's validation images, in %: mean and standard deviation over the "
    "seeds. Conventional self-training uses plain cross entropy on fixed pseudo labels. It does not use MRKLD, which "
    "is added together with the symmetric cross entropy. The control is not a row of the paper, and gains are computed "
    "without it. It is stage 1 with all target losses set to zero, so it shows what longer training on the source "
    "alone contributes. (Batch norm has had its statistics of the target since the warm-up.)"
)


@dataclass
class Config(DataConfig):
    preset: str = "streets"  # the only preset: Streets, with schedules for it
    seeds: PositiveInt = 3  # number of runs of every row, with the seeds --seed, --seed + 1, ...
    scale: PositiveFloat = 1.0  # factor for the number of iterations of every run
    overwrite: bool = False  # replace runs in the output folder that used other settings


PRESETS = {"streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("the ablation runs in one process only; single stages accept --nproc_per_node")
    folder, root = Path(config.output), data_root(config)
    runs: dict[str, list[dict]] = {row: [] for row in ROWS}
    titles = {row: title for row, (title, *_) in ROWS.items()}
    for seed in range(config.seed, config.seed + config.seeds):
        for number, (row, (title, experiment, flags, before)) in enumerate(ROWS.items(), 1):
            print(f"\n[seed {seed}, {number}/{len(ROWS)}] {title}", flush=True)
            place = folder / f"seed_{seed}"
            flags = {
                "preset": "streets",
                "data_root": str(root),
                "output": str(place / row),
                "seed": seed,
                **{name: getattr(config, name) for name in PASSED_ON},
                **{flag: str(place / earlier / "last.pt") for flag, earlier in before.items()},
                **flags,
            }
            if config.scale != 1.0:
                flags |= shortened(experiment, config.scale)
            runs[row].append(run_if_outdated(f"experiments/{experiment}.py", flags, overwrite=config.overwrite))
            summary = compare(runs, control=CONTROL)
            save_json(
                {"seed": config.seed, "seeds": config.seeds, "scale": config.scale, **summary}, folder / "summary.json"
            )
            page = comparison_page(summary, titles, control=CONTROL, note=NOTE)
            (folder / "ablation.md").write_text(page)
    print(f"\n{page}\n{folder / 'ablation.md'}")
    return summary


def shortened(experiment: str, factor: float) -> dict[str, int]:
    """Flags that scale the length of an experiment's streets preset and the interval between its validations."""
    preset = load_experiment(f"experiments/{experiment}.py").PRESETS["streets"]
    return {name: max(1, round(preset[name] * factor)) for name in ("iterations", "val_every")}
