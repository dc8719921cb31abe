"""Settings of an experiment: a flat dataclass whose fields are the command-line flags.

An experiment module defines a dataclass ``Config``. Every field has a type that limits its values (see
:mod:`proda.settings.options`), a default, and a trailing comment that describes it. Comment lines such as ``# -- Data``
above fields are the headings under which ``--help`` lists their flags. The module may also define ``PRESETS``: recipe
name -> the fields that differ from the defaults. The dataclasses below hold the fields that several experiments share.
"""

import ast
import difflib
import inspect
import logging
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from proda.settings.options import (
    SCALES,
    Bounds,
    Fraction,
    FractionBelowOne,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    OptionType,
    PathText,
    Pixels,
    PositiveFraction,
    PositiveInt,
    ProcessCount,
    Temperature,
    file_of,
    option_types,
)
from proda.utils.errors import UserError

log = logging.getLogger("proda")

# Old name -> present name. The old names are accepted for one release, where the experiment has no such field.
RENAMED_FLAGS = {
    "target_statistics": "adabn",
    "consistency_weight": "structure_weight",
    "regularizer_weight": "mrkld_weight",
    "weights": "teacher",  # of stages 2 and 3
}
# Words for a flag that differ from its name -> names that it may have here, the first that the experiment has.
SYNONYMS = {
    "learning_rate": ("lr",),
    "base_lr": ("lr",),
    "wd": ("weight_decay",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "max_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "steps": ("iterations",),
    "iters": ("iterations",),
    "max_iters": ("iterations",),
    "max_steps": ("iterations",),
    "gpus": ("nproc_per_node",),
    "num_gpus": ("nproc_per_node",),
    "ngpus": ("nproc_per_node",),
    "gpu": ("device",),
    "cuda": ("device",),
    "cpu": ("device",),
    "workers": ("num_workers",),
    "fp16": ("amp",),
    "bf16": ("amp",),
    "mixed_precision": ("amp",),
    "precision": ("amp",),
    "model": ("weights", "teacher", "init_file"),
    "ckpt": ("weights", "teacher", "init_file"),
    "checkpoint": ("weights", "teacher", "init_file"),
    "pretrained": ("init_file", "weights"),
    "resume_from": ("resume",),
    "out": ("output",),
    "out_dir": ("output",),
    "output_dir": ("output",),
    "save_dir": ("output",),
    "work_dir": ("output",),
    "log_dir": ("output",),
    "data": ("data_root",),
    "data_dir": ("data_root",),
    "dataset": ("source",),
    "src_dataset": ("source",),
    "tgt_dataset": ("target",),
    "n_class": ("num_classes",),
    "classes": ("num_classes",),
    "arch": ("backbone",),
    "encoder": ("backbone",),
    "img": ("images",),
    "eval_every": ("val_every",),
    "val_interval": ("val_every",),
    "save_every": ("checkpoint_every",),
    "force": ("overwrite",),
    "tau": ("temperature",),
    "ema": ("teacher_momentum",),
}
HEADING = "# -- "  # begins a comment line with the group of the fields below it
# Groups of flags in the order of --help.
GROUPS = (
    *("Recipe", "Stages", "Data", "Network", "Length", "Optimisation", "Method", "Parts", "Pseudo labels"),
    *("Output", "Machine"),
)
OTHER_GROUP = "This experiment"
HeadName = Literal["", "deeplab", "daformer"]  # empty: that of the weights file, where there is one
BENCHMARKS = {"source": ("gta5", "synthia"), "target": ("cityscapes",)}


@dataclass
class RunConfig(Options):
    """Fields of every experiment."""

    # -- Recipe
    preset: str = ""  # recipe: one of the presets listed above; other flags override its values
    seed: Annotated[int, Bounds(0, 2**31 - 1)] = 0  # seed of initial weights, data order, augmentation and dropout
    # -- Output
    output: PathText = ""  # output folder of the run; runs/<experiment> if empty
    # -- Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if available, else cpu
    num_workers: ProcessCount = 4  # data loading processes per training process; 0: no extra processes
    amp: Literal["off", "bf16", "fp16"] = "off"  # mixed precision
    compile: bool = False  # compile networks and losses with torch.compile (for GPUs; each image size is compiled anew)
    deterministic: bool = False  # use only deterministic algorithms, which are slower on a GPU
    nproc_per_node: ProcessCount = 0  # processes to start on this machine; 0: use the current process
    backend: Literal["", "nccl", "gloo"] = ""  # communication between processes; depends on the device if empty


@dataclass
class DataConfig(RunConfig):
    """Fields of every experiment that reads images."""

    # -- Data
    data_root: PathText = ""  # folder with cityscapes/, gta5/ and synthia/; if empty, $PRODA_DATA or else data/
    source: PathText = "gta5"  # labelled synthetic domain: gta5, synthia, or a description file (docs/own_data.md)
    target: PathText = "cityscapes"  # unlabelled domain: cityscapes, or a description file (docs/own_data.md)
    num_classes: NonNegativeInt = 0  # 19, 16 or 13; 0: 19 for gta5, 16 for synthia, all classes of a description file
    skip_bad: PathText = ""  # file that lists images to skip, such as bad_files.txt written by check_data
    labelled_only: bool = False  # skip source images without a label map
    gta5_size_as_released: bool = False  # resize all images and label maps of GTA5 to 1914 x 1052 pixels
    # -- Network
    backbone: str = "resnet101"  # resnet101, convnext_tiny, timm:NAME, a file NAME.py ... (docs/networks.md)
    head: HeadName = "deeplab"  # head of the network: ProDA's on DeepLab's, or DAFormer's
    # -- Machine
    val_batch_size: PositiveInt = 1  # images per evaluation step and process

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name, known in BENCHMARKS.items():
            value = getattr(self, name)
            if value not in (*known, getattr(type(self), name)) and not value.endswith(".toml"):
                yield f"--{name}={value}: expected one of {', '.join(map(repr, known))}, or a file NAME.toml"


@dataclass
class UseConfig(DataConfig):
    """Fields of every experiment that uses a trained network as its weights file describes it."""

    # -- Network
    weights: PathText = ""  # file of the network; it also says which backbone and which classes the network has
    source: PathText = ""  # gta5, synthia or a description file, whose classes the network has to have; may be empty
    backbone: str = ""  # backbone that the network has to have; may be empty, except for one of your own (NAME.py)
    head: HeadName = ""  # head that the network has to have; may be empty


@dataclass
class LoopConfig(DataConfig):
    """Fields of every run that trains a network, pretraining included. The defaults are the published values."""

    # -- Data
    batch_size: PositiveInt = 4  # global batch size per domain in images, split over the processes
    mean_width: Pixels = 2200  # in pixels: images are resized to about this width (0.5 to 1.5 times), then cropped
    crop_width: Pixels = 896  # width of the crops in pixels
    crop_height: Pixels = 512  # height of the crops in pixels
    # -- Length
    epochs: PositiveInt = 84  # passes over the target training images
    iterations: NonNegativeInt = 0  # length of training in iterations; 0: use --epochs
    stop_after: NonNegativeInt = 0  # save and exit after this iteration, as on SIGTERM; 0: never
    # -- Optimisation
    schedule_iterations: NonNegativeInt = 0  # iteration at which the learning rate reaches zero; 0: the last iteration
    lr: LearningRate = 2.5e-4  # learning rate of the backbone at the start of training
    momentum: FractionBelowOne = 0.9  # momentum of SGD; AdamW has its own, 0.9 and 0.999
    weight_decay: Fraction = 2e-4  # weight decay; AdamW's is 0.01 in most recipes
    grad_clip: NonNegativeFloat = 0.0  # maximum gradient norm; 0: no clipping
    # -- Output
    resume: bool = False  # continue from the last good checkpoint in the output folder
    overwrite: bool = False  # delete the files of an earlier run in the output folder
    val_every: PositiveInt = 1000  # iterations between validations
    checkpoint_every: PositiveInt = 1000  # iterations between full checkpoints
    log_every: PositiveInt = 50  # iterations between scalars written to TensorBoard
    panels_every: NonNegativeInt = 1000  # iterations between image panels written to TensorBoard; 0: no panels
    plan: bool = False  # print the memory, disk space and time that the run will take, and end; nothing is written

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.resume and self.overwrite:
            yield "--resume and --overwrite: one continues the run in the output folder, the other deletes it"


@dataclass
class TrainConfig(LoopConfig):
    """Fields of every training stage."""

    # -- Data
    source_width: NonNegativeInt = 0  # mean width of the source's images in pixels; 0: --mean_width
    width_jitter: FractionBelowOne = 0.5  # images are resized to 1 - this to 1 + this times the mean width
    # -- Optimisation
    optimizer: Literal["sgd", "adamw"] = "sgd"  # adamw: without weight decay of norms and embeddings
    warmup_iterations: NonNegativeInt = 0  # linear warm-up of the learning rate
    decay_power: Annotated[float, Bounds(0, 10)] = 0.9  # power of the polynomial decay of the learning rate
    layer_decay: PositiveFraction = 1.0  # ratio of the learning rates of a backbone's layer and the next; 1: all alike
    head_lr_factor: NonNegativeFloat = 10.0  # ratio of the learning rates of head and backbone; 1: one parameter group
    repeat_backbone_parameters: bool = False  # as released: update most backbone weights 3 or 4 times an iteration
    # -- Network
    dropout: FractionBelowOne = 0.1  # channel dropout before the classifier
    # -- Parts
    rare_class_sampling: bool = False  # draw source images with rare classes more often (docs/parts.md)
    rare_class_temperature: Temperature = 0.01  # the lower, the more often rare classes are drawn
    rare_class_pixels: NonNegativeInt = 3000  # an image shows a class if it has more pixels of it (scaled to 2 MP)
    class_statistics: PathText = ""  # file of the pixels of each class; written if missing; if empty, beside the data
    feature_distance: NonNegativeFloat = 0.0  # weight of the distance to the initial backbone's features; 0: none
    thing_classes: str = ""  # classes that it covers, separated by commas; if empty, the objects of the benchmarks

    # -- Machine
    checkpoint_activations: bool = False  # keep less in memory: compute the backbone's stages again in backward passes

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.class_statistics and not self.rare_class_sampling:
            yield "--class_statistics has no effect without --rare_class_sampling"
        if self.thing_classes and not self.feature_distance:
            yield "--thing_classes has no effect without --feature_distance"
        if self.repeat_backbone_parameters and (self.optimizer != "sgd" or self.layer_decay != 1):
            yield "--repeat_backbone_parameters is for --optimizer=sgd and --layer_decay=1, as released"


@dataclass
class AdaptConfig(TrainConfig):
    """Fields of every training stage that sees both domains."""

    # -- Network
    adabn: bool = False  # recompute batch-norm statistics on target images before each validation (AdaBN)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.adabn and getattr(self, "freeze_bn", False):
            yield "--adabn has no effect with --freeze_bn; set --freeze_bn=False or remove --adabn"


@dataclass
class PseudoLabelConfig(AdaptConfig):
    """Fields of every training stage that trains on pseudo labels of the target."""

    # -- Parts
    class_mix: bool = False  # paste classes of the source onto the target images that the student is trained on
    class_mix_as_released: bool = False  # draw them among the classes of the whole batch, unlabelled pixels being one
    color_augmentation: bool = False  # change the colours of these target images, and blur them
    masked_consistency: NonNegativeFloat = 0.0  # weight of the loss on masked target images; 0: none
    mask_ratio: Fraction = 0.7  # probability with which a square of the image is masked
    mask_block: PositiveInt = 32  # side of these squares in pixels

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.class_mix_as_released and not self.class_mix:
            yield "--class_mix_as_released has no effect without --class_mix"
        if self.adabn and getattr(self, "teacher_mode", "train") == "eval":
            yield (
                "--teacher_mode=eval with --adabn: the teacher would normalise by statistics that are recomputed only "
                "at validations; choose one of the two"
            )


InitKind = Literal["imagenet", "simclr", "random", "weights"]


@dataclass
class InitConfig(TrainConfig):
    """Fields of every training stage that may start from pretrained weights."""

    # -- Network
    init: InitKind = "imagenet"  # initial weights: imagenet, simclr, random, or weights (all from --init_file)
    init_file: PathText = ""  # weights file for --init; if empty, torchvision or timm downloads its ImageNet weights

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.head == "daformer" and getattr(self, "freeze_bn", False) and self.init != "weights":
            yield "--freeze_bn with --head=daformer: the batch norm of a fresh head has to learn; set --freeze_bn=False"


def field_docs(config_class: type) -> dict[str, str]:
    """Field name -> its trailing comment, for all fields of a class; base classes first."""
    return {name: doc for name, doc, _ in _declarations(config_class)}


def field_groups(config_class: type) -> dict[str, list[str]]:
    """Group -> names of its fields, in the order of ``GROUPS``; groups that are not in it come first.

    A comment line ``# -- Data`` in a class puts the fields below it into the group ``Data``. A field without such a
    line above it stays in the group that it has in a base class, or else belongs to ``OTHER_GROUP``.
    """
    group_of: dict[str, str] = {}
    for name, _, group in _declarations(config_class):
        group_of[name] = group or group_of.get(name, OTHER_GROUP)
    found: dict[str, list[str]] = {}
    for name, group in group_of.items():
        found.setdefault(group, []).append(name)
    return dict(sorted(found.items(), key=lambda item: GROUPS.index(item[0]) if item[0] in GROUPS else -1))


def _declarations(config_class: type) -> Iterator[tuple[str, str, str]]:
    """Name, trailing comment and group ("" if none) of each declaration of a field; those of base classes first."""
    for cls in reversed(config_class.__mro__):
        if cls is object:
            continue
        source = textwrap.dedent(inspect.getsource(cls))
        lines, group, seen = source.splitlines(), "", 0
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined] # a class
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
                headings = [line.strip() for line in lines[seen : node.lineno - 1] if line.strip().startswith(HEADING)]
                group, seen = headings[-1].removeprefix(HEADING).strip() if headings else group, node.end_lineno
                line = lines[node.end_lineno - 1].encode()  # Python counts columns in bytes
                yield node.target.id, line[node.end_col_offset :].decode().lstrip(" #").strip(), group


