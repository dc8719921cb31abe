"""Writes a report on training runs: one HTML file with scores, classes, failures, labels, curves and settings.

    python run.py experiments/report.py runs/quickstart         # a run, or a folder with one run for each stage
    python run.py experiments/report.py runs/a runs/b           # two runs side by side, and what differs
    python run.py experiments/report.py --runs=runs/a,runs/b --output=runs/a_b

The file needs neither network nor server; open OUTPUT/report.html in any browser. The confusion matrix and the images
with the lowest scores come from predictions of last.pt on the validation images, made anew; where the data are no
longer there, the report says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist

from proda.report.page import write_report
from proda.run.config import RunConfig
from proda.run.job import device_of
from proda.settings.options import NonNegativeInt, PathText
from proda.utils.errors import UserError

POSITIONAL = "runs"  # the flag whose value may also be given as words without a name


@dataclass
class Config(RunConfig):
    # -- Data
    runs: str = ""  # folders of runs, or of stages of a pipeline, separated by commas
    data_root: PathText = ""  # folder of the data sets; if empty, that which the runs have read
    # -- Output
    output: PathText = ""  # folder of report.html; if empty, that of the run, or runs/report for several runs
    worst: NonNegativeInt = 4  # validation images with the lowest scores to show; 0: predict none
    max_images: NonNegativeInt = 100  # validation images to predict, spread evenly over the set; 0: all

    def __post_init__(self) -> None:
        if len(self.folders) == 1 and not self.output:
            self.output = self.folders[0]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.amp != "off":
            yield "--amp has no effect on a report, which predicts in the precision of the run; remove it"

    @property
    def folders(self) -> list[str]:
        return [part for part in self.runs.split(",") if part]


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("the report is written by one process; start it without --nproc_per_node")
    if not config.folders:
        raise UserError("--runs: no run given; expected folders, as in: python run.py experiments/report.py runs/a")
    file = write_report(
        config.folders,
        Path(config.output) / "report.html",
        device=device_of(config),
        data_root=config.data_root,
        worst=config.worst,
        max_images=config.max_images,
        num_workers=config.num_workers,
    )
    print(file)
    return {"report": str(file)}
