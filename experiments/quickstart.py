"""Runs every stage on Streets, drawn by the package itself: minutes on a CPU, without downloads.

    python run.py experiments/quickstart.py
    python run.py experiments/quickstart.py --source=synthia --seed=1 --output=runs/quickstart_1

Draws the two domains and runs experiments/pipeline.py on them, including the oracle, which is trained on target labels.
Writes a table, OUTPUT/panel.png and OUTPUT/report.html at the end. The same command continues an interrupted run;
--overwrite starts again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import Subset

from experiments import pipeline
from proda.engines.inference import predict
from proda.method.tensors import to_float
from proda.models.weights import load_network
from proda.run.data import whole_images
from proda.run.domains import Domains
from proda.settings.options import Bounds
from proda.utils.errors import UserError
from proda.visualization import grid, image_picture, label_picture


@dataclass
class Config(pipeline.Config):
    # -- Recipe
    preset: str = "streets"  # the only preset: Streets, with schedules for it
    # -- Output
    panel_images: Annotated[int, Bounds(1, 100)] = 4  # rows of panel.png


# The whole schedule, as experiments/ablation.py has it, would take over twice as long.
PRESETS = {"streets": {**pipeline.PRESETS["streets"], "scale": 0.4}}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("quickstart runs in one process only; single stages accept --nproc_per_node")
    summary = pipeline.run_stages(config)
    draw_panel(config, list(summary["stages"]))
    pipeline.report(config)
    return summary


@torch.no_grad()
def draw_panel(config: Config, stages: list[str]) -> None:
    """Draws ``panel.png``: input, ground truth and every stage's prediction for some validation images."""
    data = Domains(config)
    val = data.images("val", with_labels=True)
    batches = whole_images(config, Subset(val, np.linspace(0, len(val) - 1, config.panel_images).astype(int)))
    colors, options = data.classes.colors, {"backbone": config.backbone, "class_names": data.classes.names}
    networks = [load_network(Path(config.output) / stage / "last.pt", **options).eval() for stage in stages]
    rows = []
    for batch in batches:
        size = tuple(batch["labels"].shape[-2:])
        predictions = [predict(network, to_float(batch["image"]), size).max(1).indices for network in networks]
        for picture, truth, *predicted in zip(batch["image"], batch["labels"], *predictions, strict=True):
            rows.append([image_picture(picture), *(label_picture(labels, colors) for labels in (truth, *predicted))])
    width, height = rows[0][0].shape[1], rows[0][0].shape[0]
    picture = Path(config.output) / "panel.png"
    grid(rows, ["target image", "ground truth", *stages], (width, height)).save(picture, optimize=True)
    print(picture)
