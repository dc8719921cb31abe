"""Looks at images and label maps and writes a first description file of them, to be edited.

    python run.py experiments/describe_data.py --images=simulator/rgb --labels=simulator/ids
    python run.py experiments/describe_data.py --images=photos.zip --description=my_photos.toml

The file lists the ids or colours that the label maps hold and how often, as classes without a name. Comments in it say
what else was found: sizes, images without a label map, files that cannot be read. docs/own_data.md explains the file.
Files are read in --num_workers processes; no GPU is used.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist

from proda.data.describe import find_places, look, write_description
from proda.data.own_data import read_description
from proda.run.config import RunConfig
from proda.run.job import Job
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
    return job.finish(
        {
            "images": len(places.image_files),
            "label_maps": findings.label_maps,
            "labels_are": findings.labels_are,
            "values": {str(value): count for value, count in sorted(findings.values.items())},
            "problems": findings.problems,
        }
    )


def relative_to(folder: Path, place: str) -> str:
    """A place relative to the working folder as a description in ``folder`` names it; absolute places stay in UTF-8."""
    if not place or (os.path.isabs(place) and is_utf8(place)):
        return place
    return Path(os.path.relpath(place, folder)).as_posix()
