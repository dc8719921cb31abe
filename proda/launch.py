"""From a command line to a running experiment, in one process or many.

``main`` is what ``run.py`` calls; ``start`` is the same for code that starts other experiments.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import fire
import ignite.distributed as idist
import torch

from proda.config import ConfigError, default_output, help_text, make_config

ROOT = Path(__file__).resolve().parent.parent
# What a user can cause and one line explains; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, FloatingPointError)


def main(argv: list[str]) -> int:
    """Runs ``EXPERIMENT [--flag=value ...]``; returns the exit status: 0, or 2 after one line on a user's mistake."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    try:
        module = load_experiment(argv[0])
        if {"-h", "--help"} & set(argv[1:]):
            print(help_text(module.Config, module.__doc__ or "", getattr(module, "PRESETS", None)))
            return 0
        start(argv[0], parse_flags(argv[1:]))
    except USER_ERRORS as error:
        if os.environ.get("PRODA_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.multiprocessing.ProcessExitedException as error:  # the child has printed its line
        return error.exit_code if error.exit_code and error.exit_code > 0 else 1
    except KeyboardInterrupt:
        return 130
    return 0


def start(experiment: str, flags: dict[str, Any]) -> Any:
    """Runs an experiment file with these flags, as its command line would; returns what its ``run`` returns.

    Raises:
        ValueError, FileNotFoundError: a flag or a file that the experiment cannot use.
    """
    module = load_experiment(experiment)
    config = make_config(module.Config, flags, getattr(module, "PRESETS", None))
    config.output = config.output or default_output(experiment)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    spawn = config.nproc_per_node > 1
    joining = not spawn and any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID")) and not idist.backend()
    backend = (config.backend or _default_backend(config)) if spawn or joining else None
    with idist.Parallel(backend=backend, nproc_per_node=config.nproc_per_node if spawn else None) as parallel:
        if spawn:
            return parallel.run(_child, experiment, config)
        return _run_and_return(parallel, module, config)


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
        raise ConfigError(f"{stray!r}: expected flags of the form --name=value")
    return flags


def _run_and_return(parallel: idist.Parallel, module: ModuleType, config: Any) -> Any:
    result = []
    with _quiet_ignite():
        parallel.run(lambda local_rank, config: result.append(module.run(local_rank, config)), config)
    return result[0]


def _child(local_rank: int, experiment: str, config: Any) -> None:
    """Body of one spawned process: a user's mistake is one line from rank 0 and exit status 2 for all."""
    try:
        load_experiment(experiment).run(local_rank, config)
    except USER_ERRORS as error:
        if os.environ.get("PRODA_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # the others may wait in a collective for this process: leave without a shutdown handshake


def _default_backend(config: Any) -> str:
    return "nccl" if config.device != "cpu" and torch.cuda.is_available() else "gloo"


@contextlib.contextmanager
def _quiet_ignite() -> Any:
    """Ignite's launcher logs two lines about itself; the start-up summary says what a user needs."""
    import logging

    logger = logging.getLogger("ignite.distributed.launcher.Parallel")
    previous, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = previous


def _usage() -> str:
    lines = ["usage: python run.py EXPERIMENT [--flag=value ...]   (--help after an experiment lists its flags)", ""]
    for file in sorted((ROOT / "experiments").glob("[a-z]*.py")):
        first = next((line.strip('" ') for line in file.read_text().splitlines() if line.strip()), "")
        lines.append(f"  experiments/{file.name:<20} {first}")
    return "\n".join(lines)
