"""Images and labels of the source and target domain, as the flags of an experiment specify them."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from proda.data.augment import draw_weak_view
from proda.data.benchmarks import GTA5_RELEASED_SIZE, open_dataset
from proda.data.check import spot_check
from proda.data.class_statistics import RareClasses, load_or_count
from proda.data.image_files import image_size
from proda.data.label_store import HardLabelStore, Manifest, SoftLabelStore, open_store
from proda.data.labelled_files import LabelledFiles, read_skip_entries, read_skip_list
from proda.data.labels import LabelSpace, benchmark_labels, benchmark_names, stored_labels
from proda.data.loaders import SAME_SIZE_NEEDED, TrainingBatches, evaluation_loader
from proda.data.own_data import Description, read_description
from proda.data.samples import EvaluationSamples, SourceTraining, TargetTraining
from proda.data.view_pairs import FixedViewPairs, ViewPairs
from proda.models.network import SegmentationNetwork
from proda.models.weights import Weights
from proda.settings.config import DataConfig
from proda.settings.presets import STREETS_DATA
from proda.streets import write_streets
from proda.utils.errors import UserError
from proda.utils.progress import track

STATISTICS_BATCH = 10  # images per batch for AdaBN; no flag changes it, because results depend on it
SOME_IMAGES = 100  # training images used for AdaBN, and for validation if there is no validation split


class Domains:
    """Source, target and validation images of a run. Each folder is listed once, when it is first needed.

    ``config`` may be that of any experiment. Training also needs the fields of ``TrainConfig``, and pseudo labels need
    ``pseudo_labels``. ``classes`` holds the names and colours of the source's classes and their ids in the target's
    label files. ``trained`` is the content of a weights file, whose classes apply if ``--source`` is empty.
    ``single_process``: only one process of several uses it, so it must not wait for the others.

    Raises:
        UserError: source, target and ``--num_classes`` do not agree, or files are missing in a folder.
    """

    def __init__(self, config: DataConfig, trained: Weights | None = None, *, single_process: bool = False) -> None:
        self.config: Any = config
        self.trained, self.single_process = trained, single_process
        self.own_source, self.own_target = own_data(config.source), own_data(config.target)
        if self.own_source is not None and self.own_target is None:
            raise UserError(f"--source={config.source} needs --target=NAME.toml, a description of the target images")
        self.classes = self._classes()

    # Images on disk

    @cached_property
    def root(self) -> Path:
        """The folder of the data sets. The first use draws Streets if they are missing, so all processes need it."""
        return data_root(self.config, self.trained)

    @cached_property
    def source(self) -> LabelledFiles:
        """The labelled training images of the source."""
        return self.open("source", "train", with_labels=True)

    @cached_property
    def labelled_target(self) -> LabelledFiles:
        """The target's training images, with ground truth where it exists: used only to score pseudo labels."""
        dataset = self.open("target", "train", with_labels=True, optional_labels=True)
        spot_check(dataset)
        return dataset

    @cached_property
    def target(self) -> LabelledFiles:
        """The target's training images, without labels."""
        images = copy.copy(self.labelled_target)
        images.label_files = None
        return images

    def target_truth(self) -> Callable[[str], np.ndarray | None] | None:
        """Name of a target training image -> its ground truth, uint8 [H, W], or None if that cannot be read.

        Used for reports only. None if there are no ground-truth files.
        """
        images = self.labelled_target
        if not images.label_files:
            return None
        places = {name: index for index, name in enumerate(images.names)}
        return lambda name: images.read_labels(places[name])

    @cached_property
    def validation(self) -> Dataset:
        """The labelled validation images.

        Your own data may lack them. The label-free score is then computed on the unlabelled images of [val], or on
        some of [train] if there is no [val].
        """
        own = self.own_target
        if own is not None and "val" not in own.splits:
            return _some(self.target)
        return self.images("val", with_labels=own is None or own.has_labels("val"))

    def images(self, split: str, *, with_labels: bool) -> LabelledFiles:
        """The target's images of a split. A few are read to check that they are valid."""
        dataset = self.open("target", split, with_labels=with_labels)
        spot_check(dataset)
        return dataset

    def open(self, domain: str, split: str, *, with_labels: bool, **options: Any) -> LabelledFiles:
        """Lists a split of ``domain``, "source" or "target"; reads no image. ``options`` go to ``LabelledFiles``."""
        config, is_source = self.config, domain == "source"
        own = self.own_source if is_source else self.own_target
        options["labelled_only"] = is_source and with_labels and config.labelled_only
        if config.skip_bad:
            options["skip"] = read_skip_list(config.skip_bad, "source" if is_source else split)
        if not is_source and not config.source and self.trained is not None:
            self._check_target(self.trained, with_labels)
        if own is not None:
            space = (own.space if is_source else None) or self.classes
            # One process extracts the frames of videos.
            with idist.one_rank_first() if own.has_videos(split) and not self.single_process else nullcontext():
                return own.open(split, space, with_labels=with_labels, **options)
        name = config.source if is_source else config.target
        if name == "gta5" and config.gta5_size_as_released:
            options["size"] = GTA5_RELEASED_SIZE
        count = len(self.classes.names)
        return open_dataset(name, self.root, split, num_classes=count, with_labels=with_labels, **options)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Width and height that images without labels are resized to; None: they stay as they are.

        It is ``size`` of the target's description or, if a benchmark is the target, what the weights file says.
        """
        if self.own_target is not None:
            return self.own_target.size
        return self.trained.info.size if self.trained is not None else None

    # Samples and batches

    def source_crops(self) -> Dataset:
        """Labelled crops of the source."""
        self.check_views(spot_check(self.source), "source")
        return SourceTraining(
            self.source, **self._views("source"), rare_classes=self._rare_classes("source", self.source)
        )

    def oracle_crops(self) -> Dataset:
        """Labelled crops of the target; only the oracle trains on them."""
        images = self.images("train", with_labels=True)
        self.check_views(spot_check(images))
        return SourceTraining(images, **self._views(), rare_classes=self._rare_classes("target", images))

    def target_views(self, **parts: Any) -> Dataset:
        """Unlabelled views of the target. ``parts`` are arguments of ``TargetTraining``."""
        self.check_views(spot_check(self.target))
        if parts.get("full_image") and self.config.batch_size > idist.get_world_size():
            self._check_same_size()
        return TargetTraining(self.target, **self._views(), **parts)

    def check_training(self, **parts: Any) -> None:
        """Raises UserError if no training run could use the images with these flags; ``parts`` as in ``target_views``.

        For stages that open a label store, which writes to its folder, before they have their batches.
        """
        self.training_batches(self.source_crops(), self.target_views(**parts))

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

    def whole_target(self, names: Sequence[str] | None = None) -> DataLoader:
        """Whole target training images in order, each on one process: all, or those in ``names``."""
        images: Dataset = self.labelled_target
        if names is not None:
            images = Subset(images, self.labelled_target.indices(names))
        return self.whole_images(images)

    def validation_batches(self) -> DataLoader:
        """Whole validation images in order, each on one process."""
        return self.whole_images(self.validation)

    def statistics_batches(self) -> DataLoader:
        """Whole target training images spread evenly over the set, the same on every process.

        Raises:
            UserError: target training images differ in size, so they cannot be put into batches.
        """
        self._check_same_size()
        images = EvaluationSamples(_some(self.target))
        return evaluation_loader(images, batch_size=STATISTICS_BATCH, num_workers=self.config.num_workers)

    def whole_images(self, dataset: Any) -> DataLoader:
        """Unaugmented images in order, each on one process."""
        return evaluation_loader(
            EvaluationSamples(dataset),
            batch_size=self.config.val_batch_size,
            num_workers=self.config.num_workers,
            rank=idist.get_rank(),
            world_size=idist.get_world_size(),
        )

    def check_views(self, sizes: Iterable[tuple[int, int]], domain: str = "target") -> None:
        """Raises UserError if images of these sizes (height, width) are too small for the crops."""
        own_width = domain == "source" and getattr(self.config, "source_width", 0) > 0
        flag = "source_width" if own_width else "mean_width"
        for size in sizes:
            draw_weak_view(np.random.default_rng(0), size, **self._views(domain), flag=flag)

    def _check_same_size(self) -> None:
        """Raises UserError if target training images differ in size, according to the headers of all files."""
        if self.target.size is not None:
            return  # all images are resized to this size
        if len(self._target_sizes) > 1:
            two = list(self._target_sizes.items())[:2]
            found = " and ".join(f"{width}x{height} ({path.name})" for (width, height), path in two)
            raise UserError(f"{self.config.target}: found training images of {found}; {SAME_SIZE_NEEDED}")

    @cached_property
    def _target_sizes(self) -> dict[tuple[int, int], Path]:
        """(width, height) of target training images -> one that has it. Every file's header is read, once."""
        return {image_size(path): path for path in self.target.images}

    def class_statistics_file(self, domain: str) -> Path:
        """Where the statistics of the classes of ``domain``, "source" or "target", are stored: beside its data."""
        config, own = self.config, self.own_source if domain == "source" else self.own_target
        if getattr(config, "class_statistics", ""):
            return Path(config.class_statistics)
        if own is not None:
            return Path(own.path).with_suffix(".class_statistics.npz")
        name, count = getattr(config, domain), len(self.classes.names)
        return self.root / f"{name}_{count}_classes.class_statistics.npz"

    def _rare_classes(self, domain: str, images: LabelledFiles) -> RareClasses | None:
        """For ``--rare_class_sampling``. The pixels of each class are counted if that was not done before."""
        config = self.config
        if not getattr(config, "rare_class_sampling", False):  # the pipeline, which checks the data, lacks the flag
            return None
        progress = partial(track, title=f"counting the classes of the {domain}, label map", show=idist.get_rank() == 0)
        with idist.one_rank_first():
            statistics = load_or_count(
                self.class_statistics_file(domain),
                images,
                self.classes.names,
                num_workers=config.num_workers,
                progress=progress,
            )
        return RareClasses(statistics, temperature=config.rare_class_temperature, pixels=config.rare_class_pixels)

    def _views(self, domain: str = "target") -> dict[str, Any]:
        return view_settings(self.config, domain)

    def _classes(self) -> LabelSpace:
        return _label_space(self.config, self.own_source, self.own_target, self.trained)

    def _check_target(self, trained: Weights, with_labels: bool) -> None:
        """Raises UserError if the target's label files are not known to be of the classes of a weights file."""
        names, ids, own = self.classes.names, trained.info.label_ids, self.own_target
        if own is None and names != benchmark_names(len(names)):
            raise UserError(
                f"--target={self.config.target}: its classes are not those of {trained.path} "
                f"({', '.join(names[:3])}, ...); set --target=NAME.toml, a description of the images"
            )
        if own is not None and own.space is None and with_labels and not ids and names != benchmark_names(len(names)):
            raise UserError(
                f"{own.path}: no classes = [...], and {trained.path}, of an older version, does not say the ids of "
                "its classes; list the classes, or set --source"
            )

    def skip_lines(self) -> dict[str, str]:
        """How many images of a training run ``--skip_bad`` leaves out, for the start-up summary; empty without it.

        Warns of lines of the list that match no image, which may be misspelt.
        """
        if not self.config.skip_bad:
            return {}
        parts = {"source": self.source, "train": self.target, "val": self.validation}
        skipped = {part: images.skipped for part, images in parts.items() if isinstance(images, LabelledFiles)}
        line = ", ".join(f"{len(names)} of {part}" for part, names in skipped.items())
        unknown = [
            f"{part}/{name}" if part else name
            for part, name in read_skip_entries(self.config.skip_bad)
            if not any(name in names for of_part, names in skipped.items() if part in ("", of_part))
        ]
        if unknown:
            line += f"  WARNING: lines of the list that match no image: {len(unknown)}, the first is {unknown[0]}"
        return {"skipped images": line}

    # What the results depend on

    def label_store(
        self, kind: str, folder: Path, network: SegmentationNetwork, **settings: Any
    ) -> SoftLabelStore | HardLabelStore:
        """The store of the pseudo labels that ``network`` predicts for the target's training images.

        ``kind`` is "soft" or "hard". ``folder`` is used unless ``--pseudo_labels`` names another. ``settings`` are
        other values that the labels depend on.
        """
        own_folder = not self.config.pseudo_labels
        with idist.one_rank_first():  # old labels must be deleted before other ranks open the folder
            return open_store(
                folder if own_folder else Path(self.config.pseudo_labels),
                kind,
                Manifest(
                    num_classes=len(self.classes.names),
                    weights=network.origin,
                    settings=self.prediction_settings() | settings,
                    images=self.target.names,
                    fingerprint=self.target.fingerprint(),
                    class_names=self.classes.names,
                ),
                palette=self.classes.colors,
                overwrite=own_folder and getattr(self.config, "overwrite", False),
                remedy=(
                    "a run can only be resumed with its own settings and data: restore them, or set another --output"
                    if own_folder and getattr(self.config, "resume", False)
                    else "delete the folder or set another --pseudo_labels"
                ),
            )

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of the data of a run: image files, label files, descriptions and the order of classes."""
        found = {"classes": ", ".join(self.classes.names)}
        for name, own in (("source", self.own_source), ("target", self.own_target)):
            if own is not None:
                found[f"{name} description"] = own.fingerprint()
        found["source images"], found["source labels"] = self.source.fingerprint(), self.source.label_fingerprint()
        found["target images"] = self.target.fingerprint()
        if getattr(self.config, "train_on", "") == "target":  # the oracle; other runs only score pseudo labels by them
            found["target labels"] = self.labelled_target.label_fingerprint()
        if isinstance(self.validation, LabelledFiles):
            found["validation images"] = self.validation.fingerprint()
            found["validation labels"] = self.validation.label_fingerprint()
        return found

    def made_from(self, network: SegmentationNetwork) -> dict[str, Any]:
        """What the prototypes of ``network`` depend on, apart from the number of passes."""
        return {
            "weights": network.origin,
            "images": self.target.fingerprint(),
            "classes": self.classes.names,
            **self.prediction_settings(),
        }

    def prediction_settings(self) -> dict[str, Any]:
        """What predictions on the target's training images depend on, apart from the weights and the images."""
        own = self.own_target
        return {"amp": self.config.amp, "size": own.size if own else None}


