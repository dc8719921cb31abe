"""The command line of an experiment: its flags, those of an earlier run, and ``--help``."""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import fire

from proda.experiment.config import field_docs, with_present_names
from proda.utils.errors import MissingFileError, UserError
from proda.utils.options import option_types

# Entries of config.json that --config leaves out: where and how a run is made, not what it is.
NOT_REPEATED = ("run", "output", "resume", "overwrite", "stop_after", "nproc_per_node", "backend")
VARIABLES = (
    "environment variables: PRODA_DATA is the folder of the data where --data_root is not given; PRODA_TRACEBACK=1",
    "prints the traceback, which shows where in the code it arose, beside an error line",
)


def parse_flags(arguments: list[str]) -> dict[str, str]:
    """``--name=value`` arguments as Python Fire splits them: flag name -> the text of its value.

    A flag alone has the value ``True``. Fire's reading of values is left out, since it takes ``--output=1.10`` for a
    number: the field says what a text means. Fire calls what it is given before it looks at flags that are left over,
    so it is given a function that only collects.
    """

    @fire.decorators.SetParseFn(str)
    def collect(**flags: str) -> dict[str, str]:
        return flags

    noise = io.StringIO()
    try:
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            flags = fire.Fire(collect, command=arguments, name="run.py", serialize=lambda _: None)
    except fire.core.FireExit:
        flags = None
    if not isinstance(flags, dict):
        stray = next((word for word in arguments if not word.startswith("--")), " ".join(arguments))
        raise UserError(f"{stray!r}: expected flags of the form --name=value")
    return flags


def with_recorded(flags: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """Flags with those that ``--config=FILE``, the config.json of an earlier run, adds to them."""
    if "config" not in flags:
        return dict(flags)
    place = f"--config={flags['config']}"
    try:
        recorded = json.loads(Path(str(flags["config"])).expanduser().read_text())
        recorded = {name: value for name, value in recorded.items() if name not in NOT_REPEATED}
    except OSError:
        raise MissingFileError(f"{place}: no such file; expected the config.json of a run") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{place}: expected the config.json of a run") from error
    recorded, flags = with_present_names(recorded, config_class, place=place), with_present_names(flags, config_class)
    if other := recorded.keys() - {field.name for field in fields(config_class)}:
        raise UserError(f"{place}: {min(other)} is no flag of this experiment; expected the config.json of its run")
    if "preset" in flags:
        raise UserError(
            f"--preset={flags['preset']} and {place}, which has every setting of a recipe: give one of them"
        )
    return recorded | {name: value for name, value in flags.items() if name != "config"}


def help_text(config_class: type, doc: str, presets: Mapping[str, dict] | None = None) -> str:
    """What ``--help`` prints: the experiment's docstring, its presets, then each flag with default, doc and choices."""
    docs, types = field_docs(config_class), option_types(config_class)
    lines = [doc.strip(), ""]
    if presets:
        lines += [f"presets: {', '.join(presets)}", ""]
    width = max(len(f"--{field.name}={field.default}") for field in fields(config_class))
    lines.append("flags (--config=FILE gives those in the config.json of another run, which single flags override):")
    for field in fields(config_class):
        choices = ", ".join(str(choice) for choice in types[field.name].choices if choice != "")
        doc = f"{docs[field.name]} ({choices})" if choices else docs[field.name]
        lines.append(f"  {f'--{field.name}={field.default}':<{width}}  {doc}")
    return "\n".join([*lines, "", *VARIABLES])
