"""config.json: what may change at --resume, and what the log then says."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from proda.run.config import MeanTeacherConfig
from proda.run.job import Job
from proda.run.record import FORMAT, read_provenance
from tests.run.test_job import Training, begin, refuses, resume, training


def resumed(folder: Path, **flags: Any) -> Training:
    return training(folder, resume=True, **flags)


def edit(folder: Path, **changes: Any) -> None:
    """Changes config.json; None removes an entry."""
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({n: v for n, v in content.items() if v is not None}))


def test_an_unchanged_run_is_resumed_without_a_line(tmp_path, capsys):
    begin(tmp_path)
    capsys.readouterr()
    resume(resumed(tmp_path))
    assert "was" not in capsys.readouterr().out


def test_changes_of_own_flags_are_refused_in_one_line_however_many(tmp_path):
    begin(tmp_path, own=3)
    assert "(--own was 3, is 4): restore them, or set another --output" in refuses(tmp_path, resumed(tmp_path, own=4))
    line = refuses(tmp_path, resumed(tmp_path, own=3, lr=1.0, dropout=0.5, weight_decay=0.1, batch_size=9))
    assert "--batch_size was 4, is 9" in line and "and 1 more changes" in line


@pytest.mark.parametrize(
    ("began", "now", "line"),
    [
        ({"iterations": 20}, {"iterations": 40}, "reaches zero at iteration 40 instead of iteration 20"),
        ({"iterations": 20}, {"iterations": 40, "schedule_iterations": 20}, None),
        ({"iterations": 20, "schedule_iterations": 50}, {"iterations": 40, "schedule_iterations": 50}, None),
        ({"epochs": 2}, {"epochs": 3}, "reaches zero at the end of epoch 3 instead of the end of epoch 2"),
        ({"epochs": 2, "iterations": 9}, {"epochs": 3, "iterations": 9}, None),
    ],
)
def test_another_length_is_told_and_so_is_the_horizon_that_moves_with_it(tmp_path, capsys, began, now, line):
    begin(tmp_path, **began)
    resume(resumed(tmp_path, **now))
    out = capsys.readouterr().out
    assert line in out if line else "reaches zero" not in out
    for flag in now.keys() & began.keys():
        assert (f"--{flag} was {began[flag]}, is {now[flag]}" in out) == (now[flag] != began[flag])


@pytest.mark.parametrize(
    ("flags", "kept"),
    [({"resume": True}, True), ({"resume": True, "iterations": 9}, False), ({"overwrite": True}, False)],
)
def test_the_summary_of_a_run_goes_when_its_result_will_be_another(tmp_path, flags, kept):
    begin(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    resume(training(tmp_path, **flags))
    assert (tmp_path / "summary.json").exists() == kept


def test_the_content_of_a_weights_file_counts_and_not_its_place(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "a.pt"
    folder.mkdir()
    file.write_text("content")
    begin(folder, weights=str(file))
    moved = file.rename(tmp_path / "b.pt")
    resume(resumed(folder, weights=str(moved)))
    assert f"--weights was {file}, is {moved}" in capsys.readouterr().out
    moved.write_text("other")
    assert f"the content of --weights={moved} has changed" in refuses(folder, resumed(folder, weights=str(moved)))


def test_other_data_under_the_same_flags_are_refused_and_those_that_the_record_does_not_know_are_not(tmp_path):
    data = {"source images": "1", "target images": "2"}
    begin(tmp_path, data=data)
    assert "(target images changed)" in refuses(tmp_path, resumed(tmp_path), data | {"target images": "3"})
    resume(resumed(tmp_path), data | {"of a later version": "4"})


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"run": 3}'])
def test_settings_that_cannot_be_read_are_said_to_be_unknown(tmp_path, capsys, content):
    begin(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    resume(resumed(tmp_path, lr=9.0))
    assert "config.json is missing or damaged: the settings of the run to resume are unknown" in capsys.readouterr().out


# A record of another version


def test_a_flag_that_the_record_is_too_old_to_know_had_its_default(tmp_path):
    begin(tmp_path)
    for own, refused in ((1, False), (2, True)):
        edit(tmp_path, own=None, run={})
        if refused:
            assert "(--own was 1, is 2)" in refuses(tmp_path, resumed(tmp_path, own=own))
        else:
            resume(resumed(tmp_path, own=own))


def test_a_flag_under_its_old_name_is_the_present_one_and_one_that_is_gone_is_told(tmp_path, capsys):
    @dataclass
    class Config(MeanTeacherConfig):
        pass

    config = Config(output=str(tmp_path), device="cpu", validate_teacher=True)
    begin(tmp_path, config)
    for change in ({}, {"validate_teacher": False}):
        edit(tmp_path, validate_teacher=None, judge_teacher=True, gone=5)
        again = replace(config, resume=True, **change)
        if change:
            assert "(--validate_teacher was True, is False)" in refuses(tmp_path, again)
        else:
            resume(again)
    out = capsys.readouterr().out
    assert "--gone=5 of the run is not a flag any more" in out and "judge_teacher" not in out


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"experiment": "warmup"}, "holds a run of warmup, not of test_job; set another --output"),
        ({"format": FORMAT + 1}, "config.json: written by a newer version of proda"),
    ],
)
def test_a_run_of_another_experiment_or_of_a_newer_version_is_refused(tmp_path, run, words):
    begin(tmp_path)
    edit(tmp_path, run=json.loads((tmp_path / "config.json").read_text())["run"] | run)
    assert words in refuses(tmp_path, resumed(tmp_path))


def test_other_processes_devices_and_packages_are_told(tmp_path, capsys):
    begin(tmp_path)
    run = read_provenance(tmp_path)
    edit(tmp_path, run={**run, "processes": 4, "device": "H100", "torch": "1.0", "git_commit": "abc"})
    resume(resumed(tmp_path))
    out = capsys.readouterr().out
    assert "processes was 4, is 1" in out and "device was H100, is cpu" in out
    assert "torch was 1.0, is" in out and "git_commit was abc, is" in out


def test_a_setting_that_differs_is_refused_before_the_data_are_looked_at(tmp_path):
    begin(tmp_path)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="--lr was"):
        Job(resumed(tmp_path, lr=9.0))  # not yet opened
    assert sorted(tmp_path.iterdir()) == files
