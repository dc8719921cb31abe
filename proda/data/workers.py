"""Processes of data loaders: what they do with signals, when they end, and a loader of single items."""

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

PARENT_CHECK_SECONDS = 5.0  # between two looks of a loader process at whether the training process is there


def leave_signals_to_the_trainer(_: int) -> None:
    """Initialises a loader process: only the training process handles a SIGTERM or SIGINT sent to all processes.

    That process finishes its iteration, which needs the loaders, and then ends them by its own SIGTERM, the only one
    that they obey. If it is gone, they end themselves; torch's loaders do that only if it dies after they have started.
    """
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


def single_items(dataset: Dataset, num_workers: int) -> DataLoader:
    """Loads the items of a dataset one by one, in order and unchanged, in ``num_workers`` processes; 0: in this one.

    It draws no random number from torch's global generator, which would change the initial weights of a run.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_trainer,
    )


def _as_it_is(item: Any) -> Any:
    return item
