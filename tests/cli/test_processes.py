"""Where a process finds its place, and which backend and how many processes a machine can have."""

import datetime
import multiprocessing
import os
from types import SimpleNamespace

import ignite.distributed as idist
import pytest
import torch

from proda.cli.processes import _child, _group_variables, run_in_group
from proda.run.config import RunConfig
from proda.utils.errors import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}
OF_TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "settings", "found"),
    [
        (SLURM, {}, SLURM),
        (OF_TORCHRUN, {"gpus": 4}, OF_TORCHRUN),
        # torchrun in a task of a SLURM job, and processes that we spawn in one
        (SLURM | OF_TORCHRUN, {}, {k: v for k, v in (SLURM | OF_TORCHRUN).items() if k != "SLURM_JOB_ID"}),
        (SLURM, {"spawn": True}, {k: v for k, v in SLURM.items() if k != "SLURM_JOB_ID"}),
        # srun --gpus-per-task=1 --gpu-bind=single:1
        (SLURM, {"gpus": 1}, SLURM | {"SLURM_LOCALID": "0"}),
        (OF_TORCHRUN, {"on_cpu": True}, OF_TORCHRUN | {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_variables_that_place_a_process_in_its_group(environment, settings, found):
    assert _group_variables(environment, **{"on_cpu": False, "spawn": False, "gpus": 0, **settings}) == found


@pytest.mark.parametrize(
    ("gpus", "flags", "environment", "message"),
    [
        (1, {"nproc_per_node": 2}, {}, r"--nproc_per_node=2: 2 processes .*\(--backend=nccl\), found 1"),
        (1, {"nproc_per_node": 2, "backend": "gloo"}, {}, r"--nproc_per_node=2: 2 processes .*gloo\), found 1"),
        (0, {"nproc_per_node": 2, "backend": "nccl"}, {}, "--nproc_per_node=2: 2 processes .*found 0"),
        (2, {"nproc_per_node": 2, "backend": "nccl", "device": "cpu"}, {}, "2 processes .*found 0"),
        (1, {}, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "^2 processes on this machine need as many GPUs .*nccl"),
        (0, {"backend": "nccl"}, {}, "^1 processes on this machine need as many GPUs"),
        (0, {"device": "cuda"}, {}, "--device=cuda: this machine has no CUDA device"),
    ],
)
def test_more_processes_than_gpus_are_refused(gpus, flags, environment, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        run_in_group(lambda _: pytest.fail("was run"), RunConfig(**flags), str)


def test_a_process_of_a_group_waits_an_hour_for_the_others(monkeypatch):
    joined = []
    monkeypatch.setattr(idist, "initialize", lambda backend, **options: joined.append((backend, options)))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_in_group(lambda local_rank: local_rank + 7, RunConfig(device="cpu"), str) == 7
    assert joined == [("gloo", {"timeout": datetime.timedelta(hours=1)})]


def test_one_process_is_run_here_and_its_environment_put_back():
    before = dict(os.environ)
    assert run_in_group(lambda local_rank: local_rank + 7, RunConfig(device="cpu"), str) == 7
    assert dict(os.environ) == before


def _orphan(folder) -> None:
    multiprocessing.parent_process = lambda: SimpleNamespace(pid=-1)
    _child(0, lambda rank: (folder / "trained").touch(), 1, str, None)


def test_a_process_whose_launcher_was_killed_while_it_started_trains_nothing(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_orphan, args=(tmp_path,))
    child.start()
    child.join(20)
    assert child.exitcode == 1 and not (tmp_path / "trained").exists()
