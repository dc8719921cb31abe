"""Runs that take seconds: eight Streets images of 96 x 48 pixels and the tiny network."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events

from proda.cli.launch import main, start
from proda.data.labels import class_names
from proda.handlers.seeding import SeedIterations
from proda.handlers.stopping import Stopped
from proda.models.build import build_network
from proda.models.weights import weights_content
from proda.streets import write_streets

ROOT = Path(__file__).parent.parent
STAGES = ("source_only", "warmup", "stage1_denoise", "stage2_distill", "stage3_distill", "online_self_training")
# The parts of online self-training, which other stages take too (docs/parts.md).
SOURCE_PARTS = {"rare_class_sampling": True, "feature_distance": 0.1}
PARTS = {**SOURCE_PARTS, "class_mix": True, "color_augmentation": True, "masked_consistency": 0.5}


def write_data(folder: Path, *, num_val: int = 5) -> Path:
    """A data root with both domains."""
    write_streets(folder, num_train=8, num_val=num_val, size=(96, 48))
    return folder


def write_weights(path: Path, *, seed: int = 0) -> Path:
    """A tiny network that was never trained, as a weights file."""
    torch.manual_seed(seed)
    network = build_network("tiny", 13)
    for module in network.modules():  # statistics of a network that has seen data, so that evaluation is not constant
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    network.layer5.head[1].weight.data.mul_(30)
    torch.save(weights_content(network, class_names=class_names(13)), path)
    return path


def flags(stage: str, data: Path, weights: Path, output: Path, /, **more: Any) -> dict[str, Any]:
    """Flags of a run of a few iterations of four images; ``weights`` is the model of the stage before."""
    values = {
        "data_root": str(data),
        "output": str(output),
        "device": "cpu",
        "num_classes": 13,
        "backbone": "tiny",
        "num_workers": 0,
        "batch_size": 4,
        "iterations": 5,
        "val_batch_size": 2,
        "val_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "mean_width": 96,
        "crop_width": 48,
        "crop_height": 24,
        "lr": 0.01,
        "init": "weights",
        "init_file": str(weights),
    }
    if stage == "stage1_denoise":
        del values["init"], values["init_file"]
        values["weights"] = str(weights)
    if stage in ("stage2_distill", "stage3_distill"):
        values["teacher"] = str(weights)
        values["threshold"] = 0.2  # an untrained teacher is never sure
    if stage.startswith("stage") or stage == "online_self_training":
        values["label_report_every"] = 1
    if stage == "online_self_training":
        values |= PARTS | {"ignore_top": 2, "ignore_bottom": 3, "validate_teacher": True}
    if stage == "source_only":
        return values | more
    values = {**values, "freeze_bn": False, **more}
    return {"adabn": not values["freeze_bn"] and values.get("teacher_mode") != "eval", **values}


def train(stage: str, /, *args: Any, **more: Any) -> Any:
    """Runs a stage in this process."""
    return start(f"experiments/{stage}.py", flags(stage, *args, **more))


def train_as_command(stage: str, /, *args: Any, **more: Any) -> int:
    """The same from its command line; returns the exit status. Errors are on stderr."""
    return main(command(stage, *args, **more)[2:])


def command(stage: str, /, *args: Any, **more: Any) -> list[str]:
    """The command line of the same run."""
    return [sys.executable, "run.py", f"experiments/{stage}.py", *as_words(flags(stage, *args, **more))]


def as_words(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


@contextmanager
def stopped_after(iteration: int, *, rank: int = 0) -> Iterator[None]:
    """A run in this process, or group of processes, has to stop after that iteration: SIGTERM is sent to ``rank``."""
    sent = []

    def attach(self: SeedIterations, trainer: Engine) -> None:
        attach_seeds(self, trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), send)

    def send(_: Engine) -> None:
        sent.append(iteration)
        if idist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    attach_seeds = SeedIterations.attach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedIterations, "attach", attach)
        try:
            yield
        except Stopped as end:  # commands return the status instead
            assert end.code == 128 + signal.SIGTERM
    assert sent


def launch(arguments: list[str], **options: Any) -> subprocess.Popen:
    """Starts a command in the repository, in a session of its own, its output caught."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True, **options}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, **options)


def checkpoint(folder: Path, iteration: int) -> dict[str, Any]:
    return torch.load(folder / f"checkpoint_{iteration}.pt", weights_only=True)


def numbers(content: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All numbers of a checkpoint by their place in it."""
    if isinstance(content, torch.Tensor):
        return {name: content}
    if isinstance(content, int | float) and not isinstance(content, bool):
        return {name: torch.tensor(content, dtype=torch.float64)}
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        return {}
    return {key: value for part, inner in items for key, value in numbers(inner, f"{name}.{part}").items()}


def differing(one: Any, other: Any) -> list[str]:
    """Places in two checkpoints whose bits differ; the time that a run has taken does not count."""
    one, other = (
        {key: value for key, value in numbers(content).items() if key != ".stopwatch.seconds"}
        for content in (one, other)
    )
    return sorted(one.keys() ^ other.keys()) + [
        key for key in one.keys() & other.keys() if not _same(one[key], other[key])
    ]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves in a folder of TensorBoard files as TensorBoard shows them: tag -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    for tag, points in curves.items():
        assert len(dict(points)) == len(points), f"{tag} has two points at one step: {points}"
    return {tag: dict(points) for tag, points in curves.items()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
