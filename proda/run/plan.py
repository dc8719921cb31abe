"""What a training run will take: ``--plan`` prints it and ends.

Nothing is written, apart from images of Streets and frames of videos that are still missing.
Memory is counted for one process (:mod:`proda.run.memory`). The time of an iteration is measured on this machine with
made-up images of the right sizes (:mod:`proda.run.made_up`). Only the listing of the data is read, and a few of its
images; files of weights need not exist.
"""

import math
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.utils import manual_seed

from proda.data.check import spot_check
from proda.data.label_store import HARD_BYTES, SOFT_BYTES
from proda.data.loaders import to_device
from proda.engines.inference import segmentation_evaluator
from proda.engines.optimization import Precision
from proda.handlers.checkpoints import KEPT
from proda.models.weights import read_weights
from proda.run.config import AdaptConfig, MeanTeacherConfig, TrainConfig
from proda.run.data import Data, views_in_words, whole_images
from proda.run.domains import SOME_IMAGES
from proda.run.fit import check_flags
from proda.run.made_up import FreshNetworks, MadeUpImages, Sizes, made_up_stage, training_batch
from proda.run.memory import GB, GPUS, Memory, fitting, stage_memory
from proda.run.networks import architecture
from proda.run.stage import Build, Stage
from proda.settings.reading import recipe_value
from proda.utils.errors import UserError
from proda.utils.words import counted

LARGE = 2 * GB  # on a CPU, an iteration that takes more is measured with one image
SLOW = 30.0  # seconds; an iteration that takes longer is not measured a second time
CHANGES = {
    "val_batch_size": "fewer images at once in validation: the same scores",
    "amp": "mixed precision: activations in half precision, weights in float32. GPUs older than Ampere (V100, "
    "T4, RTX 20) need --amp=fp16, which takes the same memory",
    "checkpoint_activations": "activations are computed again in the backward pass: the same results, up to a "
    "third more time",
    "accumulate": "the batch of a process in micro-batches, one after another: the same gradients, except that batch "
    "norm takes its statistics over the images of a micro-batch",
}


class Timing(NamedTuple):
    """Seconds of one iteration and of the validation of one image, on one process."""

    iteration: float
    validation: float
    repeats: int  # iterations measured
    images: int  # of each domain in a measured iteration
    peak: int  # bytes that the GPU had allocated at the peak; 0 on a CPU


class Listing(NamedTuple):
    """What the data and the settings say about a run."""

    stage: Stage  # with the data of the run, and networks without weights
    data: Data
    sizes: Sizes
    target_images: int
    validation_images: int


def print_plan(config: TrainConfig, build: Build, name: str) -> dict[str, Any]:
    """Prints what the run of ``config`` will take; returns the figures by name. ``name``: of the experiment.

    Raises:
        UserError: the run could not start with these data and flags.
        MissingFileError: there are no data.
    """
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return {}
    processes = number_of_processes(config, os.environ)
    device = _device(config)
    listing = list_data(config, build, processes)
    config = listing.data.config  # with the views
    memory = stage_memory(config, build, listing.sizes, processes)
    _print(
        [
            ("plan of", f"{name}; nothing is written"),
            ("source -> target", f"{config.source} -> {config.target}, {len(listing.data.classes.names)} classes"),
            ("views", views_in_words(config)),
            *_length_lines(config, listing, processes),
            *_memory_lines(memory, processes),
            *_disk_lines(listing, memory),
        ]
    )
    print(f"\n{'GPU memory':<24}smallest change that fits (peak, and peak with an allowance)")
    found = fitting(config, build, listing.sizes, processes, memory)
    for line in _fitting_lines(found):
        print(line)
    result = {"iterations": listing.stage.batches.iterations, "memory": memory, "fitting": found}
    patience = "this takes minutes; " if device.type == "cpu" and memory.peaks["training"] > LARGE else ""
    print(f"\nmeasuring an iteration on {_device_name(device)}; {patience}Ctrl-C ends it ...", flush=True)
    timing = measure(config, build, listing.sizes, device, memory)
    if isinstance(timing, str):
        print(f"not measured: {timing}")
        return result
    _print(_time_lines(config, listing, processes, timing))
    return result | {"timing": timing}


