"""Experiments that build on one another: each is skipped when its output is up to date, resumed when half done.

What a step depends on is in ``inputs.json`` of its folder from before its start: the resolved flags, the contents of
the weights files and of descriptions of own data, and the names of the images.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from proda.experiment import domains
from proda.experiment.config import make_config
from proda.experiment.job import FREE, LEFT, read_summary
from proda.experiment.launch import load_experiment, start
from proda.handlers.checkpoints import earlier_run
from proda.utils.files import save_json, sha256

RECORD = "inputs.json"
PARTS = ("configuration", "files", "descriptions", "images")  # of the record
NOT_INPUTS = FREE - {"iterations", "epochs"}  # a run may be prolonged by hand; a step has the length it was asked for
FILES = ("weights", "init_file")  # flags that name a file: its content counts, not its place


def run_if_outdated(experiment: str, flags: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
    """Has an experiment done in the folder ``flags["output"]``; returns its ``summary.json``.

    Nothing is run where it was done with the same inputs before; a run with the same inputs that was cut short goes
    on. What was done with other inputs is deleted and done anew with ``overwrite``.

    Raises:
        ValueError: the folder holds what was done with other inputs, or with unknown ones; or as :func:`start`.
        FileNotFoundError: as :func:`start`.
    """
    folder, now = Path(flags["output"]), inputs(experiment, flags)
    before, finished = _recorded(folder), (folder / "summary.json").is_file()
    same, used = before.get("hash") == now["hash"], finished or bool(earlier_run(folder))
    idist.barrier()  # each process has looked before one of them writes
    if same and finished:
        print_once(f"{folder}: up to date, skipped")
        return read_summary(folder)
    if used and not same and not overwrite:
        raise ValueError(
            f"{folder} holds a run {_difference(before, now)}: do it anew by --overwrite, or give another --output"
        )
    if idist.get_rank() == 0:
        if not same:
            clear(folder)
        save_json(now, folder / RECORD)
    idist.barrier()
    try:
        start(experiment, {**flags, "resume": same and used})
    except BaseException:
        if idist.get_rank() == 0 and [path.name for path in folder.iterdir()] == [RECORD]:
            shutil.rmtree(folder)  # it was refused before it wrote anything
        raise
    idist.barrier()  # rank 0 writes the summary
    return read_summary(folder)


def print_once(text: str) -> None:
    """Prints a line, once for all processes."""
    if idist.get_rank() == 0:
        print(text, flush=True)


def inputs(experiment: str, flags: dict[str, Any]) -> dict[str, Any]:
    """What the result of an experiment depends on, and the SHA-256 of all of it under ``hash``."""
    module = load_experiment(experiment)
    config = make_config(module.Config, flags, getattr(module, "PRESETS", None))
    files = {name: value for name in FILES if (value := getattr(config, name, ""))}
    for name, path in files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"--{name}={path}: no such file; expected the weights that {experiment} starts from"
            )
    content = {
        "configuration": {n: v for n, v in asdict(config).items() if n not in NOT_INPUTS and n not in files},
        "files": {name: sha256(path) for name, path in files.items()},
        "descriptions": {n: sha256(v) for n in ("source", "target") if domains.own_data(v := getattr(config, n))},
        "images": {
            "source": _digest(domains.open_data(config, "source", "train", with_labels=True).names),
            "target": _digest(domains.open_data(config, "target", "train", with_labels=False).names),
        },
    }
    return {**content, "hash": _digest(content)}


def clear(folder: Path) -> None:
    """Deletes a run from its folder; the record of its inputs first, so that half of it is never taken for whole."""
    left = [path for pattern in LEFT for path in folder.glob(pattern)]
    for path in [folder / RECORD, *left, *earlier_run(folder)]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "pseudo_labels", ignore_errors=True)


def _recorded(folder: Path) -> dict[str, Any]:
    """What :func:`inputs` gave for the run in ``folder``; empty where no record is there or it is damaged."""
    try:
        content = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in PARTS)
    return content if whole else {}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has changed, in words."""
    if not before:
        return f"of which {RECORD} does not tell the inputs"
    old, new = before["configuration"], now["configuration"]
    changes = [
        f"--{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    for part, words in (("files", "other content of --{}"), ("descriptions", "--{} reads otherwise"), ("images", "{}")):
        then = before[part]
        changed = [name for name in then.keys() | now[part].keys() if then.get(name) != now[part].get(name)]
        changes += [words.format(f"other {name} images" if part == "images" else name) for name in sorted(changed)]
    more = f", and {len(changes) - 3} changes more" if len(changes) > 3 else ""
    return f"with other inputs ({', '.join(changes[:3])}{more})"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
