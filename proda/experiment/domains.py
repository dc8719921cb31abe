"""The images and labels of source and target, as the flags of an experiment name them."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from torch.utils.data import DataLoader, Dataset, Subset

from proda.data.augment import draw_weak_view
from proda.data.benchmarks import LabelledFiles, open_dataset
from proda.data.check import spot_check
from proda.data.label_store import HardLabelStore, Manifest, SoftLabelStore, open_store
from proda.data.labels import LabelSpace, benchmark_labels
from proda.data.loaders import ONE_SIZE, EvaluationSamples, SourceTraining, TargetTraining, evaluation_loader
from proda.data.own_data import Description, read_description
from proda.experiment.config import DataConfig, TrainConfig, pick, resolve_num_classes
from proda.experiment.job import Job
from proda.streets import write_streets
from proda.utils.files import sha256, sha256_of_json

STATISTICS_BATCH = 10  # of the images for statistics: results depend on it, so no flag for speed decides it
SOME_IMAGES = 100  # training images that stand in for validation images where there are none, and for statistics


def data_root(config: DataConfig) -> Path:
    """Where the data sets are; with ``--preset=streets`` they are drawn first if they are not there yet."""
    root = Path(config.data_root or os.environ.get("PRODA_DATA") or "data")
    if config.preset == "streets":
        with idist.one_rank_first():
            write_streets(root, source=config.source)
    return root


def views(config: Any) -> dict[str, int]:
    """The flags that say how views are cut out of images, as the training sets take them."""
    return pick(config, "mean_width", "crop_height", "crop_width")


def own_data(name: str) -> Description | None:
    """The description file that ``--source`` or ``--target`` names, None for a benchmark."""
    return read_description(name) if name.endswith(".toml") else None


def label_space(config: DataConfig) -> LabelSpace:
    """Names and colours of the classes of a run, which the source decides, and their ids in the target's label files.

    Raises:
        ValueError: source, target and ``--num_classes`` do not agree.
    """
    source, target = own_data(config.source), own_data(config.target)
    if source is None:
        space = benchmark_labels(resolve_num_classes(config))
    elif source.space is None:
        raise ValueError(f"{source.path}: no classes = [...]; the source has to list them")
    else:
        space = source.space
    if config.num_classes not in (0, len(space.names)):
        raise ValueError(f"--num_classes={config.num_classes}: {config.source} has {len(space.names)} classes")
    if target is not None and target.space is not None:
        if target.space.names != space.names:
            raise ValueError(
                f"{target.path}: its classes are {', '.join(target.space.names)}; expected those of the source, in "
                f"its order: {', '.join(space.names)}"
            )
        space = space._replace(table=target.space.table)
    return space


def open_data(config: DataConfig, domain: str, split: str, *, with_labels: bool) -> LabelledFiles:
    """The images of a split of ``domain``, which is "source" or "target"; none is read yet."""
    name, space = getattr(config, domain), label_space(config)
    own = own_data(name)
    if own is None and own_data(config.source):
        raise ValueError(f"--source={config.source} needs a --target: a description of the photographs (NAME.toml)")
    if own is None:
        return open_dataset(name, data_root(config), split, num_classes=len(space.names), with_labels=with_labels)
    return own.open(split, own.space if domain == "source" else space, with_labels=with_labels)


def check_views(config: Any, sizes: Iterable[tuple[int, int]]) -> None:
    """ValueError if images of these sizes (height, width) are too small for the views."""
    for size in sizes:
        draw_weak_view(np.random.default_rng(0), size, **views(config))


def source_training(config: TrainConfig) -> Dataset:
    """Labelled crops of the source domain; some examples are read to see that it can be done."""
    dataset = open_data(config, "source", "train", with_labels=True)
    check_views(config, spot_check(dataset))
    return SourceTraining(dataset, **views(config))


def target_training(config: TrainConfig, **parts: Any) -> Dataset:
    """Unlabelled views of the target domain; ``parts`` as ``TargetTraining`` takes them."""
    dataset = open_data(config, "target", "train", with_labels=False)
    sizes = spot_check(dataset)
    check_views(config, sizes)
    if parts.get("full_image") and len(sizes) > 1 and config.batch_size > idist.get_world_size():
        found = " and ".join(f"{width}x{height}" for height, width in sizes)
        raise ValueError(f"{config.target}: training images of {found}; {ONE_SIZE}")
    return TargetTraining(dataset, **views(config), **parts)


def target_set(config: DataConfig, split: str, *, with_labels: bool = False) -> LabelledFiles:
    """The target domain's images of a split; labels only for whoever judges, never for adaptation."""
    dataset = open_data(config, "target", split, with_labels=with_labels)
    spot_check(dataset)
    return dataset