class UnlabelledDomains(Domains):
    """The images of both domains without any label: label files and classes need not exist. Pretraining uses it.

    ``config`` also has the fields of ``LoopConfig``, ``smallest_view`` and ``color_strength``.
    """

    @cached_property
    def source(self) -> LabelledFiles:
        return self.open("source", "train", with_labels=False)

    @cached_property
    def target(self) -> LabelledFiles:
        return self.open("target", "train", with_labels=False)

    @cached_property
    def validation(self) -> Dataset:
        """The target's validation images; some training images if your own data have none."""
        own = self.own_target
        return (
            _some(self.target) if own is not None and "val" not in own.splits else self.images("val", with_labels=False)
        )

    def view_pairs(self, images: LabelledFiles) -> ViewPairs:
        """Pairs of augmented views of the images of a domain."""
        self.check_views(spot_check(images))
        return self._pairs(images)

    def validation_batches(self) -> DataLoader:
        """Pairs of views of the validation images, the same each time; each image on one process."""
        return evaluation_loader(
            FixedViewPairs(self._pairs(self.validation)),
            batch_size=self.config.val_batch_size,
            num_workers=self.config.num_workers,
            rank=idist.get_rank(),
            world_size=idist.get_world_size(),
        )

    def _pairs(self, images: Any) -> ViewPairs:
        config = self.config
        views = {"smallest_view": config.smallest_view, "color_strength": config.color_strength}
        region = {name: getattr(config, name) for name in ("mean_width", "crop_height", "crop_width")}
        return ViewPairs(images, **region, **views)

    def _classes(self) -> LabelSpace:
        return benchmark_labels(19)  # any: it is not used


