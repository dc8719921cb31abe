"""What the pseudo-label store costs and what it changes, at the sizes of Cityscapes.

    python benchmarks/store.py               # about a minute on one CPU core
    python benchmarks/store.py --images=20

Predictions are synthetic: regions of every size with sharp borders, small objects, confidence from sure to torn, and
noise from cell to cell. "rough" has about twice the borders and half the sure pixels of a trained network. Beside the
store stand the files of the released code: float32 .npy for soft labels, PNG and float16 .npy for hard ones.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from proda.data.label_store import HardLabelStore, SoftLabelStore

K, STORED, FULL = 19, (129, 257), (1024, 2048)
KINDS = {  # sharpness of the logits, size of the noise
    "natural": (2.0, 0.2),
    "noisy": (2.0, 0.6),
    "rough": (1.0, 0.2),
}
TARGETS = {"soft": 0.65, "hard": 0.60}  # MB an image


def predictions(generator: torch.Generator, sharpness: float, noise: float) -> Tensor:
    """Probabilities [K, h, w] that look like those of a segmentation network on a street."""
    h, w = STORED
    logits = torch.linspace(1.5, -2.5, K)[torch.randperm(K, generator=generator)][:, None, None].expand(K, h, w)
    height = torch.rand(K, 1, generator=generator)  # where in the image a class lives: sky, road, ...
    logits = logits - 6 * (torch.linspace(0, 1, h) - height).square()[:, :, None]
    for cell, size in ((64, 1.6), (24, 1.2), (8, 0.8), (3, 0.35)):
        field = torch.randn(1, K, h // cell + 4, w // cell + 4, generator=generator)
        logits += size * F.interpolate(field, scale_factor=cell, mode="bicubic")[0, :, :h, :w]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    for _ in range(45):  # objects
        k = int(torch.randint(K, (1,), generator=generator))
        cy, cx, ry, rx = torch.rand(4, generator=generator).tolist()
        distance = ((y - 40 - 60 * cy) / (2 + 10 * ry)) ** 2 + ((x - w * cx) / (2 + 10 * rx)) ** 2
        logits[k] += 5 * torch.sigmoid(3 * (1 - distance))
    logits = 2.2 * sharpness * logits + noise * torch.randn(K, h, w, generator=generator)
    return logits.softmax(0)


def enlarged(probabilities: Tensor) -> Tensor:
    return F.interpolate(probabilities[None], size=FULL, mode="bilinear", align_corners=True)[0]


def rectified(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Reweighted by something as decided as the prototype weights of the method."""
    weights = F.interpolate(torch.randn(1, K, 17, 33, generator=generator), size=STORED, mode="bilinear")[0]
    product = probabilities * (2 * weights).softmax(0)
    return product / product.sum(0)


