"""The command line of an experiment: its flags, ``--config`` and ``--help``."""

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

# Entries of config.json that --config ignores: they say where and how a run is executed.
NOT_REPEATED = ("run", "output", "resume", "overwrite", "stop_after", "nproc_per_node", "backend")
VARIABLES = (
    "environment variables: PRODA_DATA is the data folder if --data_root is not set; PRODA_TRACEBACK=1 prints the",
    "traceback of an error in addition to its message",
)


def parse_flags(arguments: list[str], positional: str = "") -> dict[str, str]:
    """Splits ``--name=value`` arguments with Python Fire: flag name -> the text of its value.

    A flag without a value gets the text ``True``. Words without a flag become the value of the flag ``positional``,
    separated by commas; they are refused if that is empty. Values are not parsed by Fire, which would read
    ``--output=1.10`` as a number; the type of the field decides how to parse its text. Fire calls its function before
    it checks for remaining arguments, so the function only collects the flags.
    """

    @fire.decorators.SetParseFn(str)
    def collect(*words: str, **flags: str) -> tuple[tuple[str, ...], dict[str, str]]:
        return words, flags

    noise = io.StringIO()
    try:
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            found = fire.Fire(collect, command=arguments, name="run.py", serialize=lambda _: None)
    except fire.core.FireExit:
        found = None
    words, flags = found if isinstance(found, tuple) and len(found) == 2 else ((), None)
    if not isinstance(flags, dict) or (words and not positional):
        stray = next((word for word in arguments if not word.startswith("--")), " ".join(arguments))
        raise UserError(f"{stray!r}: expected flags of the form --name=value")
    if words and positional in flags:
        raise UserError(f"{words[0]!r} and --{positional}={flags[positional]}: give all of them in one way")
    return flags | ({positional: ",".join(words)} if words else {})


def with_recorded(flags: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The flags together with those recorded in ``--config=FILE``, the config.json of an earlier run."""
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
        raise UserError(
            f"{place}: {min(other)} is not a flag of this experiment; expected one of its config.json files"
        )
    if "preset" in flags:
        raise UserError(
            f"--preset={flags['preset']} and {place}: each sets all values of a recipe; pass only one of them"
        )
    return recorded | {name: value for name, value in flags.items() if name != "config"}


def help_text(config_class: type, doc: str, presets: Mapping[str, dict] | None = None) -> str:
    """The text of ``--help``: the experiment's docstring, its presets, and each flag with default and comment."""
    docs, types = field_docs(config_class), option_types(config_class)
    lines = [doc.strip(), ""]
    if presets:
        lines += [f"presets: {', '.join(presets)}", ""]
    width = max(len(f"--{field.name}={field.default}") for field in fields(config_class))
    lines.append("flags (--config=FILE reads them from the config.json of another run; other flags override them):")
    for field in fields(config_class):
        choices = ", ".join(str(choice) for choice in types[field.name].choices if choice != "")
        doc = f"{docs[field.name]} ({choices})" if choices else docs[field.name]
        lines.append(f"  {f'--{field.name}={field.default}':<{width}}  {doc}")
    return "\n".join([*lines, "", *VARIABLES])
