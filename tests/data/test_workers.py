"""Processes of data loaders: what they send arrives, and they end with the training process, however that ends."""

import errno
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from proda.data.image_files import warn_once
from proda.data.loaders import collate
from proda.data.workers import Loader, leave_signals_to_the_trainer, single_items
from proda.utils.errors import UserError

ROOT = Path(__file__).parents[2]
TRAIN = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader
from proda.data.workers import leave_signals_to_the_trainer

class Images:
    def __len__(self): return 10**6
    def __getitem__(self, index): return torch.zeros(1)

if __name__ == "__main__":
    loader = DataLoader(Images(), num_workers=2, worker_init_fn=leave_signals_to_the_trainer,
                        multiprocessing_context="spawn")
    batches = iter(loader)
    if sys.argv[1] == "after it has started":
        next(batches)
    print("killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _orphan() -> None:
    """A loader process whose training process ended while it was starting."""
    multiprocessing.parent_process = lambda: SimpleNamespace(pid=-1)
    leave_signals_to_the_trainer(0)
    time.sleep(60)


def test_a_loader_whose_training_process_is_gone_ends():
    loader = multiprocessing.get_context("fork").Process(target=_orphan)
    loader.start()
    loader.join(20)
    assert loader.exitcode == 1


@pytest.mark.parametrize("ends", ["after it has started", "while it starts"])
def test_loaders_end_with_the_training_process_however_that_ends(ends, tmp_path):
    """What they hold open, such as a pipe of the run's output, would otherwise stay open forever."""
    file = tmp_path / "train.py"
    file.write_text(TRAIN)
    run = subprocess.Popen([sys.executable, str(file), ends], stdout=subprocess.PIPE, cwd=ROOT)
    assert run.communicate(timeout=60)[0].startswith(b"killed")  # it waits for all who could write to the pipe
    assert run.returncode == -signal.SIGKILL


class Photographs(Dataset):
    """Of 30,000 bytes each, with numbers that collating makes a tensor of.

    ``limited``: in a loader process, files of shared memory may have 8,192 bytes.
    """

    def __init__(self, limited: bool = False) -> None:
        self.limited = limited

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        if self.limited and get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return {"name": f"{index}", "image": torch.full((3, 100, 100), index, dtype=torch.uint8), "view": (index, 0.5)}


@pytest.fixture(params=["too small", "none", "open files"])
def shared_memory(request, monkeypatch):
    """Loader processes find too little shared memory (see ``Photographs``), or it fails altogether."""
    if request.param != "too small":
        number = errno.ENOSPC if request.param == "none" else errno.EMFILE

        def fail(*_, **__):
            raise RuntimeError(f"unable to open shared memory object </torch_1>: {os.strerror(number)} ({number})")

        monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    warn_once.cache_clear()
    return request.param


@pytest.mark.parametrize("collate_fn", [list, default_collate, collate])
def test_batches_arrive_where_shared_memory_has_no_room_for_them(shared_memory, collate_fn, caplog):
    images = Photographs(limited=shared_memory == "too small")

    def batches(workers):
        return list(
            Loader(images, batch_size=2, num_workers=workers, collate_fn=collate_fn, timeout=20 * (workers > 0))
        )

    with caplog.at_level(logging.WARNING, "proda"):
        found = batches(2)
    assert repr(found) == repr(batches(0)) and len(found) == 3
    (line,) = caplog.messages  # once, not for every batch
    assert "/dev/shm" in line and "--num_workers" in line


def test_tensors_of_other_batches_are_shared_and_not_copied_through_a_pipe(caplog):
    batches = list(Loader(Photographs(), batch_size=2, num_workers=2, collate_fn=default_collate))
    assert all(batch["image"].is_shared() for batch in batches) and not caplog.messages


class _Bug:
    def __call__(self, samples):
        raise RuntimeError("a bug")


def test_an_error_of_collating_that_shared_memory_did_not_cause_stays_what_it_is():
    with pytest.raises(RuntimeError, match="a bug"):
        list(Loader(Photographs(), batch_size=2, num_workers=1, collate_fn=_Bug()))


@pytest.mark.parametrize("make", [single_items, lambda data, n: Loader(data, collate_fn=list, num_workers=n)])
def test_loader_processes_that_cannot_start_are_one_line(make, monkeypatch):
    """As where /dev/shm has no room for a semaphore, or may hold none."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", fail)
    with pytest.raises(UserError, match=r"^--num_workers=2: .*No space left on device.*/dev/shm"):
        list(make(Photographs(), 2))
