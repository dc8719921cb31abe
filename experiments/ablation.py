"""What each part of the method gives, in the form of the paper's table, on Streets: an hour on a CPU.

    python run.py experiments/ablation.py                      # 3 seeds
    python run.py experiments/ablation.py --seeds=1 --scale=0.5

Each row adds one part to the row before it. OUTPUT/ablation.md and OUTPUT/summary.json are written anew after every
run. The same command again goes on where an earlier one stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist

from proda.experiment import domains
from proda.experiment.config import STREETS_DATA, DataConfig, pick
from proda.experiment.launch import load_experiment
from proda.experiment.tables import compare, comparison_page
from proda.experiment.up_to_date import run_if_outdated
from proda.utils.files import save_json

# Conventional self-training: cross entropy on the soft labels' arg-max, which stays what the warm-up model says. The
# regularizer MRKLD belongs to the symmetric loss and comes with it.
CONVENTIONAL = {
    "rectification": False,
    "consistency_weight": 0.0,
    "ce_weight": 1.0,
    "rce_weight": 0.0,
    "regularizer_weight": 0.0,
}
NO_TARGET_LOSS = {**CONVENTIONAL, "ce_weight": 0.0}  # what the other rows of stage 1 would gain without pseudo labels
SYMMETRIC = {"rectification": False, "consistency_weight": 0.0}  # the preset's weights of the loss from here on
FIXED = {"prototype_momentum": 0.0, "consistency_weight": 0.0}
MOVING = {"consistency_weight": 0.0}
# Row: title, experiment, flags, and the rows whose last models it takes.
ROWS = {
    "source_only": ("source only", "source_only", {}, {}),
    "warmup": ("warm-up", "warmup", {}, {"init_file": "source_only"}),
    "no_target_loss": ("control: no target loss", "stage1_denoise", NO_TARGET_LOSS, {"weights": "warmup"}),
    "self_training": ("conventional self-training", "stage1_denoise", CONVENTIONAL, {"weights": "warmup"}),
    "symmetric": ("+ symmetric cross entropy", "stage1_denoise", SYMMETRIC, {"weights": "warmup"}),
    "fixed_prototypes": ("+ denoising, fixed prototypes", "stage1_denoise", FIXED, {"weights": "warmup"}),
    "moving_prototypes": ("+ moving prototypes", "stage1_denoise", MOVING, {"weights": "warmup"}),
    "structure": ("+ structure learning", "stage1_denoise", {}, {"weights": "warmup"}),
    "distillation": ("+ distillation", "stage2_distill", {}, {"weights": "structure", "init_file": "structure"}),
    "second_distillation": (
        "+ second distillation",
        "stage3_distill",
        {},
        {"weights": "distillation", "init_file": "distillation"},
    ),
}
CONTROL = "no_target_loss"  # no row of the paper: no row is compared with it
PASSED_ON = ("source", "num_classes", "backbone", "device", "num_workers", "val_batch_size", "amp")
NOTE = (
    "mIoU in % of the last model on the target's validation images: mean over the seeds and standard deviation. "
    "Conventional self-training is plain cross entropy on fixed labels, without MRKLD, which comes with the symmetric "
    "cross entropy. The control is no row of the paper and the others' gains pass over it: stage 1 with all target "
    "losses at zero, so what more training on the source gives by itself. (Batch norm's statistics of the target came "
    "with the warm-up.)"
)


@dataclass
class Config(DataConfig):
    preset: str = "streets"  # the only one: Streets and the schedules that go with it
    seeds: int = 3  # every row is run with the seeds 0 to this one, exclusive; --seed is added to them
    scale: float = 1.0  # multiplies the number of iterations of every run
    overwrite: bool = False  # do runs of other settings in the output folder anew


PRESETS = {"streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise ValueError("the ablation runs in one process; the stages themselves take --nproc_per_node")
    if config.seeds < 1:
        raise ValueError(f"--seeds={config.seeds}: must be above 0")
    folder, root = Path(config.output), domains.data_root(config)
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
                **pick(config, *PASSED_ON),
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
    """Flags that multiply the length of an experiment's streets preset, and the pace of its validations."""
    preset = load_experiment(f"experiments/{experiment}.py").PRESETS["streets"]
    return {name: max(1, round(preset[name] * factor)) for name in ("iterations", "val_every")}
