"""A dry run of every stage at the published sizes, on files of the real formats: seconds, memory, finite losses.

    python benchmarks/full_size.py        # 20 minutes on one free CPU core, 12 GB of memory, 6 GB of disk
    python benchmarks/full_size.py --source=synthia --until=stage1
    python benchmarks/full_size.py --backbone=resnet50 --num_workers=0   # other flags go to every stage as they are

Cityscapes images of 2048x1024 with labels for validation alone, GTA5 with palette PNGs or SYNTHIA with 16-bit ones,
ImageNet weights as torchvision stores them and SimCLR weights as they are converted; pictures and weights are drawn at
random. Each stage starts from the files of the one before as a user would start it, ``run.py experiments/STAGE.py``,
with the recipe of the source: a ResNet-101, crops of 896x512, whole images for teacher, pseudo labels and validation.

Memory is the peak of the stage's largest process, CPU-seconds are those of all its processes, losses the last
iteration's. Exit status 1 where a stage fails or a number is not finite. Needs the packages of ``.[test]``.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from loaders import street, write_example
from store import enlarged
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proda.run.job import read_summary

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("warmup", "stage1_denoise", "stage2_distill", "stage3_distill", "evaluate")


class Cost(NamedTuple):
    """Of one finished process and those that it has waited for."""

    status: int
    seconds: float
    cpu_seconds: float
    megabytes: float  # the largest one's peak


def main() -> int:
    settings, more = arguments()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {threads} threads of {os.cpu_count()} cores")
    print(f"torch {torch.__version__}; {' '.join([settings.backbone, settings.source, '-> cityscapes', *more])}")
    print(
        f"batch {settings.batch_size}, {settings.iterations} iterations, {settings.images} training images a domain\n"
    )
    print(f"{'stage':<15} | seconds | CPU-seconds | peak MB | disk MB | losses, mIoU of the summary")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data", settings.source, settings.images)
        write_weights(root, settings.backbone)
        for stage in STAGES[: STAGES.index(settings.until) + 1]:
            log = root / f"{stage}.log"
            cost = timed(command(stage, root, settings, more), log)
            row = f"{stage:<15} | {cost.seconds:7.0f} | {cost.cpu_seconds:11.0f} | {cost.megabytes:7.0f}"
            if cost.status:
                print(f"{row} | failed with exit status {cost.status}:\n{log.read_text()[-2000:]}")
                return 1
            values = outcome(root / stage)
            text = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            print(f"{row} | {size(root / stage):7.0f} | {text}", flush=True)
            if not all(map(math.isfinite, values.values())):
                print(f"{stage}: not all of these are finite numbers")
                return 1
    return 0


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The flags of this command, and those that are not and that every stage gets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", default="gta5", choices=("gta5", "synthia"))
    parser.add_argument("--backbone", default="resnet101", choices=("resnet101", "resnet50"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=1, help="of each stage")
    parser.add_argument("--images", type=int, default=0, help="training images of each domain; a batch if not given")
    parser.add_argument("--until", default="evaluate", help="the last stage")
    settings, more = parser.parse_known_args()
    if stray := [flag for flag in more if not flag.startswith("--")]:
        parser.error(f"{stray[0]!r}: expected flags of the form --name=value")
    found = [stage for stage in STAGES if settings.until in (stage, stage.split("_")[0])]
    if not found:
        parser.error(f"--until={settings.until}: expected one of {', '.join(STAGES)}")
    settings.until, settings.images = found[0], settings.images or settings.batch_size
    return settings, more


def write_data(root: Path, source: str, images: int) -> None:
    """``images`` training images of each domain, the target's without labels, and one for validation."""
    for number in range(images + 1):
        labels, rng = enlarged(street(number)).argmax(0), np.random.default_rng(number)
        if number == images:
            write_example(root, "cityscapes", number, labels, rng, split="val")
        else:
            write_example(root, source, number, labels, rng)
            write_example(root, "cityscapes", number, labels, rng, with_labels=False)


def write_weights(folder: Path, backbone: str) -> None:
    """What the warm-up and stage 2 start from, untrained: imagenet.pth and simclr.pth."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, backbone)(weights=None)
    for module in network.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            # Batch norm is frozen in the warm-up and has seen nothing: with 1 features would double in every block.
            module.bn3.weight.data.fill_(0.2)
    torch.save(network.state_dict(), folder / "imagenet.pth")
    torch.save({"state_dict": network.state_dict()}, folder / "simclr.pth")


def command(stage: str, root: Path, settings: argparse.Namespace, more: list[str]) -> list[str]:
    """The command line of a stage that finds everything in ``root``."""
    flags: dict[str, Any] = {"preset": settings.source, "data_root": root / "data", "output": root / stage}
    flags |= {"backbone": settings.backbone}
    if stage != "evaluate":
        flags |= {"batch_size": settings.batch_size, "iterations": settings.iterations, "log_every": 1}
    before = root / STAGES[STAGES.index(stage) - 1] / "last.pt"
    if stage == "warmup":
        flags["init_file"] = root / "imagenet.pth"
    elif stage in ("stage1_denoise", "evaluate"):
        flags["weights"] = before
    else:
        flags["teacher"] = before
        flags["init_file"] = root / "simclr.pth" if stage == "stage2_distill" else before
        flags["threshold"] = 0.0  # a teacher that has learned nothing is never sure, and no pseudo label would count
    given = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "run.py", f"experiments/{stage}.py", *given, *more]


def timed(arguments: list[str], log: Path) -> Cost:
    """Runs a command in the repository; what it says goes to ``log``."""
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, scale = time.perf_counter() - start, 1000 if sys.platform == "darwin" else 1  # there in bytes, else in kB
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000 / scale)


def size(folder: Path) -> float:
    """MB of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def outcome(folder: Path) -> dict[str, float]:
    """Last losses and final mIoU of a run; NaN where the summary has none."""
    board = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("train/loss")]
    values = {tag.removeprefix("train/"): board.Scalars(tag)[-1].value for tag in tags}
    miou = read_summary(folder)["miou"]
    return {**values, "mIoU": math.nan if miou is None else miou}


if __name__ == "__main__":
    sys.exit(main())