def validation_set(config: DataConfig) -> Dataset:
    """What training is judged on: the labelled validation images.

    Own data may have none. Then there are images without labels, for the label-free score: those of [val], or else
    some of [train].
    """
    own = own_data(config.target)
    if own is None or own.has_labels("val"):
        return target_set(config, "val", with_labels=True)
    if "val" in own.splits:
        return target_set(config, "val")
    return _some(target_set(config, "train"))


def statistics_images(config: DataConfig) -> DataLoader:
    """Whole target training images, unaugmented: some from all over the set, the same on every process."""
    images = EvaluationSamples(_some(target_set(config, "train")))
    return evaluation_loader(images, batch_size=STATISTICS_BATCH, num_workers=config.num_workers)


def whole_images(config: DataConfig, dataset: Dataset) -> DataLoader:
    """Unaugmented images in order, each on one process."""
    return evaluation_loader(
        EvaluationSamples(dataset),
        batch_size=config.val_batch_size,
        num_workers=config.num_workers,
        rank=idist.get_rank(),
        world_size=idist.get_world_size(),
    )


def named_images(config: DataConfig, dataset: Dataset) -> Callable[[list[str]], DataLoader]:
    """Batches of the whole images with given names, in this order."""
    return lambda names: whole_images(config, Subset(dataset, [dataset.names.index(name) for name in names]))


def labelled_if_possible(config: DataConfig, split: str) -> Dataset:
    """The target images with their ground truth where its files are there: pseudo labels are judged by it, no more."""
    try:
        return target_set(config, split, with_labels=True)
    except FileNotFoundError:
        return target_set(config, split)


def label_store(config: Any, kind: str, job: Job, names: list[str], **settings: Any) -> SoftLabelStore | HardLabelStore:
    """The store of the pseudo labels that the network in ``--weights`` makes; ``kind`` is soft or hard.

    In ``--pseudo_labels``, or else in the run's own folder. ``settings``: what decides the labels beside the weights,
    the images and :func:`prediction_settings`.
    """
    space, settings = label_space(config), prediction_settings(config) | settings
    own = not config.pseudo_labels
    with idist.one_rank_first():  # to overwrite has to be over before the others look
        return open_store(
            Path(config.pseudo_labels or job.folder / "pseudo_labels"),
            kind,
            Manifest(len(space.names), sha256(config.weights), settings, names),
            palette=space.colors,
            overwrite=own and getattr(config, "overwrite", False),
            remedy="remove the folder, or give another --pseudo_labels",
        )


def prediction_settings(config: DataConfig) -> dict[str, Any]:
    """What a network's predictions on the target's training images depend on, its weights and their names aside.

    For own data the content of the description counts, not its place; the size that it gives is told by itself, so
    that a message can name it.
    """
    own = own_data(config.target)
    described = {"description": sha256(own.path), "size": own.size} if own else {}
    return {"amp": config.amp, **described}


def _some(images: LabelledFiles) -> Subset:
    return Subset(images, np.unique(np.linspace(0, len(images) - 1, SOME_IMAGES).astype(int)).tolist())


def data_fingerprint(config: DataConfig) -> dict[str, str]:
    """What a run's data are, each part as a hexadecimal SHA-256: training images by name, descriptions by content."""
    described = {f"{n} description": sha256(v) for n in ("source", "target") if own_data(v := getattr(config, n))}
    return {
        "source images": sha256_of_json(open_data(config, "source", "train", with_labels=True).names),
        "target images": sha256_of_json(open_data(config, "target", "train", with_labels=False).names),
        **described,
    }
