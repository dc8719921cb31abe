"""Looks at images and label maps and writes a first description file of them, to be edited.

    python run.py experiments/describe_data.py --images=simulator/rgb --labels=simulator/ids
    python run.py experiments/describe_data.py --images=photos.zip --description=my_photos.toml

The file lists the ids or colours that the label maps hold and how often, as classes without a name. Comments in it say
what else was found: sizes, images without a label map, files that cannot be read. docs/own_data.md explains the file.
For photographs, images without labels, it also prints the views that fit them, and the command that trains on them with
a network and a batch that fit the memory of this machine. Files are read in --num_workers processes.
"""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch

from proda.cli.launch import load_experiment
from proda.data.describe import Findings, look, suggested_size, write_description
from proda.data.own_data import read_description
from proda.data.places import find_places
from proda.data.view_sizes import fitting_views
from proda.run.config import RunConfig
from proda.run.job import Job
from proda.run.plan import gb_text, machine_memory
from proda.run.suggestion import suggestion
from proda.settings.options import PathText
from proda.utils.errors import UserError
from proda.utils.files import atomic_write, is_utf8
from proda.utils.progress import track


@dataclass
class Config(RunConfig):
    # -- Data
    images: PathText = ""  # images or videos: a folder (with its subfolders), a zip file, or a pattern
    labels: PathText = ""  # the same for label maps; empty: images without labels
    # -- Output
    description: PathText = "my_data.toml"  # file to write; it must not exist


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError(
            "describe_data was started in several processes: start it in one; --num_workers reads in parallel"
        )
    job, path = Job(config), Path(config.description)
    if path.suffix != ".toml":
        raise UserError(f"--description={path}: expected a name that ends with .toml")
    if path.exists():
        raise UserError(f"--description={path}: the file exists; delete it or name another")
    if not path.parent.is_dir():
        raise UserError(f"--description={path}: the folder {path.parent} does not exist; create it, or name another")
    if not config.images:
        raise UserError("--images is missing: expected a folder, a zip file or a pattern of images")
    images, labels = (relative_to(path.parent, place) for place in (config.images, config.labels))
    places = find_places(path.parent, images, labels)
    for flag, place in (("images", places.images), ("labels", places.labels)):
        if not is_utf8(place):
            raise UserError(
                f"--{flag}={place}: this is not UTF-8, and a description has to be; rename the folder, or write the "
                "description into it (--description=FOLDER/NAME.toml), which then need not name it"
            )
    job.open({"images": len(places.image_files), "label maps": len(places.label_files) or "none"})

    findings = look(places, num_workers=config.num_workers, progress=lambda items: track(items, "file"))
    text = write_description(places, findings)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    read_description(path)

    job.log.info("\n%s", text)
    job.log.info("written: %s", path)
    if findings.sizes and not config.labels:
        for line in training_lines(path, findings, job.device):
            job.log.info("%s", line)
    return job.finish(
        {
            "images": len(places.image_files),
            "label_maps": findings.label_maps,
            "labels_are": findings.labels_are,
            "values": {str(value): count for value, count in sorted(findings.values.items())},
            "problems": findings.problems,
        }
    )


def training_lines(path: Path, photographs: Findings, device: torch.device) -> Iterator[str]:
    """How to train on photographs: views, and the command whose network and batch fit the memory of ``device``."""
    size = suggested_size(photographs)
    views = fitting_views([size] if size else list(photographs.sizes.elements()))
    yield f"views that fit: mean width {views.mean_width}, crops of {views.crop_width}x{views.crop_height}"
    yield "counting the memory of stage 1, which takes most ..."
    stage, available = load_experiment("stage1_denoise"), machine_memory(device)
    image = size or photographs.sizes.most_common(1)[0][0]
    try:
        found = suggestion(stage.Config, stage.build, views, image, available)
    except UserError as error:
        yield f"no stage can train on images of this size: {error}"
        return
    machine = "the GPU has" if device.type == "cuda" else "this machine, on which training without a GPU is slow, has"
    has = f"{machine} {gb_text(available)}"
    if found is None:
        light = "--backbone=timm:tf_efficientnet_lite0 --head=light"
        yield f"{has}, too little for a ResNet: try a smaller size = [...], or {light}, whose memory --plan counts"
        return
    yield f"{has}; this takes {gb_text(found.memory.with_margin)} with a source described in my_simulator.toml:"
    flags = [f"--{name}={value}" for name, value in found.flags.items() if value != getattr(stage.Config, name)]
    yield " ".join(
        [
            "    python run.py experiments/pipeline.py --source=my_simulator.toml",
            f"--target={shlex.quote(str(path))}",
            *flags,
        ]
    )


def relative_to(folder: Path, place: str) -> str:
    """A place relative to the working folder as a description in ``folder`` names it; absolute places stay in UTF-8."""
    if not place or (os.path.isabs(place) and is_utf8(place)):
        return place
    return Path(os.path.relpath(place, folder)).as_posix()
