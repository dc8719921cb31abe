"""Keeping what a run needs to go on, and going on."""

import errno
import io
import logging
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, global_step_from_engine
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import Tensor, nn
from torch.optim import Optimizer

from proda.engines.events import ProdaEvents
from proda.utils.errors import UserError
from proda.utils.files import save_tensors
from proda.utils.run_files import MODELS, checkpoint_files

log = logging.getLogger("proda")

KEPT = 2  # checkpoints in the folder: should the newest be damaged, there is one before it
VERSION = 1  # of the checkpoint's layout; files without one are of version 0, which has the same parts
TRAINED = (nn.Module, Optimizer)  # no default can stand in for these, and all their numbers are finite


class Checkpoints:
    """``checkpoint_<iteration>.pt`` in a folder: a trainer and all that ``remember`` has given it to remember.

    What is remembered is looked up at every save, so handlers may register late. A file holds a dict of state dicts:
    ``trainer``, each remembered part under its name, and ``format`` with the layout's version. The newest two files of
    this run stay; a full disk costs a line in the log and no checkpoint. ``trainer.state.checkpoint_iterations`` lists
    the iterations of the files that are there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.writer = NewestFiles(self.folder)
        self.saved = -1  # iteration of the last save, whether or not the disk had room for it

    def attach(self, trainer: Engine, *, every: int) -> None:
        """Saves every ``every`` iterations, at the end, and where the run is stopped.

        Attach it before validation, which may take long: what it is interrupted in is saved then. The end of training
        saves twice, before the last validation and after it, and so does an iteration that is validated: what a
        resumed run need not repeat is then in the checkpoint.

        Raises (at a save):
            UserError: a part's state cannot be read back.
            FloatingPointError: a network or optimiser holds numbers that are not finite; nothing is saved.
        """
        handler = Checkpoint(
            {"trainer": trainer},
            self.writer,
            filename_pattern="checkpoint_{global_step}.pt",
            n_saved=None,
            global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
        )

        def save(trainer: Engine) -> None:
            handler.to_save = parts = {"format": Format(), **self._parts(trainer)}
            self.writer.trained = [name for name, part in parts.items() if isinstance(part, TRAINED)]
            self.saved = trainer.state.iteration
            handler(trainer)
            trainer.state.checkpoint_iterations = list(self.writer.own)

        def save_unless_done(trainer: Engine) -> None:
            if trainer.state.iteration != self.saved:
                save(trainer)

        def save_again(trainer: Engine) -> None:
            if trainer.state.iteration == self.saved:
                save(trainer)

        def start(trainer: Engine) -> None:
            if not trainer.has_event_handler(save, Events.COMPLETED):
                # Now, to run after the handlers that were attached meanwhile.
                trainer.add_event_handler(Events.COMPLETED, save)
                trainer.add_event_handler(ProdaEvents.VALIDATED, save_again)

        def save_if_stopped(trainer: Engine) -> None:
            if trainer.should_terminate == "skip_completed":  # else COMPLETED comes next, and saves
                save(trainer)

        trainer.add_event_handler(Events.STARTED, start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), save)
        trainer.add_event_handler(Events.COMPLETED, save_unless_done)
        trainer.add_event_handler(Events.TERMINATE, save_if_stopped)

    def resume(self, trainer: Engine) -> int:
        """Loads the newest good checkpoint into the trainer and all remembered parts; call it when all is attached.

        Rank 0 chooses for all. A damaged file is named in the log and set aside, and the one before it is used. A part
        that the file lacks keeps the state it has, with a line in the log; so does a field of a part's state. Models
        in the folder that were kept after this iteration are deleted: they are of a branch that is not gone on with.

        Returns:
            The iteration of the checkpoint, or 0 where there is none.

        Raises:
            UserError: all checkpoints are damaged; or the one to load is of another network or experiment, or of a
                newer version of proda.
            OSError: a checkpoint cannot be read, which says nothing about what it holds.
        """
        iteration = _newest_good(self.folder) if idist.get_rank() == 0 else 0
        iteration = int(idist.all_reduce(iteration, "MAX"))
        if iteration == 0:
            log.info("no checkpoint in %s: starting from the beginning", self.folder)
            return 0
        files = checkpoint_files(self.folder)
        self.writer.own = {step: path for step, path in files.items() if step <= iteration}
        trainer.state.checkpoint_iterations = list(self.writer.own)
        _load(self._parts(trainer), files[iteration])
        if idist.get_rank() == 0:
            remove_abandoned(self.folder, iteration)
        idist.barrier()
        log.info("resumed from %s", files[iteration])
        return iteration

    def _parts(self, trainer: Engine) -> dict[str, Any]:
        return {"trainer": trainer, **getattr(trainer.state, "remembered", {})}

    def check(self, trainer: Engine) -> None:
        """Checks before training that all parts can be read back, and that the folder is this run's.

        Raises:
            UserError: if not.
        """
        for name, part in self._parts(trainer).items():
            check_readable(part.state_dict(), name)
        others = checkpoint_files(self.folder).keys() - self.writer.own.keys()
        if others and idist.get_rank() == 0:
            raise UserError(
                f"{self.folder} holds checkpoint_{max(others)}.pt of another run: go on with it by --resume, delete it "
                "by --overwrite, or give another --output"
            )


class Format:
    """What kind of file a checkpoint is, as one of its parts."""

    def state_dict(self) -> dict[str, int]:
        return {"version": VERSION}


class NewestFiles(BaseSaveHandler):
    """Saves for Ignite's ``Checkpoint``, on rank 0: whole files only, and the newest two that this run has written.

    ``own``: iteration -> file of this run's checkpoints; no other file is ever deleted. ``trained``: parts of which
    all numbers have to be finite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.own, self.trained = folder, dict[int, Path](), list[str]()

    @idist.one_rank_only()
    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        path = self.folder / filename
        for name, content in checkpoint.items():
            check_readable(content, name)
            for place, value in _leaves(content, name) if name in self.trained else ():
                if isinstance(value, Tensor) and not value.isfinite().all():
                    raise FloatingPointError(
                        f"{place} is not finite, so {path} is not saved; lower --lr or set --grad_clip"
                    )
        try:
            save_tensors(dict(checkpoint), path)
        except OSError as error:
            log.error("could not save a checkpoint: %s; the checkpoints before it are kept", error)
            return
        self.own = dict(sorted({**self.own, checkpoint["trainer"]["iteration"]: path}.items()))
        for old in list(self.own)[:-KEPT]:
            self.own.pop(old).unlink(missing_ok=True)

    def remove(self, filename: str) -> None:
        """Nothing: Ignite asks before the new file is there."""


