"""Saves checkpoints of a run, and resumes the run from them."""

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

from proda.engines.events import ProdaEvents, Trainer, check_before_validation
from proda.utils.errors import UserError
from proda.utils.files import save_tensors
from proda.utils.run_files import MODELS, checkpoint_files

log = logging.getLogger("proda")

KEPT = 2  # number of checkpoints that are kept: if the newest is damaged, the run can resume from the other
VERSION = 1  # of the file layout; files without a version are of version 0, whose schedules had another state
TRAINED = (nn.Module, Optimizer)  # parts that a checkpoint must contain, with finite numbers only


class Checkpoints:
    """Saves ``checkpoint_<iteration>.pt`` in a folder: the trainer, and the parts registered with ``remember``.

    A file contains a dict of state dicts: ``trainer``, each registered part under its name, and ``format`` with the
    version of the layout. Parts may register late. The newest two files of this run are kept; their iterations are in
    ``trainer.state.checkpoint_iterations``. If the disk is full, the error is logged and the existing files stay.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.writer = NewestFiles(self.folder)
        self.saved = -1  # iteration last saved or resumed from, also if saving failed because the disk was full

    def attach(self, trainer: Trainer, *, every: int) -> None:
        """Saves every ``every`` iterations, at the end of training, and when the run is stopped.

        An iteration that is both saved and validated, and the end of training, are saved before the validation, which
        may take long, and again after it, so that a resumed run does not repeat it. The iteration after which new
        pseudo labels are due is saved before they are written.

        Raises (at a save):
            UserError: the state of a part cannot be read back.
            FloatingPointError: a network or optimizer contains numbers that are not finite; nothing is saved.
        """
        check_before_validation(trainer, self)
        self.handler = Checkpoint(
            {"trainer": trainer},
            self.writer,
            filename_pattern="checkpoint_{global_step}.pt",
            n_saved=None,
            global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
        )

        def save_unless_done(trainer: Trainer) -> None:
            if trainer.state.iteration != self.saved:
                self.save(trainer)

        def save_again(trainer: Trainer) -> None:
            if trainer.state.iteration == self.saved:
                self.save(trainer)

        def start(trainer: Trainer) -> None:
            if not trainer.has_event_handler(self.save, Events.COMPLETED):
                # Attached only now, so that they run after the handlers that were attached in the meantime.
                trainer.add_event_handler(Events.COMPLETED, self.save)
                trainer.add_event_handler(ProdaEvents.VALIDATED, save_again)

        def save_if_stopped(trainer: Trainer) -> None:
            if trainer.should_terminate == "skip_completed":  # otherwise COMPLETED follows and saves
                self.save(trainer)

        def save_last(trainer: Trainer) -> None:
            if trainer.state.iteration == trainer.state.max_iters:
                save_unless_done(trainer)

        trainer.add_event_handler(Events.STARTED, start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self.save)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, save_last)
        trainer.add_event_handler(ProdaEvents.BEFORE_LABELS_WRITTEN, save_unless_done)
        trainer.add_event_handler(Events.COMPLETED, save_unless_done)
        trainer.add_event_handler(Events.TERMINATE, save_if_stopped)

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint of the trainer's iteration, in place of an earlier one of the same iteration."""
        trainer.fire_event(ProdaEvents.BEFORE_WEIGHTS_USED)
        self.handler.to_save = parts = {"format": Format(), **self._parts(trainer)}
        self.writer.trained = [name for name, part in parts.items() if isinstance(part, TRAINED)]
        self.saved = trainer.state.iteration
        self.handler(trainer)
        trainer.state.checkpoint_iterations = list(self.writer.own)

    def save_after_error(self, trainer: Trainer) -> None:
        """Saves the last completed iteration of a run that an exception ends, where its state is whole.

        It is not after an exception within an iteration (its forward passes change statistics of batch norm), nor if
        the loss was not finite. Of several processes the others wait for this one, so none can save.
        """
        state, at_start = trainer.state, trainer.last_event_name == Events.ITERATION_STARTED
        iteration = state.iteration - at_start  # a handler of ITERATION_STARTED: nothing of it has been computed
        if idist.get_world_size() > 1 or trainer.computing or iteration in (0, self.saved):
            return
        state.iteration = iteration
        try:
            self.save(trainer)
        except Exception as error:  # the first exception is the one to be seen
            log.warning("no checkpoint of iteration %d was saved: %s", iteration, error)
        else:
            log.info("stopping after iteration %d because of an error; continue with --resume", iteration)

    def resume(self, trainer: Trainer) -> int:
        """Loads the newest intact checkpoint into the trainer and all registered parts.

        Call it after all handlers are attached. Rank 0 chooses the file for all processes. A damaged file is logged
        and renamed, and the checkpoint before it is used. What the file lacks of the state keeps its current value;
        this is logged. Models in the folder that were saved after this iteration are deleted.

        Returns:
            The iteration of the checkpoint, or 0 if there is none.

        Raises:
            UserError: all checkpoints are damaged; or the checkpoint belongs to another network or experiment, or was
                written by another version of proda that stores other things.
            OSError: the operating system cannot read a checkpoint; the file may be intact.
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
        self.saved = iteration
        if idist.get_rank() == 0:
            remove_abandoned(self.folder, iteration)
        idist.barrier()
        log.info("resumed from %s", files[iteration])
        return iteration

    def _parts(self, trainer: Trainer) -> dict[str, Any]:
        return {"trainer": trainer, **trainer.state.remembered}

    def check_states(self, trainer: Trainer) -> None:
        """Raises UserError if the state of something that checkpoints contain could not be read back."""
        for name, part in self._parts(trainer).items():
            check_readable(part.state_dict(), name)

    def check_folder(self) -> None:
        """Raises UserError if the folder holds checkpoints of another run."""
        others = checkpoint_files(self.folder).keys() - self.writer.own.keys()
        if others and idist.get_rank() == 0:
            raise UserError(
                f"{self.folder} holds checkpoint_{max(others)}.pt of another run: continue it with --resume, delete it "
                "with --overwrite, or choose another --output"
            )


class Format:
    """The version of the checkpoint's layout, saved as one of its parts."""

    def state_dict(self) -> dict[str, int]:
        return {"version": VERSION}


