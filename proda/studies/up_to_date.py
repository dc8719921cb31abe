"""Experiments that build on one another: skipped if their output is up to date, resumed if they were interrupted.

Before an experiment starts, ``inputs.json`` in its folder records what the result depends on: the resolved flags, the
checksums of weights files, and the fingerprints of images, labels and descriptions.
"""

import json
import shutil
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from proda.cli.launch import load_experiment, start
from proda.models.weights import prototypes_record
from proda.run.domains import Domains
from proda.run.job import UNCOMPARED_FLAGS, keep_inputs, read_summary, weights_flags
from proda.settings.config import make_config, with_present_names
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_json, sha256
from proda.utils.lock import FolderLock
from proda.utils.run_files import INPUTS_FILE, all_run_files, earlier_run

VERSION = 1  # of the record; older records have no version and other fingerprints of the data
PARTS = ("configuration", "files", "data")  # of the record


def run_if_outdated(experiment: str, flags: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
    """Runs an experiment in the folder ``flags["output"]`` unless its result is up to date; returns ``summary.json``.

    An interrupted run with the same inputs is resumed. A run with different inputs is deleted and repeated if
    ``overwrite`` is set.

    Raises:
        UserError: the folder holds a run with different or unknown inputs; another command uses the folder;
            ``overwrite`` would delete a file that a flag names; or an error of :func:`start`.
    """
    config = _config(experiment, flags)
    folder, now = Path(flags["output"]), inputs(experiment, flags)
    before, finished = _recorded(folder), (folder / "summary.json").is_file()
    changes, used = _changes(before, now, config), finished or bool(earlier_run(folder))
    same = bool(before) and not changes
    idist.barrier()  # all processes have read the folder before one of them writes
    if same and finished:
        print_once(f"{folder}: up to date, skipped")
        return read_summary(folder)
    if used and not same and not overwrite:
        found = f"with different inputs ({_shortened(changes)})" if before else f"without a readable {INPUTS_FILE}"
        raise UserError(f"{folder} holds a run {found}: repeat it with --overwrite, or set another --output")
    if used and not same:
        keep_inputs(folder, config, folder / "pseudo_labels")
    with FolderLock(folder):
        if idist.get_rank() == 0:
            if not same:
                clear(folder)
            save_json(now, folder / INPUTS_FILE)
        idist.barrier()
    try:
        start(experiment, {**flags, "resume": same and used})
    except BaseException:
        if idist.get_rank() == 0 and folder.is_dir() and [path.name for path in folder.iterdir()] == [INPUTS_FILE]:
            shutil.rmtree(folder)  # the run failed before it wrote anything
        raise
    idist.barrier()  # rank 0 writes the summary
    return read_summary(folder)


def finished_summary(experiment: str, flags: dict[str, Any]) -> dict[str, Any] | None:
    """``summary.json`` of a finished run in ``flags["output"]`` with these flags and weights files; else None.

    Data are not compared, which takes longer: :func:`run_if_outdated` does that.
    """
    folder = Path(flags["output"])
    if not (folder / "summary.json").is_file():
        return None
    try:
        now = inputs(experiment, flags, with_data=False)
    except MissingFileError:  # of weights that the run started from
        return None
    before = _recorded(folder)
    return None if not before or _changes(before, now, _config(experiment, flags)) else read_summary(folder)


def print_once(text: str) -> None:
    """Prints a line on rank 0 only."""
    if idist.get_rank() == 0:
        print(text, flush=True)


def inputs(experiment: str, flags: dict[str, Any], *, with_data: bool = True) -> dict[str, Any]:
    """What the result of an experiment depends on, as ``inputs.json`` records it; optionally without the data.

    Raises:
        MissingFileError: a weights file that a flag names does not exist.
    """
    config = _config(experiment, flags)
    files = {name: value for name, value in weights_flags(config).items() if name != "prototypes" or _given(value)}
    for name, path in files.items():
        if not Path(path).is_file():
            raise MissingFileError(f"--{name}={path}: no such file; expected the weights that {experiment} starts from")
    return {
        "version": VERSION,
        "configuration": {n: v for n, v in asdict(config).items() if n not in UNCOMPARED_FLAGS and n not in files},
        "files": {name: sha256(path) for name, path in files.items()},
        "data": Domains(config).fingerprints() if with_data else {},
    }


def _given(prototypes: str) -> bool:
    """Whether a file of prototypes is an input of its own, since it does not say from which others it was made."""
    try:
        return not prototypes_record(prototypes)
    except MissingFileError:  # the run makes them
        return False
    except UserError:  # damaged: the run refuses it
        return True


def clear(folder: Path) -> None:
    """Deletes a run from its folder."""
    for path in all_run_files(folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "pseudo_labels", ignore_errors=True)


def _config(experiment: str, flags: dict[str, Any]) -> Any:
    module = load_experiment(experiment)
    return make_config(module.Config, flags, getattr(module, "PRESETS", None))


def _recorded(folder: Path) -> dict[str, Any]:
    """The recorded result of :func:`inputs` for the run in ``folder``; empty if the record is missing or damaged.

    Records of an older version have other fingerprints of the data, so their data are not compared.
    """
    try:
        content = json.loads((folder / INPUTS_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if isinstance(content, dict) and "version" not in content:
        content = {"version": 0, "data": {}, **content}
    whole = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in PARTS)
    if not whole or not isinstance(content["version"], int):
        return {}
    if content["version"] > VERSION:
        raise UserError(
            f"{folder / INPUTS_FILE}: written by a newer version of proda; use that one, or another --output"
        )
    return content


def _changes(before: dict[str, Any], now: dict[str, Any], config: Any) -> list[str]:
    """The changes of inputs, in words. Flags that did not exist when the record was written had their defaults."""
    if not before:
        return []
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    old, files = (with_present_names(before[part], type(config), quiet=True) for part in ("configuration", "files"))
    new, data = json.loads(json.dumps(now["configuration"])), before["data"]
    changes = [
        f"--{name} was {was}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in now["files"] and (was := old.get(name, defaults.get(name))) != new.get(name)
    ]
    changes += [
        f"content of --{n} changed" for n in sorted(files.keys() | now["files"]) if files.get(n) != now["files"].get(n)
    ]
    if not data and now["data"]:
        print_once(f"{INPUTS_FILE} was written by an older version: the data cannot be compared")
    return changes + [
        f"{name} changed" for name in sorted(data.keys() & now["data"]) if data[name] != now["data"][name]
    ]


def _shortened(changes: list[str]) -> str:
    more = f", and {len(changes) - 3} more changes" if len(changes) > 3 else ""
    return ", ".join(changes[:3]) + more
