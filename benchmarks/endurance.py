"""Whether long runs keep what they take: memory, open files and threads of training and prediction over hours.

    python benchmarks/endurance.py                    # 20,000 iterations each, and 5,000 images
    python benchmarks/endurance.py --iterations=2000  # a tenth of both
    python benchmarks/endurance.py --only=predict

Stage 1 and online self-training run on tiny images with validation, checkpoints, label reports and TensorBoard, and
prediction on copies of them. Each is a command of its own, which is observed from outside, in /proc: resident memory of
the process and of its loaders, its open files and its threads. Each line of the table is one of twenty parts of a run.
What follows the first 1,000 iterations (or a tenth of the run, if that is less) must not grow: the medians of the first
and of the last third of it are compared. The exit status is 1 if one has grown.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from proda.streets import write_streets
from proda.utils.run_files import checkpoint_files

ROOT = Path(__file__).parent.parent
PARTS, FIRST = 20, 1000
MOST_MIB = 8.0  # growth of memory that allocators and growing lists of scores explain
JOBS = ("stage1_denoise", "online_self_training", "predict")


class Sample(NamedTuple):
    """What a process takes; ``done`` counts iterations or images."""

    done: int
    mib: float
    loaders_mib: float
    files: int
    threads: int


def sample(process: int, done: int) -> Sample:
    """Reads /proc. Raises OSError if the process has ended."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return Sample(
        done,
        resident(process),
        sum(resident(int(child)) for child in children),
        len(os.listdir(f"/proc/{process}/fd")),
        len(os.listdir(f"/proc/{process}/task")),
    )


def resident(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def observe(arguments: list[str], progress: Callable[[], int], step: int) -> list[Sample]:
    """A sample at each ``step`` of the progress of a command, printed as a line. SystemExit if the command fails."""
    with tempfile.TemporaryFile("w+") as log:
        command = subprocess.Popen([sys.executable, "run.py", *arguments], cwd=ROOT, stdout=log, stderr=log)
        samples: list[Sample] = []
        print(f"{'done':>8} {'memory, MiB':>12} {'loaders, MiB':>13} {'open files':>11} {'threads':>8}")
        while command.poll() is None:
            done = progress()
            if done // step > (samples[-1].done // step if samples else 0):
                with contextlib.suppress(OSError):  # it has just ended
                    samples.append(sample(command.pid, done))
                    print("{:8} {:12.1f} {:13.1f} {:11} {:8}".format(*samples[-1]), flush=True)
            time.sleep(0.02)
        if command.wait():
            log.seek(0)
            raise SystemExit(f"{arguments[0]} failed:\n{log.read()[-3000:]}")
    return samples


def grown(samples: list[Sample], first: int) -> list[str]:
    """What has grown since ``first`` iterations or images, in words."""
    steady = [sample for sample in samples if sample.done >= first]
    third = max(1, len(steady) // 3)
    found = []
    for name, most in {"mib": MOST_MIB, "loaders_mib": MOST_MIB, "files": 0, "threads": 0}.items():
        before, after = (median(getattr(one, name) for one in some) for some in (steady[:third], steady[-third:]))
        if after - before > most:
            found.append(f"{name} from {before:.1f} to {after:.1f}")
    return found


def write_inputs(folder: Path, images: int) -> None:
    """Images of Streets, ``images`` links to them, and a network that was hardly trained."""
    write_streets(folder / "data", num_train=24, num_val=6, size=(96, 48))
    there = sorted((folder / "data/cityscapes/leftImg8bit/train").rglob("*.png"))
    (folder / "photos").mkdir()
    for number in range(images):
        os.link(there[number % len(there)], folder / f"photos/{number:05}.png")
    flags = training_flags(folder, folder / "warmup", 2)
    subprocess.run([sys.executable, "run.py", "warmup", *flags, "--init=random"], cwd=ROOT, check=True, stdout=-3)


def training_flags(folder: Path, output: Path, iterations: int) -> list[str]:
    every = max(1, iterations // PARTS // 10)
    return [
        *(f"--data_root={folder / 'data'}", f"--output={output}", f"--iterations={iterations}", "--num_workers=2"),
        *("--device=cpu", "--num_classes=13", "--backbone=tiny", "--batch_size=2", "--lr=0.001"),
        *("--mean_width=96", "--crop_width=48", "--crop_height=24"),
        *(f"--val_every={every}", f"--checkpoint_every={every}"),
    ]


def arguments_of(job: str, folder: Path, count: int) -> tuple[list[str], Callable[[], int]]:
    """The command line of a job, and how far it is."""
    output, weights = folder / job, folder / "warmup/last.pt"
    if job == "predict":
        flags = [f"--weights={weights}", f"--images={folder / 'photos'}", "--device=cpu", "--num_workers=2"]
        labels = output / "labels"
        return [job, *flags, f"--output={output}"], lambda: len(os.listdir(labels)) if labels.is_dir() else 0
    start = ["--init=weights", f"--init_file={weights}"] if job == "online_self_training" else [f"--weights={weights}"]
    flags = [*training_flags(folder, output, count), *start, "--log_every=10"]
    return [job, *flags], lambda: max(checkpoint_files(output), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20_000, help="of training; a quarter as many images")
    parser.add_argument("--only", choices=JOBS, help="one of the jobs")
    options = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, options.iterations // 4)
        for job in [options.only] if options.only else JOBS:
            count = options.iterations // (4 if job == "predict" else 1)
            print(f"\n{job}, {count} {'images' if job == 'predict' else 'iterations'}", flush=True)
            began = time.monotonic()
            samples = observe(*arguments_of(job, folder, count), step=max(1, count // PARTS))
            problems = grown(samples, min(FIRST, count // 10))
            print(f"{time.monotonic() - began:.0f} s; {'GROWN: ' + ', '.join(problems) if problems else 'steady'}")
            status |= bool(problems)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
