"""The folders of training runs, read for a report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from proda.cli.flags import NOT_REPEATED
from proda.cli.launch import load_experiment
from proda.report.curves import Curve, read_curves
from proda.run.job import read_summary
from proda.settings.reading import make_config, with_present_names
from proda.studies.rows import PARTS
from proda.studies.tables import CONTROL
from proda.utils.errors import MissingFileError, UserError

# Stages in the order of the page; others come before the oracle, in the order in which they began.
_ORDER = [*list(PARTS.rows)[:-1], "stage1_denoise", "stage2_distill", "stage3_distill"]
_TITLES = {
    **{"source_only": "source only", "warmup": "warm-up", "pretrain": "pretraining"},
    **{"stage1_denoise": "stage 1", "stage2_distill": "stage 2", "stage3_distill": "stage 3"},
}
# Flags that name the model that a run starts from or is taught by, the most telling first.
_BUILDS_ON = ("weights", "teacher", "init_file")


@dataclass(frozen=True)
class Run:
    """A training run."""

    folder: Path
    config: dict[str, Any]  # its settings
    provenance: dict[str, Any]  # ``run`` of config.json: command, versions, commit, ...
    summary: dict[str, Any]  # content of summary.json; of an unfinished run, the scores of its validations so far
    finished: bool
    curves: dict[str, Curve]  # of TensorBoard, by their tags

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        return _TITLES.get(self.name, self.name.replace("_", " "))

    @property
    def is_oracle(self) -> bool:
        return self.config.get("train_on") == "target"

    @property
    def class_names(self) -> list[str]:
        """Empty if there is neither a record nor a score of the classes."""
        recorded = self.provenance.get("data", {}).get("classes", "")
        return list(self.summary.get("iou") or {}) or [name for name in recorded.split(", ") if name]


@dataclass(frozen=True)
class Group:
    """What one argument of the command names: a run, or the stages in the folders below it."""

    folder: Path
    runs: list[Run]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def result(self) -> Run:
        """The run whose model is the result: the last one that is neither a control nor an oracle."""
        return ([run for run in self.runs if run.name != CONTROL and not run.is_oracle] or self.runs)[-1]

    def reference(self, run: Run) -> Run | None:
        """The run of this group that ``run`` is compared with: the one it builds on; source-only for the oracle."""
        others = {other.name: other for other in self.runs if other is not run}
        if run.is_oracle:
            return others.get("source_only")
        places = (run.config.get(flag) for flag in _BUILDS_ON)
        return next((others[name] for place in places if place and (name := Path(place).parent.name) in others), None)


def read_group(folder: str | Path) -> Group:
    """Reads the training run in a folder, or those in the folders below it.

    Raises:
        MissingFileError: there is no such folder, or no training run.
        UserError: a file of a run is damaged.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected the folder of a training run")
    places = [folder] if _is_training_run(folder) else sorted(folder.iterdir())
    runs = [read_run(place) for place in places if _is_training_run(place)]
    if not runs:
        raise MissingFileError(
            f"{folder}: found no training run; expected its config.json here, or in the folders of stages below it"
        )
    return Group(folder, sorted(runs, key=_place_on_page))


def read_run(folder: Path) -> Run:
    """Reads a training run. Raises UserError if one of its files is damaged."""
    config = _config(folder)
    provenance, curves = config.pop("run", {}), read_curves(folder)
    finished = (folder / "summary.json").is_file()
    summary = read_summary(folder) if finished else scores_so_far(curves)
    return Run(folder, config, provenance, summary, finished, curves)


def scores_so_far(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The scores of an unfinished run under their names in ``summary.json``, as far as its curves have them."""
    found: dict[str, Any] = {}
    for tag, curve in curves.items():
        group, _, name = tag.partition("/")
        if group == "val":
            parent, _, key = name.rpartition("/")
            (found.setdefault(parent, {}) if parent else found)[key] = curve[-1].value
            found["iteration"] = curve[-1].step
    if "val/miou" in curves:
        best = max(curves["val/miou"], key=lambda point: point.value)
        found |= {"best_miou": best.value, "best_iteration": best.step}
    if "train/loss" in curves:
        found["iterations"] = curves["train/loss"][-1].step
    return found


def settings(run: Run) -> dict[str, Any]:
    """The settings of a run that say what was computed; flags of older runs have their present names."""
    return {name: value for name, value in run.config.items() if name not in (*NOT_REPEATED, "preset")}


def changed_flags(run: Run) -> dict[str, tuple[Any, Any]]:
    """Flag -> its value in the run and in the run's preset, where they differ.

    Raises:
        UserError: the experiment or the preset does not exist (any more).
    """
    module = load_experiment(run.provenance.get("experiment", ""))
    given = {name: run.config[name] for name in ("preset", "source") if run.config.get(name)}
    preset = vars(make_config(module.Config, given, getattr(module, "PRESETS", None)))
    now = with_present_names(settings(run), module.Config, quiet=True)
    known = {field.name for field in fields(module.Config)}
    return {name: (value, preset[name]) for name, value in now.items() if name in known and value != preset[name]}


def differing_flags(runs: list[Run]) -> dict[str, list[Any]]:
    """Flag -> its value in each run, where the runs differ; None where a run has no such flag."""
    values = [settings(run) for run in runs]
    names = dict.fromkeys(name for value in values for name in value)
    rows = {name: [value.get(name) for value in values] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _place_on_page(run: Run) -> tuple[bool, int, str]:
    place = _ORDER.index(run.name) if run.name in _ORDER else len(_ORDER)
    return run.is_oracle, place, str(run.provenance.get("started", ""))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); expected the settings of a run") from error
    if not isinstance(content, dict) or not isinstance(content.get("run", {}), dict):
        raise UserError(f"{path}: expected the settings of a run, name to value")
    return content


def _is_training_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "val_every" in _config(folder)  # a flag of training runs alone
