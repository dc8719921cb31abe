"""Keeping what a run needs to go on, and going on."""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, global_step_from_engine
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import Tensor

from proda.utils.files import save_tensors

log = logging.getLogger("proda")

KEPT = 2  # checkpoints in the folder: should the newest be damaged, there is one before it


class NewestFiles(BaseSaveHandler):
    """Saves for Ignite's ``Checkpoint``, on rank 0: whole files only, and the newest two of them stay.

    Older ones go when the new one is on the disk, so a full disk costs a line in the log and no checkpoint. Those of
    an earlier run in the folder, which started past iteration ``start`` of this one, go with the first that is saved.
    Raises FloatingPointError instead of saving numbers that are not finite.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.folder = Path(folder)
        self.own = [path for step, path in sorted(_found(folder)) if step <= start]

    @idist.one_rank_only()
    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        path = self.folder / filename
        for name, tensor in _tensors(checkpoint):
            if not tensor.isfinite().all():
                raise FloatingPointError(f"{name} is not finite, so {path} is not saved; lower --lr or set --grad_clip")
        try:
            save_tensors(dict(checkpoint), path)
        except OSError as error:
            log.error("could not save a checkpoint: %s; the checkpoints before it are kept", error)
            return
        self.own = [*(old for old in self.own if old != path), path][-KEPT:]
        for _, old in _found(self.folder):
            if old not in self.own:
                old.unlink(missing_ok=True)

    def remove(self, filename: str) -> None:
        """Nothing: Ignite asks before the new file is there."""


def checkpoints(to_save: dict[str, Any], folder: Path, trainer: Engine, *, every: int) -> Checkpoint:
    """Attaches ``checkpoint_<iteration>.pt``: the newest two, every ``every`` iterations and at the end.

    Attach it last, after ``resume``: what the other handlers of the iteration have moved belongs into it.
    """
    if trainer.state.iteration == 0 and _found(folder):
        log.warning("%s holds checkpoints of an earlier run, which go with the first of this one", folder)
    handler = Checkpoint(
        to_save,
        NewestFiles(folder, trainer.state.iteration),
        filename_pattern="checkpoint_{global_step}.pt",
        n_saved=None,
        global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every) | Events.COMPLETED, handler)

    @trainer.on(Events.TERMINATE)
    def save_if_stopped() -> None:
        cut_short = trainer.should_terminate == "skip_completed"  # else COMPLETED comes next, and saves
        if cut_short and handler.last_checkpoint != f"checkpoint_{trainer.state.iteration}.pt":
            handler(trainer)

    return handler


def resume(to_load: dict[str, Any], folder: Path) -> int:
    """Loads the last good checkpoint of ``folder`` into ``to_load``; returns its iteration, or 0 where there is none.

    A file that is truncated or altered is named in the log and set aside, and the one before it is used. Whatever the
    objects held is replaced, the trainer's iteration included. Rank 0 chooses for all.

    Raises:
        ValueError: the checkpoint is of another network or experiment.
    """
    folder, step = Path(folder), 0
    if idist.get_rank() == 0:
        step = _newest_good(folder)
    step = int(idist.all_reduce(step, "MAX"))
    if step == 0:
        log.info("no checkpoint in %s: starting from the beginning", folder)
        return 0
    path = folder / f"checkpoint_{step}.pt"
    try:
        Checkpoint.load_objects(to_load, torch.load(path, map_location="cpu", weights_only=True))
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a checkpoint of this command ({reason}); give another --output") from error
    log.info("resumed from %s", path)
    return step


def _newest_good(folder: Path) -> int:
    """Iteration of the newest checkpoint that can be read, 0 if there is none; clears away what a killed run left."""
    for unfinished in folder.glob(".*.part"):
        unfinished.unlink(missing_ok=True)
    for step, path in sorted(_found(folder), reverse=True):
        problem = damage(path)
        if not problem:
            return step
        aside = path.with_name(path.name + ".damaged")
        log.warning("%s cannot be used (%s): it is now %s; trying the one before it", path, problem, aside.name)
        path.replace(aside)
    return 0


def damage(path: Path) -> str:
    """What is wrong with a file of ``torch.save``; empty if every byte has the checksum it was written with.

    A file that would run code when it is read is damaged, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad:
            return f"the checksum of {bad} differs"
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['not a checkpoint'])[0]}"
    return ""


def earlier_run(folder: Path) -> list[Path]:
    """The files in ``folder`` that a training run goes on from or ends with; empty where none has been."""
    names = ("best.pt", "last.pt", "label_free.pt")
    return [path for _, path in sorted(_found(folder))] + [p for name in names if (p := Path(folder) / name).exists()]


def _found(folder: Path) -> list[tuple[int, Path]]:
    paths = Path(folder).glob("checkpoint_*.pt")
    return [(int(path.stem.split("_")[1]), path) for path in paths if path.stem.split("_")[1].isdigit()]


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, with their place in them."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping | list | tuple):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
