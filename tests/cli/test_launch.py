"""The command line: what it takes, and the one line that it answers a mistake with."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from proda.cli.launch import ROOT, explain, load_experiment, main, start
from proda.run.record import launch, of_this_launch
from proda.settings.reading import field_docs
from tests import small_runs

EXPERIMENTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/[a-z]*.py"))
READ_DATA = [e for e in EXPERIMENTS if hasattr(load_experiment(str(ROOT / e)).Config, "data_root")]
STAGE_1 = "experiments/stage1_denoise.py"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Where a run would write, was it to write anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRODA_DATA", raising=False)


def files() -> list[Path]:
    """Everything in the working folder, apart from bytecode."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


def answer(capsys, *argv: str) -> tuple[int, str]:
    """Exit status and the single line on stderr; nothing may have been written."""
    before = files()
    status = main([str(ROOT / argv[0]) if argv[0].startswith("experiments/") else argv[0], *argv[1:]])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert error.startswith("error: ") and "Traceback" not in error
    assert files() == before
    return status, error


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_lists_every_flag_with_default_and_doc(experiment, capsys, tmp_path):
    assert main([str(ROOT / experiment), "--help"]) == 0
    text = capsys.readouterr().out
    module = load_experiment(str(ROOT / experiment))
    docs, words = field_docs(module.Config), text.partition("flags, with their defaults:")[2].split()
    for field in module.Config.__dataclass_fields__.values():
        flag = "--STAGE.FLAG=VALUE" if field.name == "stage_flags" else f"--{field.name}={field.default}"
        start, doc = words.index(flag) + 1, docs[field.name].split()
        assert doc and words[start : start + len(doc)] == doc, f"{field.name} has no doc"
    assert module.__doc__.strip().splitlines()[0] in text
    assert f"python run.py {experiment}" in text
    assert list(tmp_path.iterdir()) == []


def test_without_an_experiment_there_is_a_list_of_them_and_with_a_flag_the_version(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == (0 if argv else 2)
        text = capsys.readouterr().out
        assert all(Path(experiment).name in text for experiment in EXPERIMENTS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("proda ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr"], "--lr has no value: expected a number above 0"),
        (["--preset=gta"], "unknown preset; expected one of gta5, synthia, gta5_released"),
        (["lr=0.1"], "'lr=0.1': expected flags of the form --name=value; did you mean --lr=0.1?"),
        (["--config=nothing.json"], "--config=nothing.json: no such file; expected the config.json of a run"),
        (["--adabn", "--freeze_bn", "--resume", "--overwrite"], "; --adabn has no effect with --freeze_bn"),
    ],
)
def test_a_flag_that_cannot_be_used(flags, message, capsys):
    status, error = answer(capsys, STAGE_1, *flags)
    assert status == 2 and message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["experiments/stage9.py"], "no such experiment file; expected"),
        (["nowhere.py"], "no such experiment file"),
        (["README.md"], "no such experiment file"),
        (["stage1"], "no such experiment file; the nearest is stage1_denoise; expected"),
        (["stage1_denose"], "no such experiment file; the nearest is stage1_denoise; expected"),
        (["experiments/stage1-denoise.py"], "no such experiment file; the nearest is stage1_denoise; expected"),
        (["--lr=1", "warmup"], "the experiment comes before its flags, as in: run.py warmup --lr=1"),
        (["x.py", "--lr=1"], "x.py: expected a dataclass Config(RunConfig) and a function run"),
    ],
)
def test_an_experiment_that_is_not_there(argv, message, capsys):
    Path("x.py").write_text("x = 1\n")
    status, error = answer(capsys, *argv)
    assert status == 2 and message in error


# The first two draw their data, check_data reports it, and the pipeline asks for the SimCLR file before. For the stages
# see tests/run/test_fit.py.
OTHERS = ("quickstart", "ablation", "check_data", "pipeline", *small_runs.STAGES)


@pytest.mark.parametrize("experiment", [e for e in READ_DATA if Path(e).stem not in OTHERS])
def test_missing_data_or_input_is_one_line_and_nothing_is_written(experiment, capsys):
    status, error = answer(capsys, experiment, "--data_root=nowhere", "--device=cpu")
    lines = ("--images", "no folder nowhere", "--weights=", "--teacher=runs/", "--runs")  # whatever is opened first
    assert status == 2 and any(line in error for line in lines) and error.count("\n") == 1


