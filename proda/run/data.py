"""Samples, batches and label stores of a training stage, as its flags ask for them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from proda.data.augment import draw_weak_view
from proda.data.check import spot_check
from proda.data.class_statistics import RareClasses, load_or_count
from proda.data.image_files import warn_once
from proda.data.label_store import HardLabelStore, Manifest, SoftLabelStore, described_store
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import TRAIN_IDS_SUSPECTED, hold_train_ids
from proda.data.loaders import SAME_SIZE_NEEDED, TrainingBatches, evaluation_loader
from proda.data.samples import EvaluationSamples, SourceTraining, TargetTraining
from proda.data.view_sizes import PUBLISHED, ViewSizes, fitting_size, fitting_views
from proda.models.network import SegmentationNetwork
from proda.run.config import DataConfig, TrainConfig
from proda.run.domains import Domains, some
from proda.utils.errors import UserError
from proda.utils.progress import track

STATISTICS_BATCH = 10  # images per batch for AdaBN; no flag changes it, because results depend on it


class Data:
    """What a stage trains and validates on. A stage's ``build`` asks for it; nothing is written.

    ``classes`` as in ``Domains``. What takes long is done by :meth:`prepare`, before the first batch is loaded.
    ``config`` has the sizes of the views that the flags leave open: those of the publication for a benchmark, otherwise
    those that fit the images. ``processes``: of the run, if not those of this group.
    """

    def __init__(self, config: TrainConfig, domains: Domains | None = None, *, processes: int = 0) -> None:
        self.processes = processes or idist.get_world_size()
        self.domains = domains or Domains(config)
        self.classes = self.domains.classes
        self.config = self._with_views(config)
        self._to_count: list[tuple[RareClasses, str, LabelledFiles]] = []

    def _with_views(self, config: TrainConfig) -> TrainConfig:
        if views_are_given(config):
            return config
        if self.domains.own_target is None:
            return with_views(config, PUBLISHED)
        domains = self.domains
        return with_views(config, views_for(config, domains.labelled_target.sizes(), domains.source.sizes()))

    # Training samples

    def source_crops(self) -> Dataset:
        """Labelled crops of the source."""
        return self._labelled_crops("source", self.domains.source)

    def oracle_crops(self) -> Dataset:
        """Labelled crops of the target; only the oracle trains on them."""
        return self._labelled_crops("target", self.domains.images("train", with_labels=True))

    def target_views(self, **views: Any) -> Dataset:
        """Unlabelled views of the target. ``views`` are arguments of ``TargetTraining``."""
        images = self.domains.target
        check_views(self.config, spot_check(images))
        if views.get("full_image") and self.config.batch_size > self.processes:
            check_same_size(self.config, images, "training")
        return TargetTraining(images, **view_settings(self.config, "target"), **views)

    def training_batches(self, source: Dataset, target: Dataset | None) -> TrainingBatches:
        """This process's share of the batches of a training run."""
        config = self.config
        return TrainingBatches(
            source,
            target,
            batch_size=config.batch_size,
            epochs=config.epochs,
            iterations=config.iterations,
            seed=config.seed,
            num_workers=config.num_workers,
            rank=idist.get_rank(),
            world_size=idist.get_world_size(),
            pin_memory=config.device != "cpu" and torch.cuda.is_available(),
        )

    def prepare(self) -> None:
        """Counts the pixels of each class for ``--rare_class_sampling``, if that was not done before."""
        for rare_classes, domain, images in self._to_count:
            title = f"counting the classes of the {domain}, label map"
            with idist.one_rank_first():
                statistics = load_or_count(
                    self.domains.class_statistics_file(domain),
                    images,
                    self.classes.names,
                    num_workers=self.config.num_workers,
                    progress=partial(track, title=title, show=idist.get_rank() == 0),
                )
            counts, areas = statistics.pixels.sum(0), statistics.areas.sum()
            if hold_train_ids(images.table, len(counts), counts, ignored=1 - counts.sum() / areas):
                warn_once(f"{domain}: {TRAIN_IDS_SUSPECTED}")
            rare_classes.use(statistics)

    # Whole images

    def whole_target(self, names: Sequence[str] | None = None) -> DataLoader:
        """Whole target training images in order, each on one process: all, or those in ``names``."""
        images = self.domains.labelled_target
        if self.config.val_batch_size > 1:
            check_same_size(self.config, images, "training")
        return whole_images(self.config, images if names is None else Subset(images, images.indices(names)))

    def validation_batches(self) -> DataLoader:
        """Whole validation images in order, each on one process."""
        images = self.domains.validation
        if self.config.val_batch_size > 1:
            files = images.dataset if isinstance(images, Subset) else images  # without [val]: some training images
            if isinstance(files, LabelledFiles):
                check_same_size(self.config, files, "validation" if files is images else "training")
        return whole_images(self.config, images)

    def statistics_batches(self) -> DataLoader:
        """Whole target training images spread evenly over the set, the same on every process.

        Raises:
            UserError: target training images differ in size, so they cannot be put into batches.
        """
        check_same_size(self.config, self.domains.target, "training")
        images = EvaluationSamples(some(self.domains.target))
        return evaluation_loader(images, batch_size=STATISTICS_BATCH, num_workers=self.config.num_workers)

    # Pseudo labels and prototypes

    def label_store(self, kind: str, network: SegmentationNetwork, **settings: Any) -> SoftLabelStore | HardLabelStore:
        """The store of the pseudo labels that ``network`` predicts for the target's training images; not yet opened.

        ``kind`` is "soft" or "hard". ``settings`` are further values that the labels depend on. The folder is
        ``--pseudo_labels``, or OUTPUT/pseudo_labels.
        """
        return label_store(self.config, self.domains, kind, network, **settings)

    def made_from(self, network: SegmentationNetwork) -> dict[str, Any]:
        """What the prototypes of ``network`` depend on, apart from the number of passes."""
        return made_from(self.config, self.domains, network)

    def large_target(self) -> tuple[int, int] | None:
        """The largest width and height of the target's training images, if they exceed those of Cityscapes."""
        largest = max(self.domains.labelled_target.sizes(), key=math.prod)
        return largest if fitting_size(largest) != largest else None

    def _labelled_crops(self, domain: str, images: LabelledFiles) -> Dataset:
        check_views(self.config, spot_check(images), domain)
        rare_classes = RareClasses() if self.config.rare_class_sampling else None
        if rare_classes is not None:
            self._to_count.append((rare_classes, domain, images))
        return SourceTraining(images, **view_settings(self.config, domain), rare_classes=rare_classes)


