"""From a command line to a running experiment, in one process or many.

``main`` is what ``run.py`` calls; ``start`` is the same for code that starts other experiments.
"""

import contextlib
import importlib
import importlib.util
import io
import json
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
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import fire
import ignite.distributed as idist
import torch
from tqdm import tqdm

from proda.experiment.config import default_output, help_text, make_config
from proda.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
# What a user or a machine can cause and one line explains; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)
PEER_GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("ncclRemoteError", "remote process exited", "Connection closed by remote peer"),  # as NCCL says it
)
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Entries of config.json that --config leaves out: where and how a run is made, not what it is.
NOT_REPEATED = ("run", "output", "resume", "overwrite", "stop_after", "nproc_per_node", "backend")
GRACE = 15.0  # seconds that the other processes have to end by themselves once one has failed


def main(argv: list[str]) -> int:
    """Runs ``EXPERIMENT [--flag=value ...]``; returns the exit status.

    0, or what the experiment's result has as ``exit_status``; 2 after one line on a user's mistake; 128 and
    the signal's number after a stop that a signal asked for.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    try:
        module = load_experiment(argv[0])
        if {"-h", "--help"} & set(argv[1:]):
            print(help_text(module.Config, module.__doc__ or "", getattr(module, "PRESETS", None)))
            return 0
        result = start(argv[0], with_recorded(parse_flags(argv[1:]), module.Config))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        line = explain(error)
        if not line:
            raise
        tqdm.write(f"error: {line}", file=sys.stderr)  # on a line of its own, whatever progress bar is open
        return 2
    return result.get("exit_status", 0) if isinstance(result, dict) else 0


def start(experiment: str, flags: dict[str, Any]) -> Any:
    """Runs an experiment file with these flags, as its command line would; returns what its ``run`` returns.

    Raises:
        ValueError, FileNotFoundError: a flag or a file that the experiment cannot use.
    """
    module = load_experiment(experiment)
    config = make_config(module.Config, flags, getattr(module, "PRESETS", None))
    config.output = config.output or default_output(experiment)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    spawn = config.nproc_per_node > 1
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    if spawn and config.backend == "nccl" and gpus < config.nproc_per_node:
        raise UserError(
            f"--backend=nccl --nproc_per_node={config.nproc_per_node}: needs as many GPUs, found {gpus}; on CPUs "
            "--backend=gloo does it"
        )
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # how many torchrun has started on this machine
    if not spawn and config.backend == "nccl" and gpus < int(here):
        raise UserError(f"--backend=nccl: {here} processes on this machine need as many GPUs, found {gpus}")
    joining = not spawn and any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID")) and not idist.backend()
    backend = (config.backend or _default_backend(config)) if spawn or joining else None
    group = _group_variables(os.environ, on_cpu=config.device == "cpu", spawn=spawn, gpus=gpus)
    if spawn:
        with _environment(group):
            return _spawn(experiment, config, backend)
    tasks, job = os.environ.get("SLURM_NTASKS", "1"), os.environ.get("SLURM_JOB_ID")
    if joining and tasks != "1" and os.environ.get("SLURM_PROCID") == "0" and "RANK" not in os.environ:
        print(f"waiting for the {tasks} tasks of SLURM job {job}; srun starts them", file=sys.stderr, flush=True)
    with _environment(group if joining else os.environ), _quiet_ignite(), idist.Parallel(backend=backend) as parallel:
        result = []
        run = lambda local_rank: result.append(module.run(local_rank, config))  # noqa: E731
        if joining and idist.get_world_size() > 1:
            _as_one_of_many(lambda: parallel.run(run), lambda line, _: print(line, file=sys.stderr, flush=True))
        else:
            parallel.run(run)
        return result[0]


def explain(error: Exception) -> str:
    """One line about an error that is no bug of the program; empty for a bug. $PRODA_TRACEBACK shows where it arose."""
    text = str(error).strip()
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        cause = text.splitlines()[0]
        line = f"{cause} Memory may have run out: try fewer --num_workers; --resume goes on from the last checkpoint"
    elif isinstance(error, torch.OutOfMemoryError):
        line = f"{text.splitlines()[0]} Try a smaller --batch_size, more processes, or --amp=bf16"
    else:
        line = text or type(error).__name__ if isinstance(error, USER_ERRORS) else ""
    if line and os.environ.get("PRODA_TRACEBACK"):
        traceback.print_exc()
    return line


def load_experiment(path: str) -> ModuleType:
    """The module of an experiment file.

    It is imported by name, since spawned processes must import it again; its folder joins the module path for that.
    """
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.is_file():
        known = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("[a-z]*.py")))
        raise FileNotFoundError(f"{path}: no such experiment file; expected experiments/NAME.py, NAME one of {known}")
    base, name = (
        (ROOT, ".".join(file.relative_to(ROOT).with_suffix("").parts))
        if file.is_relative_to(ROOT)
        else (file.parent, file.stem)
    )
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    module = importlib.import_module(name)
    if Path(module.__file__ or "").resolve() != file:
        raise ValueError(f"{path}: another module is called {name} ({module.__file__}); give the file another name")
    for needed in ("Config", "run"):
        if not hasattr(module, needed):
            raise ValueError(
                f"{path}: an experiment defines a dataclass Config and run(local_rank, config); no {needed}"
            )
    return module


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """``--name=value`` arguments as Python Fire reads them.

    Fire calls what it is given before it looks at flags that are left over, so it is given a function that only
    collects.
    """
    noise = io.StringIO()
    try:
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            flags = fire.Fire(lambda **flags: flags, command=arguments, name="run.py", serialize=lambda _: None)
    except fire.core.FireExit:
        flags = None
    if not isinstance(flags, dict):
        stray = next((word for word in arguments if not word.startswith("--")), " ".join(arguments))
        raise UserError(f"{stray!r}: expected flags of the form --name=value")
    return flags


def with_recorded(flags: dict[str, Any], config_class: type) -> dict[str, Any]:
    """Flags with those that ``--config=FILE``, the config.json of an earlier run, adds to them."""
    if "config" not in flags:
        return flags
    place = f"--config={flags['config']}"
    try:
        recorded = json.loads(Path(str(flags["config"])).read_text())
        recorded = {name: value for name, value in recorded.items() if name not in NOT_REPEATED}
    except OSError:
        raise UserError(f"{place}: no such file; expected the config.json of a run") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{place}: expected the config.json of a run") from error
    if other := recorded.keys() - {field.name for field in fields(config_class)}:
        raise UserError(f"{place}: {min(other)} is no flag of this experiment; expected the config.json of its run")
    if "preset" in flags:
        raise UserError(
            f"--preset={flags['preset']} and {place}, which has every setting of a recipe: give one of them"
        )
    return recorded | {name: value for name, value in flags.items() if name != "config"}


def _group_variables(environment: Mapping[str, str], *, on_cpu: bool, spawn: bool, gpus: int) -> dict[str, str]:
    """The environment in which Ignite finds its place in the group of processes.

    ``gpus``: how many this process sees.
    """
    found = dict(environment)
    if spawn or all(name in found for name in TORCHRUN):
        # In a SLURM job Ignite counts SLURM's tasks, and refuses processes that torchrun or we made of one of them.
        found.pop("SLURM_JOB_ID", None)
    if on_cpu:
        found["CUDA_VISIBLE_DEVICES"] = ""  # Ignite would put networks on the GPUs that it sees
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in found and gpus and not spawn:  # a task that is shown its own GPU alone knows it as number 0
            found[name] = str(int(found[name]) % gpus)
    return found


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` as given, and afterwards as it was."""
    before, variables = dict(os.environ), dict(variables)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _spawn(experiment: str, config: Any, backend: str) -> None:
    """Runs the experiment in processes of its own; SystemExit with one line on stderr if one of them fails.

    A signal to this process goes to all of them. What they have to say comes through a queue, so that a mistake that
    each of them meets is told once.
    """
    reports = multiprocessing.get_context("spawn").SimpleQueue()
    port = int(os.environ.get("MASTER_PORT") or _free_port())
    older = set(multiprocessing.active_children())
    children: list = []
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        for child in children:
            if child.is_alive():
                # Never SIGINT: Ctrl-C has reached them from the terminal already, and a second one means "at once".
                os.kill(child.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            _quiet_ignite(),
            idist.Parallel(backend=backend, nproc_per_node=config.nproc_per_node, master_port=port, join=False) as many,
        ):
            many.run(_child, experiment, config, reports)
        children += set(multiprocessing.active_children()) - older
        if received:  # before there were any to pass it on to
            forward(received[-1], None)
        _wait_for(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
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
            lines = ["error: a process was killed (signal 9): memory may have run out; --resume goes on"]
        lines = lines or [line for line, _ in said]
        print("\n".join(dict.fromkeys(lines)), file=sys.stderr, flush=True)
        raise SystemExit(max(code if code > 0 else 1 for code in codes if code))


def _wait_for(children: list) -> None:
    """Until all have ended. Once one has failed the others, which may wait for it for ever, have ``GRACE`` seconds."""
    deadline = None
    while running := [child for child in children if child.is_alive()]:
        multiprocessing.connection.wait([child.sentinel for child in running], timeout=0.5)
        if deadline is None and any(child.exitcode for child in children):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for child in running:
                child.kill()


def _child(local_rank: int, experiment: str, config: Any, reports: Any) -> None:
    """Body of one spawned process."""
    if config.device != "cuda" and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.nproc_per_node))
    module = load_experiment(experiment)
    with _quiet_ignite():
        _as_one_of_many(lambda: module.run(local_rank, config), lambda line, status: reports.put((line, status)))