def view_settings(config: Any, domain: str) -> dict[str, Any]:
    """How the weak views of ``domain``, "source" or "target", are drawn; commands that do not train lack some flags."""
    own_width = getattr(config, "source_width", 0) if domain == "source" else 0
    settings = {name: getattr(config, name) for name in ("mean_width", "crop_height", "crop_width")}
    return settings | {"mean_width": own_width or config.mean_width, "jitter": getattr(config, "width_jitter", 0.5)}


def data_root(config: DataConfig, trained: Weights | None = None) -> Path:
    """The folder of the data sets. ``--preset=streets`` draws its data set there if it is missing.

    Weights that were trained on Streets are used on Streets, unless a flag or the environment names other data.
    """
    named = config.data_root or os.environ.get("PRODA_DATA")
    streets = config.preset == "streets"
    if not (named or config.preset) and trained is not None and trained.info.recipe == "streets":
        streets, named = config.target == "cityscapes", str(STREETS_DATA["data_root"])
    root = Path(named or "data").expanduser()
    if streets:
        with idist.one_rank_first():
            progress = partial(track, title="drawing Streets, scene")
            write_streets(root, source=config.source or "gta5", progress=progress)
    return root


def own_data(name: str) -> Description | None:
    """The description file that ``--source`` or ``--target`` names; None for a benchmark."""
    return read_description(name) if name.endswith(".toml") else None


