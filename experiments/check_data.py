"""Reads every file of the data sets and reports what would break a run, sizes, and how often each class appears.

    python run.py experiments/check_data.py
    python run.py experiments/check_data.py --source=synthia --parts=source
    python run.py experiments/check_data.py --source=my_simulator.toml --target=my_photos.toml

Exit status 1 if something would break a run. OUTPUT/classes.png shows the classes of source and target side by side.
Files are read in --num_workers processes; it is no job for several GPUs. Training makes a spot check by itself.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import ignite.distributed as idist
from tqdm import tqdm

from proda.data.benchmarks import MissingLabelsError
from proda.data.check import Survey, survey
from proda.data.loaders import ONE_SIZE
from proda.experiment import domains
from proda.experiment.config import SOURCES, STREETS, DataConfig
from proda.experiment.job import Job
from proda.experiment.tables import markdown_table
from proda.utils.files import safe_path
from proda.visualization import frequency_picture

PARTS = {"source": ("source", "train"), "train": ("target", "train"), "val": ("target", "val")}


@dataclass
class Config(DataConfig):
    parts: str = "source,train,val"  # what to check: the source, the target's training and its validation images
    mean_width: int = 2200  # of views, as it will be in training: images must be large enough
    crop_width: int = 896  # pixels
    crop_height: int = 512  # pixels


PRESETS = {
    **SOURCES,
    "streets": {field.name: STREETS[field.name] for field in fields(Config) if field.name in STREETS},
}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:  # each would read all and write the same files
        raise ValueError(
            f"check_data was started in {idist.get_world_size()} processes: start it in one, without --nproc_per_node "
            "or torchrun; it reads files in parallel with more --num_workers"
        )
    job = Job(config)
    parts = config.parts.strip("()").replace(" ", "").replace("'", "").split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"--parts={config.parts}: no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    space = domains.label_space(config)
    job.open({"source -> target": f"{config.source} -> {config.target}, {len(space.names)} classes"})

    surveys = {}
    for part in parts:
        own = domains.own_data(getattr(config, PARTS[part][0]))
        if own is not None and part == "val" and "val" not in own.splits:
            job.log.info("\nval: none, %s has no [val]; training will do without validation", own.path)
            continue
        surveys[part] = check(config, part)
        job.log.info("\n%s (%s): %s", part, getattr(config, PARTS[part][0]), surveys[part].headline)
        for line in surveys[part].lines(space.names, details=job.folder / "summary.json"):
            job.log.info("%s", line)
    shares = {f"{part} ({getattr(config, PARTS[part][0])})": s.frequencies for part, s in surveys.items() if s.labelled}
    if shares:
        frequency_picture(shares, space.names, space.colors).save(job.folder / "classes.png")
        rows = [[name, *(f"{100 * v[k]:.3f}" for v in shares.values())] for k, name in enumerate(space.names)]
        job.log.info("\n%s\n", markdown_table(["% of labelled pixels", *shares], rows))
    broken = sum(len(result.problems) for result in surveys.values())
    job.log.info("problems that would break a run: %s", broken or "none found")
    return job.finish({"exit_status": int(broken > 0), **{part: s.summary(space.names) for part, s in surveys.items()}})


def check(config: Config, part: str) -> Survey:
    """Every file of a part, and whether the part as a whole can be trained on."""
    domain, split = PARTS[part]
    result = Survey(len(domains.label_space(config).names))
    try:
        dataset = open_part(config, domain, split, result)
    except (ValueError, FileNotFoundError) as error:
        result.problems.append(str(error))
        return result
    for name in dataset.names if part == "train" else ():
        try:
            safe_path(Path("pseudo_labels"), name)
        except ValueError as error:
            result.problems.append(f"{getattr(config, domain)}: {error}")
    survey(dataset, result, num_workers=config.num_workers, progress=lambda findings: tqdm(findings, part, leave=False))
    try:
        if part != "val":
            domains.check_views(config, [(height, width) for width, height in result.sizes])
    except ValueError as error:
        result.problems.append(str(error))
    if part == "train" and len(result.sizes) > 1:
        result.problems.append(f"{config.target}: training images of {len(result.sizes)} sizes; {ONE_SIZE}")
    if part == "source" and result.labelled and not result.frequencies.any():
        result.problems.append(f"{config.source}: no pixel of the source has a class")
    return result


def open_part(config: Config, domain: str, split: str, result: Survey):
    """The data set with such labels as there are; that others are missing is noted where all are needed."""
    own = domains.own_data(getattr(config, domain))
    needed = domain == "source" or (split == "val" and (own is None or own.has_labels("val")))
    try:
        return domains.open_data(config, domain, split, with_labels=True)
    except FileNotFoundError as error:
        dataset = domains.open_data(config, domain, split, with_labels=False)
        if not needed:
            return dataset
        result.problems.append(str(error))
        return error.dataset if isinstance(error, MissingLabelsError) else dataset
