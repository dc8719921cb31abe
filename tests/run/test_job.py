"""One run: its folder, its log, its summary."""

import json
import logging
import os
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch

from proda.run.config import RunConfig, TrainConfig
from proda.run.job import Job, read_summary
from proda.utils import lock
from proda.utils.errors import UserError


@dataclass
class Config(RunConfig):
    device: str = "cpu"  # where it runs
    word: str = "x"  # anything


@dataclass
class Training(TrainConfig):
    weights: str = ""  # a file
    init_file: str = ""  # another
    own: int = 1  # a flag of a user's own


def test_opening_writes_the_settings_and_what_they_ran_with_and_nothing_is_written_before(tmp_path, capsys):
    job = Job(Config(output=str(tmp_path / "run"), word="hello", seed=3))
    assert list(tmp_path.iterdir()) == []
    job.open({"weights": "a.pt"}, {"target images": "1"})
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["word"] == "hello" and config["seed"] == 3
    run = config["run"]
    assert run["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert run["git_commit"] == commit or not commit
    assert run["processes"] == 1 and run["experiment"] == "test_job" and run["data"] == {"target images": "1"}
    job.log.info("half way")
    out, log = capsys.readouterr().out, (tmp_path / "run/train.log").read_text()
    assert "half way\n" in out and "weights                a.pt" in out
    assert " INFO half way" in log and "device" in log and str(tmp_path) in log


def test_a_second_job_of_the_process_writes_to_its_own_log_alone(tmp_path):
    for name in ("one", "two"):
        job = Job(Config(output=str(tmp_path / name)))
        job.open()
        job.log.info("this is %s", name)
    assert "this is two" not in (tmp_path / "one/train.log").read_text()
    assert (tmp_path / "two/train.log").read_text().count("this is two") == 1


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


@pytest.mark.parametrize(("images", "speed"), [(100, 10.0), (0, None), (-59, None)])
def test_the_summary_has_the_seconds_of_all_sessions_and_the_speed_of_this_one(tmp_path, images, speed):
    first, second = (Job(Config(output=str(tmp_path))) for _ in range(2))
    first.stopwatch.started -= 100
    second.stopwatch.load_state_dict(first.stopwatch.state_dict())
    second.stopwatch.started -= 10
    second.open()
    returned = second.finish({"miou": 0.5, "iou": {"train": float("nan")}}, iterations=7, images=images)
    read = read_summary(tmp_path)
    assert read["miou"] == returned["miou"] == 0.5 and read["iterations"] == 7 and read["iou"]["train"] is None
    assert read["seconds"] == pytest.approx(110, abs=0.5)
    assert read.get("images_per_second") == (speed and pytest.approx(speed, rel=0.1))
    assert logging.getLogger("proda").handlers == []


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
    job.save_record()
    (folder / "checkpoint_1.pt").write_text("x")
    job.lock.release()


def resume(config: Any, data: dict[str, str] | None = None) -> None:
    job = Job(config)
    try:
        job.open(data=data)
        job.save_record()
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
    owner = {**lock._identity(), "pid": os.getppid(), "started": lock.start_time(os.getppid()), "command": ["b.py"]}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    for flag in ("resume", "overwrite"):
        assert f"in use by `b.py` (process {os.getppid()}" in refuses(tmp_path, training(tmp_path, **{flag: True}))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda folder: Config(output=str(folder)), "holds a training run (checkpoint_1.pt)"),
        (training, "holds another run (checkpoint_1.pt): continue it by --resume, delete it by --overwrite"),
    ],
)
def test_no_other_run_writes_into_the_folder_of_a_training_run(tmp_path, other, words):
    begin(tmp_path)
    assert words in refuses(tmp_path, other(tmp_path))


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
    for name in (*mine, "last.pt", "summary.json", "report.html", "checkpoint_1.pt.damaged", ".x.12.part"):
        (tmp_path / name).write_text("x")
    resume(training(tmp_path, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "config.json", "train.log"])


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


@pytest.mark.parametrize(("trained", "kept"), [(True, True), (False, False)])
def test_a_summary_stays_only_where_the_resumed_run_has_all_its_iterations(tmp_path, trained, kept):
    begin(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    job = Job(training(tmp_path, resume=True))
    job.open()
    job.save_record(trained=trained)
    job.lock.release()
    assert (tmp_path / "summary.json").exists() == kept
