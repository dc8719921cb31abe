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

from proda.cli.launch import main
from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.handlers.checkpoints import Checkpoints, damage
from proda.handlers.predictions import SaveOverlays, SavePredictions
from proda.handlers.stopping import Stopped
from proda.handlers.validation import Validation
from proda.utils import files
from proda.utils.errors import UserError
from tests import small_runs
from tests.small_runs import checkpoint, differing, flags, train


@pytest.fixture(scope="module")
def clean_data(tmp_path_factory) -> Path:
    return small_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(clean_data, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(clean_data, tmp_path / "data")


@pytest.fixture(scope="module")
def stopped_run(clean_data, weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        train("source_only", clean_data, weights, folder, stop_after=4)
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    """A run that was stopped after iteration 4 of 5; it has the checkpoints of 2 and 4."""
    return shutil.copytree(stopped_run, tmp_path / "run")


# Checkpoints


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(stopped, clean_data, weights, capsys, tmp_path):
    newest = stopped / "checkpoint_4.pt"
    os.truncate(newest, newest.stat().st_size * 2 // 3)
    train("source_only", clean_data, weights, stopped, resume=True)
    output = capsys.readouterr().out
    assert f"{newest} cannot be used" in output and f"resumed from {stopped / 'checkpoint_2.pt'}" in output
    train("source_only", clean_data, weights, tmp_path / "whole")
    assert not differing(checkpoint(stopped, 5), checkpoint(tmp_path / "whole", 5))


def test_any_altered_byte_of_a_tensor_is_noticed(stopped):
    path = stopped / "checkpoint_4.pt"
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["student"]["conv1.weight"]
    tensor = bytes(weight.untyped_storage())  # in the order of the memory, which is that of the file
    begin = content.index(tensor)
    for place in random.SystemRandom().sample(range(begin, begin + len(tensor)), 10):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "checksum" in damage(path)


def test_an_altered_checkpoint_is_noticed_or_reads_the_same(stopped):
    path = stopped / "checkpoint_4.pt"
    content, expected = path.read_bytes(), torch.load(path, weights_only=True)
    for _ in range(40):  # anywhere: names, headers and padding too
        place = random.SystemRandom().randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        if not damage(path):
            assert not differing(torch.load(path, weights_only=True), expected), place


def test_a_checkpoint_cut_anywhere_is_noticed(stopped):
    path = stopped / "checkpoint_4.pt"
    content = path.read_bytes()
    for length in [0, 1, len(content) - 1, *random.SystemRandom().sample(range(len(content)), 10)]:
        path.write_bytes(content[:length])
        assert damage(path), length


def test_a_damaged_checkpoint_is_kept_aside_and_never_counted_among_the_newest(stopped, clean_data, weights):
    (stopped / "checkpoint_4.pt").write_bytes(b"PK")
    train("source_only", clean_data, weights, stopped, resume=True, checkpoint_every=3)
    assert sorted(path.name for path in stopped.glob("checkpoint_*")) == [
        *("checkpoint_3.pt", "checkpoint_4.pt.damaged", "checkpoint_5.pt")
    ]


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


def test_a_full_disk_costs_new_checkpoints_and_keeps_the_old(small_disk, clean_data, weights, capsys):
    folder = small_disk / "run"
    with pytest.raises(OSError, match=r"No space left on device: .*run/\w+.pt"):
        train("source_only", clean_data, weights, folder, iterations=12, val_every=100)
    output = capsys.readouterr().out
    assert "could not save a checkpoint: [Errno 28] No space left on device" in output
    assert "the checkpoints before it are kept" in output
    kept = sorted(folder.glob("checkpoint_*.pt"))
    assert kept and not any(map(damage, kept)) and not list(folder.glob(".*.part"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    result = train("source_only", clean_data, weights, folder, iterations=12, val_every=100, resume=True)
    assert f"resumed from {folder / 'checkpoint_4.pt'}" in capsys.readouterr().out
    assert result["iterations"] == 12


def test_a_failing_writer_keeps_the_checkpoint_before(clean_data, weights, tmp_path, monkeypatch, capsys):
    save = torch.save

    def failing(content, file, *args):
        if "checkpoint_4" in file.name:
            file.write(b"half of it")
            raise OSError(errno.EIO, "Input/output error", file.name)
        save(content, file, *args)

    monkeypatch.setattr(files.torch, "save", failing)
    train("source_only", clean_data, weights, tmp_path)
    assert "could not save a checkpoint: [Errno 5] Input/output error" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*checkpoint_*")) == ["checkpoint_2.pt", "checkpoint_5.pt"]


# Data


def test_a_truncated_image_in_the_middle_of_the_set(data, weights, tmp_path, capsys):
    image = _damage_image(data)
    for workers in (0, 2):
        error = _fails("source_only", data, weights, tmp_path / f"run_{workers}", capsys, num_workers=workers)
        assert error.startswith(f"error: {image}: not a complete image"), error


def test_an_unknown_label_id_is_named_with_its_file(data, weights, tmp_path, capsys):
    path = data / "gta5" / "labels" / "00004.png"
    ids = np.array(Image.open(path))
    ids[0, 0] = 77
    Image.fromarray(ids).save(path)
    for workers in (0, 2):
        error = _fails("source_only", data, weights, tmp_path / f"run_{workers}", capsys, num_workers=workers)
        assert error.startswith(f"error: {path}: unknown label id 77"), error


def test_a_label_map_of_the_wrong_size_is_named_with_its_file(data, weights, tmp_path, capsys):
    path = data / "gta5" / "labels" / "00004.png"
    Image.open(path).resize((48, 24)).save(path)
    error = _fails("source_only", data, weights, tmp_path / "run", capsys)
    assert error.startswith(f"error: {path}: label map of 48x24 pixels, expected 96x48"), error


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint_before(clean_data, weights, tmp_path, capsys):
    folder = tmp_path / "run"
    error = _fails(
        "source_only", clean_data, weights, folder, capsys, lr=1000, head_lr_factor=1e9, checkpoint_every=1, val_every=1
    )
    assert "at iteration" in error and "--lr" in error
    for path in folder.glob("*.pt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True).get("model", {}).values())
    assert not any(map(damage, folder.glob("checkpoint_*.pt")))


def test_a_loader_that_dies_ends_the_run_in_one_line(clean_data, weights, tmp_path):
    run = small_runs.launch(
        small_runs.command("source_only", clean_data, weights, tmp_path, num_workers=2, iterations=4000)
    )
    while not (tmp_path / "checkpoint_2.pt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    os.kill(_children(run.pid)[0], 9)
    began = time.monotonic()
    _, err = run.communicate(timeout=60)
    assert time.monotonic() - began < 30 and run.returncode == 2
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "DataLoader worker" in lines[0] and "continue with --resume" in lines[0], err
    # torch raises in a signal handler: where that hits a callback of a fork, Python itself prints and drops it
    assert "Traceback" not in err or "Exception ignored" in err, err


def test_a_fault_in_one_of_two_processes_ends_both_with_the_line_of_that_one(data, weights, tmp_path):
    image = _damage_image(data)
    began = time.monotonic()
    run = small_runs.launch(
        small_runs.command("source_only", data, weights, tmp_path / "run", nproc_per_node=2, freeze_bn=True)
    )
    _, err = run.communicate(timeout=120)
    assert run.returncode == 2 and "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {image}: not a complete image"), err
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_processes_with_one_line(clean_data, weights, tmp_path):
    file = tmp_path / "spoilt.py"
    file.write_text(
        "import proda.engines.supervised as engine\n"
        "from experiments.source_only import PRESETS, Config, run as whole\n"
        "def run(local_rank, config):\n"
        "    losses, original = [], engine.cross_entropy\n"
        "    def spoilt(*arguments, **options):\n"
        "        losses.append(original(*arguments, **options))\n"
        "        return losses[-1] * (float('nan') if len(losses) == 2 else 1)\n"
        "    engine.cross_entropy = spoilt\n"
        "    return whole(local_rank, config)\n"
    )
    flags = {"nproc_per_node": 2, "checkpoint_every": 1}
    command = small_runs.command("source_only", clean_data, weights, tmp_path / "run", **flags)
    run = small_runs.launch([*command[:2], str(file), *command[3:]])
    while not (tmp_path / "run" / "checkpoint_1.pt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    began = time.monotonic()
    _, err = run.communicate(timeout=60)
    assert time.monotonic() - began < 30 and run.returncode == 2 and "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "the loss is not a finite number at iteration 2" in lines[0], err
    assert not damage(tmp_path / "run" / "checkpoint_1.pt")


@pytest.mark.slow
def test_a_loader_that_dies_in_one_of_two_processes_ends_both(clean_data, weights, tmp_path):
    command = small_runs.command(
        "source_only", clean_data, weights, tmp_path, num_workers=2, iterations=4000, nproc_per_node=2, freeze_bn=True
    )
    run = small_runs.launch(command)
    while not (tmp_path / "checkpoint_2.pt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    trainer = next(child for child in _children(run.pid) if _children(child))
    os.kill(random.SystemRandom().choice(_children(trainer)), 9)
    began = time.monotonic()
    _, err = run.communicate(timeout=60)
    assert time.monotonic() - began < 30 and run.returncode == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "DataLoader worker" in lines[0], err


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
def test_no_weights_file_runs_code(as_zip, clean_data, weights, tmp_path, capsys):
    trace, evil = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"model": _Intruder(trace)}, evil, _use_new_zipfile_serialization=as_zip)
    for stage, flag in (("source_only", "init_file"), ("stage1_denoise", "weights"), ("stage2_distill", "teacher")):
        error = _fails(stage, clean_data, weights, tmp_path / "run", capsys, **{flag: evil})
        assert str(evil) in error and "not run" in error, error
    _fails("stage1_denoise", clean_data, weights, tmp_path / "run", capsys, prototypes=evil)
    assert not trace.exists()


def test_no_checkpoint_runs_code(stopped, clean_data, weights, tmp_path, capsys):
    trace = tmp_path / "trace"
    torch.save({"student": _Intruder(trace)}, stopped / "checkpoint_9.pt")
    train("source_only", clean_data, weights, stopped, resume=True)
    assert f"{stopped / 'checkpoint_9.pt'} cannot be used" in capsys.readouterr().out
    assert not trace.exists()


def test_a_plain_pickle_in_the_place_of_a_checkpoint_is_not_read(tmp_path):
    (tmp_path / "checkpoint_1.pt").write_bytes(pickle.dumps(_Intruder(tmp_path / "trace")))
    with pytest.raises(UserError, match=r"checkpoint_1.pt: damaged"):
        Checkpoints(tmp_path).resume(Engine(lambda *_: None))
    assert not (tmp_path / "trace").exists()


def test_no_pseudo_label_store_runs_code(clean_data, weights, tmp_path, capsys):
    trace, run = tmp_path / "trace", tmp_path / "run"
    train("stage1_denoise", clean_data, weights, run, iterations=1)
    hostile = pickle.dumps(_Intruder(trace))
    label = sorted((run / "pseudo_labels" / "probabilities").iterdir())[0]
    label.write_bytes(hostile)
    error = _fails("stage1_denoise", clean_data, weights, run, capsys, resume=True)
    assert str(label) in error and "damaged" in error
    (run / "pseudo_labels" / "manifest.json").write_bytes(hostile)
    error = _fails("stage1_denoise", clean_data, weights, run, capsys, resume=True)
    assert "manifest.json" in error
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", "a/b", "a\\b", "C:x", "a\0b", ".hidden", ""])
def test_no_image_name_leads_out_of_the_output_folder(name, tmp_path):
    with pytest.raises(ValueError, match="cannot name a file"):
        SoftLabelStore(tmp_path / "store", 3).write(name, torch.full((3, 2, 2), 1 / 3))
    with pytest.raises(ValueError, match="cannot name a file"):
        HardLabelStore(tmp_path / "store").write(name, torch.zeros(2, 2).long(), torch.ones(2, 2))
    assert not list(tmp_path.rglob("*outside*")) and not Path("/tmp/outside").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", ".."])
@pytest.mark.parametrize("save", [SavePredictions, lambda folder: SaveOverlays(folder, np.zeros((3, 3), np.uint8))])
def test_no_image_name_leads_a_prediction_out_of_the_output_folder(save, name, tmp_path):
    batch = {"name": [name], "file_size": torch.tensor([[4, 4]]), "image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}
    output = {"predicted": torch.zeros(1, 4, 4).long(), "logits": torch.zeros(1, 3, 4, 4)}
    evaluator = Engine(lambda engine, batch: output)
    save(tmp_path / "predictions").attach(evaluator)
    with pytest.raises(ValueError, match="cannot name a file"):
        evaluator.run([batch])
    assert [path.name for path in tmp_path.rglob("*")] == ["predictions"] and not Path("/tmp/outside.png").exists()


def _damage_image(data: Path) -> Path:
    image = data / "gta5" / "images" / "00004.png"
    os.truncate(image, image.stat().st_size // 2)
    return image


def _fails(stage, data, weights, folder, capsys, /, **more) -> str:
    """Runs a stage as its command line would; returns the one line that it ends with."""
    values = flags(stage, data, weights, folder) | more
    capsys.readouterr()
    status = main([f"experiments/{stage}.py", *(f"--{key}={value}" for key, value in values.items())])
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.lstrip().startswith(("iterations", "pseudo"))
    ]
    assert status == 2 and len(lines) == 1, lines
    return lines[0]


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
