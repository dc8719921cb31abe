"""One process or several: joins the group that torchrun or SLURM started, or starts processes itself."""

import contextlib
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ignite.distributed as idist
import torch

from proda.engines.events import Trainer
from proda.handlers.stopping import TIMEOUT
from proda.run.config import RunConfig
from proda.utils.errors import UserError
from proda.utils.streams import lasting_output

PEER_GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("ncclRemoteError", "remote process exited", "Connection closed by remote peer"),  # messages of NCCL
)
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GRACE = 15.0  # seconds that the other processes have to exit by themselves after one has failed
Explain = Callable[[BaseException], str]  # one line about an error that is not a bug; empty for a bug


def run_in_group(run: Callable[[int], Any], config: RunConfig, explain: Explain) -> Any:
    """Calls ``run(local_rank)`` in this process, which may belong to a group, or in ``--nproc_per_node`` new processes.

    If processes are started, ``run`` and ``explain`` must be picklable and the result is None.

    Raises:
        UserError: this machine lacks the device or has too few GPUs for the backend.
        SystemExit: one of several processes has failed; its error line has been printed.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    spawn = config.nproc_per_node > 1
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    joining = not spawn and any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID")) and not idist.backend()
    backend = config.backend or (("nccl" if gpus else "gloo") if spawn or joining else None)
    _check_gpus(gpus, backend, config.nproc_per_node if spawn else 0)
    group = _group_variables(os.environ, on_cpu=config.device == "cpu", spawn=spawn, gpus=gpus)
    if spawn:
        threads = None if gpus else max(1, (os.cpu_count() or 1) // config.nproc_per_node)
        with _environment(group):
            return _spawn(run, config.nproc_per_node, backend, threads, explain)
    tasks, job = os.environ.get("SLURM_NTASKS", "1"), os.environ.get("SLURM_JOB_ID")
    if joining and tasks != "1" and os.environ.get("SLURM_PROCID") == "0" and "RANK" not in os.environ:
        print(f"waiting for the {tasks} tasks of SLURM job {job}; srun starts them", file=sys.stderr, flush=True)
    with (
        _environment(group if joining else os.environ),
        _quiet_ignite(),
        _group(backend if joining else None),
    ):
        result = []
        keep = lambda: result.append(run(idist.get_local_rank()))  # noqa: E731
        if joining and idist.get_world_size() > 1:
            report = lambda line, _: print(line, file=sys.stderr, flush=True)  # noqa: E731
            _as_one_of_many(keep, report, explain)
        else:
            keep()
        return result[0]


@contextlib.contextmanager
def _group(backend: str | None) -> Iterator[None]:
    """Joins the group of processes that the environment describes; without a backend the process stays alone."""
    if backend is None:
        yield
        return
    idist.initialize(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        idist.finalize()


def _check_gpus(gpus: int, backend: str | None, spawned: int) -> None:
    """Raises UserError if the processes on this machine need more GPUs than are visible.

    NCCL needs one GPU per process. Ignite places each process that it spawns on the GPU with its local rank, whatever
    the backend is. Processes of torchrun may share a GPU with gloo.
    """
    number = spawned or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    if gpus < number and (backend == "nccl" or (spawned and gpus)):
        flag = f"--nproc_per_node={spawned}: " if spawned else ""
        raise UserError(
            f"{flag}{number} processes on this machine need as many GPUs (--backend={backend}), found {gpus}; start "
            "fewer, or set --device=cpu --backend=gloo"
        )


def _group_variables(environment: Mapping[str, str], *, on_cpu: bool, spawn: bool, gpus: int) -> dict[str, str]:
    """Environment variables from which Ignite derives its rank in the group of processes.

    ``gpus`` is the number of GPUs that this process sees.
    """
    found = dict(environment)
    if spawn or all(name in found for name in TORCHRUN):
        # In a SLURM job Ignite counts the tasks of SLURM, and refuses processes that a task has started itself.
        found.pop("SLURM_JOB_ID", None)
    if on_cpu:
        found["CUDA_VISIBLE_DEVICES"] = ""  # otherwise Ignite moves networks to a visible GPU
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in found and gpus and not spawn:  # a task that sees only its own GPU has it as number 0
            found[name] = str(int(found[name]) % gpus)
    return found


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replaces ``os.environ`` within the block and restores it afterwards."""
    before, variables = dict(os.environ), dict(variables)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _spawn(run: Callable[[int], Any], number: int, backend: str | None, threads: int | None, explain: Explain) -> None:
    """Calls ``run`` in ``number`` new processes; prints one line and raises SystemExit if one of them fails.

    Signals to this process are passed on to all of them. They report errors through a queue, so that an error that
    occurs in all of them is printed once.
    """
    reports = multiprocessing.get_context("spawn").SimpleQueue()
    port = int(os.environ.get("MASTER_PORT") or _free_port())
    older = set(multiprocessing.active_children())
    children: list = []
    received: list[int] = []

    def forward(signal_number: int, _: Any) -> None:
        received.append(signal_number)
        for child in children:
            if child.is_alive():
                # Never SIGINT: the terminal has sent them Ctrl-C already, and a second SIGINT means to stop at once.
                os.kill(child.pid, signal.SIGTERM)

    previous = {caught: signal.signal(caught, forward) for caught in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            _quiet_ignite(),
            idist.Parallel(
                backend=backend, nproc_per_node=number, master_port=port, join=False, timeout=TIMEOUT
            ) as many,
            _sigint_blocked(),  # the processes inherit that, and import modules undisturbed
        ):
            many.run(_child, run, threads, explain, reports)
        children += set(multiprocessing.active_children()) - older
        if received:  # before the processes existed
            forward(received[-1], None)
        _wait_for(children)
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
    said = []
    while not reports.empty():
        said.append(reports.get())
    codes = [child.exitcode for child in children]
    if received and not any(status == 2 for _, status in said):
        raise SystemExit(128 + received[0])
    if any(codes):
        lines = [line for line, status in said if status == 2] or [
            f"error: a process was ended by signal {-code}" for code in codes if code < 0 and code != -signal.SIGKILL
        ]
        if not lines and -signal.SIGKILL in codes:
            lines = [
                "error: a process was killed (signal 9): memory may have run out; continue with --resume, a pipeline "
                "by the same command"
            ]
        lines = lines or [line for line, _ in said]
        print("\n".join(dict.fromkeys(lines)), file=sys.stderr, flush=True)
        raise SystemExit(max(code if code > 0 else 1 for code in codes if code))


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Delays Ctrl-C, also in processes that are started within the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(children: list) -> None:
    """Waits until all processes have ended. After a failure it kills those still running after ``GRACE`` seconds."""
    deadline = None
    while running := [child for child in children if child.is_alive()]:
        multiprocessing.connection.wait([child.sentinel for child in running], timeout=0.5)
        if deadline is None and any(child.exitcode for child in children):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for child in running:
                child.kill()


