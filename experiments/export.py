"""Exports a network for other runtimes: ONNX, or a program of torch.export; and verifies the file.

    python run.py experiments/export.py --weights=runs/stage3_distill/last.pt
    python run.py experiments/export.py --weights=X --format=pt2 --result=labels
    python run.py experiments/export.py --weights=X --fp16 --height=1024 --width=2048

Writes OUTPUT/NAME.onnx or OUTPUT/NAME.pt2. It takes RGB in 0..1, float32 [B, 3, H, W], of any batch, height and width,
and says in its metadata which classes it has. The file is run beside the network on images of three sizes; if the two
differ by more than rounding, no file is written. At the end a table shows how long one image takes in each runtime on
this machine. docs/predict.md describes the files. ONNX needs pip install -e ".[export]".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ignite.distributed as idist
import torch

from proda.engines.tiling import automatic_tile
from proda.export.formats import FORMATS, require_packages
from proda.export.latency import Latency, compiled, eager, measure_all
from proda.export.program import ImageProgram, metadata
from proda.export.verification import BOUNDS, street_scenes, verify
from proda.models.model_info import ModelInfo
from proda.models.weights import load_network, read_weights
from proda.run.config import RunConfig
from proda.run.job import Job
from proda.run.record import git_commit
from proda.settings.options import NonNegativeInt, PathText
from proda.studies.tables import markdown_table
from proda.utils.errors import UserError
from proda.utils.files import atomic_write, fitting_name


@dataclass
class Config(RunConfig):
    # -- Network
    weights: PathText = ""  # file of the network; it also says which backbone and which classes the network has
    backbone: str = ""  # the file NAME.py of a network of your own, which is executed; otherwise not needed
    # -- Output
    format: Literal["onnx", "pt2"] = "onnx"  # onnx: for onnxruntime and others; pt2: for torch.export.load
    result: Literal["logits", "probabilities", "labels"] = "logits"  # output, of the size of the image
    fp16: bool = False  # weights and computation in float16; input and output stay float32
    latency: bool = True  # measure how long one image takes, beside eager and compiled PyTorch
    height: NonNegativeInt = 0  # height of that image; 0: that of training, or half the width
    width: NonNegativeInt = 0  # width of that image; 0: that of training (--mean_width), or twice the height

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.amp != "off" or self.compile:
            yield "--amp and --compile have no effect on an export; --fp16 exports in float16"


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("a network is exported by one process; start it without --nproc_per_node")
    require_packages(config.format)
    job, trained, form = Job(config), read_weights(config.weights), FORMATS[config.format]
    network = load_network(trained, backbone=config.backbone, dropout=0.0)
    reference = ImageProgram(network)  # float32 logits, which the file is compared with
    program = ImageProgram(network, config.result, fp16=config.fp16)
    about = metadata(program, trained.info, git_commit=git_commit())
    file = job.folder / file_name(config)
    lines = {"weights": config.weights, "network": trained.info, "file": file, "input": about["input"]}
    job.open(lines | {"result": about["output"], "precision": about["precision"]})

    # The file has its name only after the comparison.
    with atomic_write(file) as draft:
        form.write(program, draft, about)
        job.log.info("verification against the network; allowed difference: %g", BOUNDS[program.dtype])
        comparisons = verify(reference, form.open(draft, "cpu"), program)
    for comparison in comparisons:
        job.log.info("  %s", comparison)
    worst, changed = max(c.difference for c in comparisons), max(c.changed for c in comparisons)
    job.log.info("largest difference %.1e; written: %s (%.1f MB)", worst, file, file.stat().st_size / 1e6)

    summary = {"file": str(file), "largest_difference": worst, "changed_pixels": changed}
    if not config.latency:
        return job.finish(summary)

    # Float32 in PyTorch is always measured; what else PyTorch runs has the precision of the file.
    device, (width, height) = job.device.type, image_size(config, trained.info)
    full, half = ImageProgram(network, config.result), ", float16" * config.fp16
    runtimes = {"PyTorch, eager": lambda: eager(full, device)}
    if config.fp16:
        runtimes["PyTorch, eager, float16"] = lambda: eager(program, device)
    runtimes[f"PyTorch, torch.compile{half}"] = lambda: compiled(program, device)
    runtimes[f"{form.runtime}, {file.name}"] = lambda: form.open(file, device)
    threads = torch.get_num_threads()
    job.log.info("latency of one image of %d x %d pixels on %s (threads: %d)", width, height, device, threads)
    latencies = measure_all(runtimes, street_scenes(1, height, width))
    log_lines(job, latencies)
    milliseconds = {
        name: None if isinstance(row, str) else round(row.milliseconds, 2) for name, row in latencies.items()
    }
    latency = {"width": width, "height": height, "threads": threads, "milliseconds": milliseconds}
    return job.finish(summary | {"latency": latency})


def file_name(config: Config) -> str:
    """``last.onnx``, ``last_labels_fp16.pt2``: what differs from the defaults is in the name."""
    parts = [Path(config.weights).stem, *[config.result] * (config.result != "logits"), *["fp16"] * config.fp16]
    return fitting_name("_".join(parts), f".{config.format}")


def image_size(config: Config, info: ModelInfo) -> tuple[int, int]:
    """Width and height of the image whose latency is measured."""
    if config.width or config.height:
        return config.width or 2 * config.height, config.height or max(1, config.width // 2)
    mean = automatic_tile(info.mean_width)
    return info.size or (mean, mean // 2)


def log_lines(job: Job, latencies: dict[str, Latency | str]) -> None:
    """Prints the table of latencies, and below it why a runtime has no row."""
    threads = str(torch.get_num_threads())
    rows = [
        [name, f"{row.milliseconds:.1f}", str(row.runs), threads]
        for name, row in latencies.items()
        if not isinstance(row, str)
    ]
    for line in markdown_table(["runtime", "ms (median)", "runs", "threads"], rows).splitlines():
        job.log.info("%s", line)
    for name, row in latencies.items():
        if isinstance(row, str):
            job.log.warning("%s: not measured: %s", name, row)
