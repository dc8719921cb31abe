"""The command line: what it takes, and the one line that it answers a mistake with."""

import sys
from pathlib import Path

import pytest
import torch

from proda.experiment.launch import ROOT, _group_variables, load_experiment, main, parse_flags, start
from tests import small_runs

EXPERIMENTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/[a-z]*.py"))
STAGE_1 = "experiments/stage1_denoise.py"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Where a run would write, was it to write anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRODA_DATA", raising=False)


def answer(capsys, *argv: str) -> tuple[int, str]:
    """Exit status and the single line on stderr; nothing may have been written."""
    before = sorted(Path().rglob("*"))
    status = main([str(ROOT / argv[0]) if argv[0].startswith("experiments/") else argv[0], *argv[1:]])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert error.startswith("error: ") and "Traceback" not in error
    assert sorted(Path().rglob("*")) == before
    return status, error


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_lists_every_flag_with_default_and_doc(experiment, capsys, tmp_path):
    assert main([str(ROOT / experiment), "--help"]) == 0
    text = capsys.readouterr().out
    module = load_experiment(str(ROOT / experiment))
    for field in module.Config.__dataclass_fields__.values():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"--{field.name}={field.default}"))
        assert line.split(f"--{field.name}={field.default}")[1].strip(), f"{field.name} has no doc"
    assert module.__doc__.strip().splitlines()[0] in text
    assert f"python run.py {experiment}" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_without_an_experiment_there_is_a_list_of_them(argv, capsys):
    assert main(argv) == (0 if argv else 2)
    text = capsys.readouterr().out
    assert all(Path(experiment).name in text for experiment in EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_unknown_flag_names_the_nearest(experiment, capsys):
    status, error = answer(capsys, experiment, "--dta_root=x")
    assert status == 2 and "unknown flag --dta_root; the nearest is --data_root" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr=fast"], "--lr='fast': expected float, found str"),
        (["--batch_size=2.5"], "--batch_size=2.5: expected int, found float"),
        (["--weights"], "--weights=True: expected str, found bool"),
        (["--resume=yes"], "--resume='yes': expected bool, found str"),
        (["--preset=gta"], "no such recipe; expected one of gta5, synthia, gta5_released"),
        (["lr=0.1"], "'lr=0.1': expected flags of the form --name=value"),
        (["--lr=0.1", "stray"], "'stray': expected flags of the form --name=value"),
        (["--teacher_mode=evaluate"], "--teacher_mode=evaluate: expected one of 'train', 'eval'"),
        (["--checkpoint_every=0"], "--checkpoint_every=0: must be above 0"),
        (["--log_every=-1"], "--log_every=-1: must be above 0"),
        (["--backbone=resnet18"], "--backbone=resnet18: expected one of 'resnet101'"),
    ],
)
def test_a_flag_that_cannot_be_used(flags, message, capsys):
    status, error = answer(capsys, STAGE_1, *flags)
    assert status == 2 and message in error


@pytest.mark.parametrize("name", ["experiments/stage9.py", "nowhere.py", "README.md", "experiments"])
def test_an_experiment_that_is_not_there(name, capsys):
    status, error = answer(capsys, name)
    assert status == 2 and "no such experiment file" in error and "stage1_denoise" in error


def test_a_file_that_is_no_experiment(capsys, tmp_path):
    (tmp_path / "not_an_experiment.py").write_text("x = 1\n")
    status, error = answer(capsys, str(tmp_path / "not_an_experiment.py"), "--lr=1")
    assert status == 2 and "an experiment defines a dataclass Config and run" in error


def test_more_processes_of_nccl_than_gpus_is_one_line(capsys):
    many = torch.cuda.device_count() + 2
    status, error = answer(capsys, STAGE_1, f"--nproc_per_node={many}", "--backend=nccl")
    assert status == 2 and f"--nproc_per_node={many}: needs as many GPUs, found {many - 2}" in error


