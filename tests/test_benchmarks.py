"""Benchmarks take minutes; that they fit the package shows in a second, at small sizes or without running."""

import importlib
import json
import math

import pytest
import torch

from proda.cli.launch import load_experiment, parse_flags
from proda.settings.reading import make_config
from tests.small_runs import ROOT


@pytest.fixture
def full_size(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("full_size")


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_each_stage_of_the_dry_run_gets_flags_that_it_has_and_the_files_of_the_one_before(
    full_size, monkeypatch, tmp_path, source
):
    monkeypatch.setattr("sys.argv", ["full_size.py", f"--source={source}", "--batch_size=2", "--amp=bf16"])
    settings, more = full_size.arguments()
    assert more == ["--amp=bf16"] and settings.images == 2 and settings.until == "evaluate"
    files = []
    for stage in full_size.STAGES:
        line = full_size.command(stage, tmp_path, settings, more)
        module = load_experiment(str(ROOT / line[2]))
        config = make_config(module.Config, parse_flags(line[3:]), module.PRESETS)
        assert config.source == source and config.amp == "bf16" and config.backbone == "resnet101"
        assert stage == "evaluate" or (config.crop_width, config.batch_size, config.iterations) == (0, 2, 1)
        network = "teacher" if hasattr(config, "teacher") else "weights"
        files.append([getattr(config, name, "").removeprefix(f"{tmp_path}/") for name in (network, "init_file")])
    assert files == [
        ["", "imagenet.pth"],
        ["warmup/last.pt", ""],
        ["stage1_denoise/last.pt", "simclr.pth"],
        ["stage2_distill/last.pt", "stage2_distill/last.pt"],
        ["stage3_distill/last.pt", ""],
    ]


def test_the_dry_run_ends_where_it_is_told_to(full_size, monkeypatch):
    monkeypatch.setattr("sys.argv", ["full_size.py", "--until=stage1"])
    assert full_size.arguments()[0].until == "stage1_denoise"
    for wrong in ("--until=stage9", "stage1"):
        monkeypatch.setattr("sys.argv", ["full_size.py", wrong])
        with pytest.raises(SystemExit):
            full_size.arguments()


def test_what_is_measured_of_a_validation_computes_scores(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    validation = importlib.import_module("validation")
    monkeypatch.setattr(validation, "FULL", (32, 64))
    for name, options in validation.ROWS.items():
        result = validation.work(name)()
        if options is None:
            assert result.sum() == 32 * 64
        else:
            assert result["confusion"].sum() == 28 * 64 and math.isfinite(result["label_free"])


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Runs the script on a CPU at tiny sizes; returns its exit status and what it has written."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("gpu")

    def run(*arguments: str) -> tuple[int, dict]:
        words = ["gpu.py", "--device=cpu", "--tiny", f"--output={tmp_path}", *arguments]
        monkeypatch.setattr("sys.argv", words)
        status = script.main()
        assert (tmp_path / "gpu.md").read_text().count("|") > 10
        return status, json.loads((tmp_path / "gpu.json").read_text())

    return run


def test_iterations_are_measured_and_counted(gpu):
    status, found = gpu("--stages=source_only", "--amps=bf16", "--switches=plain", "--iterations=1")
    assert status == 0
    (row,) = found["rows"]
    low, middle, high = row["milliseconds"]
    assert 0 < low <= middle <= high and row["tflop"] > 0 and 0 < row["convolutions"] < 1
    assert row["counted_gb"] > 0 and row["memory_gb"] is None and len(row["top"]) == 10


def test_memory_is_counted_without_a_gpu(gpu):
    status, found = gpu("--count", "--stages=source_only", "--amps=off", "--switches=plain,accumulate=4")
    plain, parts = found["counted"]
    assert status == 0 and parts["gb"] < plain["gb"] and parts["tflop"] == plain["tflop"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_how_it_runs(gpu, capsys, monkeypatch):
    script = importlib.import_module("gpu")
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert script.main() == 2
    assert "--device=cpu --tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "results"),
    [("resumed, same bits: stage1", ["passed"]), ("nothing: stage2", ["skipped"]), ("stage1_denoise off", ["passed"])],
)
def test_checks_pass_or_say_what_they_need(gpu, check, results):
    status, found = gpu("--check", f"--only={check}")
    assert status == 0
    assert [line["result"] for line in found["checks"]] == results and all(line["text"] for line in found["checks"])


def test_a_failed_check_is_told_and_gives_status_1(gpu, monkeypatch):
    import gpu_checks

    def wrong(setting):
        raise gpu_checks.CheckFailed("2 of 3 tensors differ")

    monkeypatch.setitem(gpu_checks.CHECKS, "wrong", wrong)
    status, found = gpu("--check", "--only=wrong")
    assert status == 1
    assert found["checks"][0]["result"] == "failed" and "2 of 3 tensors differ" in found["checks"][0]["text"]
