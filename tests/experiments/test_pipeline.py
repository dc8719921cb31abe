"""The whole pipeline, and quickstart, on the smallest Streets: what is done, skipped, resumed and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from experiments import pipeline
from proda.cli.launch import load_experiment, main
from proda.run import domains
from proda.settings.presets import NO_TARGET_LOSS
from proda.settings.reading import make_config
from proda.utils.files import sha256
from tests import small_runs

ALL = list(pipeline.DEMONSTRATION_STAGES)
SMALL = {"preset": "streets", "device": "cpu", "iterations": 2, "val_batch_size": 2, "checkpoint_every": 1}
SMALL |= {"mean_width": 96, "crop_width": 48, "crop_height": 24}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.write_data(tmp_path_factory.mktemp("streets"), num_val=2)


@pytest.fixture(autouse=True)
def _tiny_streets(monkeypatch) -> None:
    monkeypatch.setattr(domains, "write_streets", lambda *_, **__: None)  # they already exist


def command(data: Path, output: Path, experiment: str = "pipeline", **more) -> int:
    flags = SMALL | {"data_root": data, "output": output} | more
    return main([f"experiments/{experiment}.py", *(f"--{name}={value}" for name, value in flags.items())])


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domains, "write_streets", lambda *_, **__: None)
        assert command(data, output, until="stage1") == 0
        assert not (output / "stage2_distill").exists()
        assert command(data, output, from_stage="stage2") == 0
    return output


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def config_of(done: Path, stage: str) -> dict:
    return read(done / stage / "config.json")


def test_every_stage_starts_from_the_result_of_the_one_before(done):
    assert list(read(done / "summary.json")["stages"]) == ALL
    assert config_of(done, "warmup")["init_file"] == str(done / "source_only/last.pt")
    assert config_of(done, "stage1_denoise")["weights"] == str(done / "warmup/last.pt")
    control = config_of(done, "control")
    assert control["weights"] == str(done / "warmup/last.pt")
    assert {name: control[name] for name in NO_TARGET_LOSS} == NO_TARGET_LOSS
    assert config_of(done, "stage2_distill")["teacher"] == str(done / "stage1_denoise/last.pt")
    assert config_of(done, "stage2_distill")["init_file"] == str(done / "stage1_denoise/last.pt")
    stage3 = config_of(done, "stage3_distill")
    assert stage3["teacher"] == stage3["init_file"] == str(done / "stage2_distill/last.pt")
    assert [stage for stage in ALL if config_of(done, stage).get("train_on") == "target"] == ["oracle"]
    recorded = config_of(done, "stage1_denoise")
    assert recorded["run"]["files"] == {"weights": sha256(done / "warmup/last.pt")} and recorded["iterations"] == 2


def test_the_report_shows_every_stage(done):
    page = (done / "report.html").read_text()
    assert all(title in page for title in ("source only", "warm-up", "stage 1", "stage 2", "stage 3", "oracle"))
    assert "last.pt of stage 3 on 2 of 2 validation images" in page and page.count("<img ") == 8


def test_a_defect_of_the_report_loses_no_result_and_is_not_hidden(done, data, capsys, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("proda.report.page.report_page", fails)
    before, page = read(done / "summary.json"), (done / "report.html").read_bytes()
    (done / "summary.json").unlink()
    with pytest.raises(ZeroDivisionError):
        command(data, done)
    assert read(done / "summary.json") == before and "| stage3_distill" in capsys.readouterr().out
    assert (done / "report.html").read_bytes() == page and not list(done.glob("*.part"))


def test_what_is_up_to_date_is_skipped(done, data, capsys):
    before = {path: path.stat().st_mtime_ns for stage in ALL for path in (done / stage).rglob("*")}
    assert command(data, done, checkpoint_every=7) == 0  # a flag that changes no result
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == len(ALL) and "| stage3_distill" in out
    assert out.count("Stage 1 ends ") == 1 and "its control, which is trained for as long without any loss" in out
    assert {path: path.stat().st_mtime_ns for stage in ALL for path in (done / stage).rglob("*")} == before


@pytest.mark.parametrize("experiment", ["pipeline", "quickstart"])
def test_other_inputs_are_refused_in_one_line_and_nothing_changes(done, data, capsys, experiment):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert command(data, done, experiment, seed=3) == 2
    error, line = (
        capsys.readouterr().err,
        "holds a run with different inputs (--seed was 0, is 3): repeat it with --over",
    )
    assert f"{done / 'source_only'} {line}" in error and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_what_was_cut_short_is_resumed_and_what_has_changed_runs_again_with_overwrite(done, data, tmp_path, capsys):
    folder = tmp_path / "copy"
    for stage in ("source_only", "warmup"):
        shutil.copytree(done / stage, folder / stage)
    (folder / "warmup/summary.json").unlink()
    (folder / "warmup/checkpoint_2.pt").unlink()
    assert command(data, folder, until="warmup") == 0
    out = capsys.readouterr().out
    assert "resumed from" in out and "checkpoint_1.pt" in out
    assert read(folder / "warmup/summary.json")["iterations"] == 2
    file = folder / "warmup/config.json"
    recorded = file.read_text()
    for part, name, words in (
        ("files", "init_file", f"the content of --init_file={folder}/source_only/last.pt has changed"),
        ("data", "target images", "target images changed"),
    ):
        changed = json.loads(recorded)
        changed["run"][part][name] = "0"
        file.write_text(json.dumps(changed))
        assert command(data, folder, from_stage="warmup", until="warmup") == 2
        assert words in capsys.readouterr().err
    file.unlink()
    assert command(data, folder, until="warmup") == 2
    assert "holds a run without a readable config.json" in capsys.readouterr().err
    assert command(data, folder, until="warmup", overwrite=True) == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == 1 and "warmup: up to date" not in out
    assert "resumed from" not in out and file.is_file()


def test_flags_of_one_stage_reach_it_and_are_recorded_and_repeated(done, data, tmp_path, capsys):
    folder, file = tmp_path / "copy", tmp_path / "settings.json"
    shutil.copytree(done / "source_only", folder / "source_only")
    file.write_text(json.dumps({"warmup": {"lr": 0.02, "iterations": 1}, "oracle": {"lr": 0.5}}))
    given = {"until": "warmup", "config": file}
    assert command(data, folder, **given, **{"warmup.lr": 0.03}) == 0
    warmup = config_of(folder, "warmup")
    assert (warmup["lr"], warmup["iterations"]) == (0.03, 1)  # the flag overrides the file
    recorded = read(folder / "config.json")["stage_flags"]
    assert {name: float(value) for name, value in recorded.items()} == {
        **{"warmup.iterations": 1, "oracle.lr": 0.5, "warmup.lr": 0.03}
    }
    assert "training run" not in capsys.readouterr().err and (folder / "report.html").is_file()
    (repeated := tmp_path / "repeated.json").write_bytes((folder / "config.json").read_bytes())
    before = (folder / "warmup/last.pt").stat().st_mtime_ns
    assert main(["experiments/pipeline.py", f"--config={repeated}", f"--output={folder}"]) == 0
    assert capsys.readouterr().out.count("up to date, skipped") == 2
    assert command(data, folder, **given) == 2
    assert "holds a run with different inputs (--lr was 0.03, is 0.02)" in capsys.readouterr().err
    assert (folder / "warmup/last.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("experiment", ["pipeline", "quickstart"])
def test_a_changed_flag_of_stage_1_makes_its_control_and_itself_outdated(done, data, capsys, experiment):
    for first in ("control", "stage1"):
        assert command(data, done, experiment, from_stage=first, **{"stage1.lr": 0.01}) == 2
        captured = capsys.readouterr()
        stage = pipeline.stage_called(first, ALL)
        assert f"{done / stage} holds a run with different inputs (--lr was 0.06, is 0.01)" in captured.err
        assert "up to date, skipped" not in captured.out


def test_presets_of_a_pipeline_have_flags_of_stages_which_either_name_of_the_stage_overrides():
    presets = {"streets": pipeline.PRESETS["streets"] | {"stage1.lr": 0.1, "stage2_distill": {"threshold": 0.5}}}
    given = {
        "preset": "streets",
        "stage1_denoise.lr": "0.2",
        "stage1.ce_weight": "0.3",
        "control.log_every": "9",
        "until": "stage1",
    }
    config = make_config(pipeline.Config, given, presets)  # with --until, the preset's flag of stage 2 stays unused
    assert pipeline.own_flags(config, "stage1_denoise") == {"lr": "0.2", "ce_weight": "0.3"}
    assert pipeline.own_flags(config, "control") == {"lr": "0.2", "log_every": "9"}  # no loss on the target
    assert pipeline.own_flags(config, "stage2_distill") == {"threshold": 0.5}
    assert pipeline.own_flags(config, "oracle") == {}
    again = make_config(pipeline.Config, {"preset": "streets", "stage_flags": config.stage_flags}, presets)
    assert again.stage_flags == config.stage_flags  # as config.json repeats them


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"stage9.lr": 1}, "--stage9.lr: no stage 'stage9'; expected one of source_only, warmup, control, stage1_deno"),
        ({"preset": "gta5", "oracle.lr": 1}, "--oracle.lr: no stage 'oracle'; expected one of warmup, stage1_denoise,"),
        ({"stage1.lrr": 1}, "unknown flag --stage1.lrr; the nearest is --stage1.lr (--help of the stage lists all)"),
        ({"stage1_denoise.lr": "a"}, "--stage1_denoise.lr=a: expected a number above 0 and of at most 1000"),
        ({"stage2.threshold": 0.5, "until": "stage1"}, "--stage2.threshold has no effect: the stages to run are sourc"),
        ({"warmup.lr": 0.5, "from_stage": "stage2"}, "--warmup.lr has no effect: the stages to run are stage2_distill"),
        ({"stage1.weights": "a.pt"}, "--stage1.weights: the pipeline sets this; put another model into OUTPUT/warmup/"),
        ({"stage3.teacher": "a.pt"}, "--stage3.teacher: the pipeline sets this; put another model into OUTPUT/stage2_"),
        ({"stage1.output": "x"}, "--stage1.output: the pipeline sets this; use --output, which is for all stages"),
        ({"warmup.source": "gta5"}, "--warmup.source: the pipeline sets this; use --source, which is for all stages"),
        ({"preset": "gta5", "stage2.init": "random"}, "--stage2.init: the pipeline sets this; use --stage2_init"),
        (
            {"preset": "gta5", "warmup.init_file": "x"},
            "--warmup.init_file: the pipeline sets this; use --init_file, or",
        ),
        ({"stage1.resume": True}, "--stage1.resume: the pipeline sets this; run the same command again"),
        (
            {"control.ce_weight": 1},
            "--control.ce_weight: the pipeline sets this; ce_weight=0.0 is what makes it the co",
        ),
        ({"warmup.freeze_bn": True}, "warmup: --adabn has no effect with --freeze_bn; set --freeze_bn=False or remove"),
        ({"warmup.crop_width": 4000}, "warmup: "),
        ({"stage_flags": 1}, "--stage_flags=1: expected flags of stages, as in --stage1.lr=0.1"),
    ],
)
def test_a_flag_of_one_stage_that_cannot_be_used_is_one_line_before_any_work(data, tmp_path, capsys, flags, line):
    assert command(data, tmp_path, **flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_experiment_without_stages_refuses_their_flags(data, tmp_path, capsys):
    assert command(data, tmp_path, "source_only", **{"stage1.lr": 0.1}) == 2
    assert capsys.readouterr().err == "error: unknown flag --stage1.lr; the nearest is --lr (--help lists all)\n"
    (file := tmp_path / "own.json").write_text('{"stage1": {"lr": 0.1}}')
    assert main(["experiments/source_only.py", f"--config={file}"]) == 2
    assert "own.json: stage1 is not a flag of this experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"batch_size": 100}, "--batch_size=100"),
        ({"from_stage": "stage9"}, "--from_stage=stage9: no such stage; expected one of source_only, warmup,"),
        ({"from_stage": "stage3", "until": "warmup"}, "--from_stage=stage3 comes after --until=warmup"),
        ({"from_stage": "stage2"}, "stage1_denoise/last.pt: no such file"),
        ({"preset": "gta5"}, "--simclr=: no such file; stage 2 needs"),
        ({"stage2_init": "random"}, "--stage2_init has no effect with --preset=streets"),
        ({"epochs": 3}, "--epochs has no effect with --preset=streets"),
        (
            {"preset": "gta5", "stage2_init": "swav"},
            "--stage2_init=swav: expected one of '', 'simclr', 'imagenet', 'random'",
        ),
        ({"preset": "gta5", "until": "stage1", "init_file": "no.pth"}, "--init_file=no.pth: no such file"),
    ],
)
def test_mistakes_are_reported_before_any_work(data, tmp_path, capsys, flags, words):
    assert command(data, tmp_path, **flags) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_that_the_oracle_lacks_are_missed_before_the_first_stage(data, tmp_path, capsys):
    photos = tmp_path / "photos.toml"
    images = data / "cityscapes/leftImg8bit/train"
    photos.write_text(f'[train]\nimages = "{images}"\n')
    assert command(data, tmp_path / "run", target=photos, num_workers=0) == 2
    assert "labels are needed here (by the oracle; --until=stage3 leaves it out)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_stage_2_that_fit_no_backbone_are_refused_before_the_warm_up(data, tmp_path, capsys):
    simclr = tmp_path / "simclr.pth"
    network = torchvision.models.resnet50(num_classes=1)
    torch.save({"state_dict": network.state_dict()}, simclr)
    flags = {"preset": "gta5", "num_classes": 13, "simclr": simclr, "num_workers": 0, "output": tmp_path / "run"}
    assert command(data, **flags) == 2
    assert f"{simclr}: " in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("preset", "kept"), [("synthia", "last.pt"), ("synthia_released", "best.pt")])
def test_on_real_data_the_stages_get_preset_downloads_and_the_model_it_keeps(preset, kept):
    given = {"preset": preset, "simclr": "s.pth", "init_file": "i.pth", "output": "o"}
    config = make_config(pipeline.Config, given, pipeline.PRESETS)
    assert pipeline.chosen(config) == list(pipeline.STAGES)
    found = {stage: pipeline.flags(config, stage) for stage in pipeline.STAGES}
    assert all(flags["preset"] == preset and flags["source"] == "synthia" for flags in found.values())
    assert found["warmup"]["init_file"] == "i.pth" and "weights" not in found["warmup"]
    assert found["stage1_denoise"]["weights"] == f"o/warmup/{kept}"
    assert (found["stage2_distill"]["init"], found["stage2_distill"]["init_file"]) == ("simclr", "s.pth")
    assert found["stage2_distill"]["teacher"] == f"o/stage1_denoise/{kept}"
    assert found["stage2_distill"]["bn_pretrain"] is True
    assert found["stage3_distill"]["teacher"] == found["stage3_distill"]["init_file"] == f"o/stage2_distill/{kept}"


@pytest.mark.parametrize("head", ["deeplab", "daformer"])
def test_every_stage_accepts_the_flags_of_the_pipeline(head):
    given = {"preset": "gta5", "simclr": "s.pth", "head": head, "compile": True, "output": "o"}
    config = make_config(pipeline.Config, given, pipeline.PRESETS)
    for stage in pipeline.STAGES:
        module = load_experiment(pipeline.experiment_file(stage))
        found = make_config(module.Config, pipeline.flags(config, stage), module.PRESETS)
        assert found.head == head and found.compile
        assert stage != "warmup" or found.freeze_bn == (head == "deeplab")


def test_a_student_of_stage_2_that_starts_from_imagenet_has_no_batch_norm_for_simclr():
    config = make_config(pipeline.Config, {"stage2_init": "imagenet", "init_file": "i.pth"}, pipeline.PRESETS)
    found = pipeline.flags(config, "stage2_distill")
    assert (found["init"], found["init_file"], found["bn_pretrain"]) == ("imagenet", "i.pth", False)


@pytest.mark.parametrize(
    ("given", "student"),
    [
        ({"source": "a.toml", "target": "b.toml"}, "imagenet"),
        ({"source": "a.toml", "target": "b.toml", "simclr": "s.pth"}, "simclr"),
        ({"source": "a.toml", "target": "b.toml", "stage2_init": "random"}, "random"),
        ({"target": "cityscapes"}, "simclr"),
        ({"preset": "camvid"}, "imagenet"),
    ],
)
def test_stage_2_of_data_of_ones_own_starts_from_imagenet_weights(given, student):
    config = make_config(pipeline.Config, given, pipeline.PRESETS)
    found = pipeline.flags(config, "stage2_distill")
    assert (found["init"], found["bn_pretrain"]) == (student, student == "simclr")


def test_quickstart_is_this_pipeline_and_draws_a_panel(done, data, capsys):
    assert command(data, done, "quickstart", panel_images=2) == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == len(ALL) and "| oracle" in out and str(done / "panel.png") in out
    stages = read(done / "summary.json")["stages"]
    assert list(stages) == ALL
    assert all(0 <= stage["miou"] <= 1 and stage["iterations"] == 2 for stage in stages.values())
    with Image.open(done / "panel.png") as picture:
        assert picture.width > (2 + len(ALL)) * 96 and picture.height > 2 * 48
