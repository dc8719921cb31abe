"""Training is killed at random moments, goes on with --resume, and ends with the bits of a run that was left alone.

The short form is part of every test run; ``pytest -m slow tests/test_kill.py`` is the long one.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from proda.cli.launch import main
from proda.data.label_store import SoftLabelStore
from proda.handlers.checkpoints import damage
from proda.handlers.stopping import Stopped, StopRequests
from proda.models.build import build_network
from tests import small_runs

ITERATIONS = 8
# A server that has imported everything forks the runs, so that a trial takes no longer than its training.
RANDOM = random.SystemRandom()  # training in this process seeds the ordinary one
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.small_runs", *(f"experiments.{stage}" for stage in small_runs.STAGES)])


@pytest.fixture(scope="module")
def whole(data, weights, tmp_path_factory):
    """stage -> the final checkpoint of a run that nobody interrupts, and the seconds that it took."""
    made: dict[str, tuple[dict, float]] = {}
    warm = FORKS.Process(target=time.sleep, args=(0,))  # the server's imports are not part of a run
    warm.start()
    warm.join()

    def of(stage: str) -> tuple[dict, float]:
        if stage not in made:
            folder, began = tmp_path_factory.mktemp(f"whole_{stage}"), time.monotonic()
            run = _start(stage, data, weights, folder)
            run.join(timeout=120)
            assert run.exitcode == 0, (folder / "output.txt").read_text()
            made[stage] = small_runs.checkpoint(folder, ITERATIONS), time.monotonic() - began
        return made[stage]

    return of


@pytest.mark.parametrize("writing", [False, True], ids=["at any moment", "while a checkpoint is written"])
def test_a_killed_run_goes_on_to_the_same_bits(writing, data, weights, tmp_path, whole):
    _assert_survives_kills("stage1_denoise", data, weights, tmp_path, whole, writing=writing)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("writing", [False, True], ids=["at any moment", "while a checkpoint is written"])
@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_long_form(stage, writing, trial, data, weights, tmp_path, whole):
    _assert_survives_kills(stage, data, weights, tmp_path, whole, writing=writing, kills=2)


def test_a_run_that_ends_while_a_network_predicts_goes_on_to_the_same_bits(data, weights, tmp_path, whole):
    """Prototypes, label writing and validation: whatever runs a network in evaluation mode."""
    signals = RANDOM.sample([signal.SIGTERM, signal.SIGKILL], 2)
    _assert_survives_ends_within("stage1_denoise", signals, data, weights, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(8))
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["stage1_denoise", "stage2_distill", "warmup"])
def test_long_form_of_ends_while_a_network_predicts(stage, sent, trial, data, weights, tmp_path, whole):
    _assert_survives_ends_within(stage, [sent, sent], data, weights, tmp_path, whole)


def test_of_two_commands_that_race_for_a_folder_one_is_told_in_one_line(data, weights, tmp_path, whole):
    expected, _ = whole("source_only")
    racers = [_start("source_only", data, weights, tmp_path, by_command=True) for _ in range(2)]
    for racer in racers:
        racer.join(timeout=120)
    output = (tmp_path / "output.txt").read_text()
    assert sorted(racer.exitcode for racer in racers) == [0, 2], output
    lines = [line for line in output.splitlines() if "error: " in line]
    assert len(lines) == 1 and f"{tmp_path} is in use by" in lines[0] and "Traceback" not in output, output
    assert not small_runs.differing(small_runs.checkpoint(tmp_path, ITERATIONS), expected)
    assert not (tmp_path / ".lock").exists()


def test_two_commands_that_race_for_one_label_store_write_the_same_labels(data, weights, tmp_path, whole):
    _assert_label_store_survives_a_race(data, weights, tmp_path, whole, delay=0)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(8))
def test_long_form_of_the_race_for_a_label_store(trial, data, weights, tmp_path, whole):
    _assert_label_store_survives_a_race(data, weights, tmp_path, whole, delay=RANDOM.uniform(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(3))
@pytest.mark.parametrize("stage", ["source_only", "stage1_denoise"])
def test_processes_of_torchrun_that_are_killed_are_restarted_and_end_with_the_same_bits(
    stage, trial, data, weights, tmp_path
):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=3"]
    more = {"dropout": 0.0, "freeze_bn": True, "iterations": ITERATIONS, "val_every": 3}
    seconds = 0.0
    for folder, kills in (("whole", 0), ("killed", 2)):
        began = time.monotonic()
        # Without the variable the second life finds the addresses of the first one: pytorch/pytorch#135712
        run = small_runs.launch(
            [*torchrun, *small_runs.command(stage, data, weights, tmp_path / folder, **more)[1:]],
            env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        killed: set[int] = set()
        for _ in range(kills):
            time.sleep(RANDOM.uniform(0, seconds))
            # both processes of a life go: torchrun ends the second one when the first is dead
            while run.poll() is None and not (there := set(_children(run.pid, "run.py")) - killed):
                time.sleep(0.01)
            if run.poll() is None:
                os.kill(RANDOM.choice(sorted(there)), signal.SIGKILL)
                killed |= there
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, out[-3000:] + err[-3000:]
        seconds = time.monotonic() - began
    one, other = (small_runs.checkpoint(tmp_path / folder, ITERATIONS) for folder in ("killed", "whole"))
    assert not small_runs.differing(one, other)
    _assert_files_are_whole(tmp_path / "killed")


def test_a_signal_lets_the_iteration_end_saves_and_leaves(data, weights, tmp_path, whole):
    said = tmp_path / "output.txt"
    for sent, last in ((signal.SIGTERM, 2), (signal.SIGINT, 4)):
        run = _start("source_only", data, weights, tmp_path, resume=True)
        _wait_for(tmp_path / f"checkpoint_{last}.pt", run)
        os.kill(run.pid, sent)
        run.join(timeout=30)
        output = said.read_text()
        assert run.exitcode == 128 + sent, output
        assert "Traceback" not in output and f"{sent.name}: stopping " in output
        assert not (tmp_path / "summary.json").exists()
        _assert_files_are_whole(tmp_path)
    _assert_ends_as(whole("source_only")[0], "source_only", data, weights, tmp_path)


def test_a_signal_that_comes_while_processes_agree_is_not_lost(monkeypatch):
    trainer, exchanges = Engine(lambda engine, batch: None), []

    def exchange(_: StopRequests, value: int) -> int:
        exchanges.append(value)
        if len(exchanges) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr(StopRequests, "_all_reduce_max", exchange)
    with pytest.raises(Stopped) as end, StopRequests(trainer):
        trainer.run(range(10), max_iters=10)
    assert trainer.state.iteration == 4 and end.value.code == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_loaders_first(sent, data, weights, tmp_path, whole):
    """As a cluster's scheduler sends it, or a terminal."""
    run = _start("source_only", data, weights, tmp_path, num_workers=2, iterations=400, schedule_iterations=ITERATIONS)
    _wait_for(tmp_path / "checkpoint_2.pt", run)
    os.killpg(run.pid, sent)
    run.join(timeout=30)
    output = (tmp_path / "output.txt").read_text()
    assert run.exitcode == 128 + sent, output
    assert "Traceback" not in output and "DataLoader" not in output
    deadline = time.monotonic() + 10
    while _alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(run.pid)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_processes_after_one_iteration(sent, data, weights, tmp_path):
    flags = {"nproc_per_node": 2, "dropout": 0.0, "freeze_bn": True, "iterations": 4000, "val_every": 4000}
    run = small_runs.launch(small_runs.command("source_only", data, weights, tmp_path, **flags))
    _wait_for(tmp_path / "checkpoint_2.pt", run)
    run.send_signal(sent)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + sent, out + err
    assert "Traceback" not in err and out.count("stopping after iteration") == 1
    last = max(int(path.stem.split("_")[1]) for path in tmp_path.glob("checkpoint_*.pt"))
    assert f"stopping after iteration {last};" in out
    _assert_files_are_whole(tmp_path)


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_others_within_30_seconds(data, weights, tmp_path):
    flags = {"nproc_per_node": 2, "dropout": 0.0, "freeze_bn": True, "iterations": 4000}
    run = small_runs.launch(small_runs.command("source_only", data, weights, tmp_path, **flags))
    _wait_for(tmp_path / "checkpoint_2.pt", run)
    children = _children(run.pid)
    os.kill(RANDOM.choice(children), signal.SIGKILL)
    began = time.monotonic()
    out, err = run.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert run.returncode not in (0, None)
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: a process was killed (signal 9): memory may have run out; continue with --resume, a pipeline by the"
        " same command"
    ], out + err
    _assert_files_are_whole(tmp_path)


