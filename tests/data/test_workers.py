"""Processes of data loaders end with the training process, however that ends."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from proda.data.workers import leave_signals_to_the_trainer

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
