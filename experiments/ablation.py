"""What each part of the method gives, in the form of the paper's table, on Streets: hours on a CPU.

    python run.py experiments/ablation.py                      # 3 seeds
    python run.py experiments/ablation.py --seeds=1 --scale=0.5

Each row adds one part to the row before it. OUTPUT/ablation.md and OUTPUT/summary.json are written anew after every
run. The same command again goes on where an earlier one stopped.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import ignite.distributed as idist

from proda import domains
from proda.config import STREETS_DATA, DataConfig
from proda.files import save_json
from proda.launch import load_experiment
from proda.steps import complete
from proda.tables import markdown_table

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
    "losses at zero, so what more training on the source and batch norm's statistics of the target give by themselves."
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
    summary = {}
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
            runs[row].append(complete(f"experiments/{experiment}.py", flags, overwrite=config.overwrite))
            summary = results(runs)
            save_json(
                {"seed": config.seed, "seeds": config.seeds, "scale": config.scale, **summary}, folder / "summary.json"
            )
            (folder / "ablation.md").write_text(page(summary))
    print("\n" + page(summary) + f"\n{folder / 'ablation.md'}")
    return summary


def shortened(experiment: str, factor: float) -> dict[str, int]:
    """Flags that multiply the length of an experiment's streets preset, and the pace of its validations."""
    preset = load_experiment(f"experiments/{experiment}.py").PRESETS["streets"]
    return {name: max(1, round(preset[name] * factor)) for name in ("iterations", "val_every")}


def results(runs: dict[str, list[dict]]) -> dict:
    """Scores of the rows run so far, and the steps at which they fall where the paper's rise."""
    rows = {}
    for row, summaries in runs.items():
        if summaries:
            scores = [summary["miou"] for summary in summaries]
            deviation = stdev(scores) if len(scores) > 1 else None
            rows[row] = {"miou": mean(scores), "deviation": deviation, "each": scores, "iou": mean_iou(summaries)}
    falls = []
    order = [row for row in rows if row != CONTROL]
    for before, row in pairwise(order):
        pairs = list(zip(rows[before]["each"], rows[row]["each"], strict=False))  # a seed is compared with itself
        change = mean(new - old for old, new in pairs)
        if change <= 0:
            rising = sum(new > old for old, new in pairs)
            falls.append({"row": row, "before": before, "change": change, "rising": rising, "seeds": len(pairs)})
    return {"rows": rows, "other_order_than_paper": falls}


def mean_iou(summaries: list[dict]) -> dict[str, float]:
    """By class, over the runs in which it has a score."""
    found = {name: [s["iou"][name] for s in summaries if s["iou"][name] is not None] for name in summaries[0]["iou"]}
    return {name: mean(values) for name, values in found.items() if values}


def page(summary: dict) -> str:
    """The table as Markdown, with where its order is not the paper's."""
    lines, before = [], None
    for row, result in summary["rows"].items():
        value, deviation = 100 * result["miou"], result["deviation"]
        gain = "" if before is None else f"{value - before:+.1f}"
        spread = "" if deviation is None else f"{100 * deviation:.1f}"
        lines.append([ROWS[row][0], f"{value:.1f}", spread, gain, " ".join(f"{100 * s:.1f}" for s in result["each"])])
        before = before if row == CONTROL else value
    text = markdown_table(["", "mIoU", "deviation", "gain", "each seed"], lines) + f"\n\n{NOTE}\n"
    if not summary["other_order_than_paper"]:
        return text + "\nThe rows rise in the paper's order.\n"
    text += "\nIn the paper every row is above the one before it. Here not:\n\n"
    for fall in summary["other_order_than_paper"]:
        row, earlier = ROWS[fall["row"]][0], ROWS[fall["before"]][0]
        text += f"* {row}: {100 * fall['change']:+.1f} against {earlier}, above it in {fall['rising']} of "
        text += f"{fall['seeds']} seeds\n"
    return text
