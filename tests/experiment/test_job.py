"""One run: its folder, its log, its summary."""

import json
import logging
import subprocess
from dataclasses import dataclass

import pytest
import torch

from proda.experiment.config import RunConfig
from proda.experiment.job import Job, read_summary


@dataclass
class Config(RunConfig):
    device: str = "cpu"  # where it runs
    word: str = "x"  # anything


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
    job.started -= 10
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