def agreement(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Shares of pixels with an equal arg-max, and with an equal decision ``> 0.95``."""
    (found, found_labels), (expected, expected_labels) = found.max(0), expected.max(0)
    same = ((found > 0.95) == (expected > 0.95)).float().mean()
    return (found_labels == expected_labels).float().mean().item(), same.item()


class Figures:
    """Values by name, printed as median and range."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def seconds(self, name: str, function: Callable, *args: object) -> object:
        start = time.process_time()
        result = function(*args)
        self.add(name, time.process_time() - start)
        return result

    def row(self, label: str, name: str, unit: str, scale: float = 1.0, digits: int = 3, note: str = "") -> None:
        values = [value * scale for value in self.values[name]]
        spread = f"({min(values):.{digits}f} .. {max(values):.{digits}f})"
        print(f"  {label:<34} {median(values):>9.{digits}f} {spread:<22} {unit}{note}")


def released(figures: Figures, folder: Path, probabilities: Tensor, labels: Tensor, confidence: Tensor) -> None:
    soft, hard, png = folder / "soft.npy", folder / "confidence.npy", folder / "labels.png"

    def write_hard() -> None:
        Image.fromarray(labels.to(torch.uint8).numpy()).save(png)
        np.save(hard, confidence.half().numpy())

    figures.seconds("released soft write", np.save, soft, probabilities.numpy())
    figures.seconds("released soft read", np.load, soft)
    figures.seconds("released hard write", write_hard)
    figures.seconds("released hard read", lambda: (np.asarray(Image.open(png)), np.load(hard)))
    figures.add("released soft bytes", soft.stat().st_size)
    figures.add("released hard bytes", hard.stat().st_size + png.stat().st_size)


def measure(images: int, sharpness: float, noise: float, folder: Path) -> Figures:
    figures = Figures()
    soft, hard = SoftLabelStore(folder / "soft", K), HardLabelStore(folder / "hard")
    for seed in range(images):
        generator = torch.Generator().manual_seed(seed)
        probabilities = predictions(generator, sharpness, noise)
        full = enlarged(probabilities)
        confidence, labels = full.max(0)
        figures.add("sure", (confidence > 0.95).float().mean().item())
        figures.add("border", (labels[:, 1:] != labels[:, :-1]).float().mean().item())

        figures.seconds("soft write", soft.write, str(seed), probabilities)
        read = figures.seconds("soft read", soft.read, str(seed))
        state = generator.get_state()
        expected = rectified(probabilities, generator)
        for name, pair in {
            "stored": (read, probabilities),
            "full": (enlarged(read), full),
            "rectified": (rectified(read, generator.set_state(state)), expected),
        }.items():
            for key, value in zip(("arg-max", "selected"), agreement(*pair), strict=True):
                figures.add(f"soft {name} {key}", value)

        figures.seconds("hard write", hard.write, str(seed), labels, confidence)
        read_labels, read_confidence = figures.seconds("hard read", hard.read, str(seed))
        figures.add("hard arg-max", (read_labels == labels).float().mean().item())
        figures.add("hard selected", ((read_confidence > 0.95) == (confidence > 0.95)).float().mean().item())
        in_half = (read_confidence.half() <= torch.tensor(0.95).half()) == (
            confidence.half() <= torch.tensor(0.95).half()
        )
        figures.add("hard selected float16", in_half.float().mean().item())

        for store in (soft, hard):
            sizes = [
                (folder / store.kind / part / f"{seed}{suffix}").stat().st_size for part, suffix in store.parts.items()
            ]
            figures.add(f"{store.kind} bytes", sum(sizes))
        released(figures, folder, probabilities, labels, confidence)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="images of each kind of prediction")
    images = parser.parse_args().images
    torch.set_num_threads(1)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used"
    )
    print(f"torch {torch.__version__}, numpy {np.__version__}; {images} images, median (lowest .. highest)")
    for name, settings in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(images, *settings, Path(folder))
        print(f"\n{name} predictions")
        figures.row("pixels above 0.95", "sure", "%", 100, 1)
        figures.row("neighbours that differ", "border", "%", 100, 2)
        for kind, size in (("soft", f"{K}x{STORED[0]}x{STORED[1]}"), ("hard", f"{FULL[0]}x{FULL[1]}")):
            print(f" {kind} labels, {size}")
            figures.row("size", f"{kind} bytes", "MB", 1e-6, note=f", target {TARGETS[kind]:.2f}")
            figures.row("  released code", f"released {kind} bytes", "MB", 1e-6)
            for verb in ("write", "read"):
                figures.row(verb, f"{kind} {verb}", "CPU ms", 1e3, 1)
                figures.row("  released code", f"released {kind} {verb}", "CPU ms", 1e3, 1)
            if kind == "soft":
                for key, label in (("stored", "as stored"), ("full", "at image size"), ("rectified", "rectified")):
                    for what in ("arg-max", "selected"):
                        figures.row(f"same {what}, {label}", f"soft {key} {what}", "%, target 99.9", 100)
            else:
                figures.row("same arg-max", "hard arg-max", "%, target 99.9", 100)
                figures.row("same selected", "hard selected", "%, target 99.9", 100)
                figures.row("same selected, in float16", "hard selected float16", "%, target 99.9", 100)


if __name__ == "__main__":
    main()