# those two draw their data, check_data reports it, and the pipeline asks for the SimCLR file before
DRAW_OR_OTHER = ("quickstart", "ablation", "check_data", "pipeline")


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if Path(e).stem not in DRAW_OR_OTHER])
def test_missing_data_or_input_is_one_line_and_nothing_is_written(experiment, capsys):
    status, error = answer(capsys, experiment, "--data_root=nowhere", "--device=cpu")
    assert status == 2 and ("--images" if "predict" in experiment else "no folder nowhere") in error


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.write_data(tmp_path_factory.mktemp("data"))


NEEDS_WEIGHTS = ["warmup", "stage1_denoise", "stage2_distill", "stage3_distill"]


def flags_of(stage: str, data: Path, weights: str, **more) -> list[str]:
    flags = small_runs.flags(stage, data, Path(weights), Path("run"), **more)
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.parametrize("stage", NEEDS_WEIGHTS)
def test_missing_weights_are_named_with_their_flag(stage, data, capsys):
    status, error = answer(capsys, f"experiments/{stage}.py", *flags_of(stage, data, "absent.pt"))
    assert status == 2 and "absent.pt: no such file" in error
    assert "--weights=" in error or "--init_file=" in error


def test_weights_of_another_network(data, capsys, tmp_path):
    path = small_runs.write_weights(tmp_path / "other.pt")
    flags = flags_of("stage1_denoise", data, str(path), num_classes=16)
    status, error = answer(capsys, STAGE_1, *flags)
    assert status == 2 and "found weights for 13 classes, expected 16 classes" in error


def test_weights_that_are_no_weights(data, capsys, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    status, error = answer(capsys, STAGE_1, *flags_of("stage1_denoise", data, str(tmp_path / "text.pt")))
    assert status == 2 and "text.pt" in error


def test_imagenet_weights_that_cannot_be_fetched(data, capsys, tmp_path_factory, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    flags = flags_of("source_only", data, "x", init="imagenet", init_file="", backbone="resnet50")
    status, error = answer(capsys, "experiments/source_only.py", *flags)
    assert status == 2 and "cannot be fetched (no route to host); give a local file" in error


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("source_only", {"train_on": "val"}, "--train_on=val: expected source or target"),
        ("source_only", {"init": "zeros"}, "--init=zeros: expected imagenet, simclr, random or weights"),
        ("source_only", {"batch_size": 9}, "--batch_size=9 is more than the 8 training images"),
        ("source_only", {"crop_width": 400}, "400"),
        ("stage2_distill", {"threshold": 0.955}, "threshold must be a multiple of 0.01"),
        ("stage2_distill", {"init": "simclr", "init_file": ""}, "--init=simclr needs --init_file"),
    ],
)
def test_settings_that_do_not_fit_the_data(stage, more, message, data, capsys, tmp_path):
    path = small_runs.write_weights(tmp_path / "before.pt")
    status, error = answer(capsys, f"experiments/{stage}.py", *flags_of(stage, data, str(path), **more))
    assert status == 2 and message in error


