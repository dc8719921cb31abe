"""One run: its folder, its log, its summary."""

import importlib
import json
import logging
import os
import subprocess
import time
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch

from proda.run.config import AdaptConfig, RunConfig, TrainConfig
from proda.run.job import RESUMABLE_FLAGS, UNLOGGED_FLAGS, Job, read_summary
from proda.utils import lock
from proda.utils.errors import UserError
from tests.small_runs import STAGES

EXPERIMENTS = {stage: importlib.import_module(f"experiments.{stage}") for stage in (*STAGES, "pretrain")}
FLAGS = [(stage, field.name) for stage, module in EXPERIMENTS.items() for field in fields(module.Config)]


@dataclass
class Config(RunConfig):
    device: str = "cpu"  # where it runs
    word: str = "x"  # anything


@dataclass
class Training(TrainConfig):
    weights: str = ""  # a file
    init_file: str = ""  # another
    own: int = 1  # a flag of a user's own


@dataclass
class Adaptation(AdaptConfig):
    pass


def test_nothing_is_written_before_it_is_opened(tmp_path):
    Job(Config(output=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


def test_opening_writes_the_settings_and_what_they_ran_with(tmp_path):
    Job(Config(output=str(tmp_path / "run"), word="hello", seed=3)).open()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["word"] == "hello" and config["seed"] == 3
    run = config["run"]
    assert run["torch"] == torch.__version__.split("+")[0] or run["torch"] == torch.__version__
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert run["git_commit"] == commit or not commit
    assert run["processes"] == 1


def test_its_lines_go_to_the_terminal_and_with_their_time_to_the_log(tmp_path, capsys):
    job = Job(Config(output=str(tmp_path)))
    job.open({"weights": "a.pt"})
    job.log.info("half way")
    out, log = capsys.readouterr().out, (tmp_path / "train.log").read_text()
    assert "half way\n" in out and "weights                a.pt" in out
    assert " INFO half way" in log and "device" in log and str(tmp_path) in log


def test_a_second_job_of_the_process_writes_to_its_own_log_alone(tmp_path):
    for name in ("one", "two"):
        job = Job(Config(output=str(tmp_path / name)))
        job.open()
        job.log.info("this is %s", name)
    assert "this is two" not in (tmp_path / "one" / "train.log").read_text()
    assert (tmp_path / "two" / "train.log").read_text().count("this is two") == 1


def test_its_summary_has_time_and_speed(tmp_path):
    job = Job(Config(output=str(tmp_path)))
    job.open()
    job.stopwatch.started -= 10
    returned = job.finish({"miou": 0.5, "iou": {"train": float("nan")}}, iterations=7, images=100)
    read = read_summary(tmp_path)
    assert read["miou"] == 0.5 and read["iterations"] == 7 and read["iou"]["train"] is None
    assert read["seconds"] == pytest.approx(10, abs=0.5) and read["images_per_second"] == pytest.approx(10, rel=0.1)
    assert returned["miou"] == 0.5 and logging.getLogger("proda").handlers == []


def test_the_seed_fixes_the_random_numbers(tmp_path):
    draws = []
    for seed in (1, 1, 2):
        Job(Config(output=str(tmp_path), seed=seed))
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[1] != draws[2]


def test_deterministic_algorithms_are_asked_for_by_a_flag(tmp_path):
    try:
        Job(Config(output=str(tmp_path), deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        Job(Config(output=str(tmp_path)))
    assert not torch.are_deterministic_algorithms_enabled()


# Time over sessions


def test_seconds_are_those_of_all_sessions_and_speed_that_of_this_one(tmp_path):
    first = Job(Config(output=str(tmp_path)))
    first.stopwatch.started -= 100
    second = Job(Config(output=str(tmp_path)))
    second.stopwatch.load_state_dict(first.stopwatch.state_dict())
    second.stopwatch.started -= 10
    second.open()
    summary = second.finish({}, iterations=4, images=100)
    assert summary["seconds"] == pytest.approx(110, abs=0.5)
    assert summary["images_per_second"] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("images", [0, -59])
def test_a_session_that_has_trained_on_nothing_has_no_speed(tmp_path, images):
    job = Job(Config(output=str(tmp_path)))
    job.open()
    assert "images_per_second" not in job.finish({}, iterations=4, images=images)


def test_a_damaged_summary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary.json: no such file"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json: damaged"):
        read_summary(tmp_path)


# The folder


def training(folder: Path, **flags: Any) -> Training:
    return Training(**{"output": str(folder), "device": "cpu", **flags})


def begin(folder: Path, config: Any = None, data: dict[str, str] | None = None, **flags: Any) -> None:
    """A training run up to its first checkpoint."""
    job = Job(config or training(folder, **flags))
    job.open(data=data)
    (folder / "checkpoint_1.pt").write_text("x")
    job.lock.release()


def resume(config: Any, data: dict[str, str] | None = None) -> None:
    job = Job(config)
    try:
        job.open(data=data)
    finally:
        job.lock.release()


def refuses(folder: Path, config: Any, data: dict[str, str] | None = None) -> str:
    """The line that a job is refused with; it changes nothing."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        resume(config, data)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_holds_its_folder_until_it_is_finished(tmp_path):
    job = Job(Config(output=str(tmp_path)))
    assert not (tmp_path / ".lock").exists()
    job.open()
    assert (tmp_path / ".lock").exists()
    job.finish({})
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_another_command_uses_is_refused(tmp_path):
    begin(tmp_path)
    owner = {**lock._identity(), "pid": os.getppid(), "started": lock._start_time(os.getppid()), "command": ["b.py"]}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    for flag in ("resume", "overwrite"):
        assert f"in use by `b.py` (process {os.getppid()}" in refuses(tmp_path, training(tmp_path, **{flag: True}))


def test_no_other_command_writes_into_the_folder_of_a_training_run(tmp_path):
    begin(tmp_path)
    assert "holds a training run (checkpoint_1.pt)" in refuses(tmp_path, Config(output=str(tmp_path)))


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "teacher.pt", "prototypes.pt", "checkpoint_1.pt"])
@pytest.mark.parametrize("flag", ["weights", "init_file"])
def test_overwrite_deletes_no_file_that_a_flag_names(tmp_path, monkeypatch, name, flag):
    folder = tmp_path / "run"
    folder.mkdir()
    begin(folder)
    (folder / name).write_text("dear")
    monkeypatch.chdir(tmp_path)
    line = refuses(folder, training(folder, overwrite=True, **{flag: f"run/../run/{name}"}))
    assert line.startswith(f"--{flag}=run/../run/{name}: --overwrite would delete it")


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    begin(tmp_path)
    mine = ("checkpoint_1_keep.pt", "notes.damaged", "old.pt")
    for name in (*mine, "last.pt", "summary.json", "checkpoint_1.pt.damaged", ".x.12.part"):
        (tmp_path / name).write_text("x")
    resume(training(tmp_path, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "config.json", "train.log"])


# What may change at --resume


@pytest.mark.parametrize(("stage", "flag"), FLAGS)
def test_every_flag_at_resume_is_applied_with_a_line_or_refused(tmp_path, capsys, stage, flag):
    config_class = EXPERIMENTS[stage].Config
    began = config_class(output=str(tmp_path), device="cpu")
    if flag in UNLOGGED_FLAGS:
        return
    begin(tmp_path, began)
    value = getattr(began, flag)
    other = {str: "another", bool: not value, int: 7, float: 0.123}[type(value)]
    changed = replace(began, **{"resume": True, flag: other})
    said = f"--{flag} was {value}, is {other}"
    if flag in RESUMABLE_FLAGS:
        resume(changed)
        assert said in capsys.readouterr().out
        assert json.loads((tmp_path / "config.json").read_text())[flag] == other
    else:
        assert f"resumed with its own settings ({said}): restore them, or set another --output" in refuses(
            tmp_path, changed
        )


def test_the_table_of_flags_names_flags_that_there_are():
    assert {flag for _, flag in FLAGS} >= RESUMABLE_FLAGS


def test_a_flag_of_a_users_own_is_refused(tmp_path):
    begin(tmp_path, own=3)
    assert "(--own was 3, is 4)" in refuses(tmp_path, training(tmp_path, resume=True, own=4))


def test_an_unchanged_run_is_resumed_without_a_line(tmp_path, capsys):
    begin(tmp_path)
    capsys.readouterr()
    resume(training(tmp_path, resume=True))
    assert "was" not in capsys.readouterr().out


def test_many_changes_are_one_line(tmp_path):
    begin(tmp_path)
    line = refuses(tmp_path, training(tmp_path, resume=True, lr=1.0, momentum=0.5, weight_decay=0.1, batch_size=9))
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
def test_another_length_is_said_and_so_is_the_horizon_that_moves_with_it(tmp_path, capsys, began, now, line):
    begin(tmp_path, **began)
    resume(training(tmp_path, resume=True, **now))
    out = capsys.readouterr().out
    assert line in out if line else "reaches zero" not in out
    for flag in now.keys() & began.keys():
        assert (f"--{flag} was {began[flag]}, is {now[flag]}" in out) == (now[flag] != began[flag])


def test_the_content_of_a_weights_file_counts_and_not_its_place(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "a.pt"
    folder.mkdir()
    file.write_text("content")
    begin(folder, weights=str(file))
    moved = file.rename(tmp_path / "b.pt")
    resume(training(folder, resume=True, weights=str(moved)))
    assert f"--weights was {file}, is {moved}" in capsys.readouterr().out
    moved.write_text("other")
    line = refuses(folder, training(folder, resume=True, weights=str(moved)))
    assert f"the content of --weights={moved} has changed" in line


def test_other_data_under_the_same_flags_are_refused(tmp_path):
    begin(tmp_path, data={"source images": "1", "target images": "2"})
    config = training(tmp_path, resume=True)
    assert "(target images changed)" in refuses(tmp_path, config, {"source images": "1", "target images": "3"})
    resume(config, {"source images": "1", "target images": "2", "of a later version": "4"})


def test_a_description_may_have_another_place_where_it_says_the_same(tmp_path, capsys):
    data = {"target images": "2"}
    begin(tmp_path, data=data, target="a.toml")
    resume(training(tmp_path, resume=True, target="b.toml"), data)
    assert "--target was a.toml, is b.toml" in capsys.readouterr().out
    assert "(target images changed)" in refuses(
        tmp_path, training(tmp_path, resume=True, target="b.toml"), {**data, "target images": "3"}
    )
    assert "(--target was b.toml, is a.toml)" in refuses(tmp_path, training(tmp_path, resume=True, target="a.toml"))


def edit(folder: Path, **changes: Any) -> None:
    """Changes config.json; None removes an entry."""
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({n: v for n, v in content.items() if v is not None}))


def test_a_run_of_another_experiment_is_refused(tmp_path):
    begin(tmp_path)
    edit(tmp_path, run={"experiment": "warmup"})
    line = refuses(tmp_path, training(tmp_path, resume=True))
    assert f"{tmp_path} holds a run of warmup, not of test_job; set another --output" in line


def test_a_flag_that_the_run_is_too_old_to_know_had_its_default(tmp_path):
    begin(tmp_path)
    edit(tmp_path, own=None, run=None)
    resume(training(tmp_path, resume=True))
    edit(tmp_path, own=None, run=None)
    assert "(--own was 1, is 2)" in refuses(tmp_path, training(tmp_path, resume=True, own=2))


def test_a_setting_under_its_old_name_is_that_of_the_present_one(tmp_path):
    values = {"output": str(tmp_path), "device": "cpu", "adabn": True}
    Job(Adaptation(**values)).open()
    (tmp_path / "checkpoint_1.pt").write_text("of a run")
    edit(tmp_path, adabn=None, target_statistics=True)
    resume(Adaptation(**values, resume=True))
    edit(tmp_path, adabn=None, target_statistics=True)
    assert "(--adabn was True, is False)" in refuses(tmp_path, Adaptation(**values | {"adabn": False}, resume=True))


def test_a_flag_that_is_gone_is_said(tmp_path, capsys):
    begin(tmp_path)
    edit(tmp_path, gone=5)
    resume(training(tmp_path, resume=True))
    assert "--gone=5 of the run is not a flag any more" in capsys.readouterr().out


def test_a_newer_version_is_refused(tmp_path):
    begin(tmp_path)
    edit(tmp_path, run={"format": 99})
    assert "config.json: written by a newer version of proda" in refuses(tmp_path, training(tmp_path, resume=True))


def test_other_processes_devices_and_packages_are_said(tmp_path, capsys):
    begin(tmp_path)
    run = json.loads((tmp_path / "config.json").read_text())["run"]
    edit(tmp_path, run={**run, "processes": 4, "device": "H100", "torch": "1.0", "git_commit": "abc"})
    resume(training(tmp_path, resume=True))
    out = capsys.readouterr().out
    assert "processes was 4, is 1" in out and "device was H100, is cpu" in out
    assert "torch was 1.0, is" in out and "git_commit was abc, is" in out


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_settings_that_cannot_be_read_are_said_to_be_unknown(tmp_path, capsys, content):
    begin(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    resume(training(tmp_path, resume=True, lr=9.0))
    assert "config.json is missing or damaged: the settings of the run to resume are unknown" in capsys.readouterr().out


def _overwrite(rank: int, folder: Path) -> None:
    patience = time.monotonic() + 3
    while rank == 1 and not folder.is_dir() and time.monotonic() < patience:
        time.sleep(0.01)  # time for rank 0 to make the folder
    job = Job(training(folder, overwrite=True))
    job.open()
    job.finish({})


def test_processes_agree_on_whether_there_is_a_folder_to_overwrite(tmp_path):
    """Rank 1 comes late. If rank 0 had made the folder by then, rank 1 alone would wait for the lock, for ever."""
    options = {"nproc_per_node": 2, "start_method": "spawn", "timeout": timedelta(seconds=60)}
    idist.spawn("gloo", _overwrite, args=(tmp_path / "run",), **options)
    assert (tmp_path / "run/summary.json").exists()