def check_readable(content: Any, name: str) -> None:
    """UserError if ``torch.load(weights_only=True)`` would refuse what a part called ``name`` wants saved."""
    for place, value in _leaves(content, name):
        if type(value) in (str, int, float, bool, bytes, type(None)) or isinstance(value, Tensor):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever keeps it from being saved or read
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise UserError(
                f"{place} is a {kind}, which no checkpoint can hold: state_dict() of {name} may give tensors, numbers, "
                "text, and lists and dicts of them"
            ) from error


def _newest_good(folder: Path) -> int:
    """Iteration of the newest checkpoint that can be read, 0 if there is none; clears away what a killed run left."""
    for unfinished in folder.glob(".*.part"):
        unfinished.unlink(missing_ok=True)
    damaged: dict[Path, str] = {}
    good = 0
    for iteration, path in reversed(checkpoint_files(folder).items()):
        problem = damage(path)
        if not problem:
            good = iteration
            break
        damaged[path] = problem
    lost = [*map(str, damaged), *map(str, folder.glob("checkpoint_*.pt.damaged"))]
    if not good and lost:
        reason = f" ({next(iter(damaged.values()))})" if damaged else ""
        raise UserError(
            f"{lost[0]}: damaged{reason}, and no other checkpoint in {folder} can be read: restore one from a backup, "
            "or start from the beginning by --overwrite"
        )
    for path, problem in damaged.items():
        aside = path.with_name(path.name + ".damaged")
        log.warning("%s cannot be used (%s): it is now %s; trying the one before it", path, problem, aside.name)
        path.replace(aside)
    return good


def damage(path: Path) -> str:
    """What is wrong with a file of ``torch.save``; empty if every byte has the checksum it was written with.

    A file that would run code when it is read is damaged, too. OSError if it cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
            if bad:
                return f"the checksum of {bad} differs"
            file.seek(0)
            torch.load(file, map_location="meta", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before its start
            raise OSError(error.errno, error.strerror, str(path)) from error
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['not a checkpoint'])[0]}"
    return ""


def remove_abandoned(folder: str | Path, iteration: int) -> None:
    """Deletes models that were kept after ``iteration``, from which a run goes on: its scores do not know them."""
    for path in (Path(folder) / name for name in MODELS):
        if path.exists() and not damage(path):
            content = torch.load(path, map_location="meta", weights_only=True)
            kept = content.get("iteration") if isinstance(content, dict) else None
            if isinstance(kept, int) and kept > iteration:
                log.warning("%s is of iteration %d, after the checkpoint to go on from: deleted", path, kept)
                path.unlink()


def _load(parts: dict[str, Any], path: Path) -> None:
    content = torch.load(path, map_location="cpu", weights_only=True)
    try:
        version = content.get("format", {}).get("version", 0)
        if version > VERSION:
            raise UserError(f"{path}: written by a newer version of proda (layout {version}, this one reads {VERSION})")
        missing = parts.keys() - content.keys()
        needed = sorted(name for name in missing if name == "trainer" or isinstance(parts[name], TRAINED))
        if needed:
            raise ValueError(f"it has no {needed[0]}")
        for name in sorted(missing):
            log.warning("%s has no %s: it starts from its default", path, name)
        for name in sorted(content.keys() - parts.keys() - {"format"}):
            log.warning("%s holds %s, which nothing in this run remembers: left out", path, name)
        known = {name: part for name, part in parts.items() if name in content}
        states = {name: _completed(part, content[name], f"{path}: {name}") for name, part in known.items()}
        Checkpoint.load_objects(known, states)
    except UserError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a checkpoint of this command ({reason}); give another --output") from error


def _completed(part: Any, saved: Any, name: str) -> Any:
    """A saved state with the fields that it lacks, since it is older than they are, as the part has them now."""
    if isinstance(part, TRAINED):
        return saved
    now = part.state_dict()
    if not isinstance(saved, dict) or not isinstance(now, dict):
        return saved
    either = {"max_iters", "max_epochs"} if isinstance(part, Engine) else set()  # it has one of them
    lacking = {field: value for field, value in now.items() if field not in saved and field not in either}
    if saved and lacking:
        log.warning("%s has no %s: default", name, ", ".join(map(str, lacking)))
    return {**saved, **lacking}


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All that is in nested dicts and lists, keys too, with its place in them."""
    if type(content) in (dict, OrderedDict):
        for key, value in content.items():
            yield f"{name}: the key {key!r}", key
            yield from _leaves(value, f"{name}.{key}")
    elif type(content) in (list, tuple):
        for number, value in enumerate(content):
            yield from _leaves(value, f"{name}.{number}")
    else:
        yield name, content