def flags_of(stage: str, data: Path, weights: str, **more) -> list[str]:
    flags = {**small_runs.flags(stage, data, Path(weights), Path("run")), **more}
    return [f"--{name}={value}" for name, value in flags.items()]


def test_imagenet_weights_that_cannot_be_fetched(data, capsys, tmp_path_factory, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    flags = flags_of("source_only", data, "x", init="imagenet", init_file="", backbone="resnet50")
    status, error = answer(capsys, "experiments/source_only.py", *flags)
    assert status == 2 and "cannot be fetched (no route to host); give a local file" in error


def test_a_run_can_be_made_again_from_its_config(data, tmp_path):
    weights = small_runs.write_weights(tmp_path / "before.pt")
    flags = flags_of("source_only", data, str(weights), iterations=2, seed=3)
    assert main([str(ROOT / "experiments/source_only.py"), *flags]) == 0
    again = ["--config=run/config.json", "--output=again"]
    assert main([str(ROOT / "experiments/source_only.py"), *again]) == 0
    assert not small_runs.differing(small_runs.checkpoint(Path("again"), 2), small_runs.checkpoint(Path("run"), 2))
    assert main([str(ROOT / "experiments/source_only.py"), *again, "--iterations=1", "--overwrite"]) == 0
    assert small_runs.checkpoint(Path("again"), 1)["trainer"]["iteration"] == 1


OWN = """\
from dataclasses import dataclass
from proda.run.config import RunConfig
@dataclass
class Config(RunConfig):
    {fields}
def run(local_rank, config):
    {body}
"""


def own(path: Path, *, fields: str = "word: str = 'hello'  # what to say", body: str, before: str = "") -> str:
    """An experiment of a user's own."""
    path.write_text(before + OWN.format(fields=fields, body=body))
    return str(path)


def test_an_experiment_outside_the_repository_runs_and_its_text_stays_text(tmp_path, capsys):
    body = "return {'said': config.word, 'output': config.output, 'rank': local_rank}"
    file = own(tmp_path / "my_own.py", body=body)
    assert start(file, {"word": "hi"}) == {"said": "hi", "output": str(Path("runs/my_own")), "rank": 0}
    assert main([file, "--help"]) == 0
    assert "--word=hello" in capsys.readouterr().out
    file = own(tmp_path / "says.py", body="print(repr(config.word), config.output)")
    for text in ("1.10", "2026_11_24", "1e3", "a,b", "[x", "'q'", "None"):
        assert main([file, f"--word={text}", f"--output={text}"]) == 0
        assert capsys.readouterr().out == f"{text!r} {text}\n"


def test_an_experiment_may_have_any_name_and_two_of_one_name_are_not_confused(tmp_path):
    for name in ("exp_v1.2.py", "json.py", "torch.py", "stage1_denoise.py", "mit Leerzeichen-ü.py"):
        file = own(tmp_path / name, body="import json, torch; return json.dumps(1), torch.__name__, config.output")
        assert start(file, {}) == ("1", "torch", str(Path("runs", Path(name).stem)))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        assert start(own(tmp_path / folder / "same_name.py", body=f"return '{folder}'"), {}) == folder


def test_a_file_beside_an_experiment_can_be_imported_and_hides_none_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "queue.py").write_text("raise AssertionError('not the queue of the standard library')\n")
    (tmp_path / "my_losses_beside.py").write_text("entropy = 7\n")
    file = own(tmp_path / "mine.py", body="import my_losses_beside; return my_losses_beside.entropy")
    assert start(file, {}) == 7
    monkeypatch.delitem(sys.modules, "queue")
    assert __import__("queue").Queue


def test_fields_of_an_experiment_of_a_users_own(tmp_path, capsys):
    before = (
        "from __future__ import annotations\nfrom typing import Literal\nfrom proda.settings.options import Fraction\n"
    )
    fields = "depth: int | None = None  # a\n    mode: Literal['a', 'b'] = 'a'  # b\n    share: Fraction = 0.5  # c"
    file = own(
        tmp_path / "typed.py", fields=fields, before=before, body="return config.depth, config.mode, config.share"
    )
    assert start(file, {"depth": "3", "mode": "b", "share": "1"}) == (3, "b", 1.0)
    for name, fields, message in (
        ("wrong", "device: int = 0  # a", "Config.device is int, but in RunConfig it is one of 'auto', 'cpu', 'cuda'"),
        ("unknown", "names: list[str] = ()  # a", "Config.names: no option can be list[str]"),
        ("undecorated", "word: str = ''  # a", "write @dataclass above it"),
    ):
        file = own(tmp_path / f"{name}.py", fields=fields, body="pass")
        if name == "undecorated":
            Path(file).write_text(Path(file).read_text().replace("@dataclass\n", ""))
        status, error = answer(capsys, file)
        assert status == 2 and message in error