def label_store(
    config: Any, domains: Domains, kind: str, network: SegmentationNetwork, **settings: Any
) -> SoftLabelStore | HardLabelStore:
    """As ``Data.label_store``, for any experiment with a flag ``--pseudo_labels``."""
    own_folder, resume = not config.pseudo_labels, isinstance(config, TrainConfig) and config.resume
    store = described_store(
        config.pseudo_labels or Path(config.output) / "pseudo_labels",
        kind,
        Manifest(
            num_classes=len(domains.classes.names),
            weights=network.origin,
            settings=_prediction_settings(config, domains) | settings,
            images=domains.target.order,
            fingerprint=domains.target_of_labels(),
            class_names=domains.classes.names,
        ),
        palette=domains.classes.colors,
        overwrite=own_folder and isinstance(config, TrainConfig) and config.overwrite,
        remedy=(
            "a run can only be resumed with its own settings and data: restore them, or set another --output"
            if own_folder and resume
            else "delete the folder or set another --pseudo_labels"
        ),
    )
    store.left_out = set(domains.target.replaced.values())
    return store


def made_from(config: DataConfig, domains: Domains, network: SegmentationNetwork) -> dict[str, Any]:
    """What the prototypes of ``network`` depend on, apart from the number of passes."""
    return {
        "weights": network.origin,
        "images": domains.target_of_labels(),
        "classes": domains.classes.names,
        **_prediction_settings(config, domains),
    }


def _prediction_settings(config: DataConfig, domains: Domains) -> dict[str, Any]:
    """What predictions on the target's training images depend on, apart from the weights and the images."""
    return {"amp": config.amp, "size": domains.own_target.size if domains.own_target else None}


def whole_images(config: DataConfig, dataset: Any) -> DataLoader:
    """Unaugmented images in order, each on one process."""
    return evaluation_loader(
        EvaluationSamples(dataset),
        batch_size=config.val_batch_size,
        num_workers=config.num_workers,
        rank=idist.get_rank(),
        world_size=idist.get_world_size(),
    )


def check_same_size(config: DataConfig, images: LabelledFiles, split: str) -> None:
    """Raises UserError if images of a split differ in size, according to the headers of all files."""
    if images.size is not None:
        return  # all images are resized to this size
    sizes = dict(zip(images.sizes(), images.images, strict=True))
    if len(sizes) > 1:
        found = " and ".join(f"{width}x{height} ({path.name})" for (width, height), path in list(sizes.items())[:2])
        raise UserError(f"{config.target}: found {split} images of {found}; {SAME_SIZE_NEEDED}")


def view_settings(config: Any, domain: str) -> dict[str, Any]:
    """How the weak views of ``domain``, "source" or "target", are drawn, from the flags of ``TrainConfig``."""
    width = (config.source_width if domain == "source" else 0) or config.mean_width
    crop = {"crop_height": config.crop_height, "crop_width": config.crop_width}
    return {"mean_width": width, "jitter": config.width_jitter, **crop}


def views_are_given(config: Any) -> bool:
    """Whether no flag leaves the size of the views open."""
    return all(getattr(config, name) for name in ViewSizes._fields)


def views_for(config: Any, target: Sequence[tuple[int, int]], source: Sequence[tuple[int, int]]) -> ViewSizes:
    """The views that fit images of these sizes (width, height) and the flags that are given."""
    return fitting_views(
        target,
        source,
        mean_width=config.mean_width,
        source_width=config.source_width,
        jitter=config.width_jitter,
    )


def with_views(config: Any, views: ViewSizes) -> Any:
    """``config`` with a value from ``views`` for each flag that leaves it open."""
    return replace(config, **{name: getattr(config, name) or value for name, value in views._asdict().items()})


def views_in_words(config: Any) -> str:
    """One line about the views of training, for summaries and records."""
    source = f", the source's {config.source_width}" if config.source_width else ""
    crops = f"crops of {config.crop_width}x{config.crop_height}"
    return f"images resized to a mean width of {config.mean_width} pixels{source}; {crops}"


def check_views(config: Any, sizes: Iterable[tuple[int, int]], domain: str = "target") -> None:
    """Raises UserError if images of these sizes (height, width) are too small for the crops."""
    flag = "source_width" if domain == "source" and config.source_width else "mean_width"
    for size in sizes:
        draw_weak_view(np.random.default_rng(0), size, **view_settings(config, domain), flag=flag)
