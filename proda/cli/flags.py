"""The command line of an experiment: its flags, ``--config`` and ``--help``."""

import contextlib
import io
import json
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import fire

from proda.settings.options import OptionType, option_types
from proda.settings.reading import field_docs, field_groups, with_dotted, with_present_names
from proda.utils.errors import MissingFileError, UserError

# Entries of config.json that --config ignores: they say where and how a run is executed.
NOT_REPEATED = ("run", "output", "resume", "overwrite", "nproc_per_node", "backend")
CONFIG_FLAG = (
    "--config=FILE reads flags from the config.json of another run, or from a JSON file of your own; flags beside it "
    "override them."
)
VARIABLES = (
    "Environment variables: PRODA_DATA is the data folder if --data_root is not set; PRODA_TRACEBACK=1 prints the "
    "traceback of an error in addition to its message."
)
MOST_LEFT = 38  # columns of a flag with its default; the comment of a longer one is below it
LARGEST_SHOWN = 100  # upper bounds above it are technical


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
        advice = f"; did you mean --{stray.lstrip('-')}?" if "=" in stray else ""
        raise UserError(f"{stray!r}: expected flags of the form --name=value{advice}")
    if words and positional in flags:
        raise UserError(f"{words[0]!r} and --{positional}={flags[positional]}: give all of them in one way")
    return flags | ({positional: ",".join(words)} if words else {})


def with_recorded(flags: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The flags together with those in ``--config=FILE``: the config.json of an earlier run, or a few flags in JSON."""
    if "config" not in flags:
        return dict(flags)
    place = f"--config={flags['config']}"
    try:
        content = json.loads(Path(str(flags["config"])).expanduser().read_text())
        recorded = {name: value for name, value in content.items() if name not in NOT_REPEATED}
    except OSError:
        raise MissingFileError(f"{place}: no such file; expected the config.json of a run") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{place}: expected the config.json of a run") from error
    recorded, flags = with_present_names(recorded, config_class, place=place), with_present_names(flags, config_class)
    recorded = with_dotted(recorded, config_class)
    if other := recorded.keys() - {field.name for field in fields(config_class)}:
        raise UserError(
            f"{place}: {min(other)} is not a flag of this experiment; expected one of its config.json files"
        )
    if "preset" in flags and ("run" in content or "preset" in content):  # a file of one's own may have a few flags
        raise UserError(
            f"--preset={flags['preset']} and {place}: each sets all values of a recipe; pass only one of them"
        )
    return recorded | {name: value for name, value in flags.items() if name != "config"}


def help_text(config_class: type, doc: str, presets: Mapping[str, dict] | None = None) -> str:
    """The text of ``--help``: the experiment's docstring, its presets, and its flags in groups.

    Each flag has its default, its comment, and its choices or its range.
    """
    docs, types = field_docs(config_class), option_types(config_class)
    flags = {field.name: f"  --{field.name}={field.default}  " for field in fields(config_class)}
    flags |= {name: "  --STAGE.FLAG=VALUE  " for name, option in types.items() if option.kind is dict}
    left = min(max(map(len, flags.values())), MOST_LEFT)
    lines = [doc.strip(), ""]
    if presets:
        lines += [*wrapped(f"presets: {', '.join(presets)}", " " * 9), ""]
    lines.append("flags, with their defaults:")
    for group, names in field_groups(config_class).items():
        lines += ["", group]
        for name in names:
            flag = flags[name]
            if len(flag) > left:
                lines.append(flag.rstrip())
                flag = ""
            lines += wrapped(f"{flag:<{left}}{docs[name]}{_allowed(types[name])}", " " * left)
    return "\n".join([*lines, "", *wrapped(CONFIG_FLAG, "    "), *wrapped(VARIABLES, "    ")])


def wrapped(text: str, indent: str) -> list[str]:
    """Lines as wide as the terminal, if it has 60 to 120 columns; 100 where there is none. All but one are indented."""
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _allowed(option: OptionType) -> str:
    """The choices, or the lower and the upper bound, of a flag in parentheses."""
    if choices := [str(choice) for choice in option.choices if choice != ""]:
        return f" ({', '.join(choices)})"
    bounds = option.bounds
    high = min(bounds.high, bounds.below)
    if high > LARGEST_SHOWN:
        return ""
    low = f"above {bounds.above:g}, up" if bounds.above >= bounds.low else f"{bounds.low:g}"
    return f" ({low} to {'below ' if bounds.below < bounds.high else ''}{high:g})"
