"""CPU time and system calls that opening a data set costs, before any image is read.

    python benchmarks/listing.py                    # a quarter of a minute, 150,000 empty temporary files
    python benchmarks/listing.py --images=1000

Each data set is opened in a process of its own, with its label maps; the time of imports does not count. System calls
are counted by strace, where there is one, as the difference to a process that opens nothing.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proda.data.benchmarks import open_dataset
from proda.data.own_data import read_description

WANTED = "under 1 CPU-second and at most 2 calls an image, fingerprint included"
DATA = ("cityscapes", "gta5", "own data")


def write_files(root: Path, images: int) -> None:
    """Empty files in the layouts of two benchmarks and of one's own data."""
    for number in range(images):
        city = f"city{number % 20:02}"
        name = f"{city}/{city}_{number:06}_000019"
        for place in (
            *(
                f"cityscapes/leftImg8bit/train/{name}_leftImg8bit.png",
                f"cityscapes/gtFine/train/{name}_gtFine_labelIds.png",
            ),
            *(f"gta5/images/{number:05}.png", f"gta5/labels/{number:05}.png"),
            *(f"own/images/{city}/{number:05}.jpg", f"own/labels/{city}/{number:05}.png"),
        ):
            path = root / place
            if number < 20:
                path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT))
    (root / "own.toml").write_text(
        'classes = [{ name = "road" }, { name = "car" }]\n[train]\nimages = "own/images"\nlabels = "own/labels"\n'
    )


def open_one(name: str, root: Path, fingerprint: bool) -> None:
    """Opens a data set in this process and prints its CPU-seconds."""
    start = time.process_time()
    if name == "own data":
        own = read_description(root / "own.toml")
        dataset = own.open("train", own.space, with_labels=True)
    elif name != "nothing":
        dataset = open_dataset(name, root)
    if fingerprint and name != "nothing":
        dataset.fingerprint()
    print(time.process_time() - start)


def system_calls(command: list[str]) -> int:
    """All system calls of a command and its threads."""
    with tempfile.NamedTemporaryFile("r") as table:
        subprocess.run(["strace", "-f", "-c", "-o", table.name, *command], check=True, capture_output=True)
        total = next(line for line in table.read().splitlines() if line.endswith("total"))
    return int(total.split()[-2 if len(total.split()) == 5 else -3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_000, help="of each data set")
    parser.add_argument("--open", help=argparse.SUPPRESS)  # a data set: opens it and prints its CPU-seconds
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--fingerprint", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.open:
        open_one(settings.open, Path(settings.root), settings.fingerprint)
        return
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one of {os.cpu_count()} cores; wanted: {WANTED}")
    print(f"{settings.images} images and label maps each\n\n{'opening':<32} | CPU-seconds | system calls an image")
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), settings.images)
        base = None
        for name in ("nothing", *DATA):
            for flags in ([], ["--fingerprint"])[: 1 if name == "nothing" else 2]:
                command = [sys.executable, __file__, f"--open={name}", f"--root={folder}", *flags]
                seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                calls = system_calls(command) if shutil.which("strace") else 0
                base = calls if base is None else base
                row = f"{name + (' with fingerprint' if flags else ''):<32} | {seconds:11.2f}"
                print(f"{row} | {(calls - base) / settings.images:.2f}" if calls else row)


if __name__ == "__main__":
    main()
