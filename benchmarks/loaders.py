"""CPU time and memory of one training sample of every loader, on files of the real formats and sizes.

    python benchmarks/loaders.py               # two minutes on one CPU core, 100 MB of temporary files
    python benchmarks/loaders.py --samples=50

Images are synthetic, but as hard to compress as photographs (2.5 MB for a Cityscapes PNG); stored labels are those of
``benchmarks/store.py``. Each loader runs in a process of its own, on one thread. Memory is the peak of that process,
above what it had before the first sample.
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from imagecodecs import png_encode
from PIL import Image
from store import K, enlarged, predictions
from torch import Tensor

from proda.data.benchmarks import open_dataset
from proda.data.image_files import read_image
from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.data.labels import CLASSES
from proda.data.samples import EvaluationSamples, SampleIndex, SourceTraining, TargetTraining

SIZES = {"cityscapes": (2048, 1024), "gta5": (1914, 1052), "synthia": (1280, 760)}  # width, height
LOADERS = {  # name -> (CPU-seconds, MB) wanted; None: no target
    "decoding a Cityscapes PNG": (None, None),
    "source, GTA5": (0.10, 200),
    "source, SYNTHIA": (0.10, 200),
    "target, warm-up": (None, None),
    "target, stage 1": (0.13, 200),
    "target, stages 2 and 3": (0.10, 200),
    "evaluation": (None, None),
}


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Regions and edges of every size, and the noise of a sensor."""
    total = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 60), (16, 40), (64, 20), (256, 8)):
        coarse = rng.normal(0, strength, (cells // 2, cells, 3)).astype(np.float32)
        channels = [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), 2)) for c in range(3)]
        total += np.stack(channels, 2)
    total += rng.normal(0, 1.5, total.shape)
    return Image.fromarray((total + 110).clip(0, 255).astype(np.uint8))


def write_files(root: Path, images: int) -> None:
    """``images`` examples of each data set, in the layouts of their downloads, and the labels that networks stored."""
    soft, hard = SoftLabelStore(root / "soft", K), HardLabelStore(root / "hard")
    for number in range(images):
        rng, probabilities = np.random.default_rng(number), street(number)
        confidence, labels = enlarged(probabilities).max(0)
        name = f"ulm_{number:06}_000019"
        soft.write(name, probabilities)
        hard.write(name, labels, confidence)
        for dataset in SIZES:
            write_example(root, dataset, number, labels, rng)


def street(number: int) -> Tensor:
    """Probabilities [K, h, w] of one street."""
    return predictions(torch.Generator().manual_seed(number), 2.0, 0.2)


def write_example(
    root: Path,
    dataset: str,
    number: int,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    split: str = "train",
    with_labels: bool = True,
) -> None:
    """One image, and a label map of the train ids ``labels`` [H, W] of any size, as the download has them.

    Only Cityscapes has a ``split``.
    """
    width, height = SIZES[dataset]
    folder = root / dataset
    if dataset == "cityscapes":
        name = f"{split}/ulm/ulm_{number:06}_000019"
        image, label_map = f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_labelIds.png"
    elif dataset == "gta5":
        image, label_map = f"images/{number:05}.png", f"labels/{number:05}.png"
    else:
        image, label_map = f"RGB/{number:07}.png", f"GT/LABELS/{number:07}.png"
    for file in (image, label_map)[: 1 + with_labels]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    picture(rng, width, height).save(folder / image)
    if not with_labels:
        return
    train_ids = np.asarray(Image.fromarray(labels.byte().numpy()).resize((width, height), 0))
    ids = np.array([c.synthia if dataset == "synthia" else c.cityscapes for c in CLASSES], np.uint8)[train_ids]
    if dataset == "synthia":
        channels = np.stack([ids, ids * 0 + 7, ids * 0], 2).astype(np.uint16)
        (folder / label_map).write_bytes(png_encode(channels))
        return
    content = Image.fromarray(ids)
    if dataset == "gta5":
        content.putpalette(bytes(range(256)) * 3)
    content.save(folder / label_map)


def loader(name: str, root: Path):
    """A function from a number to a sample."""
    target = open_dataset("cityscapes", root, with_labels=False)
    if name.startswith("decoding"):
        return lambda i: read_image(target.images[i % len(target)])
    if name == "evaluation":
        samples = EvaluationSamples(open_dataset("cityscapes", root))
        return lambda i: samples[i % len(target)]
    if name.startswith("source"):
        dataset = "gta5" if "GTA5" in name else "synthia"
        samples = SourceTraining(open_dataset(dataset, root))
    elif "warm-up" in name:
        samples = TargetTraining(target)
    elif "stage 1" in name:
        samples = TargetTraining(target, full_image=True, strong=True, soft_labels=SoftLabelStore(root / "soft", K))
    else:
        samples = TargetTraining(target, strong=True, pseudo_labels=HardLabelStore(root / "hard"))
    return lambda i: samples[SampleIndex(i % len(target), (i,))]


def memory(what: str) -> float:
    """MB of this process: VmRSS is what it has now, VmHWM its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1000


def measure(name: str, root: Path, samples: int, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    make = loader(name, root)
    before, seconds = memory("VmRSS"), []
    for i in range(samples):
        start = time.process_time()
        make(i)
        seconds.append(time.process_time() - start)
    results.put((seconds[1:], max(0.0, memory("VmHWM") - before)))  # the first sample imports and allocates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="files of each data set")
    parser.add_argument("--samples", type=int, default=25, help="samples of each loader")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one of {os.cpu_count()} cores; torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, settings.images)
        for dataset, (width, height) in SIZES.items():
            sizes = [path.stat().st_size / 1e6 for path in (root / dataset).rglob("*.png")]
            print(f"{dataset}: {width}x{height}, images of {max(sizes):.1f} MB")
        print(f"\n{'one sample':<28} | CPU-seconds, median (min .. max) | target | peak MB | target")
        for name, (seconds_wanted, memory_wanted) in LOADERS.items():
            results = context.Queue()
            process = context.Process(target=measure, args=(name, root, settings.samples, results))
            process.start()
            seconds, peak = results.get()
            process.join()
            spread = f"{median(seconds):.3f} ({min(seconds):.3f} .. {max(seconds):.3f})"
            wanted = (f"{seconds_wanted:.2f}", str(memory_wanted)) if seconds_wanted else ("", "")
            print(f"{name:<28} | {spread:<32} | {wanted[0]:<6} | {peak:>7.0f} | {wanted[1]}")


if __name__ == "__main__":
    main()
