"""Benchmarks take minutes; that they fit the package shows in a second, at small sizes or without running."""

import importlib
import math

import pytest

from proda.experiment.config import make_config
from proda.experiment.launch import load_experiment, parse_flags
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
        assert stage == "evaluate" or (config.crop_width, config.batch_size, config.iterations) == (896, 2, 1)
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