def number_of_processes(config: TrainConfig, environment: Mapping[str, str]) -> int:
    """The processes of the run: of ``--nproc_per_node``, torchrun or SLURM."""
    if config.nproc_per_node > 1:
        return config.nproc_per_node
    if "RANK" in environment:
        return int(environment.get("WORLD_SIZE", "1"))
    return int(environment.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in environment else 1


def list_data(config: TrainConfig, build: Build, processes: int) -> Listing:
    """Lists and checks the data as the run would, and builds its stage with networks that have no weights.

    Raises:
        UserError, MissingFileError: as the run would.
    """
    data = Data(config, processes=processes)
    config = data.config
    check_flags(config, data.classes.names, processes)
    teachers = _teachers(config)
    stage = build(config, data, FreshNetworks(config, data.classes, Precision("cpu"), teachers, device="meta"))
    validation: Any = data.domains.validation
    data.validation_batches()
    largest = [max(spot_check(images), key=math.prod) for images in (data.domains.target, validation)]
    images = config.batch_size // processes
    sizes = Sizes(len(data.classes.names), largest[0], largest[1], images, teachers)
    return Listing(stage, data, sizes, len(data.domains.target), len(validation))


def _teachers(config: TrainConfig) -> dict[str, tuple[str, str]]:
    """Flag -> backbone and head of each network that only predicts; those of the student if its file is missing."""
    files = {flag: getattr(config, flag, "") for flag in ("teacher", "label_with")}
    return {
        flag: architecture(read_weights(file, flag=flag).info, config)
        for flag, file in files.items()
        if Path(file).is_file()
    }


def measure(config: TrainConfig, build: Build, sizes: Sizes, device: torch.device, memory: Memory) -> Timing | str:
    """Times an iteration and a validation on ``device``; if that is impossible, says why.

    The first iteration is not counted, unless it is a slow one. On a CPU a large batch is replaced by one image.
    """
    if device.type == "cpu" and memory.peaks["training"] > LARGE and sizes.images > 1:
        config, sizes = replace(config, accumulate=1), sizes._replace(images=1)
        memory = stage_memory(config, build, sizes)
    if device.type == "cpu" and memory.peak > machine_memory(device):
        return f"it takes {gb_text(memory.peak)} of memory; this machine has {gb_text(machine_memory(device))}"
    manual_seed(config.seed)
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        precision = Precision(device, config.amp, compile=config.compile)
        stage, _ = made_up_stage(config, build, sizes, precision)
        trainer, batch = stage.trainer, training_batch(stage)
        iteration, repeats = _seconds(lambda: trainer._process_function(trainer, batch), device)
        trainer.state.output = trainer.state.batch = {}
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        evaluator = segmentation_evaluator(stage.student, precision, scales=(stage.val_scale,))
        images = MadeUpImages(sizes.validation_image, sizes.num_classes, config.val_batch_size)
        whole = to_device(next(iter(whole_images(replace(config, num_workers=0), images))), device)
        validation, _ = _seconds(lambda: evaluator._process_function(evaluator, whole), device)
    except torch.OutOfMemoryError:
        return f"this GPU is too small, it has {gb_text(torch.cuda.mem_get_info(device)[1])}"
    return Timing(iteration, validation / config.val_batch_size, repeats, sizes.images, peak)


def _seconds(run: Callable[[], Any], device: torch.device) -> tuple[float, int]:
    """Seconds of ``run()``, and the number of repeats that they are the mean of."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = once()
    return (first, 1) if first > SLOW else ((once() + once()) / 2, 2)


def _length_lines(config: TrainConfig, listing: Listing, processes: int) -> Iterator[tuple[str, str]]:
    batches, images = listing.stage.batches, listing.sizes.images
    text = f"{config.batch_size} images" + (" of each domain" if batches.target is not None else "")
    if processes > 1:
        text += f", {images} on each of {processes} processes"
    if config.batch_size != (recipe := recipe_value(config, "batch_size")):
        text += f"; the recipe uses {recipe}"
    yield "global batch", text
    epochs = batches.iterations / batches.epoch_length
    yield "iterations", f"{batches.iterations}, {epochs:.4g} epochs of {batches.epoch_length}"
    number = _validations(config, listing)
    yield "validations", f"{number} of {listing.validation_images} images"


def _memory_lines(memory: Memory, processes: int) -> Iterator[tuple[str, str]]:
    yield "parameters", ", ".join(f"{name} {number / 1e6:.1f} million" for name, number in memory.parameters.items())
    yield "memory of a process", f"{gb_text(memory.peak)} at the peak, in {memory.peak_phase}"
    rest = memory.peaks["training"] - sum(memory.networks.values()) - memory.optimizers - memory.gradients
    parts = {
        "activations": rest,
        "networks": sum(memory.networks.values()),
        "gradients twice" if processes > 1 else "gradients": memory.gradients,
        "optimizer": memory.optimizers,
    }
    yield "  training", gb_text(memory.peaks["training"])
    yield "", ", ".join(f"{name} {gb_text(size)}" for name, size in parts.items())
    for phase, peak in memory.peaks.items():
        if phase != "training":
            yield f"  {phase}", gb_text(peak)


def _disk_lines(listing: Listing, memory: Memory) -> Iterator[tuple[str, str]]:
    labels = label_bytes(listing)
    models = memory.model * (4 if _validates_teacher(listing) else 3)
    total = labels + models + KEPT * memory.checkpoint
    entries = [f"{KEPT} checkpoints {_disk(KEPT * memory.checkpoint)}", f"models {_disk(models)}"]
    if labels:
        entries.insert(0, f"pseudo labels of {listing.target_images} images {_disk(labels)}")
    yield "disk space", f"{_disk(total)}, and {_disk(memory.checkpoint)} more while a checkpoint is written"
    yield "", ", ".join(entries)


def label_bytes(listing: Listing) -> float:
    """Typical size of the pseudo labels that the run stores."""
    labels, (height, width) = listing.stage.labels, listing.sizes.full_image
    if labels is None:
        return 0
    number = (1 + min(_renewals(listing), KEPT)) * listing.target_images  # those of the checkpoints are kept
    if labels.store.kind == "hard":
        return HARD_BYTES * height * width * number
    with torch.device("meta"), torch.no_grad():
        probabilities = labels.network(torch.empty(1, 3, height, width)).logits
    return SOFT_BYTES * probabilities.numel() * number


def _fitting_lines(found: dict[int, tuple[dict[str, Any], Memory]]) -> Iterator[str]:
    used: dict[str, None] = {}
    for size in sorted(GPUS):
        if size not in found:
            yield f"{size:>4} GB{'':<17}none: use more GPUs, smaller crops, or another --backbone"
            continue
        changes, memory = found[size]
        used |= dict.fromkeys(changes)
        flags = " ".join(f"--{name}" if value is True else f"--{name}={value}" for name, value in changes.items())
        flags = flags or "as it is"
        yield f"{size:>4} GB{'':<17}{flags}  ({gb_text(memory.peak)}, {gb_text(memory.with_margin)})"
    for name in used:
        first, *rest = textwrap.wrap(CHANGES[name], 72)
        yield f"{f'  --{name}':<28}{first}"
        yield from (f"{'':<28}{line}" for line in rest)


def _time_lines(config: TrainConfig, listing: Listing, processes: int, timing: Timing) -> Iterator[tuple[str, str]]:
    scale = listing.sizes.images / timing.images
    iteration = scale * timing.iteration
    text = f"{iteration:.3g} s"
    if scale > 1:
        text += f", measured with one image and multiplied by {scale:g}"
    elif timing.repeats > 1:
        text += f", mean of {timing.repeats}"
    yield "an iteration", text
    if timing.peak:
        yield "measured peak", f"{gb_text(timing.peak)} of GPU memory allocated in training"
    training = iteration * listing.stage.batches.iterations
    judged = 2 if _validates_teacher(listing) else 1
    adabn = SOME_IMAGES if isinstance(config, AdaptConfig) and config.adabn else 0
    images = judged * (listing.validation_images / processes + adabn)
    validation = _validations(config, listing) * images * timing.validation
    labels = listing.stage.labels
    passes = (1 + _renewals(listing)) * labels.passes if labels else 0
    passes += listing.stage.prototypes is not None
    preparation = passes * listing.target_images / processes * timing.validation
    yield "training", _duration(training)
    yield "validation", f"{_duration(validation)}, {timing.validation:.3g} s an image"
    if preparation:
        prototypes = ", with the prototypes" if listing.stage.prototypes is not None else ""
        yield "pseudo labels", f"about {_duration(preparation)}{prototypes}"
    yield "in all", f"{_duration(training + validation + preparation)} on this device, if loading keeps up"
    if processes > 1:
        yield "", "without the exchange of gradients, which a plan does not measure"


def _renewals(listing: Listing) -> int:
    """How often pseudo labels are renewed; not at the end of training."""
    labels, batches = listing.stage.labels, listing.stage.batches
    if labels is None or labels.every == 0:
        return 0
    return (batches.iterations - 1) // (labels.every * batches.epoch_length)


def _validates_teacher(listing: Listing) -> bool:
    config = listing.data.config
    return isinstance(config, MeanTeacherConfig) and config.validate_teacher


def _validations(config: TrainConfig, listing: Listing) -> int:
    return math.ceil(listing.stage.batches.iterations / config.val_every)


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU, {counted(threads, 'thread')}"


def machine_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _print(lines: Any) -> None:
    for name, value in lines:
        print(f"{name:<24}{value}", flush=True)


def gb_text(size: float) -> str:
    """Bytes of memory in words."""
    return f"{size / 2**20:.0f} MB" if size < GB else f"{size / GB:.1f} GB"


def _disk(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    """An estimate, in one unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