def make_config(config_class: type, flags: Mapping[str, Any], presets: Mapping[str, dict] | None = None) -> Any:
    """An instance of ``config_class``: the flags override the preset, which overrides the defaults.

    Args:
        config_class: a flat dataclass of options (see :mod:`proda.settings.options`).
        flags: flag name -> value, or its text.
        presets: recipe name -> field values. ``flags["preset"]`` selects one, or else ``flags["source"]``.

    Raises:
        UserError: a flag or preset is unknown, a value is invalid, or two values exclude each other. For an unknown
            flag the message names the most similar one. For an invalid preset or default it names the file.
    """
    presets, types, file = presets or {}, option_types(config_class), file_of(config_class)
    flags = with_present_names(flags, config_class)
    if unknown := [name for name in flags if name not in types]:
        near = _nearest(unknown[0], config_class)
        raise UserError(f"unknown flag --{unknown[0]}{near and f'; the nearest is --{near}'} (--help lists all)")
    values = {name: _read(types[name], value, f"--{name}") for name, value in flags.items()}
    source = values.get("source", "")
    recipe = values.get("preset") or getattr(config_class, "preset", "") or (source if source in presets else "")
    if recipe and recipe not in presets:
        raise UserError(f"--preset={recipe}: unknown preset; expected one of {', '.join(presets) or '(none)'}")
    chosen = {"preset": recipe} if recipe else {}
    for name, value in presets.get(recipe, {}).items():
        place = f"{file}: preset {recipe}: {name}"
        if name not in types:
            near = _nearest(name, config_class)
            raise UserError(f"{place}: {config_class.__name__} has no such field{near and f'; the nearest is {near}'}")
        chosen[name] = _read(types[name], value, place)
    for field in fields(config_class):
        if field.name not in chosen and field.name not in values:
            place = f"{file}: {config_class.__name__}.{field.name}"
            if field.default is MISSING:
                raise UserError(f"{place}: every field of an experiment needs a default")
            chosen[field.name] = _read(types[field.name], field.default, place)
    config = config_class(**{**chosen, **values})
    for problem in config.problems():
        raise UserError(problem)
    return config