class NewestFiles(BaseSaveHandler):
    """Save handler of Ignite's ``Checkpoint``, on rank 0: writes atomically and keeps the newest two files of this run.

    ``own``: iteration -> file of this run's checkpoints; no other file is ever deleted. ``trained``: names of the parts
    whose numbers must all be finite.
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
        """Does nothing: Ignite calls it before the new file exists. ``__call__`` deletes old files afterwards."""


def check_readable(content: Any, name: str) -> None:
    """Raises UserError if ``torch.load(weights_only=True)`` would reject the state of the part called ``name``."""
    for place, value in _leaves(content, name):
        if type(value) in (str, int, float, bool, bytes, type(None)) or isinstance(value, Tensor):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # any reason why it cannot be saved or read
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise UserError(
                f"{place} is a {kind}, which cannot be saved in a checkpoint: state_dict() of {name} may contain only "
                "tensors, numbers, strings, and lists and dicts of them"
            ) from error


def _newest_good(folder: Path) -> int:
    """Iteration of the newest intact checkpoint, 0 if there is none. Deletes unfinished files of a killed run."""
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
            "or start from the beginning with --overwrite"
        )
    for path, problem in damaged.items():
        aside = path.with_name(path.name + ".damaged")
        log.warning("%s cannot be used (%s): renamed to %s; trying the one before it", path, problem, aside.name)
        path.replace(aside)
    return good


def damage(path: Path) -> str:
    """What is wrong with a file of ``torch.save``; an empty string if its checksums are correct.

    A file that would run code when it is loaded counts as damaged. Raises OSError if the file cannot be read at all.
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
    except Exception as error:  # the type of the error depends on which bytes are damaged
        # EINVAL: the damage led to a negative offset in the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, str(path)) from error
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['not a checkpoint'])[0]}"
    return ""


def remove_abandoned(folder: str | Path, iteration: int) -> None:
    """Deletes models saved after ``iteration``, from which a run resumes: it repeats the validations they are of."""
    for path in (Path(folder) / name for name in MODELS):
        if path.exists() and not damage(path):
            content = torch.load(path, map_location="meta", weights_only=True)
            kept = content.get("iteration") if isinstance(content, dict) else None
            if isinstance(kept, int) and kept > iteration:
                log.warning("%s is of iteration %d, after the checkpoint to resume from: deleted", path, kept)
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
        if version < VERSION:
            raise UserError(
                f"{path}: written by an older version of proda (layout {version}, this one reads {VERSION}): finish "
                "the run with the version that it began with, or start from the beginning with --overwrite"
            )
        for name in sorted(missing):
            log.warning("%s has no %s: it starts from its initial state", path, name)
        for name in sorted(content.keys() - parts.keys() - {"format"}):
            log.warning("%s holds %s, which this run does not use: ignored", path, name)
        known = {name: part for name, part in parts.items() if name in content}
        states = {name: _completed(part, content[name], f"{path}: {name}") for name, part in known.items()}
        Checkpoint.load_objects(known, states)
    except UserError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a checkpoint of this command ({reason}); choose another --output") from error


def _completed(part: Any, saved: Any, name: str) -> Any:
    """A saved state, with fields that are missing (as in a file of an older version) taken from the part itself."""
    if isinstance(part, TRAINED):
        return saved
    now = part.state_dict()
    if not isinstance(saved, dict) or not isinstance(now, dict):
        return saved
    either = {"max_iters", "max_epochs"} if isinstance(part, Engine) else set()  # a state has only one of the two
    lacking = {field: value for field, value in now.items() if field not in saved and field not in either}
    if saved and lacking:
        log.warning("%s has no %s: initial value kept", name, ", ".join(map(str, lacking)))
    return {**saved, **lacking}


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every key and value in nested dicts and lists, with its position."""
    if type(content) in (dict, OrderedDict):
        for key, value in content.items():
            yield f"{name}: the key {key!r}", key
            yield from _leaves(value, f"{name}.{key}")
    elif type(content) in (list, tuple):
        for number, value in enumerate(content):
            yield from _leaves(value, f"{name}.{number}")
    else:
        yield name, content
