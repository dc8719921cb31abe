"""One run of an experiment: its device, its output folder, its log and its summary."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.utils import manual_seed

from proda.data.image_files import name_files_in_warnings
from proda.engines.optimization import Precision
from proda.run.changed_files import (
    PARTS,
    DataBefore,
    Listings,
    data_before,
    part_of,
    told_changes,
    unchanged_otherwise,
)
from proda.run.config import RunConfig, TrainConfig
from proda.run.record import (
    RECORD_FILE,
    changes_result,
    keep_inputs,
    logged_changes,
    read_record,
    refuse_other_run,
    refuse_other_settings,
    run_record,
)
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import atomic_write, save_json
from proda.utils.lock import FolderLock
from proda.utils.progress import LOGGER, ConsoleHandler
from proda.utils.run_files import DATA_FILES, all_run_files, checkpoint_files, earlier_run


class Job:
    """A run of an experiment. Nothing is written before ``open``, so that invalid input leaves no files.

    ``device`` and ``precision`` of this process, ``folder`` the output folder, and ``log`` the logger ``proda``.

    Raises:
        UserError: the folder holds a run that is neither resumed nor overwritten, or a run to resume with other flags.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = device_of(config)
        self.precision = Precision(self.device, config.amp, compile=config.compile)
        self.folder = Path(config.output)
        self.log = logging.getLogger("proda")
        self.stopwatch = Stopwatch()
        self.lock = FolderLock(self.folder)
        self.began = False  # config.json is that of this run
        self.accepted: set[str] = set()  # names of fingerprints that may differ from those of the run to resume
        self.repaired: list[str] = []  # target images that are not those that stored labels are of
        self.listings: Listings = {}
        name_files_in_warnings()
        manual_seed(config.seed)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for matrix products on a GPU
        torch.use_deterministic_algorithms(config.deterministic)
        torch.backends.cudnn.benchmark = not config.deterministic  # the fastest kernels; image sizes hardly change
        if isinstance(config, TrainConfig):
            refuse_other_run(self.folder, resume=config.resume, overwrite=config.overwrite)
            if config.overwrite:
                keep_inputs(self.folder, config)
            if before := self._resumed():
                refuse_other_settings(before, run_record(config, {}), self.folder)
                self._refuse_finished()

        self.data_before: DataBefore | None = None
        if isinstance(config, TrainConfig) and config.resume:
            self.data_before = data_before(self.folder, read_record(self.folder, config))

    def _resumed(self) -> dict[str, Any]:
        """The record of the run that this one resumes; empty if there is none, or if it cannot be read."""
        resumes = isinstance(self.config, TrainConfig) and self.config.resume and earlier_run(self.folder)
        return read_record(self.folder, self.config) if resumes else {}

    def _refuse_finished(self) -> None:
        """Raises UserError if the run to resume is finished and its checkpoints are gone: it would start again."""
        kept = [*checkpoint_files(self.folder), *self.folder.glob("checkpoint_*.pt.damaged")]
        if (self.folder / "summary.json").is_file() and not kept:
            raise UserError(
                f"{self.folder} holds a finished run (summary.json) without a checkpoint, so nothing is left to train: "
                "repeat it with --overwrite, or set another --output"
            )

    def open(
        self,
        lines: Mapping[str, Any] | None = None,
        data: Mapping[str, str] | None = None,
        listings: Listings | None = None,
        left_out: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Locks the folder, opens ``train.log`` and prints the start-up summary.

        ``config.json`` is written too; that of a training run only by :meth:`save_record`, after the checkpoint to
        resume from has been found to fit.

        Args:
            lines: more lines of the summary, name -> value.
            data: name -> fingerprint of images, labels and descriptions. A run is only resumed on the same data.
            listings: the files of the run, so that those that stop it may be repaired or left out at ``--resume``.
            left_out: part of the data -> names that ``--skip_bad`` lists.

        Raises:
            UserError: another command uses the folder; the folder holds a run and neither ``--resume`` nor
                ``--overwrite`` is set; or the run to resume has other settings, data or weights.
        """
        self.lock.acquire()
        changed: list[str] = []
        if idist.get_rank() == 0:
            try:
                record = run_record(self.config, data or {}, _describe(self.device))
                self.listings = listings or {}
                changed = self._claim(record, left_out or dict.fromkeys(PARTS, ()))
            except BaseException:
                self.lock.release()
                raise
        idist.barrier()  # no process continues before rank 0 holds the folder
        _reset(self.log)
        if idist.get_rank() == 0:
            self.record = record
            _print_and_write(self.log, self.folder / "train.log")
            if not isinstance(self.config, TrainConfig):
                self.save_record()
        for change in changed:
            self.log.warning("%s", change)
        summary = {
            "device": _describe(self.device),
            "processes": idist.get_world_size(),
            **(lines or {}),
            "output": str(self.folder),
        }
        for name, value in summary.items():
            self.log.info("%-22s %s", name, value)

    def save_record(self, *, trained: bool = True, start: int = 0, length: int = 0, epoch_length: int = 1) -> None:
        """Writes ``config.json``, and deletes a summary that describes another result.

        Args:
            trained: the run has all its iterations, so a summary with the same settings is still its own.
            start: iterations that it has made. If that is more than ``length``, to which the flags would shorten it,
                its record keeps the length that its result has.
            epoch_length: iterations of an epoch.
        """
        if idist.get_rank() == 0:
            before = self._resumed()
            if start > length:
                self.record |= _length_of(before, start, epoch_length)
            if not (trained and before) or changes_result(before, self.record):
                (self.folder / "summary.json").unlink(missing_ok=True)
            save_json(self.record, self.folder / RECORD_FILE)
            if self.listings:
                with atomic_write(self.folder / DATA_FILES) as partial:
                    partial.write_text(json.dumps(self.listings))
        self.began = True

    def note_stopper(self, part: str, name: str) -> None:
        """Notes in ``config.json`` that a file of this example stopped the run, so that it may be repaired or skipped.

        Does nothing if no run has begun in the folder.
        """
        path = self.folder / RECORD_FILE
        if not self.began and not (self.data_before is not None and idist.get_world_size() == 1):
            return
        lock = contextlib.nullcontext() if self.began else self.lock
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError), lock:  # the error itself matters more
            record = json.loads(path.read_text())
            names = record["run"].setdefault("stopped_by", {}).setdefault(part, [])
            if name not in names:
                names.append(name)
                save_json(record, path)

    def _claim(self, record: dict[str, Any], left_out: Mapping[str, Collection[str]]) -> list[str]:
        """Makes sure that files of two runs do not mix in the folder; ``record`` is the new content of config.json.

        Returns one line for each setting that differs from the run to resume.
        """
        config, folder, there = self.config, self.folder, earlier_run(self.folder)
        if not isinstance(config, TrainConfig):
            if there:
                raise UserError(f"{folder} holds a training run ({there[-1].name}); set another --output")
            (folder / "summary.json").unlink(missing_ok=True)  # of an earlier command, whose settings are replaced now
            return []
        refuse_other_run(folder, resume=config.resume, overwrite=config.overwrite)
        if config.overwrite:
            keep_inputs(folder, config)
            for path in all_run_files(folder):
                path.unlink(missing_ok=True)
        told = self._take_over_data(record, left_out)
        if not (config.resume and there):
            return told
        before = self._resumed()
        if not before:
            return [f"{folder / RECORD_FILE} is missing or damaged: the settings of the run to resume are unknown"]
        for name in self.accepted:
            before["run"]["data"].pop(name, None)
        refuse_other_settings(before, record, folder)
        return told + logged_changes(before, record)

    def _take_over_data(self, record: dict[str, Any], left_out: Mapping[str, Collection[str]]) -> list[str]:
        """Accepts files of the run to resume that have changed because they had stopped it; a line for each example.

        What later resumes have to know about them becomes part of ``record``.
        """
        before = self.data_before
        if before is None:
            return []
        self.accepted = {
            name
            for name, entries in self.listings.items()
            if unchanged_otherwise(before, name, entries, left_out[part_of(name)])
        }
        told = told_changes(before, {name: self.listings[name] for name in sorted(self.accepted)}, left_out)
        self.repaired = [name for part, name in told if part == "train" and name not in left_out[part]]
        skipped = {part: [n for n in names if n in left_out[part]] for part, names in before.stopped_by.items()}
        record["run"]["stopped_by"] = {part: names for part, names in skipped.items() if names}
        if before.labels_of and "target images" in self.accepted:
            record["run"]["labels_of"] = before.labels_of
        return list(told.values())

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


def _length_of(before: Mapping[str, Any], made: int, epoch_length: int) -> dict[str, Any]:
    """The flags of a run that has made so many iterations: those that it was begun with, if they say the same."""
    if before and made == (before["iterations"] or before["epochs"] * epoch_length):
        return {name: before[name] for name in ("iterations", "epochs", "schedule_iterations")}
    return {"iterations": made}


def device_of(config: RunConfig) -> torch.device:
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


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _print_and_write(log: logging.Logger, path: Path) -> None:
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
