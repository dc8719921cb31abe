"""Settings of an experiment: a flat dataclass whose fields are the command-line flags.

An experiment module has a ``Config`` dataclass, every field with a type, a default and a trailing comment that says
what it is, and optionally ``PRESETS``: recipe name -> the fields that differ from the defaults. The dataclasses
below hold the fields that several experiments share.
"""

import ast
import difflib
import inspect
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from proda.utils.errors import UserError

# Presets of an experiment of which they decide the source alone: it judges a released recipe's model as any other.
SOURCES = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {},
    "synthia_released": {"source": "synthia"},
}
# Width and height of Streets, the embedded data, are an eighth of Cityscapes'; so are the views.
STREETS_DATA = {
    "data_root": "data/streets",
    "num_classes": 13,
    "backbone": "tiny",
    "num_workers": 0,
    "val_batch_size": 10,
}
STREETS = {
    **STREETS_DATA,
    "mean_width": 275,
    "crop_width": 112,
    "crop_height": 64,
    "dropout": 0.0,  # 32 feature channels have none to spare
    "head_lr_factor": 1.0,  # the backbone is as new as the head
    "log_every": 10,
    "panels_every": 100,
}
# Trained from scratch, batch norm has known no other images: mixed statistics of both domains fit neither.
STREETS_ADAPT = {**STREETS, "target_statistics": True}


@dataclass
class RunConfig:
    """Fields of every experiment."""

    preset: str = ""  # whole recipe: one of the presets listed above; single flags override it
    output: str = ""  # folder for all that the run writes; runs/<experiment> if empty
    seed: int = 0  # fixes weights, data order, augmentation and dropout
    device: str = "auto"  # cpu, cuda, or auto: cuda where there is one
    num_workers: int = 4  # data loading processes of each training process; 0 loads in the training process
    amp: str = "off"  # mixed precision: off, bf16 or fp16
    deterministic: bool = False  # deterministic algorithms only: slower on a GPU
    nproc_per_node: int = 0  # processes to start on this machine; 0: no spawning
    backend: str = ""  # nccl or gloo for several processes; chosen by device if empty


@dataclass
class DataConfig(RunConfig):
    """Fields of every experiment that reads images."""

    data_root: str = ""  # holds cityscapes/, gta5/, synthia/; $PRODA_DATA, else data/, if empty
    source: str = "gta5"  # labelled synthetic domain: gta5, synthia, or a description of one's own (docs/own_data.md)
    target: str = "cityscapes"  # unlabelled domain: cityscapes, or a description of one's own (docs/own_data.md)
    num_classes: int = 0  # 19, 16 or 13; 0: 19 for gta5, 16 for synthia, and all that a description of one's own has
    backbone: str = "resnet101"  # resnet101, resnet50 or tiny
    val_batch_size: int = 1  # images in one evaluation step of one process


@dataclass
class TrainConfig(DataConfig):
    """Fields of every training stage; published values."""

    batch_size: int = 4  # global batch of each domain, split over the processes
    epochs: int = 84  # passes over the target training images
    iterations: int = 0  # length in iterations instead of epochs, if above 0
    schedule_iterations: int = 0  # iteration at which the learning rate reaches zero; 0: the last one
    lr: float = 2.5e-4  # learning rate of the backbone at the start
    head_lr_factor: float = 10.0  # the head learns this much faster; 1 puts all parameters in one group
    repeat_backbone_parameters: bool = False  # as released: most backbone parameters step 3 or 4 times an iteration
    momentum: float = 0.9  # of SGD
    weight_decay: float = 2e-4  # of SGD
    grad_clip: float = 0.0  # largest gradient norm; 0: no clipping
    sync_bn: bool = True  # batch statistics over all processes (GPU only)
    freeze_bn: bool = False  # the student's batch norm keeps the statistics and scales it starts with
    mean_width: int = 2200  # a view is the image resized to 0.5..1.5 times this width, then cropped
    crop_width: int = 896  # pixels
    crop_height: int = 512  # pixels
    dropout: float = 0.1  # channel dropout before the classifier
    val_every: int = 1000  # iterations between validations
    checkpoint_every: int = 1000  # iterations between full checkpoints
    resume: bool = False  # go on from the last good checkpoint in the output folder
    overwrite: bool = False  # delete what another run has left in the output folder
    log_every: int = 50  # iterations between scalars in TensorBoard
    panels_every: int = 1000  # iterations between image panels in TensorBoard; 0: none
    stop_after: int = 0  # save and leave after this iteration of a longer run, as a preemption would; 0: never


@dataclass
class AdaptConfig(TrainConfig):
    """Fields of every training stage that sees both domains."""

    target_statistics: bool = False  # before each validation, batch norm's statistics are made anew from target images


def field_docs(config_class: type) -> dict[str, str]:
    """The trailing comment of every field, base classes first."""
    docs: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if cls is object:
            continue
        source = textwrap.dedent(inspect.getsource(cls))
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                line = lines[node.end_lineno - 1]
                docs[node.target.id] = line[node.end_col_offset :].lstrip(" #").strip()
    return docs


