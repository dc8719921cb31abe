"""One run of an experiment: its device, its output folder, its log and its summary."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.utils import manual_seed

from proda.engines.optimization import Precision
from proda.settings.config import with_present_names
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_json, sha256
from proda.utils.lock import FolderLock
from proda.utils.progress import LOGGER, ConsoleHandler
from proda.utils.run_files import INPUTS_FILE, all_run_files, earlier_run

# Flags that are not compared between runs: they change neither weights nor scores.
UNCOMPARED_FLAGS = {
    *("preset", "output", "device", "num_workers", "nproc_per_node", "backend", "data_root", "val_batch_size"),
    *(
        "checkpoint_every",
        "resume",
        "overwrite",
        "log_every",
        "panels_every",
        "label_report_every",
        "stop_after",
        "plan",
    ),
    *("checkpoint_activations", "class_statistics"),
}
# Flags that may change at --resume; each change is logged. A change of any other flag is refused, including flags of a
# user's own Config: the result would belong neither to the old settings nor to the new ones.
LENGTH_FLAGS = {"iterations", "epochs", "schedule_iterations"}
RESUMABLE_FLAGS = UNCOMPARED_FLAGS | LENGTH_FLAGS | {"val_every", "pseudo_labels"}
UNLOGGED_FLAGS = {"output", "resume", "overwrite"}  # changes that are not logged
WEIGHTS_FILES = (".pt", ".pth", ".pkl", ".npz")  # files with these suffixes are compared by content, not by path
FORMAT = 1  # version of "run" in config.json; older files have no version
PACKAGES = ("torch", "torchvision", "pytorch-ignite", "numpy", "pillow", "tensorboardX", "fire")


class Job:
    """A run of an experiment. Nothing is written before ``open``, so that invalid input leaves no files.

    ``device`` and ``precision`` of this process, ``folder`` the output folder, and ``log`` the logger ``proda``.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.device = device_of(config)
        self.precision = Precision(self.device, config.amp, compile=config.compile)
        self.folder = Path(config.output)
        self.log = logging.getLogger("proda")
        self.stopwatch = Stopwatch()
        self.lock = FolderLock(self.folder)
        manual_seed(config.seed)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for matrix products on a GPU
        torch.use_deterministic_algorithms(config.deterministic)
        torch.backends.cudnn.benchmark = not config.deterministic  # the fastest kernels; image sizes hardly change
        refuse_other_run(self.folder, config)
        refuse_other_settings(self.folder, config)
        if getattr(config, "overwrite", False):
            keep_inputs(self.folder, config)
            # The lock is taken now, since opening the label store deletes labels of the run to overwrite. All processes
            # look for the folder before one of them can make it.
            if idist.all_reduce(int(self.folder.is_dir()), "MAX"):
                self.lock.acquire()

    def open(self, lines: dict[str, Any] | None = None, data: Mapping[str, str] | None = None) -> None:
        """Locks the folder, opens ``train.log``, writes ``config.json`` and prints the start-up summary.

        Args:
            lines: more lines of the summary, name -> value.
            data: name -> fingerprint of images, labels and descriptions. A run is only resumed on the same data.

        Raises:
            UserError: another command uses the folder; the folder holds a run and neither ``--resume`` nor
                ``--overwrite`` is set; or the run to resume has other settings, data or weights.
        """
        self.lock.acquire()
        changes: list[str] = []
        if idist.get_rank() == 0:
            try:
                record = {**asdict(self.config), "run": self._provenance(data or {})}
                changes = _claim(self.folder, self.config, record)
            except BaseException:
                self.lock.release()
                raise
        idist.barrier()  # no process continues before rank 0 holds the folder
        _reset(self.log)
        if idist.get_rank() == 0:
            _print_and_write(self.log, self.folder / "train.log")
            save_json(record, self.folder / "config.json")
        for change in changes:
            self.log.warning("%s", change)
        summary = {
            "device": _describe(self.device),
            "processes": idist.get_world_size(),
            **(lines or {}),
            "output": str(self.folder),
        }
        for name, value in summary.items():
            self.log.info("%-22s %s", name, value)

    def finish(self, summary: dict[str, Any], *, iterations: int = 0, images: int = 0) -> dict[str, Any]:
        """Writes ``summary.json`` with the time added, unlocks the folder and returns the content of the file.

        Args:
            summary: scores.
            iterations: completed iterations of the run, including those of earlier sessions.
            images: number of images that all processes trained on in this session, for images per second.
        """
        seconds = self.stopwatch.seconds
        summary = {**summary, "iterations": iterations, "seconds": round(seconds, 1)}
        if images > 0:
            summary["images_per_second"] = round(images / self.stopwatch.session, 2)
        if idist.get_rank() == 0:
            save_json(summary, self.folder / "summary.json")
        self.log.info("done in %.0f s: %s", seconds, self.folder / "summary.json")
        _reset(self.log)
        self.lock.release()
        return summary

    def _provenance(self, data: Mapping[str, str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "experiment": experiment_name(self.config),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "git_commit": git_commit(),
            "processes": idist.get_world_size(),
            "device": _describe(self.device),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": {n: sha256(v) for n, v in weights_flags(self.config).items() if Path(v).is_file()},
            "data": dict(data),
        }


class Stopwatch:
    """Seconds of a run over all its sessions. Checkpoints store the value, so that it continues after a resume.

    Work of a killed session after its last checkpoint is repeated and not counted twice.
    """

    def __init__(self) -> None:
        self.before, self.started = 0.0, time.monotonic()

    @property
    def session(self) -> float:
        """Seconds since this process started or resumed the run."""
        return time.monotonic() - self.started

    @property
    def seconds(self) -> float:
        return self.before + self.session

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = float(state["seconds"])


def device_of(config: Any) -> torch.device:
    """The device of this process, as ``--device`` asks for it."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", idist.get_local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Reads ``summary.json`` of a finished run. Raises UserError if it is missing or damaged."""
    path = Path(folder) / "summary.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; a run writes it when it has finished") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run the same command with --resume") from error


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """How a run was made: ``run`` of its ``config.json``, with ``git_commit`` and ``started``; empty if unknown."""
    try:
        return json.loads((Path(folder) / "config.json").read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def weights_flags(config: Any) -> dict[str, str]:
    """Flag -> path, for each flag that names a file of weights or prototypes. The file need not exist."""
    return {n: v for n, v in asdict(config).items() if isinstance(v, str) and Path(v).suffix in WEIGHTS_FILES}


def keep_inputs(folder: Path, config: Any, *more: Path) -> None:
    """Raises UserError if a flag names a file that ``--overwrite`` deletes: a file of the run or one of ``more``."""
    doomed = {path.resolve(): path for path in (*all_run_files(folder), *more)}
    for name, value in asdict(config).items():
        if name != "output" and isinstance(value, str) and value and Path(value).resolve() in doomed:
            raise UserError(
                f"--{name}={value}: --overwrite would delete it with the run in {folder}; copy it elsewhere, or set "
                "another --output"
            )


def refuse_other_run(folder: Path, config: Any) -> None:
    """UserError if ``folder`` holds a run that the training run of ``config`` neither resumes nor overwrites."""
    there = earlier_run(folder)
    if there and not getattr(config, "resume", True) and not config.overwrite:
        raise UserError(
            f"{folder} holds another run ({there[-1].name}): continue it by --resume, delete it by --overwrite, or "
            "set another --output"
        )


def refuse_other_settings(folder: Path, config: Any) -> None:
    """UserError if a flag of the run to resume has another value, before networks and data are read with that value.

    Files of weights and descriptions of data are compared later, by their content.
    """
    if not getattr(config, "resume", False) or not earlier_run(folder):
        return
    before = _recorded_settings(folder, config)
    if not before:
        return  # the run is resumed with a warning
    _refuse_other_experiment(before, experiment_name(config), folder)
    refused = []
    for name, value in json.loads(json.dumps(asdict(config))).items():
        by_content = all(str(path).endswith((*WEIGHTS_FILES, ".toml")) for path in (before.get(name), value))
        if before.get(name) != value and name not in RESUMABLE_FLAGS and not by_content:
            refused.append(_changed(name, before, value))
    _refuse(refused, folder)


def _claim(folder: Path, config: Any, record: dict[str, Any]) -> list[str]:
    """Makes sure that files of two runs do not mix in ``folder``.

    Returns one line for each setting that differs from the run to resume. ``record`` is the new content of config.json.
    """
    resume, overwrite = (getattr(config, name, None) for name in ("resume", "overwrite"))
    there = earlier_run(folder)
    if resume is None or overwrite is None:  # not a training run
        if there:
            raise UserError(f"{folder} holds a training run ({there[-1].name}); set another --output")
        (folder / "summary.json").unlink(missing_ok=True)  # of an earlier command, whose settings are replaced now
        return []
    refuse_other_run(folder, config)
    if overwrite:
        keep_inputs(folder, config)
        for path in all_run_files(folder):
            path.unlink(missing_ok=True)
        return []
    if not resume or not there:
        return []
    before = _recorded_settings(folder, config)
    if not before:
        return [f"{folder / 'config.json'} is missing or damaged: the settings of the run to resume are unknown"]
    changes = changes_at_resume(before, record, folder)
    if any(before.get(name) != record[name] for name in (RESUMABLE_FLAGS - UNCOMPARED_FLAGS) & record.keys()):
        (folder / INPUTS_FILE).unlink(missing_ok=True)  # it describes another result
    return changes


def _recorded_settings(folder: Path, config: Any) -> dict[str, Any]:
    """``config.json`` of the run in ``folder``, with the defaults of flags that did not exist yet; empty if damaged."""
    try:
        before = json.loads((folder / "config.json").read_text())
        if not isinstance(before, dict):
            raise ValueError
    except (FileNotFoundError, ValueError):
        return {}
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    return {**defaults, **with_present_names(before, type(config), quiet=True)}


def changes_at_resume(before: dict[str, Any], now: dict[str, Any], folder: Path) -> list[str]:
    """One line for each setting of a run that changes at ``--resume``.

    ``before`` and ``now`` are contents of config.json. ``before`` holds the defaults of flags that did not exist yet.

    Raises:
        UserError: a setting changes that must stay the same within a run (see ``RESUMABLE_FLAGS``).
    """
    old, new = before.get("run", {}), now["run"]
    _refuse_other_experiment(before, new["experiment"], folder)
    told, refused = [], []
    files, data = old.get("files", {}), old.get("data", {})
    for name, value in json.loads(json.dumps(now)).items():
        changed = _changed(name, before, value)
        if name in files.keys() & new["files"].keys():
            if files[name] != new["files"][name]:
                refused.append(f"the content of --{name}={value} has changed")
            elif before[name] != value:
                told.append(changed)
        elif name == "run" or before.get(name) == value:
            continue
        elif name in RESUMABLE_FLAGS or (
            name in ("source", "target") and value.endswith(".toml") and data and new["data"]
        ):
            told += [changed] * (name not in UNLOGGED_FLAGS)  # descriptions are compared by content, in "data"
        else:
            refused.append(changed)
    refused += [
        f"{name} changed" for name in sorted(data.keys() & new["data"].keys()) if data[name] != new["data"][name]
    ]
    _refuse(refused, folder)
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


def _refuse_other_experiment(before: dict[str, Any], experiment: str, folder: Path) -> None:
    run = before.get("run", {})
    if run.get("format", 0) > FORMAT:
        raise UserError(f"{folder / 'config.json'}: written by a newer version of proda; use that version to resume")
    if run.get("experiment", experiment) != experiment:
        raise UserError(f"{folder} holds a run of {run['experiment']}, not of {experiment}; set another --output")


def _changed(name: str, before: dict[str, Any], value: Any) -> str:
    return f"--{name} was {before.get(name)}, is {value}"


def _refuse(changes: list[str], folder: Path) -> None:
    """Raises UserError if there are changes that a resumed run must not have."""
    if not changes:
        return
    more = f" and {len(changes) - 3} more changes" if len(changes) > 3 else ""
    raise UserError(
        f"{folder}: a run can only be resumed with its own settings ({', '.join(changes[:3])}{more}): restore them, or "
        "set another --output"
    )


def _horizon(settings: dict[str, Any]) -> str:
    """Where the learning rate reaches zero, in words, from the settings of ``TrainConfig``."""
    iterations = settings.get("schedule_iterations") or settings.get("iterations")
    return f"iteration {iterations}" if iterations else f"the end of epoch {settings.get('epochs')}"


def experiment_name(config: Any) -> str:
    """Name of the experiment file that defines ``config``, without the suffix."""
    module = sys.modules.get(type(config).__module__)
    return Path(getattr(module, "__file__", None) or type(config).__module__).stem


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _print_and_write(log: logging.Logger, path: Path) -> None:
    file = logging.FileHandler(path)
    setattr(file, "handleError", lambda record: None)  # noqa: B010 a full disk costs lines of this file, not the run
    file.addFilter(lambda record: record.name != LOGGER)  # figures over time are in the TensorBoard files
    for handler in (ConsoleHandler(sys.stdout), file):
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.handlers[0].setFormatter(logging.Formatter("%(message)s"))
    log.setLevel(logging.INFO)


def _reset(log: logging.Logger) -> None:
    log.propagate = False
    for handler in list(log.handlers):
        with contextlib.suppress(OSError):
            handler.close()
        log.removeHandler(handler)
    if idist.get_rank() != 0:
        log.addHandler(logging.NullHandler())


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
