"""Predicts label maps and coloured overlays for a folder of images, with a weights file, ours or a released .pkl.

    python run.py experiments/predict.py --weights=runs/stage3_distill/last.pt --images=photos
    python run.py experiments/predict.py --source=my_simulator.toml --target=my_photos.toml --weights=X --images=Y

Writes OUTPUT/labels/NAME.png, whose pixel values are class numbers (with a palette for image viewers), and
OUTPUT/overlays/NAME.jpg. ``--source`` determines the classes.
"""

from dataclasses import dataclass
from pathlib import Path

from proda.data.image_files import IMAGE_SUFFIXES
from proda.data.labelled_files import LabelledFiles, read_skip_list
from proda.data.listing import FoundFiles, list_files
from proda.engines.inference import segmentation_evaluator
from proda.experiment.config import DataConfig, parse_scales
from proda.experiment.domains import Domains
from proda.experiment.job import Job
from proda.experiment.networks import load_network
from proda.experiment.recipes import EVALUATION_PRESETS, STREETS_DATA
from proda.handlers.predictions import SaveOverlays, SavePredictions
from proda.handlers.progress import show_progress
from proda.utils.errors import MissingFileError
from proda.utils.files import safe_path
from proda.utils.options import PathText


@dataclass
class Config(DataConfig):
    # -- Network
    weights: PathText = ""  # the network that predicts
    # -- Data
    images: PathText = ""  # an image, a folder (with its subfolders), or a pattern such as "photos/*_left.jpg"
    # -- Method
    flip: bool = False  # average the predictions of the image and its mirror image
    scales: str = "1"  # scales of the image to average over, separated by commas: 0.75,1,1.25


PRESETS = {**EVALUATION_PRESETS, "streets": STREETS_DATA}


def run(local_rank: int, config: Config) -> dict:
    job, data, scales = Job(config), Domains(config), parse_scales(config.scales, "scales")
    dataset = named_files(config, data)
    for name in dataset.names:
        safe_path(job.folder, name, ".png")  # raises now rather than when the image is written
    network = load_network(config, data.classes, job.device)
    job.open({"weights": config.weights, "images": len(dataset)})
    for files in dataset.left_out:
        job.log.warning("left out: %s", files)

    evaluator = segmentation_evaluator(network, job.precision, flip=config.flip, scales=scales)
    SavePredictions(job.folder / "labels", colors=data.classes.colors).attach(evaluator)
    SaveOverlays(job.folder / "overlays", data.classes.colors).attach(evaluator)
    show_progress(evaluator, "prediction, batch")
    evaluator.run(data.whole_images(dataset))

    job.log.info("class numbers: %s", ", ".join(f"{k} {name}" for k, name in enumerate(data.classes.names)))
    return job.finish({"images": len(dataset), "label_free": evaluator.state.metrics["label_free"]})


def named_files(config: Config, data: Domains) -> LabelledFiles:
    """The files of ``--images`` without those in ``--skip_bad``, under names that are unique and safe."""
    files = list_files(Path(), config.images) if config.images else FoundFiles()
    if not files:
        left_out = "".join(f"; left out: {line}" for line in files.left_out)
        expected = f"expected {', '.join(IMAGE_SUFFIXES)} files"
        raise MissingFileError(f"--images={config.images}: found none; {expected}{left_out}")
    names = [path.stem for path in files.values()]
    if len(set(names)) < len(names):  # files in different folders have the same name
        names = [key.replace("/", "-") for key in files]
    size = data.own_target.size if data.own_target else None  # the size that the network was trained with
    options = {"table": data.classes.table, "num_classes": len(data.classes.names), "size": size}
    if config.skip_bad:
        options["skip"] = read_skip_list(config.skip_bad, "images")
    dataset = LabelledFiles(list(files.values()), None, names, **options)
    dataset.left_out = files.left_out
    return dataset
