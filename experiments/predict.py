"""Label maps and coloured overlays of a folder of images, from any weights file, ours or a released .pkl.

    python run.py experiments/predict.py --weights=runs/stage3_distill/last.pt --images=photos
    python run.py experiments/predict.py --source=my_simulator.toml --weights=... --images=photos

Writes OUTPUT/labels/NAME.png, the numbers of the classes as pixel values (with a palette, for viewers), and
OUTPUT/overlays/NAME.jpg. ``--source`` tells how many classes there are and what they are called.
"""

from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
from ignite.handlers import ProgressBar

from proda.data.benchmarks import LabelledFiles
from proda.data.own_data import IMAGE_SUFFIXES, list_files
from proda.engines.inference import segmentation_evaluator
from proda.engines.step import Precision
from proda.experiment import domains, networks
from proda.experiment.config import SOURCES, STREETS_DATA, DataConfig, numbers
from proda.experiment.job import Job
from proda.handlers.predictions import SaveOverlays, SavePredictions
from proda.utils.files import safe_path


@dataclass
class Config(DataConfig):
    weights: str = ""  # the network
    images: str = ""  # an image, a folder (with those below it), or a pattern such as "photos/*_left.jpg"
    flip: bool = False  # average the image's and its mirror image's prediction
    scales: str = "1"  # sizes of the image to average over, separated by commas: 0.75,1,1.25


PRESETS = {**SOURCES, "streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    job = Job(config)
    scales, space = numbers(config.scales, "scales"), domains.label_space(config)
    files = list_files(Path(), config.images) if config.images else {}
    if not files:
        raise FileNotFoundError(f"--images={config.images}: found none; expected {', '.join(IMAGE_SUFFIXES)} files")
    names = [path.stem for path in files.values()]
    if len(set(names)) < len(names):  # folders with equal file names
        names = [key.replace("/", "-") for key in files]
    dataset = LabelledFiles(list(files.values()), None, names, table=space.table, num_classes=len(space.names))
    for name in names:
        safe_path(job.folder, name, ".png")  # now, not when its turn has come
    network = networks.network_from(config, config.weights).to(job.device)
    job.open({"weights": config.weights, "images": len(dataset)})

    precision = Precision(job.device, config.amp)
    evaluator = segmentation_evaluator(
        network, len(space.names), precision, job.device, flip=config.flip, scales=scales
    )
    SavePredictions(job.folder / "labels", colors=space.colors).attach(evaluator)
    SaveOverlays(job.folder / "overlays", space.colors).attach(evaluator)
    if idist.get_rank() == 0:
        ProgressBar(desc="prediction").attach(evaluator)
    evaluator.run(domains.whole_images(config, dataset))

    job.log.info("class numbers: %s", ", ".join(f"{k} {name}" for k, name in enumerate(space.names)))
    return job.finish({"images": len(dataset), "label_free": evaluator.state.metrics["label_free"]})
