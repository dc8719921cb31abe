"""The image and label files of source and target, as the flags of an experiment name them."""

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Dataset, Subset

from proda.data.benchmarks import GTA5_RELEASED_SIZE, open_dataset
from proda.data.camvid import SIZE, camvid, scenes
from proda.data.check import spot_check
from proda.data.labelled_files import FileEntry, LabelledFiles, read_skip_entries, read_skip_list
from proda.data.labels import benchmark_names
from proda.data.own_data import Description, read_description
from proda.models.weights import Weights
from proda.run.changed_files import DataBefore, unchanged_otherwise
from proda.run.classes import label_space
from proda.run.config import DataConfig
from proda.settings.presets import STREETS_DATA
from proda.streets import write_scenes, write_streets
from proda.utils.errors import UserError
from proda.utils.files import fitting_name
from proda.utils.progress import track

SOME_IMAGES = 100  # training images used for AdaBN, and for validation if there is no validation split


class Domains:
    """Source, target and validation images of a run. Each folder is listed once, when it is first needed.

    ``classes`` holds the names and colors of the source's classes and their ids in the target's label files.

    Args:
        trained: the content of a weights file, whose classes apply if ``--source`` is empty.
        single_process: only one process of several uses it, so it must not wait for the others.
        before: the data of the run that is resumed. Its order stays although an example that stopped it is skipped.

    Raises:
        UserError: source, target and ``--num_classes`` do not agree, or files are missing in a folder.
    """

    def __init__(
        self,
        config: DataConfig,
        trained: Weights | None = None,
        *,
        single_process: bool = False,
        before: DataBefore | None = None,
    ) -> None:
        self.config, self.trained, self.single_process = config, trained, single_process
        self.before, self.opened = before, list[tuple[str, LabelledFiles]]()
        folder = named_root(config, trained)
        self.own_source, self.own_target = own_data(config.source, folder), own_data(config.target, folder)
        if self.own_source is not None and self.own_target is None:
            raise UserError(
                f"--source={config.source} needs --target=NAME.toml, a description of the target images, or "
                "--target=camvid"
            )
        self.classes = label_space(config, self.own_source, self.own_target, trained)

    @cached_property
    def root(self) -> Path:
        """The folder of the data sets. The first use draws Streets if they are missing, so all processes need it."""
        return (named_root if self.single_process else data_root)(self.config, self.trained)

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
            return some(self.target)
        return self.images("val", with_labels=self.has_labels("val"))

    def has_labels(self, split: str) -> bool:
        """Whether the target has labels for a split, apart from files that are missing."""
        return split != "test" if self.own_target is None else self.own_target.has_labels(split)

    def images(self, split: str, *, with_labels: bool) -> LabelledFiles:
        """The target's images of a split. A few are read to check that they are valid."""
        dataset = self.open("target", split, with_labels=with_labels)
        spot_check(dataset)
        return dataset

    def open(self, domain: str, split: str, *, with_labels: bool, **options: Any) -> LabelledFiles:
        """Lists a split of ``domain``, "source" or "target"; reads no image. ``options`` go to ``LabelledFiles``."""
        files = self._open(domain, split, with_labels=with_labels, **options)
        part = "source" if domain == "source" else split
        if self.before is not None:
            order, known = self.before.order(part), self.before.stopped_by.setdefault(part, [])
            known += files.damaged(set(order) - set(known))
            if split == "train":
                files.keep_order(order, known)
        self.opened.append((part, files))
        return files

    def _open(self, domain: str, split: str, *, with_labels: bool, **options: Any) -> LabelledFiles:
        config, is_source = self.config, domain == "source"
        own = self.own_source if is_source else self.own_target
        options["labelled_only"] = is_source and with_labels and config.labelled_only
        if config.skip_bad:
            options["skip"] = self.left_out("source" if is_source else split)
        if not is_source and not config.source and self.trained is not None:
            self._check_target(self.trained, with_labels)
        if is_source and config.source == "scenes" and not self.single_process:
            draw_scenes(self.root)
        if own is not None:
            space = (own.space if is_source else None) or self.classes
            # One process extracts the frames of videos.
            with idist.one_rank_first() if own.has_videos(split) and not self.single_process else nullcontext():
                return own.open(split, space, with_labels=with_labels, **options)
        name = config.source if is_source else config.target
        if name == "gta5" and config.as_released:
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

    def class_statistics_file(self, domain: str) -> Path:
        """Where the statistics of the classes of ``domain``, "source" or "target", are stored: next to its data."""
        own = self.own_source if domain == "source" else self.own_target
        if own is not None:
            return own.path.with_name(fitting_name(own.path.stem, ".class_statistics.npz"))
        name = self.config.source if domain == "source" else self.config.target
        return self.root / f"{name}_{len(self.classes.names)}_classes.class_statistics.npz"

    def skip_lines(self) -> dict[str, str]:
        """How many images of a training run ``--skip_bad`` leaves out, for the start-up summary; empty without it.

        Warns of lines of the list that match no image, which may be misspelled.
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

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of the data of a run: image files, label files, descriptions and the order of classes."""
        found = {"classes": ", ".join(self.classes.names)}
        for name, own in (("source", self.own_source), ("target", self.own_target)):
            if own is not None:
                found[f"{name} description"] = own.fingerprint()
        for name, (files, labels) in self._fingerprinted().items():
            found[name] = files.label_fingerprint() if labels else files.fingerprint()
        return found

    def listings(self) -> dict[str, list[FileEntry]]:
        """Name of a fingerprint -> the files that it covers."""
        return {name: files.entries(labels=labels) for name, (files, labels) in self._fingerprinted().items()}

    def _fingerprinted(self) -> dict[str, tuple[LabelledFiles, bool]]:
        """Name of a fingerprint -> the files that it covers, and whether these are the label files."""
        found = {"source images": (self.source, False), "source labels": (self.source, True)}
        found["target images"] = (self.target, False)
        if getattr(self.config, "train_on", "") == "target":  # the oracle; other runs only score pseudo labels by them
            found["target labels"] = (self.labelled_target, True)
        if isinstance(self.validation, LabelledFiles):
            found["validation images"] = (self.validation, False)
            found["validation labels"] = (self.validation, True)
        return found

    def left_out(self, part: str) -> set[str]:
        """Names of examples of a part that ``--skip_bad`` lists."""
        return read_skip_list(self.config.skip_bad, part) if self.config.skip_bad else set()

    def target_of_labels(self) -> str:
        """Fingerprint of the target images that stored labels and prototypes have to be of.

        After a resume with an image that was repaired or left out, these are the images that the run began with.
        """
        before = self.before
        if before is None or not before.labels_of:
            return self.target.fingerprint()
        same = unchanged_otherwise(before, "target images", self.target.entries(), self.left_out("train"))
        return before.labels_of if same else self.target.fingerprint()

    def example_of(self, error: Exception) -> tuple[str, str] | None:
        """Part and name of the example whose file an error names first; None for other errors."""
        text, found = str(error), dict[int, tuple[str, str]]()
        for part, files in self.opened:
            for paths in (files.images, files.label_files or [None] * len(files.names)):
                for name, path in zip(files.names, paths, strict=True):
                    if path is not None and text.startswith(f"{path}: "):
                        found[len(str(path))] = (part, name)
        return found[max(found)] if found else None

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
                f"{own.path}: no classes = [...], and {trained.path} does not say the ids of its classes; list the "
                "classes, or set --source"
            )