@pytest.mark.parametrize(
    ("error", "bug"),
    [
        ("KeyError('absent')", KeyError),
        ("ValueError('mine')", ValueError),
        ("FileNotFoundError(2, 'No such file', 'mine.txt')", FileNotFoundError),
        ("RuntimeError('Caught RuntimeError in DataLoader worker process 0.\\nOriginal Traceback')", RuntimeError),
        ("UserError('mine.toml: found a, expected b')", None),
        ("OSError(28, 'No space left on device', 'mine.pt')", None),
        ("PermissionError(13, 'Permission denied', 'mine.pt')", None),
        ("MemoryError()", None),
        ("RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')", None),
        ("RuntimeError('received 0 items of ancdata')", None),
        ("RuntimeError('Too many open files. Communication with the workers is no longer possible.')", None),
        ("FloatingPointError('the loss is not a finite number')", None),
    ],
)
def test_a_bug_keeps_its_traceback_and_what_a_user_can_mend_is_one_line(error, bug, tmp_path, capsys, monkeypatch):
    body = f"from proda.utils.errors import UserError; raise {error}"
    file = own(tmp_path / "raises.py", body=body)
    if bug:
        with pytest.raises(bug):
            main([file])
        return
    monkeypatch.delenv("PRODA_TRACEBACK", raising=False)
    status, line = answer(capsys, file)
    assert status == 2 and (("mine" not in error) or "mine" in line)
    monkeypatch.setenv("PRODA_TRACEBACK", "1")
    assert main([file]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "received 0 items of ancdata",
        "unable to mmap 720 bytes from file </torch_7_1_0>: Cannot allocate memory (12)",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
        "RuntimeError: unable to open shared memory object </torch_7_1_0> in read-write mode: No such file (2)\n",
    ],
)
def test_where_processes_cannot_share_memory_one_line_says_what_to_change(error):
    line = explain(RuntimeError(error))
    assert "\n" not in line and "/dev/shm" in line and "--num_workers" in line and "ulimit -n" in line
    assert "killed" not in error or "Bus error" in line
    assert "/dev/shm" in explain(OSError(errno.ENOSPC, "No space left on device"))  # of a semaphore


def test_the_exit_status_of_a_bug_is_1_in_one_process_and_in_two(tmp_path):
    file = own(tmp_path / "buggy.py", body="raise KeyError('absent')")
    for flags in ([], ["--nproc_per_node=2", "--device=cpu"]):
        run = small_runs.launch([sys.executable, "run.py", file, *flags])
        _, err = run.communicate(timeout=100)
        assert run.returncode == 1 and "Traceback" in err and "KeyError: 'absent'" in err, err


def test_what_an_experiment_file_defines_can_be_sent_to_other_processes(tmp_path):
    """To those that we start, and to loaders that are no forks."""
    data = "class Data:\n    def __len__(self): return 2\n    def __getitem__(self, i): return i\n"
    body = (
        "from torch.utils.data import DataLoader as Loader; "
        "print(sum(Loader(Data(), num_workers=1, multiprocessing_context='spawn')).item() + config.number, flush=True)"
    )
    file = own(tmp_path / "sends_v1.2.py", fields="number: int = 1  # added", before=data, body=body)
    run = small_runs.launch([sys.executable, "run.py", file, "--nproc_per_node=2", "--device=cpu", "--number=5"])
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0 and out == "6\n6\n", err


def test_our_experiments_are_known_in_every_folder_and_a_file_in_the_working_folder_comes_first(tmp_path):
    for name in ("stage1_denoise", "stage1_denoise.py", "experiments/stage1_denoise.py"):
        assert load_experiment(name).__file__ == str(ROOT / STAGE_1)
    (tmp_path / "experiments").mkdir()
    own(tmp_path / "experiments" / "warmup.py", body="return 'mine'")
    assert start("experiments/warmup.py", {}) == "mine"


@pytest.mark.parametrize(("name", "more"), [("pipeline", {"simclr": "here.pt"}), ("quickstart", {})])
def test_experiments_that_start_others_find_them_from_every_folder(name, more):
    """They come as far as the first stage's missing data."""
    Path("here.pt").touch()
    flags = {"data_root": "nowhere", "source": "own.toml", "num_classes": 0, "device": "cpu", **more}
    with pytest.raises(FileNotFoundError, match=r"own\.toml: no such file"):
        start(name, flags)