def _label_space(
    config: DataConfig, source: Description | None, target: Description | None, trained: Weights | None
) -> LabelSpace:
    if source is None and not config.source:
        space = _trained_classes(config, trained)
    elif source is None:
        space = benchmark_labels(config.num_classes or (16 if config.source == "synthia" else 19))
    elif source.space is None:
        raise UserError(f"{source.path}: no classes = [...]; the description of the source must list them")
    else:
        space = source.space
    if config.num_classes not in (0, len(space.names)):
        raise UserError(
            f"--num_classes={config.num_classes}: {config.source} has {len(space.names)} classes; --num_classes=0 "
            "takes them all, whatever a preset sets"
        )
    if target is not None and target.space is not None:
        if trained is not None and not trained.info.class_names and len(target.space.names) == len(space.names):
            space = target.space  # a file that does not name its classes
        if target.space.names != space.names:
            those = "the source" if config.source or trained is None else trained.path
            raise UserError(
                f"{target.path}: its classes are {', '.join(target.space.names)}; expected those of {those} in "
                f"the same order: {', '.join(space.names)}"
            )
        space = space._replace(table=target.space.table)
    return space


def _trained_classes(config: DataConfig, trained: Weights | None) -> LabelSpace:
    """The classes that a weights file names, or those of the benchmarks if it names none."""
    if trained is None:
        return benchmark_labels(config.num_classes or 19)
    info, number = trained.info, config.num_classes
    if number not in (0, info.num_classes) and info.num_classes:
        raise UserError(
            f"{trained.path}: found weights for {info.num_classes} classes, expected {number} classes "
            "(--source, --num_classes)"
        )
    if not (number or info.num_classes):
        raise UserError(
            f"{trained.path}: found weights for an unknown number of classes; set --source or --num_classes"
        )
    return stored_labels(number or info.num_classes, info.class_names, info.colors, info.label_ids)


def _some(images: LabelledFiles) -> Subset:
    return Subset(images, np.unique(np.linspace(0, len(images) - 1, SOME_IMAGES).astype(int)).tolist())
