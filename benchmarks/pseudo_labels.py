"""Seconds per image of pseudo-label generation and of evaluation, at the size of Cityscapes.

    python benchmarks/pseudo_labels.py                          # the GPU if there is one; ten minutes on one CPU core
    python benchmarks/pseudo_labels.py --images=2 --backbone=resnet50

Time from PNG file to written labels or counted confusion, one image at a time and loaded by the same process, with a
network that has not been trained: its predictions compress worse than those of a trained one. On a GPU it is wall-clock
time; on a CPU the CPU time of all threads, which other work on the machine hardly changes.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from loaders import write_files

from proda.data.benchmarks import open_dataset
from proda.data.label_store import Manifest, open_store
from proda.data.labels import class_names
from proda.data.loaders import evaluation_loader
from proda.data.samples import EvaluationSamples
from proda.engines.inference import segmentation_evaluator
from proda.engines.labelling import write_pseudo_labels
from proda.engines.optimization import Precision
from proda.models.build import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0, help="images to measure; 20 on a GPU and 2 on a CPU")
    parser.add_argument("--backbone", default="resnet101", help="resnet101, resnet50 or tiny")
    parser.add_argument("--amp", default="off", help="off, bf16 or fp16")
    settings = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = settings.images or (20 if device.type == "cuda" else 2)
    network = build_network(settings.backbone, 19).to(device).to(memory_format=torch.channels_last).eval()
    precision = Precision(device, settings.amp)
    unit, clock = ("seconds", time.perf_counter) if device.type == "cuda" else ("CPU-seconds", time.process_time)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, {threads}; torch {torch.__version__}")
    print(f"{settings.backbone}, 2048x1024, amp {settings.amp}: {unit} per image, median (min .. max) of {images}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, 1)
        samples = EvaluationSamples(open_dataset("cityscapes", root))
        for name, work in {
            "soft labels": lambda batch, i: generate(root, "soft", network, batch, i, precision),
            "hard labels, flip": lambda batch, i: generate(root, "hard", network, batch, i, precision),
            "evaluation": lambda batch, i: segmentation_evaluator(network, precision).run(batch),
        }.items():
            seconds = []
            for i in range(images + (device.type == "cuda")):
                start = clock()
                work(evaluation_loader(samples), i)
                seconds.append(clock() - start)
            seconds = seconds[-images:]  # the first on a GPU chooses its kernels
            print(f"{name:<20} {median(seconds):8.3f} ({min(seconds):.3f} .. {max(seconds):.3f})")


def generate(root, kind, network, batches, number, precision) -> None:
    store = open_store(root / f"{kind}_{number}", kind, Manifest(19, "0" * 64, {}, ["ulm_000000_000019"]))
    write_pseudo_labels(store, network, batches, precision, class_names=class_names(19), flip=kind == "hard")


if __name__ == "__main__":
    main()