def test_an_experiment_is_copied(capsys, tmp_path):
    assert main(["copy", "stage1_denoise", "mine.py"]) == 0
    assert Path("mine.py").read_text() == (ROOT / STAGE_1).read_text() and "mine.py" in capsys.readouterr().out
    assert load_experiment("mine.py").Config.__module__ != load_experiment("stage1_denoise").Config.__module__
    for arguments, message in (
        (["stage1_denoise", "mine.py"], "mine.py: this file exists already"),
        (["stage1_denoise"], "copy: expected an experiment and a new file"),
        (["stage1_denoise", "no/mine.py"], "no/mine.py: the folder no does not exist"),
        (["stage9", "other.py"], "stage9: no such experiment file"),
    ):
        assert main(["copy", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "count", "begun", "flags", "expected"),
    [
        ("TORCHELASTIC_RESTART_COUNT", "1", {}, {}, (True, False)),
        ("SLURM_RESTART_COUNT", "2", {}, {"overwrite": True}, (True, False)),
        ("SLURM_RESTART_COUNT", "0", {}, {"overwrite": True}, (False, True)),
        # another run: the first life had begun nothing
        ("SLURM_RESTART_COUNT", "1", {"seed": 8}, {"overwrite": True}, (False, True)),
        ("SLURM_RESTART_COUNT", "1", {"seed": 8}, {}, (False, False)),  # as the first life, it will be refused
        ("SLURM_RESTART_COUNT", "1", None, {}, (False, False)),
        ("SLURM_RESTART_COUNT", "1", [], {}, (False, False)),
    ],
)
def test_a_restart_goes_on_with_what_the_first_life_began(
    variable, count, begun, flags, expected, tmp_path, monkeypatch, capsys
):
    file = own(tmp_path / "restarts.py", body="return config")
    Path(file).write_text(Path(file).read_text().replace("RunConfig", "TrainConfig"))
    Path("run").mkdir()
    if begun is not None:
        first = asdict(start(file, {"output": "run", **flags}))
        Path("run/config.json").write_text(json.dumps(first | begun | {"run": {}} if isinstance(begun, dict) else []))
    monkeypatch.setenv(variable, count)
    config = start(file, {"output": "run", **flags})
    assert (config.resume, config.overwrite) == expected
    assert capsys.readouterr().out == ("restarted: resuming the run in run\n" if expected[0] else "")


