"""What goes wrong on long runs: each ends, or goes on, with one clear line, and all processes together."""

import errno
import os
import pickle
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.handlers.checkpoints import Checkpoints, damage
from proda.handlers.predictions import SaveOverlays, SavePredictions
from proda.handlers.validation import Validation
from proda.utils import files
from proda.utils.errors import UserError
from tests import small_runs
from tests.small_runs import checkpoint, differing, stopped_after, train, train_as_command

RANDOM = random.SystemRandom()


@pytest.fixture(scope="module")
def stopped_run(data, weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with stopped_after(4):
        train("source_only", data, weights, folder)
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    """A run that was stopped after iteration 4 of 5; it has the checkpoints of 2 and 4."""
    return shutil.copytree(stopped_run, tmp_path / "run")


# Checkpoints


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(stopped, data, weights, capsys, tmp_path):
    newest = stopped / "checkpoint_4.pt"
    os.truncate(newest, newest.stat().st_size * 2 // 3)
    train("source_only", data, weights, stopped, resume=True, checkpoint_every=3)
    output = capsys.readouterr().out
    assert f"{newest} cannot be used" in output and f"resumed from {stopped / 'checkpoint_2.pt'}" in output
    # It is kept aside and never counted among the newest.
    there = sorted(path.name for path in stopped.glob("checkpoint_*"))
    assert there == ["checkpoint_3.pt", "checkpoint_4.pt.damaged", "checkpoint_5.pt"]
    train("source_only", data, weights, tmp_path / "whole")
    assert not differing(checkpoint(stopped, 5), checkpoint(tmp_path / "whole", 5))


def test_an_altered_or_cut_checkpoint_is_noticed_or_reads_the_same(stopped):
    path = stopped / "checkpoint_4.pt"
    content, expected = path.read_bytes(), torch.load(path, weights_only=True)
    tensor = bytes(expected["student"]["conv1.weight"].untyped_storage())  # in the order of memory and of the file
    begin = content.index(tensor)
    for place in RANDOM.sample(range(begin, begin + len(tensor)), 10):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "checksum" in damage(path)
    for place in RANDOM.sample(range(len(content)), 40):  # anywhere: names, headers and padding too
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        if not damage(path):
            assert not differing(torch.load(path, weights_only=True), expected), place
    for length in [0, 1, len(content) - 1, *RANDOM.sample(range(len(content)), 10)]:
        path.write_bytes(content[:length])
        assert damage(path), length


# Full disk


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of 7 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_new_checkpoints_and_keeps_the_old(small_disk, data, weights, capsys):
    folder = small_disk / "run"
    with pytest.raises(OSError, match=r"No space left on device: .*run/\w+.pt"):
        train("source_only", data, weights, folder, iterations=12, val_every=100)
    output = capsys.readouterr().out
    assert "could not save a checkpoint: [Errno 28] No space left on device" in output
    assert "the checkpoints before it are kept" in output
    kept = sorted(folder.glob("checkpoint_*.pt"))
    assert kept and not any(map(damage, kept)) and not list(folder.glob(".*.part"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    result = train("source_only", data, weights, folder, iterations=12, val_every=100, resume=True)
    assert f"resumed from {folder / 'checkpoint_4.pt'}" in capsys.readouterr().out
    assert result["iterations"] == 12


def test_a_failing_writer_keeps_the_checkpoint_before(data, weights, tmp_path, monkeypatch, capsys):
    save = torch.save

    def failing(content, file, *args):
        if "checkpoint_4" in file.name:
            file.write(b"half of it")
            raise OSError(errno.EIO, "Input/output error", file.name)
        save(content, file, *args)

    monkeypatch.setattr(files.torch, "save", failing)
    train("source_only", data, weights, tmp_path)
    assert "could not save a checkpoint: [Errno 5] Input/output error" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*checkpoint_*")) == ["checkpoint_2.pt", "checkpoint_5.pt"]


# Data and losses


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _unknown_id(path: Path) -> None:
    ids = np.array(Image.open(path))
    ids[0, 0] = 77
    Image.fromarray(ids).save(path)


def _shrink(path: Path) -> None:
    Image.open(path).resize((48, 24)).save(path)


@pytest.mark.parametrize(
    ("spoil", "kind", "workers", "message"),
    [
        (_truncate, "images", 2, "not a complete image"),
        (_unknown_id, "labels", 0, "unknown label id 77"),
        (_unknown_id, "labels", 2, "unknown label id 77"),
        (_shrink, "labels", 0, "label map of 48x24 pixels, expected 96x48"),
    ],
)
def test_a_damaged_file_in_the_middle_of_the_set_is_named(
    data, weights, tmp_path, capsys, spoil, kind, workers, message
):
    root = shutil.copytree(data, tmp_path / "data")
    path = root / "gta5" / kind / "00004.png"
    spoil(path)
    error = _fails("source_only", root, weights, tmp_path / "run", capsys, num_workers=workers)
    assert error.startswith(f"error: {path}: {message}"), error


@pytest.mark.parametrize("stage", ["source_only", "stage1_denoise"])
def test_a_loss_of_nan_ends_the_run_in_one_line_and_damages_no_file(data, weights, tmp_path, capsys, stage):
    more = {"lr": 1000, "head_lr_factor": 1e9, "checkpoint_every": 1, "val_every": 1}
    error = _fails(stage, data, weights, tmp_path / "run", capsys, **more)
    assert "at iteration" in error and "--lr" in error and "--grad_clip" in error
    for path in (tmp_path / "run").glob("*.pt"):
        tensors = small_runs.numbers(torch.load(path, weights_only=True))
        assert all(value.isfinite().all() for name, value in tensors.items() if "validation" not in name), path
    assert not any(map(damage, (tmp_path / "run").glob("checkpoint_*.pt")))
    assert not (tmp_path / "run/summary.json").exists()


# Processes


def test_a_loader_that_dies_ends_the_run_in_one_line(data, weights, tmp_path):
    run = _launch_until("checkpoint_2.pt", data, weights, tmp_path, num_workers=2, iterations=4000)
    os.kill(_children(run.pid)[0], 9)
    line, err = _ends_with_one_line(run)
    assert "DataLoader worker" in line and "continue with --resume" in line, err
    # torch raises in a signal handler: where that hits a callback of a fork, Python itself prints and drops it
    assert "Traceback" not in err or "Exception ignored" in err, err


@pytest.mark.slow
def test_a_loader_that_dies_in_one_of_two_processes_ends_both(data, weights, tmp_path):
    flags = {"num_workers": 2, "iterations": 4000, "nproc_per_node": 2, "freeze_bn": True}
    run = _launch_until("checkpoint_2.pt", data, weights, tmp_path, **flags)
    trainer = next(child for child in _children(run.pid) if _children(child))
    os.kill(RANDOM.choice(_children(trainer)), 9)
    line, err = _ends_with_one_line(run)
    assert "DataLoader worker" in line, err


def test_a_fault_in_one_of_two_processes_ends_both_with_the_line_of_that_one(data, weights, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    image = root / "gta5/images/00004.png"
    _truncate(image)
    command = small_runs.command("source_only", root, weights, tmp_path / "run", nproc_per_node=2, freeze_bn=True)
    line, err = _ends_with_one_line(small_runs.launch(command), seconds=60)
    assert line.startswith(f"error: {image}: not a complete image") and "Traceback" not in err, err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_processes_with_one_line(data, weights, tmp_path):
    file = tmp_path / "spoilt.py"
    file.write_text(
        "import proda.engines.supervised as engine\n"
        "from experiments.source_only import PRESETS, Config, build, run as whole\n"
        "def run(local_rank, config):\n"
        "    losses, original = [], engine.cross_entropy\n"
        "    def spoilt(*arguments, **options):\n"
        "        losses.append(original(*arguments, **options))\n"
        "        return losses[-1] * (float('nan') if len(losses) == 2 else 1)\n"
        "    engine.cross_entropy = spoilt\n"
        "    return whole(local_rank, config)\n"
    )
    more = {"nproc_per_node": 2, "checkpoint_every": 1}
    line, err = _ends_with_one_line(_launch_until("checkpoint_1.pt", data, weights, tmp_path / "run", file, **more))
    assert "the loss is not a finite number at iteration 2" in line and "Traceback" not in err, err
    assert not damage(tmp_path / "run" / "checkpoint_1.pt")


def test_fewer_validation_images_than_processes_is_one_line(monkeypatch):
    monkeypatch.setattr("proda.handlers.validation.idist.get_world_size", lambda: 8)
    with pytest.raises(ValueError, match=r"fewer validation images than processes \(8\)"):
        Validation(Engine(lambda *_: None), [], [])


# Nothing runs code, nothing leaves the folder


class _Intruder:
    """What a hostile pickle does when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("as_zip", [True, False])
def test_no_weights_file_runs_code(as_zip, data, weights, tmp_path, capsys):
    trace, evil = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"model": _Intruder(trace)}, evil, _use_new_zipfile_serialization=as_zip)
    for stage, flag in (("source_only", "init_file"), ("stage1_denoise", "weights"), ("stage2_distill", "teacher")):
        error = _fails(stage, data, weights, tmp_path / "run", capsys, **{flag: evil})
        assert str(evil) in error and "not run" in error, error
    _fails("stage1_denoise", data, weights, tmp_path / "run", capsys, prototypes=evil)
    assert not trace.exists()


def test_no_checkpoint_runs_code(stopped, data, weights, tmp_path, capsys):
    trace = tmp_path / "trace"
    torch.save({"student": _Intruder(trace)}, stopped / "checkpoint_9.pt")
    train("source_only", data, weights, stopped, resume=True)
    assert f"{stopped / 'checkpoint_9.pt'} cannot be used" in capsys.readouterr().out
    (tmp_path / "checkpoint_1.pt").write_bytes(pickle.dumps(_Intruder(trace)))
    with pytest.raises(UserError, match=r"checkpoint_1.pt: damaged"):
        Checkpoints(tmp_path).resume(Engine(lambda *_: None))
    assert not trace.exists()


def test_no_pseudo_label_store_runs_code(data, weights, tmp_path, capsys):
    trace, run = tmp_path / "trace", tmp_path / "run"
    train("stage1_denoise", data, weights, run, iterations=1)
    hostile = pickle.dumps(_Intruder(trace))
    label = sorted((run / "pseudo_labels" / "probabilities").iterdir())[0]
    label.write_bytes(hostile)
    error = _fails("stage1_denoise", data, weights, run, capsys, resume=True)
    assert str(label) in error and "damaged" in error
    (run / "pseudo_labels" / "manifest.json").write_bytes(hostile)
    error = _fails("stage1_denoise", data, weights, run, capsys, resume=True)
    assert "manifest.json" in error
    assert not trace.exists()


def _save_prediction(handler: type | object, folder: Path, name: str) -> None:
    batch = {"name": [name], "file_size": torch.tensor([[4, 4]]), "image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}
    evaluator = Engine(lambda *_: {"predicted": torch.zeros(1, 4, 4).long(), "logits": torch.zeros(1, 3, 4, 4)})
    handler.attach(evaluator)
    evaluator.run([batch])


WRITERS = {
    "soft labels": lambda folder, name: SoftLabelStore(folder, 3).write(name, torch.full((3, 2, 2), 1 / 3)),
    "hard labels": lambda folder, name: HardLabelStore(folder).write(name, torch.zeros(2, 2).long(), torch.ones(2, 2)),
    "predictions": lambda folder, name: _save_prediction(SavePredictions(folder), folder, name),
    "overlays": lambda folder, name: _save_prediction(SaveOverlays(folder, np.zeros((3, 3), np.uint8)), folder, name),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_no_image_name_leads_out_of_the_output_folder(write, tmp_path):
    names = ["../outside", f"{tmp_path}/outside", "..", "a/b"]
    if write in list(WRITERS.values())[:2]:
        names += ["a\\b", "C:x", "a\0b", ".hidden", ""]
    for name in names:
        with pytest.raises(ValueError, match="cannot name a file"):
            write(tmp_path / "folder" / "store", name)
    assert not list(tmp_path.rglob("*outside*")) and not list(tmp_path.rglob("*.png"))


def _fails(stage, data, weights, folder, capsys, /, **more) -> str:
    """Runs a stage as its command line would; returns the one line that it ends with."""
    capsys.readouterr()
    status = train_as_command(stage, data, weights, folder, **more)
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.lstrip().startswith(("iterations", "pseudo"))
    ]
    assert status == 2 and len(lines) == 1, lines
    return lines[0]


def _launch_until(name: str, data, weights, folder: Path, file: Path | str = "", **more) -> subprocess.Popen:
    """Starts source-only training, or the experiment ``file``; returns when it has written the file ``name``."""
    command = small_runs.command("source_only", data, weights, folder, **more)
    run = small_runs.launch([*command[:2], str(file or command[2]), *command[3:]])
    while not (folder / name).exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    return run


def _ends_with_one_line(run: subprocess.Popen, seconds: float = 30) -> tuple[str, str]:
    """The line of the error that the command ends with before so many seconds, and all of its stderr."""
    began = time.monotonic()
    _, err = run.communicate(timeout=2 * seconds)
    assert time.monotonic() - began < seconds and run.returncode == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1, err
    return lines[0], err


def _children(pid: int) -> list[int]:
    """What ``pid`` has started: loaders of a training process, or training processes of a launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.name))
        except OSError:
            continue
    return found
