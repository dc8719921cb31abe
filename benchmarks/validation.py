"""CPU time and memory of validating one image without the network: ``python benchmarks/validation.py``.

The network's place is taken by one that returns ready-made logits, in channels-last memory as the real ones do. What is
left is all that ``segmentation_evaluator`` does with one image of 2048x1024 and 19 classes: from uint8 to float, logits
to image size, predicted classes, confusion matrix and label-free score. The first row is the floor: logits to image
size, their highest class, and counting pairs of classes, without any score.

Each row is measured on one thread, in a process of its own. Memory is the peak of that process above what it had before
its first image.
"""

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from proda.engines.inference import segmentation_evaluator
from proda.engines.optimization import Precision
from proda.method.tensors import resize
from proda.models.network import Segmentation

K = 19
FULL, STRIDE = (1024, 2048), 8  # height and width of the image; the network's stride
ROWS = {  # name -> options of the evaluator
    "floor": None,
    "validation": {},
    "with --flip": {"flip": True},
    "with --flip and --scales=0.75,1,1.25": {"flip": True, "scales": (0.75, 1.0, 1.25)},
}


class ReadyMade(nn.Module):
    """Returns the same logits for all images of one size."""

    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple[int, ...], Tensor] = {}

    def forward(self, image: Tensor) -> Segmentation:
        size = tuple(side // STRIDE + 1 for side in image.shape[-2:])
        if size not in self.known:
            self.known[size] = street_like(*size).to(memory_format=torch.channels_last)
        return Segmentation(self.known[size], self.known[size])


def street_like(height: int, width: int) -> Tensor:
    """Logits [1, K, height, width] with areas of several sizes."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, K, height, width)
    for cells, strength in ((4, 4.0), (16, 3.0), (64, 1.0)):
        total += strength * resize(torch.randn(1, K, cells, 2 * cells, generator=generator), (height, width))
    return total


def work(name: str) -> Callable[[], object]:
    """One image's worth of work."""
    labels = street_like(65, 129).max(1).indices
    labels = nn.functional.interpolate(labels[:, None].float(), FULL).squeeze(1).byte()
    labels[:, : FULL[0] // 8] = 255
    network, options = ReadyMade(), ROWS[name]
    if options is None:
        logits = network(torch.empty(1, 3, *FULL)).logits.contiguous()
        return lambda: torch.bincount(
            (labels.long() * K + resize(logits, FULL).max(1).indices).flatten(), minlength=256 * K
        )
    batch = {"image": torch.randint(0, 256, (1, 3, *FULL), dtype=torch.uint8), "labels": labels, "name": ["x"]}
    evaluator = segmentation_evaluator(network, Precision("cpu"), **options)
    return lambda: evaluator.run([batch]).metrics


def measure(name: str, repeats: int, queue) -> None:
    torch.set_num_threads(1)
    step, seconds = work(name), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    result = step()  # the first image pays for what is loaded late and does not count
    for _ in range(repeats):
        start = time.process_time()
        result = step()
        seconds.append(time.process_time() - start)
    score = result["label_free"] if isinstance(result, dict) else None
    count = result["confusion"].trace().item() if isinstance(result, dict) else None
    queue.put((seconds, status("VmHWM") - before, score, count))


def status(key: str) -> float:
    """A number of MB from the process's status in Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    settings = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one of {os.cpu_count()} cores; torch {torch.__version__}"
    )
    print(f"one image of {FULL[1]}x{FULL[0]}, {K} classes; median (min .. max) of {settings.repeats}\n")
    print(f"{'':<38} | CPU-seconds             | MB added | label-free score | correct pixels")
    context = multiprocessing.get_context("spawn")
    for name in ROWS:
        queue = context.SimpleQueue()
        process = context.Process(target=measure, args=(name, settings.repeats, queue))
        process.start()
        seconds, megabytes, score, count = queue.get()
        process.join()
        row = f"{name:<38} | {median(seconds):.3f} ({min(seconds):.3f} .. {max(seconds):.3f}) | {megabytes:8.0f}"
        print(row if score is None else f"{row} | {score:16.9f} | {count}", flush=True)


if __name__ == "__main__":
    main()