@pytest.mark.parametrize(
    ("then", "now", "resumes"),
    [
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a"}, True),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "b"}, False),
        ({}, {"TORCHELASTIC_RUN_ID": "b"}, False),
        ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}, True),  # of the same parent
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, True),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8"}, False),
        # SLURM starts the job again, and torchrun draws another id
        ({"SLURM_JOBID": "7", "TORCHELASTIC_RUN_ID": "a"}, {"SLURM_JOBID": "7", "TORCHELASTIC_RUN_ID": "b"}, True),
    ],
)
def test_a_restart_overwrites_an_older_run_that_its_first_life_did_not_reach(then, now, resumes, tmp_path, monkeypatch):
    file = own(tmp_path / "restarts.py", body="return config")
    Path(file).write_text(Path(file).read_text().replace("RunConfig", "TrainConfig"))
    Path("run").mkdir()
    flags = {"output": "run", "overwrite": True}
    with monkeypatch.context() as patch:
        for name, value in then.items():
            patch.setenv(name, value)
        begun = asdict(start(file, flags)) | {"run": {"launch": launch()}}
    Path("run/config.json").write_text(json.dumps(begun))
    for name, value in {**now, "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    config = start(file, flags)
    assert (config.resume, config.overwrite) == (resumes, not resumes)


def test_without_ids_another_parent_on_the_same_machine_is_another_launch():
    mine = launch() | {"ids": {}}
    assert (
        of_this_launch(mine) and of_this_launch({}) and of_this_launch(mine | {"host": "another", "parent": [1, "2"]})
    )
    assert not of_this_launch(mine | {"parent": [1, "2"]})


@pytest.mark.slow
def test_a_run_that_torchrun_restarts_ends_as_one_that_was_not_killed(data, tmp_path):
    """One of two processes is killed at the fourth step of its first life; there is a checkpoint of iteration 2."""
    weights = small_runs.write_weights(tmp_path / "before.pt")
    file = tmp_path / "killed.py"
    file.write_text(
        "import os\n"
        "from torch.optim.optimizer import register_optimizer_step_pre_hook\n"
        "from experiments.source_only import PRESETS, Config, run as whole\n"
        "def run(local_rank, config):\n"
        "    steps = []\n"
        "    def count(*_):\n"
        "        steps.append(1)\n"
        "        if (len(steps), os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == (4, '1', '0'):\n"
        "            os.kill(os.getpid(), 9)\n"
        "    if config.overwrite:\n"
        "        register_optimizer_step_pre_hook(count)\n"
        "    return whole(local_rank, config)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    # otherwise the second life finds the addresses of the first one: pytorch/pytorch#135712
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    for folder, overwrite in (("killed", True), ("whole", False)):
        flags = small_runs.command("source_only", data, weights, tmp_path / folder, overwrite=overwrite)[3:]
        run = small_runs.launch([*torchrun, "run.py", str(file), *flags], env=env)
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert ("restarted: resuming the run in" in out and "resumed from" in out) == overwrite
    one, other = (small_runs.checkpoint(tmp_path / folder, 5) for folder in ("killed", "whole"))
    assert not small_runs.differing(one["student"], other["student"])


@pytest.mark.slow
def test_a_wheel_works_without_the_clone(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    names = ("proda", "experiments", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in names:
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", f"--target={target}", str(source)], check=True)
    assert (target / "proda/py.typed").is_file() and not (target / "tests").exists()
    templates = {path.name for path in (ROOT / "proda/report/templates").iterdir()}
    assert {path.name for path in (target / "proda/report/templates").iterdir()} == templates

    (tmp_path / "queue.py").write_text("raise AssertionError('not the queue of the standard library')\n")
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def answer_of(*command: str) -> str:
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        run = subprocess.run([*command], **options)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert "stage1_denoise" in answer_of(sys.executable, "-m", "proda", "--help")
    assert "--teacher_momentum" in answer_of(sys.executable, "-m", "proda", "stage1_denoise", "--help")
    assert "--init_file" in answer_of(
        sys.executable, str(target / "bin/proda"), "experiments/stage3_distill.py", "--help"
    )
    answer_of(sys.executable, "-m", "proda", "copy", "stage3_distill", "mine.py")
    assert "--init_file" in answer_of(sys.executable, "-m", "proda", "mine.py", "--help")
    where = "import proda, experiments; print(proda.__file__, experiments.__file__)"
    assert answer_of(sys.executable, "-P", "-c", where).count(str(target)) == 2


def test_run_py_is_the_launcher(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["run.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert end.value.code == 0 and "usage: python run.py EXPERIMENT" in capsys.readouterr().out


@contextmanager
def unread(log: Path):
    """stdout is a pipe that nobody reads, as after ``| head``; stderr is ``log``, in ASCII."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "w", buffering=1) as out,
        open(log, "w", encoding="ascii", errors="strict") as error,
        pytest.MonkeyPatch.context() as patch,  # a fixture could not do this: pytest sets the streams later
    ):
        for name, stream in (("stdout", out), ("stderr", error)):
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        yield


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["warmup", "--help"], ["copy", "warmup", "mine.py"]])
def test_a_command_whose_reader_has_left_ends_as_usual(argv, tmp_path):
    with unread(tmp_path / "stderr"):
        assert main(argv) == 0
    assert (tmp_path / "stderr").read_text() == ""


def test_a_run_goes_on_when_nobody_reads_its_output(data, tmp_path):
    log, run = tmp_path / "stderr", tmp_path / "größe"
    weights = small_runs.write_weights(tmp_path / "before.pt")
    with unread(log):
        assert small_runs.train_as_command("source_only", data, weights, run, iterations=2) == 0
    assert log.read_text() == "" and "done in" in (run / "train.log").read_text("utf-8")
    with unread(log):
        assert main(["report", str(run), "--worst=größe"]) == 2
    assert log.read_text().startswith("error: --worst=gr\\xf6\\xdfe: ")


@pytest.mark.slow
def test_two_processes_go_on_when_nobody_reads_their_output(data, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    weights = small_runs.write_weights(tmp_path / "before.pt")
    command = small_runs.command("source_only", data, weights, tmp_path / "run", iterations=2, nproc_per_node=2)
    run = small_runs.launch(command, stdout=writing, stderr=writing)
    os.close(writing)
    assert run.wait(120) == 0 and (tmp_path / "run" / "summary.json").is_file()
