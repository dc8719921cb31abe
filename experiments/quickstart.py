"""Runs every stage on Streets, drawn by the package itself: minutes on a CPU, without downloads.

    python run.py experiments/quickstart.py
    python run.py experiments/quickstart.py --source=synthia --seed=1 --output=runs/quickstart_1

Draws the two domains and runs experiments/pipeline.py on them, including the oracle, which is trained on target labels.
Writes a table, OUTPUT/panel.png and OUTPUT/report.html at the end. The same command continues an interrupted run;
--overwrite starts again.
"""

from dataclasses import dataclass

import ignite.distributed as idist

from experiments import pipeline
from proda.utils.errors import UserError


@dataclass
class Config(pipeline.Config):
    # -- Recipe
    preset: str = "streets"  # the only preset: Streets, with schedules for it


# The whole schedule, as experiments/ablation.py has it, would take over twice as long.
PRESETS = {"streets": {**pipeline.PRESETS["streets"], "scale": 0.4}}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("quickstart runs in one process only; single stages accept --nproc_per_node")
    return pipeline.run(local_rank, config)