def _assert_survives_kills(stage, data, weights, folder, whole, *, writing: bool, kills: int = 1) -> None:
    expected, seconds = whole(stage)
    for _ in range(kills):
        run = _start(stage, data, weights, folder, resume=True)
        if writing:
            _wait_until_checkpoint_is_written(folder, run, skip=RANDOM.randrange(3))
        else:
            run.join(timeout=RANDOM.uniform(0, seconds))
        run.kill()
        run.join()
        assert run.exitcode in (0, -signal.SIGKILL), (folder / "output.txt").read_text()
        there = ", ".join(sorted(path.name for path in folder.glob("*checkpoint_*"))) or "no checkpoint"
        print(f"{stage}: {'ended before it was killed' if run.exitcode == 0 else 'killed'}, leaving {there}")
        _assert_files_are_whole(folder)
    _assert_ends_as(expected, stage, data, weights, folder)


def _assert_label_store_survives_a_race(data, weights, folder: Path, whole, *, delay: float) -> None:
    """Each of two runs ends well, or says in one line that the other is writing and ends well when started again."""
    expected, _ = whole("stage1_denoise")
    outputs, store, racers = [folder / "one", folder / "other"], folder / "labels", []
    for output in outputs:
        racers.append(_start("stage1_denoise", data, weights, output, by_command=True, pseudo_labels=store))
        time.sleep(delay)
    for racer, output in zip(racers, outputs, strict=True):
        racer.join(timeout=120)
        said = (output / "output.txt").read_text()
        assert "Traceback" not in said and racer.exitcode in (0, 2), said
        lines = [line for line in said.splitlines() if "error: " in line]
        assert len(lines) == (racer.exitcode == 2) and all(f"{store} is in use by" in line for line in lines), said
    assert 0 in [racer.exitcode for racer in racers]
    for racer, output in zip(racers, outputs, strict=True):
        if racer.exitcode:
            run = _start("stage1_denoise", data, weights, output, pseudo_labels=store, resume=True)
            run.join(timeout=120)
            assert run.exitcode == 0, (output / "output.txt").read_text()
        assert not small_runs.differing(small_runs.checkpoint(output, ITERATIONS), expected)
    _assert_files_are_whole(store)
    assert not list(store.rglob(".*"))


