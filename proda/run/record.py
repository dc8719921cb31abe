"""``config.json``: what the results of a run depend on, and what changes when it is resumed or repeated."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from proda.run.config import RunConfig
from proda.settings.reading import with_present_names
from proda.utils.errors import UserError
from proda.utils.files import sha256
from proda.utils.lock import start_time
from proda.utils.record import check_format, plain, shortened
from proda.utils.run_files import all_run_files, earlier_run

RECORD_FILE = "config.json"
FORMAT = 1
# Flags that are not compared between runs: they change neither weights nor scores.
UNCOMPARED_FLAGS = {
    *("preset", "output", "device", "num_workers", "nproc_per_node", "backend", "data_root", "val_batch_size"),
    *("checkpoint_every", "resume", "overwrite", "log_every", "label_report_every", "plan", "checkpoint_activations"),
}
# Flags that may change at --resume; each change is logged. A change of any other flag is refused, including flags of a
# user's own Config: the result would belong neither to the old settings nor to the new ones.
# What --skip_bad leaves out is compared by the fingerprints of the data.
RESUMABLE_FLAGS = UNCOMPARED_FLAGS | {
    *("iterations", "epochs", "schedule_iterations", "val_every", "pseudo_labels", "skip_bad"),
}
UNLOGGED_FLAGS = {"output", "resume", "overwrite"}
WEIGHTS_FILES = (".pt", ".pth", ".pkl", ".npz")  # files with these suffixes are compared by content, not by path
# SLURM_JOB_ID is hidden where Ignite would misread it; then the other name is there.
LAUNCH_IDS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_JOBID")
PACKAGES = ("torch", "torchvision", "pytorch-ignite", "numpy", "pillow", "tensorboardX", "fire")


def run_record(config: RunConfig, data: Mapping[str, str], device: str = "") -> dict[str, Any]:
    """The content of ``config.json``: the flags, and under ``run`` how, by what and on what the run is made.

    ``data``: name -> fingerprint of images, labels and descriptions.
    """
    return plain(asdict(config)) | {
        "run": {
            "format": FORMAT,
            "experiment": experiment_name(config),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "git_commit": git_commit(),
            "processes": idist.get_world_size(),
            "device": device,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "launch": launch(),
            "files": {name: sha256(path) for name, path in weights_flags(config).items() if Path(path).is_file()},
            "data": dict(data),
        }
    }


def read_record(folder: Path, config: RunConfig) -> dict[str, Any]:
    """``config.json`` of the run in ``folder``, with the defaults of flags that did not exist yet; empty if damaged.

    Raises:
        UserError: a newer version of proda wrote it.
    """
    try:
        before = json.loads((folder / RECORD_FILE).read_text())
        if not (isinstance(before, dict) and isinstance(before.get("run"), dict)):
            raise ValueError
    except (OSError, ValueError):
        return {}
    check_format(before["run"].get("format"), FORMAT, folder / RECORD_FILE)
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    return {**defaults, **with_present_names(before, type(config), quiet=True)}


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """How a run was made: ``run`` of its ``config.json``, with ``git_commit`` and ``started``; empty if unknown."""
    try:
        return json.loads((Path(folder) / RECORD_FILE).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Flag or kind of data -> how it differs between two records, in words.

    Files of weights and descriptions of data are compared by content where both records know it.
    """
    old, new = before["run"], now["run"]
    found = {}
    for name in [name for name in now if name != "run"]:
        was, value = before.get(name), now[name]
        if all(str(path).endswith((*WEIGHTS_FILES, ".toml")) for path in (was, value)):
            files = old.get("files", {}), new.get("files", {})
            if all(name in known for known in files) and files[0][name] != files[1][name]:
                found[name] = f"the content of --{name}={value} has changed"
        elif was != value:
            found[name] = f"--{name} was {was}, is {value}"
    data = old.get("data", {}), new.get("data", {})
    return found | {
        name: f"{name} changed" for name in sorted(data[0].keys() & data[1]) if data[0][name] != data[1][name]
    }


