"""Every stage on Streets, the embedded data: minutes on a CPU, nothing to download.

    python run.py experiments/quickstart.py
    python run.py experiments/quickstart.py --source=synthia --seed=1

Draws the two domains, trains source-only, warm-up, stages 1 to 3 and the target-supervised oracle with the same
experiment files as the real benchmarks, and ends with a table and OUTPUT/panel.png.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch

from proda import experiment as ex
from proda.config import STREETS_DATA, DataConfig
from proda.data.panels import grid, image_picture, label_picture
from proda.engines.evaluate import predict
from proda.engines.update import images
from proda.files import save_json
from proda.launch import start
from proda.tables import stage_table

# Stage, its experiment file, and what it takes from the stages before; the oracle comes last as a yardstick.
STAGES = {
    "source_only": ("source_only", {}),
    "warmup": ("warmup", {"init_file": "source_only"}),
    "stage1_denoise": ("stage1_denoise", {"weights": "warmup"}),
    "stage2_distill": ("stage2_distill", {"weights": "stage1_denoise", "init_file": "stage1_denoise"}),
    "stage3_distill": ("stage3_distill", {"weights": "stage2_distill", "init_file": "stage2_distill"}),
    "oracle": ("source_only", {}),
}
PASSED_ON = ("source", "num_classes", "backbone", "seed", "device", "num_workers", "val_batch_size", "amp")


@dataclass
class Config(DataConfig):
    preset: str = "streets"  # the only one: Streets and the schedules that go with it
    scale: float = 1.0  # multiplies the number of iterations of every stage
    panel_images: int = 4  # rows of panel.png


PRESETS = {"streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise ValueError("quickstart runs in one process; the stages themselves take --nproc_per_node")
    folder, began = Path(config.output), time.time()
    root = ex.data_root(config)
    with idist.one_rank_first():
        if idist.get_rank() == 0:
            clear(folder)
    stages = {}
    for number, (stage, (experiment, inputs)) in enumerate(STAGES.items(), 1):
        print(f"\n[{number}/{len(STAGES)}] {stage}", flush=True)
        flags = {
            "preset": "streets",
            "data_root": str(root),
            "output": str(folder / stage),
            **{name: getattr(config, name) for name in PASSED_ON},
            **{flag: str(folder / before / "last.pt") for flag, before in inputs.items()},
        }
        if stage == "oracle":
            flags["train_on"] = "target"
        if config.scale != 1.0:
            flags |= ex.shortened(f"experiments/{experiment}.py", config.scale)
        stages[stage] = start(f"experiments/{experiment}.py", flags)
    summary = {"stages": stages, "seed": config.seed, "seconds": round(time.time() - began, 1)}
    save_json(summary, folder / "summary.json")
    draw_panel(config, folder)
    print("\n" + stage_table(stages))
    print(f"\n{folder / 'panel.png'}   {folder / 'summary.json'}   tensorboard --logdir {folder}")
    return summary


def clear(folder: Path) -> None:
    """Deletes what an earlier quickstart left in this folder, and nothing else.

    Raises:
        ValueError: a stage's folder there holds a run on real data; nothing is deleted then.
    """
    for stage in STAGES:
        file = folder / stage / "config.json"
        if file.is_file() and json.loads(file.read_text()).get("preset") != "streets":
            raise ValueError(f"{folder / stage} holds a run on other data than Streets: give another --output")
    for stage in STAGES:
        shutil.rmtree(folder / stage, ignore_errors=True)


@torch.no_grad()
def draw_panel(config: Config, folder: Path) -> None:
    """``panel.png``: for some validation images, input, ground truth and the prediction of every stage."""
    val = ex.target_set(config, "val", with_labels=True)
    batches = ex.whole_images(config, ex.Subset(val, np.linspace(0, len(val) - 1, config.panel_images).astype(int)))
    colors = ex.label_space(config).colors
    networks = [ex.network_from(config, str(folder / stage / "last.pt"), stage)[0].eval() for stage in STAGES]
    rows = []
    for batch in batches:
        size = tuple(batch["labels"].shape[-2:])
        predictions = [predict(network, images(batch), size).argmax(1) for network in networks]
        for picture, truth, *predicted in zip(batch["image"], batch["labels"], *predictions, strict=True):
            rows.append([image_picture(picture), *(label_picture(labels, colors) for labels in (truth, *predicted))])
    width, height = rows[0][0].shape[1], rows[0][0].shape[0]
    grid(rows, ["target image", "ground truth", *STAGES], (width, height)).save(folder / "panel.png", optimize=True)