def test_a_run_can_be_made_again_from_its_config(data, tmp_path):
    weights = small_runs.write_weights(tmp_path / "before.pt")
    flags = flags_of("source_only", data, str(weights), iterations=2, seed=3)
    assert main([str(ROOT / "experiments/source_only.py"), *flags]) == 0
    again = ["--config=run/config.json", "--output=again"]
    assert main([str(ROOT / "experiments/source_only.py"), *again]) == 0
    assert not small_runs.differing(small_runs.checkpoint(Path("again"), 2), small_runs.checkpoint(Path("run"), 2))
    assert main([str(ROOT / "experiments/source_only.py"), *again, "--iterations=1", "--overwrite"]) == 0
    assert small_runs.checkpoint(Path("again"), 1)["trainer"]["iteration"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config=nothing.json"], "--config=nothing.json: no such file; expected the config.json of a run"),
        (["--config="], "--config=: no such file"),
        (["--config=config.json"], "--config=config.json: gan is no flag of this experiment"),
        (["--config=fits.json", "--preset=gta5_released"], "--preset=gta5_released and --config=fits.json"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(more, message, capsys):
    Path("config.json").write_text('{"gan": "lsgan", "run": {}}')
    Path("fits.json").write_text('{"seed": 1, "run": {}}')
    status, error = answer(capsys, STAGE_1, *more)
    assert status == 2 and message in error


@pytest.mark.parametrize("content", ["no json", "[1]"])
def test_a_config_that_is_none_is_one_line(content, capsys):
    Path("config.json").write_text(content)
    status, error = answer(capsys, STAGE_1, "--config=config.json")
    assert status == 2 and "--config=config.json: expected the config.json of a run" in error


SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}
OF_TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "settings", "found"),
    [
        (SLURM, {}, SLURM),
        (OF_TORCHRUN, {"gpus": 4}, OF_TORCHRUN),
        # torchrun in a task of a SLURM job, and processes that we spawn in one
        (SLURM | OF_TORCHRUN, {}, {k: v for k, v in (SLURM | OF_TORCHRUN).items() if k != "SLURM_JOB_ID"}),
        (SLURM, {"spawn": True}, {k: v for k, v in SLURM.items() if k != "SLURM_JOB_ID"}),
        # srun --gpus-per-task=1 --gpu-bind=single:1
        (SLURM, {"gpus": 1}, SLURM | {"SLURM_LOCALID": "0"}),
        (OF_TORCHRUN, {"on_cpu": True}, OF_TORCHRUN | {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_variables_that_place_a_process_in_its_group(environment, settings, found):
    assert _group_variables(environment, **{"on_cpu": False, "spawn": False, "gpus": 0, **settings}) == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(capsys):
    status, error = answer(capsys, STAGE_1, "--device=cuda")
    assert status == 2 and "this machine has no CUDA device" in error


def test_flags_are_read_as_numbers_words_and_switches():
    arguments = ["--lr=1e-3", "--batch-size", "8", "--resume", "--output=runs/my-run", "--seed=0"]
    expected = {"lr": 1e-3, "batch_size": 8, "resume": True, "output": "runs/my-run", "seed": 0}
    assert parse_flags(arguments) == expected


def test_an_experiment_outside_the_repository_runs_and_gives_its_result(tmp_path, capsys):
    (tmp_path / "my_own.py").write_text(
        '"""Mine."""\n'
        "from dataclasses import dataclass\n"
        "from proda.experiment.config import RunConfig\n"
        "@dataclass\n"
        "class Config(RunConfig):\n"
        "    word: str = 'hello'  # what to say\n"
        "def run(local_rank, config):\n"
        "    return {'said': config.word, 'output': config.output, 'rank': local_rank}\n"
    )
    result = start(str(tmp_path / "my_own.py"), {"word": "hi"})
    assert result == {"said": "hi", "output": str(Path("runs/my_own")), "rank": 0}
    assert main([str(tmp_path / "my_own.py"), "--help"]) == 0
    assert "--word=hello" in capsys.readouterr().out


def test_two_experiments_of_one_name_are_not_confused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(f"class Config: ...\nrun = lambda *_: '{folder}'\n")
    assert load_experiment(str(tmp_path / "one" / "same_name.py")).run() == "one"
    with pytest.raises(ValueError, match=r"two/same_name.py: another module is called same_name .*another name"):
        load_experiment(str(tmp_path / "two" / "same_name.py"))


def test_a_bug_keeps_its_traceback(tmp_path):
    (tmp_path / "with_a_bug.py").write_text(
        "from dataclasses import dataclass\n"
        "from proda.experiment.config import RunConfig\n"
        "@dataclass\n"
        "class Config(RunConfig): ...\n"
        "def run(local_rank, config):\n"
        "    return {}['absent']\n"
    )
    with pytest.raises(KeyError, match="absent"):
        main([str(tmp_path / "with_a_bug.py")])


def test_run_py_is_the_launcher(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["run.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert end.value.code == 0 and "usage: python run.py EXPERIMENT" in capsys.readouterr().out