def _as_one_of_many(run: Callable[[], Any], report: Callable[[str, int], None]) -> None:
    """Runs one process of several. An error ends it at once: the others may wait in a collective for it.

    An orderly shutdown of the process group could wait for them in turn.
    """
    try:
        run()
        return
    except SystemExit as end:
        if getattr(end, "together", False):  # all processes leave here, having saved
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


def _default_backend(config: Any) -> str:
    return "nccl" if config.device != "cpu" and torch.cuda.is_available() else "gloo"


@contextlib.contextmanager
def _quiet_ignite() -> Iterator[None]:
    """Ignite's launcher logs about itself, and its engine every exception; the summary and the error line say more."""
    names = ("distributed.launcher.Parallel", "distributed.auto.auto_model", "engine.engine.Engine")
    loggers = [logging.getLogger(f"ignite.{name}") for name in names]
    previous = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, previous, strict=True):
            logger.disabled = disabled


def _usage() -> str:
    lines = ["usage: python run.py EXPERIMENT [--flag=value ...]   (--help after an experiment lists its flags)", ""]
    for file in sorted((ROOT / "experiments").glob("[a-z]*.py")):
        first = next((line.strip('" ') for line in file.read_text().splitlines() if line.strip()), "")
        lines.append(f"  experiments/{file.name:<20} {first}")
    return "\n".join(lines)
