"""From a command line to a running experiment.

``run.py`` and the command ``proda`` call ``main``. Code that starts experiments calls ``start``.
"""

import difflib
import errno
import importlib
import importlib.util
import inspect
import os
import shutil
import signal
import sys
import traceback
from dataclasses import asdict
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import ignite.distributed as idist
import torch
from tqdm import tqdm

from proda import __version__
from proda.cli.flags import NOT_REPEATED, VARIABLES, help_text, parse_flags, with_recorded, wrapped
from proda.cli.processes import run_in_group
from proda.run.config import RunConfig, TrainConfig
from proda.run.plan import print_plan
from proda.run.record import of_this_launch, read_record
from proda.settings.reading import default_output, make_config, with_present_names
from proda.utils.errors import MissingFileError, UserError
from proda.utils.record import plain
from proda.utils.streams import lasting_output

ROOT = Path(__file__).resolve().parent.parent.parent  # the clone, or the folder of installed packages
EXPERIMENTS = ROOT / "experiments"
FOLDER_FLAGS = ("output", "pseudo_labels", "predictions")  # folders that experiments write to
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # above 0 after a restart
# Errors caused by the machine. Other errors of the operating system, such as a missing file, may be bugs.
MACHINE_TROUBLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPIPE, errno.ETIMEDOUT, errno.ENAMETOOLONG),
)
# What torch says where loader processes cannot share a batch with the training process.
NOT_SHARED = (
    *("out of shared memory", "unable to allocate shared memory", "unable to open shared memory", "unable to mmap"),
    *("unable to resize file", "unable to open file </torch_", "ancdata", "Too many open files", "/dev/shm"),
)