def make_config(config_class: type, flags: dict[str, Any], presets: dict[str, dict] | None = None) -> Any:
    """``config_class`` from defaults, then the preset's values, then the flags.

    Args:
        config_class: a flat dataclass; field types among ``str``, ``int``, ``float``, ``bool``.
        flags: flag name -> value as the command line parser understood it.
        presets: recipe name -> field values; ``flags["preset"]``, else ``flags["source"]``, picks one.

    Raises:
        UserError: a flag that does not exist (names the nearest), a value of the wrong type, an unknown preset.
    """
    presets = presets or {}
    types = {field.name: field.type for field in fields(config_class)}
    values = {name: _checked(name, value, types) for name, value in flags.items()}
    source = values.get("source", "")
    recipe = values.get("preset") or getattr(config_class, "preset", "") or (source if source in presets else "")
    if recipe and recipe not in presets:
        raise UserError(f"--preset={recipe}: no such recipe; expected one of {', '.join(presets) or '(none)'}")
    chosen = {"preset": recipe, **presets.get(recipe, {})} if recipe else {}
    config = config_class(**{**chosen, **values})
    for problem in _problems(config):
        raise UserError(problem)
    return config


def help_text(config_class: type, doc: str, presets: dict[str, dict] | None = None) -> str:
    """What ``--help`` prints: the experiment's docstring, its presets, then each flag with default and doc."""
    docs = field_docs(config_class)
    lines = [doc.strip(), ""]
    if presets:
        lines += [f"presets: {', '.join(presets)}", ""]
    width = max(len(f"--{field.name}={field.default}") for field in fields(config_class))
    lines.append("flags (--config=FILE gives those in the config.json of another run, which single flags override):")
    for field in fields(config_class):
        lines.append(f"  {f'--{field.name}={field.default}':<{width}}  {docs[field.name]}")
    return "\n".join(lines)


def resolve_num_classes(config: DataConfig) -> int:
    """The number of classes that a run has: the flag, else the benchmark's own."""
    return config.num_classes or (16 if config.source == "synthia" else 19)


def pick(config: Any, *names: str) -> dict[str, Any]:
    """Some fields by name, for a function whose arguments are called the same: ``f(**pick(config, "a", "b"))``."""
    return {name: getattr(config, name) for name in names}


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """A flag's numbers separated by commas, each from 0.1 to 10."""
    try:
        values = tuple(float(part) for part in text.strip("()").split(","))
    except ValueError:
        values = ()
    if not values or not all(0.1 <= value <= 10 for value in values):
        raise ValueError(f"--{flag}={text}: expected numbers from 0.1 to 10, separated by commas")
    return values


def default_output(experiment_file: str) -> str:
    return str(Path("runs") / Path(experiment_file).stem)


def _checked(name: str, value: Any, types: dict[str, type]) -> Any:
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1, cutoff=0.0)
        raise UserError(f"unknown flag --{name}; the nearest is --{near[0]} (--help lists all)")
    expected = types[name]
    if expected is str and isinstance(value, tuple | list):  # Fire's reading of a,b,c
        value = ",".join(map(str, value))
    if expected is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise UserError(f"--{name}={value!r}: expected {expected.__name__}, found {type(value).__name__}")
    return value


_CHOICES = {
    "amp": ("off", "bf16", "fp16"),
    "source": ("gta5", "synthia"),
    "target": ("cityscapes",),
    "num_classes": (0, 13, 16, 19),
    "device": ("auto", "cpu", "cuda"),
    "backend": ("", "nccl", "gloo"),
    "backbone": ("resnet101", "resnet50", "tiny"),
    "gan": ("lsgan", "vanilla"),
    "teacher_mode": ("train", "eval"),
}
_POSITIVE = (
    *("batch_size", "epochs", "val_batch_size", "crop_width", "crop_height", "mean_width", "temperature"),
    *("val_every", "checkpoint_every", "log_every", "passes", "prototype_passes"),
)
_NOT_NEGATIVE = (
    *("iterations", "num_workers", "lr", "seed", "nproc_per_node", "schedule_iterations", "grad_clip", "momentum"),
    *("weight_decay", "panels_every", "stop_after", "renew_labels_every", "prototype_momentum"),
)


def _problems(config: Any) -> list[str]:
    """One line for each value that no run can use."""
    found = []
    for name, choices in _CHOICES.items():
        value = getattr(config, name, choices[0])
        own = name in ("source", "target")  # a description of own data, by the name of its file
        if value not in choices and not (own and value.endswith(".toml")):
            expected = ", ".join(repr(choice) for choice in choices) + (", or a file NAME.toml" if own else "")
            found.append(f"--{name}={value}: expected one of {expected}")
    found += [f"--{n}={getattr(config, n)}: must be above 0" for n in _POSITIVE if getattr(config, n, 1) <= 0]
    found += [f"--{n}={getattr(config, n)}: must not be negative" for n in _NOT_NEGATIVE if getattr(config, n, 0) < 0]
    if getattr(config, "target_statistics", False):
        if config.freeze_bn:
            found.append("--target_statistics has no effect with --freeze_bn: give --freeze_bn=False, or leave it out")
        if getattr(config, "teacher_mode", "train") == "eval":
            found.append(
                "--teacher_mode=eval with --target_statistics: the teacher would normalise by statistics that are made "
                "anew at validations alone; give one of the two"
            )
    if getattr(config, "resume", False) and getattr(config, "overwrite", False):
        found.append("--resume and --overwrite: one goes on with the run in the output folder, the other deletes it")
    return found
