"""Loaders and their processes: how a batch comes from them, what they do with signals, and when they end."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from proda.data.image_files import name_files_in_warnings, warn_once
from proda.utils.errors import UserError

PARENT_CHECK_SECONDS = 5.0  # between two looks of a loader process at whether the training process is there


def leave_signals_to_the_trainer(_: int) -> None:
    """Initialises a loader process: only the training process handles a SIGTERM or SIGINT sent to all processes.

    That process finishes its iteration, which needs the loaders, and then ends them by its own SIGTERM, the only one
    that they obey. If it is gone, they end themselves; torch's loaders do that only if it dies after they have started.
    """
    name_files_in_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    parent = os.getppid() if trainer is None else trainer.pid
    if os.getppid() != parent:
        os._exit(1)
    if not hasattr(signal, "sigtimedwait"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def heed() -> None:
        while os.getppid() == parent:
            caught = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_SECONDS)
            if caught is not None and caught.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=heed, daemon=True).start()


class Loader(DataLoader):
    """A DataLoader that leaves signals to the training process, and does without shared memory where that is full.

    It reports data errors of its workers in one line; the cause keeps the traceback. UserError if they cannot start.
    """

    def __init__(self, dataset: Dataset, *, collate_fn: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(
            dataset, collate_fn=_Collate(collate_fn), worker_init_fn=leave_signals_to_the_trainer, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is what a for loop needs
        try:
            batches = super().__iter__()
        except OSError as error:  # their semaphores are files in /dev/shm
            raise UserError(
                f"--num_workers={self.num_workers}: the loader processes cannot be started ({error}); use fewer "
                "(0 needs none), or give /dev/shm more room (Docker: --shm-size)"
            ) from error
        try:
            yield from batches
        except (ValueError, OSError) as error:
            kind, text = type(error), str(error).strip()
            if not text.startswith("Caught "):
                raise
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            raise kind(text.splitlines()[-1].removeprefix(f"{name}: ")) from error


class _Collate:
    """Collates samples; in a loader process also prepares the batch for its way, in shared memory if that has room."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Any) -> Any:
        if get_worker_info() is None:
            return self.collate_fn(samples)
        try:
            batch = self.collate_fn(samples)
            for tensor in tensors(batch):  # first, since nothing takes back what has been pickled
                tensor.share_memory_()
            return _OnItsWay(pickle.loads, bytes(ForkingPickler.dumps(batch)))
        except (RuntimeError, OSError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).strip().partition("\n")[0].rpartition(": ")[2]
            return _OnItsWay(_without_shared_memory, self.collate_fn, pickle.dumps(samples), reason)


class _OnItsWay:
    """A batch between two processes: it arrives as what ``make(*content)`` returns.

    It is pickled already, because the thread that pickles for a queue drops what it cannot pickle. The training process
    would wait for it for ever.
    """

    def __init__(self, make: Callable[..., Any], *content: Any) -> None:
        self.make, self.content = make, content

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.make, self.content


def _without_shared_memory(collate_fn: Callable[[Any], Any], pickled: bytes, reason: str) -> Any:
    """The batch of samples that came through a pipe. An error that has another cause is raised here again."""
    batch = collate_fn(pickle.loads(pickled))
    warn_once(
        f"loader processes cannot share memory ({reason}), so batches take a slower way: use fewer --num_workers, or "
        "give /dev/shm more room (Docker: --shm-size)"
    )
    return batch


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors(value)


def single_items(dataset: Dataset, num_workers: int) -> Loader:
    """Loads the items of a dataset one by one, in order and unchanged, in ``num_workers`` processes; 0: in this one.

    It draws no random number from torch's global generator, which would change the initial weights of a run.
    """
    return Loader(dataset, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, generator=torch.Generator())


def _as_it_is(item: Any) -> Any:
    return item
