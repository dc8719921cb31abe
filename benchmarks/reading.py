"""Time to read images from a zip file and from a folder, and label maps of colours and of ids.

    python benchmarks/reading.py               # a minute, 20 MB of temporary files

Images are those of Streets, 256 x 128 pixels, so small that the time for finding and opening a file shows. The label
maps have 1920 x 1080 pixels. Each figure is the median of several repetitions on one thread.
"""

import argparse
import os
import platform
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from proda.data.image_files import read_ids, read_image
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import color_table, id_table
from proda.data.listing import list_files
from proda.streets import write_streets

SIZE = (1920, 1080)  # of label maps


def seconds(call: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """CPU-seconds and seconds of a call."""
    call()
    found = []
    for _ in range(repetitions):
        start = time.process_time(), time.perf_counter()
        call()
        found.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return median(cpu for cpu, _ in found), median(wall for _, wall in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=7)
    settings = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one of {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_streets(root, num_train=settings.images, num_val=1)
        images = root / "gta5/images"
        for name, method in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
            with zipfile.ZipFile(root / name, "w", method) as archive:
                for path in sorted(images.iterdir()):
                    archive.write(path, path.name)
        print(f"\n{f'reading {settings.images} images':<28} | CPU-seconds | seconds")
        for place in ("gta5/images", "stored.zip", "deflated.zip"):
            files = list(list_files(root, place).values())
            cpu, wall = seconds(lambda files=files: [read_image(file) for file in files], settings.repetitions)
            print(f"{place:<28} | {cpu:11.3f} | {wall:.3f}")

        labels = next((root / "gta5/labels").iterdir())
        ids = np.asarray(read_ids(labels).resize(SIZE, Image.Resampling.NEAREST))
        colors = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
        table = color_table([[color] for color in colors[np.unique(ids)].tolist()], [])
        opaque = np.full((*ids.shape, 1), 255, np.uint8)
        photo = root / "photo.png"
        Image.new("RGB", SIZE).save(photo)
        print(f"\n{'one label map, 1920x1080':<28} | CPU-seconds | seconds")
        for name, pixels, of in (
            ("ids", ids, id_table("gta5", 19)),
            ("colours, RGB", colors[ids], table),
            ("colours, RGBA", np.concatenate([colors[ids], opaque], 2), table),
        ):
            Image.fromarray(pixels).save(root / "labels.png")
            data = LabelledFiles([photo], [root / "labels.png"], ["a"], table=of, num_classes=19)
            cpu, wall = seconds(lambda data=data: data.read_labels(0), 2 * settings.repetitions)
            print(f"{name:<28} | {cpu:11.3f} | {wall:.3f}")


if __name__ == "__main__":
    main()