def _assert_survives_ends_within(stage, signals, data, weights, folder, whole) -> None:
    expected, _ = whole(stage)
    for sent in signals:
        run = _start(stage, data, weights, folder, resume=True, sent=sent, prediction=RANDOM.randrange(1, 21))
        run.join(timeout=120)
        output = (folder / "output.txt").read_text()
        assert run.exitcode in (0, -sent, 128 + sent), output
        print(f"{stage}: {run.exitcode}, leaving {sorted(path.name for path in folder.iterdir())}")
        _assert_files_are_whole(folder)
    _assert_ends_as(expected, stage, data, weights, folder)


def _assert_ends_as(expected: dict, stage, data, weights, folder: Path) -> None:
    run = _start(stage, data, weights, folder, resume=True)
    run.join(timeout=120)
    assert run.exitcode == 0, (folder / "output.txt").read_text()
    assert not small_runs.differing(small_runs.checkpoint(folder, ITERATIONS), expected)
    assert json.loads((folder / "summary.json").read_text())["iterations"] == ITERATIONS
    assert not list(folder.rglob(".*.part"))
    assert len(list(folder.glob("checkpoint_*.pt"))) == 2


def _assert_files_are_whole(folder: Path) -> None:
    """Nothing under a final name is half-written; what was being written has another name."""
    for path in folder.rglob("*.pt"):
        assert not damage(path), path
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.png"):
        Image.open(path).verify()
    for path in folder.rglob("*.probs"):
        SoftLabelStore(path.parent.parent, 13).read(path.stem)


def _start(stage: str, data: Path, weights: Path, folder: Path, *, sent=0, prediction=0, by_command=False, **more):
    """A run in a process, and a process group, of its own; what it says goes to output.txt.

    Sends itself the signal ``sent`` at its ``prediction``-th forward pass of a network in evaluation mode.
    """
    flags = {"iterations": ITERATIONS, "val_every": 3, **more}
    run = FORKS.Process(target=_run, args=(stage, data, weights, folder, flags, sent, prediction, by_command))
    run.start()
    return run


def _run(stage, data, weights, folder: Path, flags: dict, sent: int, prediction: int, by_command: bool) -> None:
    os.setsid()
    folder.mkdir(exist_ok=True)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if sent:
        network, count = type(build_network("tiny", 13)), itertools.count(1)

        def end(module, *_) -> None:
            if isinstance(module, network) and not module.training and next(count) == prediction:
                os.kill(os.getpid(), sent)

        torch.nn.modules.module.register_module_forward_hook(end)
    if by_command:
        values = small_runs.flags(stage, data, weights, folder, **flags)
        sys.exit(main([f"experiments/{stage}.py", *(f"--{name}={value}" for name, value in values.items())]))
    small_runs.train(stage, data, weights, folder, **flags)


def _wait_for(path: Path, run) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline and _running(run), f"{path} never came"
        time.sleep(0.005)


def _wait_until_checkpoint_is_written(folder: Path, run, *, skip: int) -> None:
    """Returns when an unfinished checkpoint is there, after ``skip`` others, or when the run has ended."""
    seen: set[str] = set()
    while run.is_alive():
        names = {name for name in os.listdir(folder) if name.startswith(".checkpoint_")} if folder.is_dir() else set()
        seen |= names
        if names and len(seen) > skip:
            return


def _running(run) -> bool:
    return run.is_alive() if hasattr(run, "is_alive") else run.poll() is None


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int, command_has: str = "spawn_main") -> list[int]:
    """The processes that a launcher has started to train; its resource tracker is none of them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and command_has in command:
            found.append(int(path.name))
    return found
