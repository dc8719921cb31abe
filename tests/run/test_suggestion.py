"""The network and batch that describe_data suggests."""

from pathlib import Path

import pytest
from PIL import Image

from proda.cli.launch import load_experiment, main
from proda.data.view_sizes import fitting_views
from proda.run import suggestion as module
from proda.run.memory import GB
from tests.small_runs import ROOT

CANDIDATES = (
    {"backbone": "tiny", "batch_size": 4, "amp": "off"},
    {"backbone": "tiny", "batch_size": 1, "amp": "bf16"},
)
SIZE = (96, 48)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", CANDIDATES)


def suggested(available: float) -> module.Suggestion | None:
    stage = load_experiment("stage1_denoise")
    return module.suggestion(stage.Config, stage.build, fitting_views([SIZE]), SIZE, int(available))


def test_the_first_candidate_that_fits_is_suggested():
    first, second = suggested(100 * GB), suggested(suggested(100 * GB).memory.with_margin - 1)
    assert (first.flags, second.flags) == CANDIDATES
    assert second.memory.with_margin < first.memory.with_margin
    assert suggested(second.memory.with_margin - 1) is None


def test_photographs_are_described_with_a_command_that_trains_on_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (2100, 80)).save("photos/a.jpg")
    describe = [str(ROOT / "experiments/describe_data.py"), "--images=photos", "--num_workers=0", "--device=cpu"]
    assert main(describe) == 0
    out = capsys.readouterr().out
    assert "size = [2048, 78]  # all images are resized to this; most have 2100x80, more than" in out
    assert "views that fit: mean width 2200, crops of 896x40" in out
    line = (
        "python run.py experiments/pipeline.py --source=my_simulator.toml --target=my_data.toml --stage2_init=imagenet"
    )
    assert f"{line} --backbone=tiny\n" in out


def test_images_that_are_too_small_for_any_crop_get_no_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (8, 4)).save("photos/a.jpg")
    assert main([str(ROOT / "experiments/describe_data.py"), "--images=photos", "--num_workers=0"]) == 0
    out = capsys.readouterr().out
    assert "no stage can train on images of this size: --mean_width=9 shrinks" in out and "pipeline" not in out