def refuse_other_settings(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the run in ``folder`` cannot be resumed with the settings, files and data of ``now``."""
    was, experiment = before["run"].get("experiment"), now["run"]["experiment"]
    if was not in (None, experiment):
        raise UserError(f"{folder} holds a run of {was}, not of {experiment}; set another --output")
    refused = [text for name, text in changes(before, now).items() if name not in RESUMABLE_FLAGS]
    if refused:
        raise UserError(
            f"{folder}: a run can only be resumed with its own settings ({shortened(refused)}): restore them, or set "
            "another --output"
        )


def logged_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each change at ``--resume`` that is logged."""
    old, new = before["run"], now["run"]
    told = [text for name, text in changes(before, now).items() if name in RESUMABLE_FLAGS - UNLOGGED_FLAGS]
    told += [
        f"--{name} was {before[name]}, is {now[name]}"
        for name in old.get("files", {}).keys() & new["files"].keys()
        if before[name] != now[name]
    ]
    horizons = [_horizon(settings) for settings in (before, now)]
    if horizons[0] != horizons[1]:
        told.append("the learning rate now reaches zero at {1} instead of {0}".format(*horizons))
    told += [
        f"{name} was {old[name]}, is {new[name]}"
        for name in ("processes", "device", "git_commit", "python", *PACKAGES)
        if old.get(name, new[name]) != new[name]
    ]
    gone = sorted(before.keys() - now.keys())
    return told + [f"--{name}={before[name]} of the run is not a flag any more; it is ignored" for name in gone]


def changes_result(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the result of the run differs from that of the earlier record."""
    return bool(changes(before, now).keys() - UNCOMPARED_FLAGS)


def _horizon(settings: Mapping[str, Any]) -> str:
    """Where the learning rate reaches zero, in words, from the settings of ``TrainConfig``."""
    iterations = settings.get("schedule_iterations") or settings.get("iterations")
    return f"iteration {iterations}" if iterations else f"the end of epoch {settings.get('epochs')}"


def weights_flags(config: RunConfig) -> dict[str, str]:
    """Flag -> path, for each flag that names a file of weights or prototypes. The file need not exist."""
    return {n: v for n, v in asdict(config).items() if isinstance(v, str) and Path(v).suffix in WEIGHTS_FILES}


def keep_inputs(folder: Path, config: RunConfig, *more: Path) -> None:
    """Raises UserError if a flag names a file that ``--overwrite`` deletes: a file of the run or one of ``more``."""
    doomed = {path.resolve() for path in (*all_run_files(folder), *more)}
    for name, value in asdict(config).items():
        if name != "output" and isinstance(value, str) and value and Path(value).resolve() in doomed:
            raise UserError(
                f"--{name}={value}: --overwrite would delete it with the run in {folder}; copy it elsewhere, or set "
                "another --output"
            )


def refuse_other_run(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises UserError if ``folder`` holds a run that is neither resumed nor overwritten."""
    there = earlier_run(folder)
    if there and not (resume or overwrite):
        raise UserError(
            f"{folder} holds another run ({there[-1].name}): continue it by --resume, delete it by --overwrite, or "
            "set another --output"
        )


def launch() -> dict[str, Any]:
    """What identifies the job of torchrun or SLURM that this process belongs to, over all its restarts.

    Ids of torchrun may be "none", which all such jobs share; torchrun itself is the parent of its processes then.
    """
    found = {name: os.environ.get(name, "") for name in LAUNCH_IDS}
    ids = {name: value for name, value in found.items() if value not in ("", "none")}
    parent = os.getppid()
    return {"ids": ids, "host": socket.gethostname(), "parent": [parent, start_time(parent)]}


def of_this_launch(other: Mapping[str, Any]) -> bool:
    """Whether a run with the ``launch`` of its record may have begun in an earlier life of this command."""
    if not other:
        return True  # an earlier version did not record it
    mine = launch()
    both = mine["ids"].keys() & other["ids"].keys()
    if both or mine["ids"] or other["ids"]:
        return any(mine["ids"][name] == other["ids"][name] for name in both)
    return mine["host"] != other["host"] or mine["parent"] == other["parent"]


def experiment_name(config: RunConfig) -> str:
    """Name of the experiment file that defines ``config``, without the suffix."""
    module = sys.modules.get(type(config).__module__)
    return Path(getattr(module, "__file__", None) or type(config).__module__).stem


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
