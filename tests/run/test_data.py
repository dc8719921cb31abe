"""Sizes of views: those of the flags, of the publication or of the images, the same from start to resume."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import pipeline
from proda.cli.launch import load_experiment, main
from proda.data.view_sizes import PUBLISHED
from proda.models.weights import read_weights
from proda.run import plan
from proda.run.data import Data
from proda.settings.reading import make_config
from tests import small_runs
from tests.test_imports import ROOT

VIEWS = ("mean_width", "crop_width", "crop_height")


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The working folder, with two descriptions of images of 128 x 96 pixels."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(4):
        for folder, channels in (("sim", (3,)), ("labels", ()), ("photos", (3,))):
            Path(folder).mkdir(exist_ok=True)
            pixels = rng.integers(0, 2 if folder == "labels" else 256, (96, 128, *channels), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{number}.png")
    classes = 'classes = [{ name = "road" }, { name = "car" }]\n'
    Path("sim.toml").write_text(f'{classes}[train]\nimages = "sim"\nlabels = "labels"\n')
    Path("photos.toml").write_text('[train]\nimages = "photos"\n')
    return tmp_path


def views_of(config) -> tuple[int, ...]:
    return tuple(getattr(config, name) for name in VIEWS)


def train(*flags: str, stage: str = "source_only") -> int:
    given = "--source=sim.toml --target=photos.toml --backbone=tiny --num_workers=0 --device=cpu --output=run"
    return main([stage, *given.split(), "--init=random", "--batch_size=2", "--checkpoint_every=1", *flags])


def test_two_descriptions_and_nothing_else_train_and_resume(own, capsys):
    assert train("--iterations=2") == 0
    line = "views                  images resized to a mean width of 138 pixels; crops of 56x48"
    assert line in capsys.readouterr().out
    record = json.loads(Path("run/config.json").read_text())
    assert [record[name] for name in VIEWS] == [0, 0, 0] and record["run"]["data"]["views"] in line
    assert read_weights("run/last.pt").info.mean_width == 138
    assert train("--iterations=3", "--resume") == 0
    assert line in capsys.readouterr().out
    assert main(["source_only", "--config=run/config.json", "--output=again"]) == 0


def test_a_run_whose_views_would_be_others_is_not_resumed(own, capsys):
    assert train("--iterations=1") == 0
    record = json.loads(Path("run/config.json").read_text())
    record["run"]["data"]["views"] = "others"
    Path("run/config.json").write_text(json.dumps(record))
    assert train("--iterations=2", "--resume") == 2
    assert "views changed" in capsys.readouterr().err


def test_a_flag_that_is_given_stays(own):
    given = {"source": "sim.toml", "target": "photos.toml"}
    module = load_experiment("source_only")
    assert views_of(Data(make_config(module.Config, given | {"mean_width": 64})).config) == (64, 24, 24)
    assert views_of(Data(make_config(module.Config, given | {"crop_width": 16})).config) == (138, 16, 48)


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_benchmarks_have_the_published_views_and_no_image_is_read(stage):
    module = load_experiment(stage)
    unread = SimpleNamespace(own_target=None, classes=None)  # anything else that is asked for is an error
    config = make_config(module.Config, {}, module.PRESETS)
    assert views_of(Data(config, unread, processes=1).config) == PUBLISHED
    given = make_config(module.Config, {"mean_width": 1024}, module.PRESETS)
    assert views_of(Data(given, unread, processes=1).config) == (1024, 896, 512)


def test_large_photographs_are_warned_of_unless_they_have_a_size(own, capsys):
    for path in Path("photos").iterdir():
        Image.new("RGB", (2100, 40)).save(path)
    assert train("--iterations=1", "--crop_width=16", "--crop_height=8") == 0
    assert "2100x40  WARNING: teachers" in (out := capsys.readouterr().out)
    assert "size = [2048, 39] in photos.toml" in out
    Path("photos.toml").write_text('size = [128, 96]\n[train]\nimages = "photos"\n')
    assert train("--iterations=1", "--overwrite") == 0
    assert "WARNING: teachers" not in (out := capsys.readouterr().out) and "crops of 56x48" in out


def test_a_plan_and_a_check_of_the_data_have_the_same_views(own, capsys, monkeypatch):
    monkeypatch.setattr(plan, "measure", lambda *_: "by this test")
    assert train("--iterations=1", "--plan") == 0
    assert "images resized to a mean width of 138 pixels; crops of 56x48" in capsys.readouterr().out
    check = ["check_data", "--source=sim.toml", "--target=photos.toml", "--num_workers=0", "--output=check"]
    Path("photos/0.png").write_bytes(b"damaged")  # is reported, and the others are counted
    assert main([str(ROOT / "experiments" / f"{check[0]}.py"), *check[1:]]) == 1
    out = capsys.readouterr().out
    assert "crops of 56x48" in out and "problems that would break a run: 1" in out


def test_the_pipeline_leaves_the_views_to_its_stages(own):
    config = make_config(pipeline.Config, {"source": "sim.toml", "target": "photos.toml", "crop_height": 40})
    assert [views_of(pipeline.stage_config(config, stage)) for stage in pipeline.STAGES] == [(0, 0, 40)] * 4
