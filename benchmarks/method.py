"""CPU cost of the method's heavy steps on one thread: ``python benchmarks/method.py``.

Sizes are those of training on Cityscapes. Targets are upper limits for one core of a current server; the released
code needs 0.74 CPU-seconds for the distances and 5.4 for the class means.
"""

import statistics
import time

import torch

from proda.method.prototypes import class_means, distances
from proda.method.views import WeakView, crop_soft_labels

REPEATS = 15


def cpu_seconds(step) -> list[float]:
    step()  # the first call pays for allocations
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return seconds


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    crop, prototypes = torch.randn(1, 256, 128, 224), torch.randn(19, 256)
    full, logits = torch.randn(1, 256, 256, 512), torch.randn(1, 19, 256, 512)
    soft = torch.rand(19, 129, 257).half()
    view = WeakView(*map(torch.tensor, (1100, 2200, 100, 300, 512, 896, True)))
    steps = (
        ("distances of 1x256x128x224 to 19 prototypes", 0.08, lambda: distances(crop, prototypes)),
        ("class means of 1x256x256x512", 0.2, lambda: class_means(full, logits)),
        ("crop of stored soft labels, 19 classes, 896x512", 0.01, lambda: crop_soft_labels(soft, view)),
    )
    print("CPU-seconds, one thread                          | median | min..max        | target")
    for name, target, step in steps:
        seconds = cpu_seconds(step)
        spread = f"{min(seconds):.4f}..{max(seconds):.4f}"
        print(f"{name:<48} | {statistics.median(seconds):.4f} | {spread:<15} | {target}")


if __name__ == "__main__":
    main()