def _child(local_rank: int, run: Callable[[int], Any], threads: int | None, explain: Explain, reports: Any) -> None:
    """Body of one spawned process."""
    launcher = multiprocessing.parent_process()
    if launcher is not None and os.getppid() != launcher.pid:
        os._exit(1)  # the launcher was killed while this process was starting; from now on torch ends both together
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    with _quiet_ignite(), lasting_output():
        _as_one_of_many(lambda: run(local_rank), lambda line, status: reports.put((line, status)), explain)


def _as_one_of_many(run: Callable[[], Any], report: Callable[[str, int], None], explain: Explain) -> None:
    """Runs one process of several. An error ends it at once, because others may wait for it in a collective.

    An orderly shutdown of the process group could wait for these processes forever.
    """
    try:
        run()
        gc.collect()  # networks wrapped for several processes end before their group does, not at interpreter exit
        return
    except SystemExit as end:
        if getattr(end, "together", False):  # all processes have saved and exit together
            idist.finalize()
            raise
        status = end.code if isinstance(end.code, int) else 1
    except Exception as error:
        line, status = explain(error), 2
        if not line and any(sign in str(error) for sign in PEER_GONE):
            line, status = "error: another process of this run has ended", 1
        elif not line:
            traceback.print_exc()
            line, status = f"error: {type(error).__name__}: {error}", 1
        else:
            line = f"error: {line}"
        report(line, status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def _quiet_ignite() -> Iterator[None]:
    """Silences Ignite's launcher and its log of exceptions: our start-up summary and error line replace them."""
    names = (
        *("distributed.launcher.Parallel", "distributed.auto.auto_model"),
        *("engine.engine.Engine", f"engine.engine.{Trainer.__qualname__}"),
    )
    loggers = [logging.getLogger(f"ignite.{name}") for name in names]
    previous = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, previous, strict=True):
            logger.disabled = disabled