def with_present_names(
    flags: Mapping[str, Any], config_class: type, *, place: str = "", quiet: bool = False
) -> dict[str, Any]:
    """``flags`` with the present name of each that ``RENAMED_FLAGS`` lists; a warning for each, unless ``quiet``.

    ``place``: the file that the flags are from, for the warning; the command line if empty.

    Raises:
        UserError: a flag is given under both names.
    """
    known, found = {field.name for field in fields(config_class)}, dict(flags)
    for old, new in RENAMED_FLAGS.items():
        if old not in flags or old in known or new not in known:
            continue
        if new in flags:
            raise UserError(f"{place or f'--{old} and --{new}'}: {old} is the old name of {new}; give {new} alone")
        found[new] = found.pop(old)
        if not quiet and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            told = f"{place}: --{old}" if place else f"--{old}"
            log.warning("%s is now called --%s; the next release will not accept the old name", told, new)
    return found


def parse_scales(text: str, flag: str = "scales") -> tuple[float, ...]:
    """Parses image scales separated by commas, each from 0.1 to 10. A UserError names the flag."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(SCALES[0] <= value <= SCALES[1] for value in values):
        raise UserError(f"--{flag}={text}: expected numbers from {SCALES[0]} to {SCALES[1]}, separated by commas")
    return values


def default_output(experiment_file: str) -> str:
    return str(Path("runs") / Path(experiment_file).stem)


def _read(option: OptionType, value: Any, place: str) -> Any:
    try:
        return option.read(value)
    except ValueError as error:
        if value == "True" and option.kind is not bool:  # the text of a flag without a value
            raise UserError(f"{place} has no value: {error}") from None
        raise UserError(f"{place}={value}: {error}") from None


def _nearest(name: str, config_class: type) -> str:
    """The field most similar to ``name``, or what a synonym similar to it means; empty if there is none."""
    known = {field.name: field.name for field in fields(config_class)}
    for word, meanings in SYNONYMS.items():
        if meaning := next((field for field in meanings if field in known), ""):
            known.setdefault(word, meaning)
    found = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.65)
    return known[found[0]] if found else ""
