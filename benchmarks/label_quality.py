"""What watching the labels costs: ``python benchmarks/label_quality.py [--published]``.

CPU-seconds of one watched iteration of batch size 4, with ground truth read from PNG files, on one thread; and, at the
size of Streets, their part of an iteration of training. At the published sizes nothing is trained.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from proda.data.augment import draw_strong_view, draw_weak_view
from proda.data.labelled_files import LabelledFiles
from proda.data.loaders import collate
from proda.engines.denoise import denoise_trainer
from proda.engines.distill import distill_trainer
from proda.engines.events import Trainer
from proda.engines.optimization import Precision
from proda.handlers.label_quality import LabelQuality
from proda.models.build import build_network

BATCH = 4
REPEATS = 15
SIZES = {  # height and width of whole images and of crops, mean width, classes, --label_report_every of the presets
    "Streets": ((128, 256), (64, 112), 275, 13, 5),
    "published": ((1024, 2048), (512, 896), 2200, 19, 25),
}


def cpu_seconds(step: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median of the CPU-seconds of a call; the first one pays for allocations and does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def label_files(folder: Path, size: tuple[int, int], classes: int) -> LabelledFiles:
    """Ground truth of areas like those of streets, in real files; the images are never decoded."""
    names = [f"photo_{i}" for i in range(BATCH)]
    coarse = np.random.default_rng(0).integers(0, classes, (BATCH, 16, 32), dtype=np.uint8)
    for name, labels in zip(names, coarse, strict=True):
        Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST).save(folder / f"{name}.png")
    files = [folder / f"{name}.png" for name in names]
    return LabelledFiles(files, files, names, table=np.arange(256, dtype=np.uint8), num_classes=classes)


def batch(whole: tuple[int, int], crop: tuple[int, int], mean_width: int, classes: int) -> dict[str, Any]:
    """A batch of any stage, of noise."""
    rng = np.random.default_rng(0)
    noise = lambda *size: torch.randint(0, 256, size, dtype=torch.uint8)  # noqa: E731
    settings = {"mean_width": mean_width, "crop_height": crop[0], "crop_width": crop[1]}
    target = [
        {
            **{"image": noise(3, *crop), "strong_image": noise(3, *crop), "full_image": noise(3, *whole)},
            **{"weak_view": draw_weak_view(rng, whole, **settings), "strong_view": draw_strong_view(rng, crop)[1]},
            "soft_labels": torch.rand(classes, crop[0] // 4, crop[1] // 4),
            "pseudo_labels": torch.randint(0, classes, crop, dtype=torch.uint8),
            "name": f"photo_{i}",
        }
        for i in range(BATCH)
    ]
    source = {"image": noise(BATCH, 3, *crop), "labels": torch.randint(0, classes, (BATCH, *crop), dtype=torch.uint8)}
    return {"source": source, "target": collate(target)}


def outputs(whole: tuple[int, int], crop: tuple[int, int], classes: int) -> dict[str, dict[str, torch.Tensor]]:
    """What the trainers of stage 1 and 2 publish, of noise."""
    h, w = crop[0] // 4, crop[1] // 4
    maps = {name: torch.randn(BATCH, classes, h, w) for name in ("soft_labels", "rectified", "prototype_weights")}
    maps = {name: value.softmax(1) for name, value in maps.items()}
    maps["target_logits"] = torch.randn(BATCH, classes, h, w)
    labels = {name: torch.randint(0, classes, (BATCH, h, w)) for name in ("pseudo_labels", "rectified_labels")}
    full = torch.randn(BATCH, classes, whole[0] // 8 + 1, whole[1] // 8 + 1)
    teacher = torch.randn(BATCH, classes, crop[0] // 8 + 1, crop[1] // 8 + 1)
    return {
        "stage 1": {**maps, **labels, "full_logits": full},
        "stages 2, 3": {
            **{"pseudo_labels": labels["pseudo_labels"], "target_logits": maps["target_logits"]},
            "teacher_logits": teacher,
        },
    }


def training(name: str, classes: int, data: dict[str, Any]) -> Callable[[], Any]:
    """One iteration of training with the tiny network."""
    student, teacher = (build_network("tiny", classes) for _ in range(2))
    optimizer, precision = torch.optim.SGD(student.parameters(), lr=1e-3), Precision("cpu")
    if name == "stage 1":
        trainer = denoise_trainer(student, teacher, torch.randn(classes, 32), optimizer, precision)
    else:
        trainer = distill_trainer(student, teacher, optimizer, precision)
    return lambda: trainer.run([data], max_epochs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", action="store_true", help="measure at the published sizes, too")
    chosen = parser.parse_args().published
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("sizes     | stage       | watched iteration | of which files | training iteration | share")
    for size, (whole, crop, mean_width, classes, every) in SIZES.items():
        if size == "published" and not chosen:
            continue
        data = batch(whole, crop, mean_width, classes)
        with tempfile.TemporaryDirectory() as folder:
            files = label_files(Path(folder), whole, classes)
            read = lambda name, files=files: files.read_labels(files.names.index(name))  # noqa: E731
            reading = cpu_seconds(lambda read=read, files=files: [read(name) for name in files.names])
            for stage, output in outputs(whole, crop, classes).items():
                watch = LabelQuality([str(k) for k in range(classes)], prototypes=torch.randn(classes, 256), truth=read)
                engine = Trainer(lambda engine, batch: {})
                watch.attach(engine, every=1)
                watch.note_prototypes(engine)
                engine.state.batch, engine.state.output = data, output
                cost = cpu_seconds(lambda watch=watch, engine=engine: watch(engine))
                row = f"{size:<9} | {stage:<11} | {cost:17.4f} | {reading:14.4f} | "
                if size == "Streets":
                    iteration = cpu_seconds(training(stage, classes, data))
                    row += f"{iteration:18.4f} | {100 * cost / every / iteration:.2f} % at {every}"
                print(row)


if __name__ == "__main__":
    main()
