"""Keeping what a run needs to go on, and going on."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, global_step_from_engine
from ignite.handlers.checkpoint import BaseSaveHandler

from proda.files import save_tensors

log = logging.getLogger("proda")


class AtomicSaver(BaseSaveHandler):
    """Saves for Ignite's ``Checkpoint``: whole files only, on rank 0; a full disk costs a line, not the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @idist.one_rank_only()
    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        try:
            save_tensors(dict(checkpoint), self.folder / filename)
        except OSError as error:
            log.error("could not save %s: %s; the checkpoint before it is kept", self.folder / filename, error)

    @idist.one_rank_only()
    def remove(self, filename: str) -> None:
        (self.folder / filename).unlink(missing_ok=True)


def checkpoints(to_save: dict[str, Any], folder: Path, trainer: Engine, *, every: int) -> Checkpoint:
    """Attaches ``checkpoint_<iteration>.pt``: the newest two, every ``every`` iterations and at the end.

    Attach it last: what the other handlers of the iteration have moved belongs into it.
    """
    # Ignite removes the oldest file before it writes the new one: of two, one whole file is there at any moment.
    handler = Checkpoint(
        to_save,
        AtomicSaver(folder),
        filename_pattern="checkpoint_{global_step}.pt",
        n_saved=2,
        global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
    )
    handler.load_state_dict({"_saved": [(step, path.name) for step, path in sorted(_found(folder))]})
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every) | Events.COMPLETED, handler)
    return handler


def resume(to_load: dict[str, Any], folder: Path) -> int:
    """Loads the last good checkpoint of ``folder`` into ``to_load``; returns its iteration, or 0 where there is none.

    A file that is truncated or altered is named in the log and the one before it is used. Whatever the objects held
    is replaced, the trainer's iteration included.
    """
    for step, path in sorted(_found(folder), reverse=True):
        problem = damage(path)
        if problem:
            log.warning("%s cannot be used (%s); trying the checkpoint before it", path, problem)
            continue
        Checkpoint.load_objects(to_load, torch.load(path, map_location="cpu", weights_only=True))
        log.info("resumed from %s", path)
        return step
    log.info("no checkpoint in %s: starting from the beginning", folder)
    return 0


def damage(path: Path) -> str:
    """What is wrong with a file of ``torch.save``; empty if every byte has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return f"truncated or not a checkpoint: {error}"
    return f"checksum of {bad} differs" if bad else ""


def _found(folder: Path) -> list[tuple[int, Path]]:
    paths = Path(folder).glob("checkpoint_*.pt")
    return [(int(path.stem.split("_")[1]), path) for path in paths if path.stem.split("_")[1].isdigit()]