def main(argv: list[str]) -> int:
    """Runs ``EXPERIMENT [--flag=value ...]``, ``copy EXPERIMENT FILE`` or ``--version``; returns the exit status.

    The status is 0, or ``exit_status`` of the experiment's result; 2 after an error of one line that the user or the
    machine caused; and 128 plus the number of the signal that stopped the run. Bugs raise their exception.
    """
    with lasting_output():
        return _main(argv)


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"proda {__version__}")
        return 0
    try:
        if argv[0] == "copy":
            return _copy(argv[1:])
        if {"-h", "--help"} & set(argv[1:]):
            print(_help(argv[0]))
            return 0
        result = start(argv[0], _flags(*argv))
    except KeyboardInterrupt:
        tqdm.write("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        line = explain(error)
        if not line:
            raise
        tqdm.write(f"error: {line}", file=sys.stderr)  # tqdm.write: an open progress bar must not share the line
        return 2
    return result.get("exit_status", 0) if isinstance(result, dict) else 0


def start(experiment: str, flags: dict[str, Any]) -> Any:
    """Runs an experiment with these flags, like its command line; returns the result of its ``run``.

    With ``--plan`` it does not run it, and prints what the run will take instead.

    Args:
        experiment: as for :func:`load_experiment`.
        flags: flag name -> value, or its text.

    Raises:
        UserError: the experiment cannot use a flag or a file.
    """
    module = load_experiment(experiment)
    config = make_config(module.Config, flags, getattr(module, "PRESETS", None))
    file = str(module.__file__)
    config.output = config.output or default_output(file)
    if isinstance(config, TrainConfig) and config.plan:
        if not callable(build := getattr(module, "build", None)):
            raise UserError(f"--plan: {experiment} has no build(config, data, networks), which a plan needs")
        return print_plan(config, build, Path(file).stem)
    _check_places(config)
    return run_in_group(partial(_run, file, config), config, explain)


def explain(error: BaseException) -> str:
    """One line about an error that is not a bug; empty for a bug. $PRODA_TRACEBACK=1 also prints the traceback."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    not_shared = next((line.strip() for line in text.splitlines() if any(phrase in line for phrase in NOT_SHARED)), "")
    line = ""
    if isinstance(error, UserError | FloatingPointError):
        line = text or first
    elif isinstance(error, OSError) and error.errno in MACHINE_TROUBLE:
        full = error.errno == errno.ENOSPC and error.filename is None
        line = f"{text}: a disk, or the memory in /dev/shm, is full" if full else text
    elif isinstance(error, RuntimeError) and not_shared:
        line = (
            f"{not_shared} Processes share data in /dev/shm: use fewer --num_workers (0 needs none), give /dev/shm "
            "more room (Docker: --shm-size) or allow more open files (ulimit -n), and continue with --resume, a "
            "pipeline by the same command"
        )
    elif isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        line = (
            f"{first} Memory may have run out: use fewer --num_workers, and continue with --resume, a pipeline by the "
            "same command"
        )
    elif isinstance(error, torch.OutOfMemoryError):
        line = f"{first} Try a smaller --batch_size, more processes, or --amp=bf16"
    elif isinstance(error, MemoryError):
        line = f"out of memory: {first}"
    if line and os.environ.get("PRODA_TRACEBACK"):
        traceback.print_exception(error)
    return line


def load_experiment(experiment: str) -> ModuleType:
    """Imports an experiment from a file, or by the name of a built-in experiment (``stage1_denoise``) from any folder.

    Built-in experiments are modules of the package ``experiments``. Other files are imported by path and may have any
    name. Their folder is appended to the module path, so that they can import modules next to them without hiding
    installed packages.

    Raises:
        UserError: the file does not exist, or does not define an experiment.
    """
    file = _find(experiment)
    if file.parent == EXPERIMENTS and file.stem.isidentifier():
        if str(ROOT) not in sys.path:
            sys.path.insert(0, str(ROOT))
        module = importlib.import_module(f"experiments.{file.stem}")
        found = Path(module.__file__ or "").resolve()
        if found != file:
            raise UserError(f"{experiment}: another package named experiments hides it ({found.parent})")
    else:
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        module = importlib.import_module(_ByPlace.prefix + os.fsencode(file).hex())
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, RunConfig)) or not callable(getattr(module, "run", None)):
        raise UserError(f"{experiment}: expected a dataclass Config(RunConfig) and a function run(local_rank, config)")
    if inspect.get_annotations(config) and "__dataclass_fields__" not in vars(config):
        raise UserError(f"{experiment}: Config declares fields but is not a dataclass; write @dataclass above it")
    return module


class _ByPlace:
    """Finder of modules whose name encodes the path of a file in hexadecimal digits.

    Every process that imports this module can unpickle objects of such modules. Spawned processes and spawned loader
    workers need this.
    """

    prefix = "experiment_file_"

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(cls.prefix):
            return None
        return importlib.util.spec_from_file_location(name, os.fsdecode(bytes.fromhex(name.removeprefix(cls.prefix))))


sys.meta_path.append(_ByPlace)


def _help(experiment: str) -> str:
    """The text of ``--help``."""
    module = load_experiment(experiment)
    return help_text(module.Config, module.__doc__ or "", getattr(module, "PRESETS", None))


def _flags(experiment: str, *arguments: str) -> dict[str, Any]:
    """The flags of a command line under their present names.

    Raises:
        UserError: the experiment cannot use them.
    """
    module = load_experiment(experiment)
    flags = with_recorded(parse_flags([*arguments], getattr(module, "POSITIONAL", "")), module.Config)
    return with_present_names(flags, module.Config)


def _check_places(config: RunConfig) -> None:
    """Raises UserError if a folder to write to is a file or below one, or if a file is a folder."""
    for name in FOLDER_FLAGS:
        value = getattr(config, name, "")
        place = next((path for path in (Path(value), *Path(value).parents) if path.exists()), None) if value else None
        if place is not None and not place.is_dir():
            raise UserError(f"--{name}={value}: {place} is a file; expected a folder")
    if (value := getattr(config, "prototypes", "")) and Path(value).is_dir():
        raise UserError(f"--prototypes={value}: this is a folder; expected a file")


def _run(experiment: str, config: RunConfig, local_rank: int) -> Any:
    """The work of each process of the group."""
    _resume_after_restart(config)
    return load_experiment(experiment).run(local_rank, config)


def _find(experiment: str) -> Path:
    """The file of an experiment. A file in the working folder takes precedence over a built-in one."""
    path = Path(experiment).expanduser()
    choices = [path]
    if path.parent.as_posix() in (".", "experiments"):
        choices += [EXPERIMENTS / path.name, EXPERIMENTS / f"{path.name}.py"]
    for file in choices:
        if file.suffix == ".py" and file.is_file():
            return file.resolve()
    known = [file.stem for file in _ours()]
    if experiment.startswith("-"):
        raise UserError(f"{experiment}: the experiment comes before its flags, as in: run.py warmup {experiment}")
    stem = Path(experiment).stem
    near = difflib.get_close_matches(stem, known, n=1) or [name for name in known if name.split("_")[0] == stem]
    nearest = f"; the nearest is {near[0]}" if near else ""
    raise MissingFileError(
        f"{experiment}: no such experiment file{nearest}; expected a file NAME.py, or one of {', '.join(known)}"
    )


def _ours() -> list[Path]:
    return sorted(EXPERIMENTS.glob("[a-z]*.py"))


def _copy(arguments: list[str]) -> int:
    """Copies an experiment file as the start of a user's own experiment."""
    if len(arguments) != 2 or not arguments[1].endswith(".py"):
        raise UserError("copy: expected an experiment and a new file, for example: copy stage1_denoise my_stage.py")
    source, target = _find(arguments[0]), Path(arguments[1])
    if target.exists():
        raise UserError(f"{target}: this file exists already; choose another name for the copy")
    if not target.parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} does not exist; create it, or choose another place")
    shutil.copyfile(source, target)
    print(f"{target}: copied from {source}")
    return 0


