"""Folders of runs, as the report reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboardX import SummaryWriter

from experiments import stage1_denoise
from proda.report.runs import changed_flags, differing_flags, read_group
from proda.settings.reading import make_config
from proda.utils.errors import MissingFileError, UserError


def write_run(folder: Path, config: dict[str, Any] | None = None, summary: dict[str, Any] | None = None, **run) -> Path:
    """A folder as a training run leaves it, without models."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"val_every": 1, "output": str(folder), **(config or {}), "run": run}
    (folder / "config.json").write_text(json.dumps(content))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_stages_come_in_the_order_of_the_method_and_know_what_they_build_on(tmp_path):
    names = {
        "oracle": {"train_on": "target"},
        "stage1_denoise": {"weights": "elsewhere/warmup/last.pt"},
        "control": {"weights": "elsewhere/warmup/last.pt"},
        "warmup": {"init_file": "elsewhere/source_only/last.pt"},
        "source_only": {"train_on": "source", "init_file": ""},
        "mine": {"teacher": "elsewhere/stage1_denoise/best.pt"},
    }
    for name, config in names.items():
        write_run(tmp_path / name, config, {"miou": 0.5}, started="2026-01-01")
    (tmp_path / "panel.png").touch()
    write_run(tmp_path / "evaluate").joinpath("config.json").write_text('{"weights": "x.pt"}')  # no training run
    group = read_group(tmp_path)
    assert [run.name for run in group.runs] == ["source_only", "warmup", "control", "stage1_denoise", "mine", "oracle"]
    references = {run.name: reference and reference.name for run in group.runs for reference in [group.reference(run)]}
    assert references == {
        **{"source_only": None, "warmup": "source_only", "control": "warmup", "stage1_denoise": "warmup"},
        **{"mine": "stage1_denoise", "oracle": "source_only"},
    }
    assert group.result.name == "mine"
    assert [run.title for run in group.runs][1:4] == ["warm-up", "control", "stage 1"]


def test_an_unfinished_run_has_the_scores_of_its_validations(tmp_path):
    folder = write_run(tmp_path / "run")
    with SummaryWriter(str(folder)) as writer:
        for step, miou in ((10, 0.5), (20, 0.25)):
            writer.add_scalar("train/loss", 1.0, step)
            writer.add_scalar("val/miou", miou, step)
            writer.add_scalar("val/iou/road", miou, step)
            writer.add_scalar("val/label_free", 1.5, step)
    (run,) = read_group(folder).runs
    assert not run.finished and run.class_names == ["road"]
    assert run.summary == {
        **{"miou": 0.25, "iou": {"road": 0.25}, "label_free": 1.5, "iteration": 20, "iterations": 20},
        **{"best_miou": 0.5, "best_iteration": 10},
    }


def test_flags_that_differ_from_the_preset(tmp_path):
    given = {"preset": "streets", "lr": 0.5, "weights": "my.pt"}
    config = vars(make_config(stage1_denoise.Config, {**given, "output": "o"}, stage1_denoise.PRESETS))
    (run,) = read_group(write_run(tmp_path / "run", config, {}, experiment="stage1_denoise")).runs
    assert changed_flags(run) == {"lr": (0.5, 0.06), "weights": ("my.pt", "runs/warmup/last.pt")}
    run.provenance["experiment"] = "my_stage"
    with pytest.raises(UserError, match="no such experiment"):
        changed_flags(run)


def test_flags_that_differ_between_runs(tmp_path):
    one, other = (
        read_group(write_run(tmp_path / name, config, {})).result
        for name, config in {"a": {"lr": 1, "seed": 0, "flip": True}, "b": {"lr": 2, "seed": 0}}.items()
    )
    assert differing_flags([one, other]) == {"lr": [1, 2], "flip": [True, None]}


def test_folders_that_cannot_be_used_are_one_line(tmp_path):
    for folder, words in ((tmp_path / "nowhere", "nowhere: no such folder"), (tmp_path, "found no training run")):
        with pytest.raises(MissingFileError, match=words):
            read_group(folder)
    for content in ("{", "[]", '{"run": 1}'):
        write_run(tmp_path / "run").joinpath("config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json: .*the settings of a run"):
            read_group(tmp_path)
