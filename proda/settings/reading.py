"""How flags become the settings of an experiment: a flat dataclass whose fields are the command-line flags.

An experiment module defines a dataclass ``Config``. Every field has a type that limits its values (see
:mod:`proda.settings.options`), a default, and a trailing comment that describes it. Comment lines such as ``# -- Data``
above fields are the headings under which ``--help`` lists their flags. The module may also define ``PRESETS``: recipe
name -> the fields that differ from the defaults.
"""

import ast
import difflib
import inspect
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from proda.settings.options import OptionType, file_of, option_types
from proda.utils.errors import UserError

log = logging.getLogger("proda")

# Old name -> present name. The old names are accepted for one release, where the experiment has no such field.
RENAMED_FLAGS = {"judge_teacher": "validate_teacher", "watch_every": "label_report_every"}
# Flag -> other words for it. A word means the first of its flags that the experiment has.
SYNONYMS = {
    "lr": "learning_rate base_lr",
    "weight_decay": "wd",
    "batch_size": "batch bs",
    "epochs": "max_epochs num_epochs",
    "iterations": "steps iters max_iters max_steps",
    "nproc_per_node": "gpus num_gpus ngpus",
    "device": "gpu cuda cpu",
    "num_workers": "workers",
    "amp": "fp16 bf16 mixed_precision precision",
    "weights": "model ckpt checkpoint pretrained",
    "teacher": "model ckpt checkpoint weights",
    "init_file": "model ckpt checkpoint pretrained",
    "resume": "resume_from",
    "output": "out out_dir output_dir save_dir work_dir log_dir",
    "data_root": "data data_dir",
    "source": "dataset src_dataset",
    "target": "tgt_dataset",
    "num_classes": "n_class classes",
    "backbone": "arch encoder",
    "images": "img",
    "val_every": "eval_every val_interval",
    "checkpoint_every": "save_every",
    "overwrite": "force",
    "temperature": "tau",
    "teacher_momentum": "ema",
}
HEADING = "# -- "  # begins a comment line with the group of the fields below it
# Groups of flags in the order of --help.
GROUPS = (
    *("Recipe", "Stages", "Data", "Network", "Length", "Optimization", "Method", "Successors", "Pseudo labels"),
    *("Output", "Machine"),
)
OTHER_GROUP = "This experiment"


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
        flags: flag name -> value, or its text. A name with a dot, ``stage1.lr``, is an entry of the field of type
            ``StageFlags``; the class says in ``unused(names)`` which of these have no effect.
        presets: recipe name -> field values. ``flags["preset"]`` selects one, or else ``flags["source"]``.

    Raises:
        UserError: a flag or preset is unknown, a value is invalid, or two values exclude each other. For an unknown
            flag the message names the most similar one. For an invalid preset or default it names the file.
    """
    presets, types, file = presets or {}, option_types(config_class), file_of(config_class)
    dotted = [name for name in flags if "." in name]
    values = read_flags(config_class, with_dotted(flags, config_class))
    source = values.get("source", "")
    recipe = values.get("preset") or getattr(config_class, "preset", "") or (source if source in presets else "")
    if recipe and recipe not in presets:
        raise UserError(f"--preset={recipe}: unknown preset; expected one of {', '.join(presets) or '(none)'}")
    chosen: dict[str, Any] = {"preset": recipe} if recipe else {}
    for name, value in with_dotted(presets.get(recipe, {}), config_class).items():
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
    for name in [name for name in chosen.keys() & values if types[name].kind is dict]:
        values[name] = _replaced(chosen[name], values[name])
    config = config_class(**{**chosen, **values})
    if problems := [*config.problems(), *(config.unused(dotted) if dotted else ())]:
        raise UserError("; ".join(problems))
    return config


def read_flags(config_class: type, flags: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flag -> its value, of the type of its field. Messages have ``prefix`` before the names of flags.

    Raises:
        UserError: a flag is unknown, or its value is invalid.
    """
    types, flags = option_types(config_class), with_present_names(flags, config_class)
    if unknown := [name for name in flags if name not in types]:
        near = _nearest(unknown[0].rpartition(".")[2], config_class)
        near = near and f"; the nearest is --{prefix}{near}"
        raise UserError(f"unknown flag --{prefix}{unknown[0]}{near} (--help{prefix and ' of the stage'} lists all)")
    return {name: _read(types[name], value, f"--{prefix}{name}") for name, value in flags.items()}


def with_dotted(values: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """``values`` with ``stage1.lr``, or ``lr`` in a section ``stage1``, as an entry of the ``StageFlags``.

    Nothing changes if the class has no such field.
    """
    field = next((name for name, option in option_types(config_class).items() if option.kind is dict), "")
    if not field or not isinstance(values.get(field, {}), Mapping | None):
        return dict(values)
    found, dotted = {}, dict(values.get(field) or {})
    for name, value in values.items():
        if isinstance(value, Mapping) and name != field:
            dotted = _replaced(dotted, {f"{name}.{flag}": own for flag, own in value.items()})
        elif "." in name:
            dotted = _replaced(dotted, {name: value})
        elif name != field:
            found[name] = value
    return found | ({field: dotted} if dotted else {})


def _replaced(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both, with the names of ``now`` last: a stage has two names, and the last entry counts."""
    return {name: value for name, value in (before or {}).items() if name not in (now or {})} | dict(now or {})


def recipe_value(config: Any, name: str) -> Any:
    """The value of a field in the recipe of ``config.preset``, whatever the flags say."""
    presets = getattr(sys.modules.get(type(config).__module__), "PRESETS", {})
    default = next(field.default for field in fields(config) if field.name == name)
    return presets.get(config.preset, {}).get(name, default)


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
    for flag in [flag for flag in SYNONYMS if flag in known]:
        for word in SYNONYMS[flag].split():
            known.setdefault(word, flag)
    found = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.65)
    return known[found[0]] if found else ""
