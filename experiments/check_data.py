"""Reads every file of the data sets and reports problems that would break a run, image sizes and class frequencies.

    python run.py experiments/check_data.py
    python run.py experiments/check_data.py --source=synthia --parts=source
    python run.py experiments/check_data.py --source=my_simulator.toml --target=my_photos.toml

The exit status is 1 if anything would break a run. OUTPUT/bad_files.txt lists the images that cannot be used,
OUTPUT/classes.png shows the class frequencies of source and target side by side, and OUTPUT/examples_PART.jpg shows
twelve images with their labels over them.
Files are read in --num_workers processes; no GPU is used. Every training run makes a spot check by itself.
"""

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import ignite.distributed as idist
import numpy as np
from PIL import Image

from proda.data.check import DatasetReport, choose_examples, inspect_files
from proda.data.class_statistics import problem_of_stored
from proda.data.image_files import image_size
from proda.data.labelled_files import LabelledFiles, MissingLabelsError, write_skip_list
from proda.data.labels import LabelSpace
from proda.data.loaders import SAME_SIZE_NEEDED
from proda.data.pairing import not_photographs
from proda.data.view_sizes import PUBLISHED
from proda.run.config import DataConfig
from proda.run.data import check_views, views_are_given, views_for, views_in_words, with_views
from proda.run.domains import Domains
from proda.run.job import Job
from proda.settings.options import FractionBelowOne, NonNegativeInt, PixelsOrZero
from proda.settings.presets import CAMVID, EVALUATION_PRESETS, STREETS
from proda.studies.tables import markdown_table
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import safe_path
from proda.utils.progress import track
from proda.visualization import example_sheet, frequency_picture

PARTS = {"source": ("source", "train"), "train": ("target", "train"), "val": ("target", "val")}


@dataclass
class Config(DataConfig):
    # -- Data
    parts: str = "source,train,val"  # parts to check: source, target training images, target validation images
    mean_width: PixelsOrZero = 0  # mean width of views in training in pixels; 0: fits the target's images
    source_width: NonNegativeInt = 0  # mean width of the source's images in pixels; 0: --mean_width
    width_jitter: FractionBelowOne = 0.5  # relative range of the random resize in training
    crop_width: PixelsOrZero = 0  # width of the crops in pixels; 0: fits the target's images
    crop_height: PixelsOrZero = 0  # height of the crops in pixels; 0: fits the target's images


PRESETS = {
    **EVALUATION_PRESETS,
    "streets": {field.name: STREETS[field.name] for field in fields(Config) if field.name in STREETS},
    "camvid": {field.name: CAMVID[field.name] for field in fields(Config) if field.name in CAMVID},
}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:  # every process would read all files and write the same results
        raise UserError(
            f"check_data was started in {idist.get_world_size()} processes: start it in one, without --nproc_per_node "
            "or torchrun; to read files in parallel, set --num_workers"
        )
    job = Job(config)
    parts = config.parts.strip("()").replace(" ", "").replace("'", "").split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"--parts={config.parts}: no part {unknown[0]!r}; expected one or more of {', '.join(PARTS)}")
    data = Domains(config)
    space, views = data.classes, views_of(config, data)
    job.open(
        {
            "source -> target": f"{config.source} -> {config.target}, {len(space.names)} classes",
            "views": views_in_words(views) if views else "unknown: images of source or target cannot be read",
        }
    )

    reports = {}
    for part in parts:
        own = data.own_target
        if own is not None and part == "val" and "val" not in own.splits:
            job.log.info("\nval: %s has no [val]; training will run without validation", own.path)
            continue
        reports[part] = check(data, part, views, job.folder)
        job.log.info("\n%s (%s): %s", part, getattr(config, PARTS[part][0]), reports[part].headline)
        for line in reports[part].lines(space.names, details=job.folder / "summary.json"):
            job.log.info("%s", line)
    shares = {f"{part} ({getattr(config, PARTS[part][0])})": s.frequencies for part, s in reports.items() if s.labelled}
    if shares:
        frequency_picture(shares, space.names, space.colors).save(job.folder / "classes.png")
        rows = [[name, *(f"{100 * v[k]:.3f}" for v in shares.values())] for k, name in enumerate(space.names)]
        job.log.info("\n%s\n", markdown_table(["% of labelled pixels", *shares], rows))
    write_skip_list(job.folder / "bad_files.txt", {part: report.bad_names for part, report in reports.items()})
    broken = sum(len(result.problems) for result in reports.values())
    job.log.info("problems that would break a run: %s", broken or "none found")
    return job.finish({"exit_status": int(broken > 0), **{part: s.summary(space.names) for part, s in reports.items()}})


