"""The network and batch that describe_data suggests."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from proda.cli.launch import load_experiment, main
from proda.data.view_sizes import fitting_views
from proda.run import suggestion as module
from proda.run.memory import GB, Memory
from tests.run.test_memory import memory_of
from tests.small_runs import ROOT

CANDIDATES = (
    {"backbone": "tiny", "batch_size": 4, "amp": "off"},
    {"backbone": "tiny", "batch_size": 1, "amp": "bf16"},
)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", CANDIDATES)


def test_the_first_candidate_that_fits_is_suggested(monkeypatch):
    def count(config: Any, build: Any, sizes: Any) -> Memory:
        assert (config.crop_width, config.crop_height, sizes.full_image) == (40, 24, (48, 96))
        return memory_of(training=config.batch_size)

    monkeypatch.setattr(module, "stage_memory", count)
    stage, size = load_experiment("stage1_denoise"), (96, 48)

    def suggested(gigabytes: float) -> module.Suggestion | None:
        return module.suggestion(stage.Config, stage.build, fitting_views([size]), size, int(gigabytes * GB))

    # A GPU has to have 1.1 times the peak and 0.6 GB.
    assert [suggested(gigabytes).flags for gigabytes in (5.1, 4.9, 1.8)] == [CANDIDATES[i] for i in (0, 1, 1)]
    assert suggested(1.6) is None


def test_photographs_are_described_with_a_command_that_trains_on_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (2100, 80)).save("photos/a.jpg")
    describe = [str(ROOT / "experiments/describe_data.py"), "--images=photos", "--num_workers=0", "--device=cpu"]
    assert main(describe) == 0
    out = capsys.readouterr().out
    assert "size = [2048, 78]  # all images are resized to this; most have 2100x80, more than" in out
    assert "views that fit: mean width 2200, crops of 896x40" in out
    line = "python run.py experiments/pipeline.py --source=my_simulator.toml --target=my_data.toml"
    assert f"{line} --backbone=tiny\n" in out


def test_images_that_are_too_small_for_any_crop_get_no_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (8, 4)).save("photos/a.jpg")
    assert main([str(ROOT / "experiments/describe_data.py"), "--images=photos", "--num_workers=0"]) == 0
    out = capsys.readouterr().out
    assert "no stage can train on images of this size: --mean_width=9 shrinks" in out and "pipeline" not in out