def _resume_after_restart(config: RunConfig) -> None:
    """Sets ``resume`` if torchrun or SLURM restarted the command and the output folder holds this very run.

    The run is recognised by the same settings in config.json and by the job of torchrun or SLURM that began it: the
    first life may have ended before it deleted an older run. The folder of another run is refused, or deleted with
    ``--overwrite``, as at the first start. Torchrun counts restarts per machine, so the processes agree by an
    all-reduce.
    """
    if not isinstance(config, TrainConfig) or config.resume:
        return
    restarted = any(int(os.environ.get(name) or 0) > 0 for name in RESTARTS) and _began(config)
    if idist.all_reduce(int(restarted), "MAX"):
        config.resume, config.overwrite = True, False
        if idist.get_rank() == 0:
            print(f"restarted: resuming the run in {config.output}", flush=True)


def _began(config: RunConfig) -> bool:
    """Whether the output folder holds a run with these settings that this job of torchrun or SLURM may have begun."""
    begun = read_record(Path(config.output), config)
    if begun and not of_this_launch(begun["run"].get("launch", {})):
        return False
    settings = {name: value for name, value in plain(asdict(config)).items() if name not in NOT_REPEATED}
    return bool(begun) and all(begun.get(name) == value for name, value in settings.items())


def _usage() -> str:
    lines = [
        "usage: python run.py EXPERIMENT [--flag=value ...]   in a clone; EXPERIMENT is a file or a name from below",
        "       proda EXPERIMENT [--flag=value ...]           where the package is installed; also python -m proda",
        "       proda EXPERIMENT --help                       lists the flags of an experiment",
        "       proda copy EXPERIMENT my_experiment.py        copies an experiment file as a start for your own",
        "",
    ]
    files = {f"  experiments/{file.name}  ": file for file in _ours()}
    left = max(map(len, files))
    for name, file in files.items():
        first = next((line.strip('" ') for line in file.read_text().splitlines() if line.strip()), "")
        lines += wrapped(f"{name:<{left}}{first}", " " * left)
    return "\n".join([*lines, "", *wrapped(VARIABLES, "    ")])