def views_of(config: Config, data: Domains) -> Config | None:
    """``config`` with the views that training would have; None if images decide on them and none can be read."""
    if views_are_given(config):
        return config
    if data.own_target is None:
        return with_views(config, PUBLISHED)
    target, source = (readable_sizes(data, domain) for domain in ("target", "source"))
    return with_views(config, views_for(config, target, source)) if target and source else None


def readable_sizes(data: Domains, domain: str) -> list[tuple[int, int]]:
    """Sizes of the training images of a domain; those that cannot be read are problems that :func:`check` reports."""
    sizes: list[tuple[int, int]] = []
    with suppress(UserError):
        images = data.open(domain, "train", with_labels=False)
        for path in images.images:
            with suppress(UserError):
                sizes.append(images.size or image_size(path))
    return sizes


def check(data: Domains, part: str, views: Config | None, folder: Path) -> DatasetReport:
    """Checks every file of a part, and whether the part as a whole can be used for training. Draws its examples.

    ``views``: the flags with the sizes of views, as far as they are known.
    """
    config, (domain, split) = data.config, PARTS[part]
    report = DatasetReport(len(data.classes.names))
    try:
        dataset = open_part(data, domain, split, report)
    except UserError as error:
        report.problems.append(str(error))
        return report
    for name in dataset.names if part == "train" else ():
        try:
            safe_path(Path("pseudo_labels"), name)
        except ValueError as error:
            report.problems.append(f"{getattr(config, domain)}: {error}")
            report.bad_names.append(name)
    inspect_files(
        dataset, report, num_workers=config.num_workers, progress=lambda items: track(items, f"{part}, image")
    )
    if report.labelled:
        draw_examples(dataset, report, data.classes).save(folder / f"examples_{part}.jpg", quality=90)
    if strange := not_photographs(dict(zip(dataset.names, dataset.images, strict=True))):
        report.remarks.append(
            f"{len(strange)} images seem to be label maps or overlays by their names, such as {strange[0]}"
        )
    sizes = [dataset.size] if dataset.size else list(report.sizes)
    try:
        if part != "val" and views:
            check_views(views, [(height, width) for width, height in sizes], domain)
    except UserError as error:
        report.problems.append(str(error))
    if part == "train" and len(sizes) > 1:
        report.problems.append(f"{config.target}: training images of {len(sizes)} sizes; {SAME_SIZE_NEEDED}")
    if part == "val" and len(sizes) > 1:
        found = f"{config.target}: validation images of {len(sizes)} sizes"
        if config.val_batch_size > 1:
            report.problems.append(f"{found} with --val_batch_size={config.val_batch_size}; {SAME_SIZE_NEEDED}")
        else:
            report.remarks.append(f"{found}, which need --val_batch_size=1")
    stored = data.class_statistics_file(domain)
    if part != "val" and report.labelled and stored.is_file():
        none = np.zeros(len(data.classes.names), np.int64)  # of an image without labels
        counted = np.stack([report.class_pixels.get(name, none) for name in dataset.names])
        if problem := problem_of_stored(stored, dataset, data.classes.names, counted):
            report.problems.append(problem)
    if part == "source" and report.labelled and not report.frequencies.any():
        report.problems.append(f"{config.source}: no pixel of the source has a class")
    return report


def draw_examples(dataset: LabelledFiles, report: DatasetReport, classes: LabelSpace) -> Image.Image:
    """Images of a part with their labels over them, as they are on disk."""
    pictures = []
    for index in dataset.indices(choose_examples(report.class_pixels)):
        image, labels, name, _ = dataset.read_unscaled(index)
        pictures.append((name, np.asarray(image), labels))
    return example_sheet(pictures, classes.names, classes.colors)


def open_part(data: Domains, domain: str, split: str, report: DatasetReport) -> LabelledFiles:
    """The data set with all labels that exist. Missing labels are reported as problems where a run needs them.

    Labels of the target's training images are only used for reports, so missing ones do not break a run.
    """
    own = data.own_target
    needed = domain == "source" or (split == "val" and (own is None or own.has_labels("val")))
    try:
        dataset = data.open(domain, split, with_labels=True)
        dataset.optional_labels = not needed
        return dataset
    except MissingFileError as error:
        dataset = data.open(domain, split, with_labels=False)
        if not needed:
            return dataset
        report.problems.append(str(error))
        if not isinstance(error, MissingLabelsError):
            return dataset
        unlabelled = [i for i, file in enumerate(error.dataset.label_files or []) if file is None]
        report.bad_names += [error.dataset.names[i] for i in unlabelled]
        return error.dataset
