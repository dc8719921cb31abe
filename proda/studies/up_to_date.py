"""Experiments that build on one another: skipped if their output is up to date, resumed if they were interrupted.

``config.json`` of a finished run says what its result depends on: the resolved flags, the checksums of weights files,
and the fingerprints of images, labels and descriptions.
"""

import shutil
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from proda.cli.launch import load_experiment, start
from proda.run.changed_files import data_before, part_of, unchanged_otherwise
from proda.run.config import DataConfig
from proda.run.domains import Domains
from proda.run.job import read_summary
from proda.run.record import UNCOMPARED_FLAGS, changes, keep_inputs, read_record, run_record, weights_flags
from proda.settings.reading import make_config
from proda.utils.errors import MissingFileError, UserError
from proda.utils.lock import FolderLock
from proda.utils.record import shortened
from proda.utils.run_files import all_run_files, earlier_run


def run_if_outdated(experiment: str, flags: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
    """Runs an experiment in the folder ``flags["output"]`` unless its result is up to date; returns ``summary.json``.

    An interrupted run with the same inputs is resumed. A run with different inputs is deleted and repeated if
    ``overwrite`` is set.

    Raises:
        UserError: the folder holds a run with different or unknown inputs; another command uses the folder;
            ``overwrite`` would delete a file that a flag names; or an error of :func:`start`.
        MissingFileError: a weights file that a flag names does not exist.
    """
    config, folder = _config(experiment, flags), Path(flags["output"])
    _check_weights(experiment, config)
    before, finished = read_record(folder, config), (folder / "summary.json").is_file()
    domains = Domains(config, before=data_before(folder, before))
    changed, used = _changes(before, config, domains, finished=finished), finished or bool(earlier_run(folder))
    same = bool(before) and not changed
    idist.barrier()  # all processes have read the folder before one of them writes
    if same and finished:
        print_once(f"{folder}: up to date, skipped")
        return read_summary(folder)
    if used and not same:
        if not overwrite:
            found = f"with different inputs ({shortened(changed)})" if before else "without a readable config.json"
            raise UserError(f"{folder} holds a run {found}: repeat it with --overwrite, or set another --output")
        keep_inputs(folder, config, folder / "pseudo_labels")
    if folder.is_dir() and not same:
        with FolderLock(folder):
            if idist.get_rank() == 0:
                clear(folder)
            idist.barrier()
    start(experiment, {**flags, "resume": same and used})
    idist.barrier()  # rank 0 writes the summary
    return read_summary(folder)


def finished_summary(experiment: str, flags: dict[str, Any]) -> dict[str, Any] | None:
    """``summary.json`` of a finished run in ``flags["output"]`` with these flags and weights files; else None.

    Data are not compared, which takes longer: :func:`run_if_outdated` does that.
    """
    config, folder = _config(experiment, flags), Path(flags["output"])
    if not (folder / "summary.json").is_file():
        return None
    try:
        _check_weights(experiment, config)
    except MissingFileError:
        return None
    before = read_record(folder, config)
    return None if not before or _changes(before, config) else read_summary(folder)


def print_once(text: str) -> None:
    """Prints a line on rank 0 only."""
    if idist.get_rank() == 0:
        print(text, flush=True)


def clear(folder: Path) -> None:
    """Deletes a run from its folder."""
    for path in all_run_files(folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "pseudo_labels", ignore_errors=True)


def _check_weights(experiment: str, config: DataConfig) -> None:
    for name, path in weights_flags(config).items():
        if name != "prototypes" and not Path(path).is_file():  # the run computes missing prototypes
            raise MissingFileError(f"--{name}={path}: no such file; expected the weights that {experiment} starts from")


def _changes(
    before: dict[str, Any], config: DataConfig, domains: Domains | None = None, *, finished: bool = True
) -> list[str]:
    """What differs between the record of a run and what ``config`` and its data would give, in words.

    Files that stopped an unfinished run may have changed: it is resumed.
    """
    if not before:
        return []
    found = changes(before, run_record(config, {} if domains is None else domains.fingerprints()))
    if domains is not None and domains.before is not None and not finished:
        for name, files in domains.listings().items():
            if unchanged_otherwise(domains.before, name, files, domains.left_out(part_of(name))):
                found.pop(name, None)
        if domains.before.stopped_by:
            found.pop("skip_bad", None)
    return [text for name, text in found.items() if name not in UNCOMPARED_FLAGS]


def _config(experiment: str, flags: dict[str, Any]) -> Any:
    module = load_experiment(experiment)
    return make_config(module.Config, flags, getattr(module, "PRESETS", None))
