"""One run of an experiment: its device, its output folder, its log and its summary."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.utils import manual_seed

from proda.handlers.checkpoints import earlier_run
from proda.utils.files import save_json

LEFT = ("summary.json", "train.log", "prototypes.pt", "events.out.tfevents.*", "*.damaged", ".*.part")  # by a run
# Flags that change neither weights nor scores, or say so themselves.
FREE = {
    *("preset", "output", "device", "num_workers", "nproc_per_node", "backend", "data_root", "val_batch_size"),
    *("iterations", "epochs", "checkpoint_every", "resume", "overwrite", "log_every", "panels_every", "stop_after"),
}
PACKAGES = ("torch", "torchvision", "pytorch-ignite", "numpy", "pillow", "tensorboardX", "fire")


class Job:
    """Made at the start of ``run``; writes nothing until ``open``, so that bad input leaves no trace.

    ``device`` torch device of this process; ``folder`` where everything goes; ``log`` the logger ``proda``.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.device = _device(config)
        self.folder = Path(config.output)
        self.log = logging.getLogger("proda")
        self.started = time.time()
        manual_seed(config.seed)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or matrix products on a GPU are refused
        torch.use_deterministic_algorithms(config.deterministic)

    def open(self, lines: dict[str, Any] | None = None) -> None:
        """Makes the folder, ``train.log`` and ``config.json``, and prints the start-up summary (``lines`` added)."""
        changes = _claim(self.folder, self.config)
        _reset(self.log)
        if idist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _print_and_write(self.log, self.folder / "train.log")
            save_json({**asdict(self.config), "run": self._provenance()}, self.folder / "config.json")
        if changes:
            self.log.warning("this run began with other settings: %s", ", ".join(changes))
        summary = {
            "device": _describe(self.device),
            "processes": idist.get_world_size(),
            **(lines or {}),
            "output": str(self.folder),
        }
        for name, value in summary.items():
            self.log.info("%-22s %s", name, value)

    def finish(self, summary: dict[str, Any], *, iterations: int = 0, images: int = 0) -> dict[str, Any]:
        """Writes ``summary.json`` with the time added, and returns what it holds.

        Args:
            summary: scores.
            iterations: iterations that this run has made in all, resumed ones included.
            images: images that this process group has trained on since it started, for images per second.
        """
        seconds = time.time() - self.started
        summary = {**summary, "iterations": iterations, "seconds": round(seconds, 1)}
        if images:
            summary["images_per_second"] = round(images / seconds, 2)
        if idist.get_rank() == 0:
            save_json(summary, self.folder / "summary.json")
        self.log.info("done in %.0f s: %s", seconds, self.folder / "summary.json")
        _reset(self.log)
        return summary

    def _provenance(self) -> dict[str, Any]:
        return {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "git_commit": _git_commit(),
            "processes": idist.get_world_size(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def read_summary(folder: str | Path) -> dict[str, Any]:
    """``summary.json`` of a finished run."""
    return json.loads((Path(folder) / "summary.json").read_text())


def _claim(folder: Path, config: Any) -> list[str]:
    """Makes sure that a training run does not mix with what another one has left in ``folder``.

    Returns the settings, other than those of speed and length, that a run to be resumed began with and that differ.
    Raises ValueError if the folder holds a run and neither ``resume`` nor ``overwrite`` is set.
    """
    resume, overwrite = (getattr(config, name, None) for name in ("resume", "overwrite"))
    if resume is None or overwrite is None:
        return []  # not a training run
    there = earlier_run(folder)
    if there and not resume and not overwrite:
        raise ValueError(
            f"{folder} holds another run ({there[-1].name}): go on with it by --resume, delete it by --overwrite, or "
            "give another --output"
        )
    if overwrite:
        with idist.one_rank_first():  # the others look for files only when they are gone
            if idist.get_rank() == 0:
                for path in [*there, *(found for pattern in LEFT for found in folder.glob(pattern))]:
                    path.unlink(missing_ok=True)
        return []
    if not resume or not there or not (folder / "config.json").is_file():
        return []
    try:
        before = json.loads((folder / "config.json").read_text())
    except ValueError:
        return []
    now = asdict(config)
    return [
        f"--{name}={before[name]}, now {now[name]}"
        for name in now
        if name not in FREE and name in before and before[name] != now[name]
    ]


def _device(config: Any) -> torch.device:
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", idist.get_local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _print_and_write(log: logging.Logger, path: Path) -> None:
    file = logging.FileHandler(path)
    file.handleError = lambda record: None  # a full disk costs lines of this file, not the run
    for handler in (logging.StreamHandler(sys.stdout), file):
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


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