def data_root(config: DataConfig, trained: Weights | None = None) -> Path:
    """The folder of the data sets. ``--preset=streets`` draws its data set there if it is missing.

    Weights that were trained on Streets are used on Streets, unless a flag or the environment names other data.
    """
    root = named_root(config, trained)
    if config.preset == "streets" or (config.target == "cityscapes" and _of_streets(config, trained)):
        with idist.one_rank_first():
            progress = partial(track, title="drawing Streets, scene")
            write_streets(root, source=config.source or "gta5", progress=progress)
    return root


def named_root(config: DataConfig, trained: Weights | None = None) -> Path:
    """As ``data_root``; nothing is drawn."""
    streets = str(STREETS_DATA["data_root"]) if _of_streets(config, trained) else ""
    return Path(config.data_root or os.environ.get("PRODA_DATA") or streets or "data").expanduser()


def _of_streets(config: DataConfig, trained: Weights | None) -> bool:
    """Whether weights were trained on Streets, and nothing names other data."""
    named = config.data_root or os.environ.get("PRODA_DATA") or config.preset
    return not named and trained is not None and trained.info.recipe == "streets"


def draw_scenes(root: Path) -> None:
    """Draws the scenes that are missing in ``root/scenes``; one process of several does."""
    with idist.one_rank_first():
        write_scenes(root, size=SIZE, progress=partial(track, title="drawing scenes, scene"))


def own_data(name: str, root: Path) -> Description | None:
    """What ``--source`` or ``--target`` names: a description file, or data sets that are described here.

    None for the benchmarks of ``open_dataset``. ``root``: the folder of the data sets.
    """
    described = {"camvid": camvid, "scenes": scenes}
    if name in described:
        return described[name](root)
    return read_description(name) if name.endswith(".toml") else None


def some(images: LabelledFiles) -> Subset:
    """At most ``SOME_IMAGES`` of the images, spread evenly over the set."""
    return Subset(images, np.unique(np.linspace(0, len(images) - 1, SOME_IMAGES).astype(int)).tolist())
