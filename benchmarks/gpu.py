"""What only a GPU shows: whether everything is right there (``--check``), and how fast it is.

    python benchmarks/gpu.py --check                  # 8 minutes; one line a check, exit status 1 if one fails
    python benchmarks/gpu.py                          # every stage, precision and switch: time, memory, share of peak
    python benchmarks/gpu.py --stages=stage1_denoise --amps=bf16 --switches=plain,compile --iterations=30
    python benchmarks/gpu.py --loader                 # how many workers keep up with it, on files of the real formats
    python benchmarks/gpu.py --count                  # memory and operations alone, counted: needs no GPU, 2 minutes
    python benchmarks/gpu.py --device=cpu --tiny      # the same on tiny sizes, without a GPU

Iterations are those of the stages with the preset gta5, on networks with random weights and made-up images
(``proda/run/made_up.py``): ResNet-101, batch 4, crops of 896 x 512, whole images of 2048 x 1024. FLOPs are
counted on tensors without data. Writes OUTPUT/gpu.json and OUTPUT/gpu.md.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from gpu_checks import CHECKS, CheckFailed, Setting, build_of
from ignite.engine import Engine, Events
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from proda.engines.optimization import Precision
from proda.run.live_bytes import fake_tensors
from proda.run.made_up import made_up_stage, training_batch
from proda.run.memory import stage_memory

# Dense TFLOP/s from the makers' data sheets: half precision on tensor cores, TF32, and float32.
PEAKS = {
    "H200": (989, 494, 67),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "compile": {"compile": True},
    "checkpoint_activations": {"checkpoint_activations": True},
    "accumulate=2": {"accumulate": 2},
    "accumulate=4": {"accumulate": 4},
}
WARM = 3  # iterations before those that are measured


class Row(NamedTuple):
    """One line of the table."""

    stage: str
    amp: str
    switch: str
    milliseconds: tuple[float, float, float]  # of an iteration: lowest, median, highest
    images_per_second: float  # of one domain
    tflop: float  # of an iteration
    share_of_peak: float | None
    memory_gb: float | None  # the most that was allocated on the GPU in training
    counted_gb: float  # the same as --plan counts it
    convolutions: float  # share of the time
    top: list[tuple[str, float]]  # operations that take most of the time, with their shares


def main() -> int:
    settings = arguments()
    found_gpu = torch.cuda.is_available()
    device = torch.device("cpu" if settings.device == "cpu" or (settings.count and not found_gpu) else "cuda")
    if device.type == "cuda" and not found_gpu:
        print("error: no GPU was found; --device=cpu --tiny runs the script without one", file=sys.stderr)
        return 2
    setting = Setting(device, settings.tiny)
    about = describe(device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: dict[str, Any] = {"machine": about}
    if settings.check:
        found["checks"] = check(setting, settings.only)
    elif settings.count:
        found["counted"] = [
            row
            for stage in settings.stages
            for amp in settings.amps
            for switch in settings.switches
            if (row := counted(setting, stage, amp, switch)) is not None
        ]
    elif settings.loader:
        found["loader"] = loader_rows(setting, settings.workers)
    else:
        found["rows"] = [
            measured(setting, stage, amp, switch, settings.iterations)._asdict()
            for stage in settings.stages
            for amp in settings.amps
            for switch in settings.switches
        ]
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "gpu.md").write_text(page(found))
    print(f"\n{page(found)}")
    return int(any(line["result"] == "failed" for line in found.get("checks", [])))


def arguments() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check that results are right instead of measuring")
    parser.add_argument("--only", default="", help="with --check: only checks whose names contain this")
    parser.add_argument("--count", action="store_true", help="count memory and operations without running anything")
    parser.add_argument("--loader", action="store_true", help="measure data loading instead")
    parser.add_argument("--workers", type=lambda text: list(map(int, words(text))), default=[1, 2, 4, 8, 16])
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny network and images")
    parser.add_argument("--stages", type=words, default=["warmup", "stage1_denoise", "stage2_distill"])
    parser.add_argument("--amps", type=words, default=["off", "bf16", "fp16"])
    parser.add_argument("--switches", type=words, default=list(SWITCHES))
    parser.add_argument("--iterations", type=int, default=10, help="measured iterations of each row")
    parser.add_argument("--output", default="runs/gpu")
    settings = parser.parse_args()
    if unknown := set(settings.switches) - SWITCHES.keys():
        parser.error(f"--switches: found {', '.join(sorted(unknown))}, expected some of {', '.join(SWITCHES)}")
    return settings


def describe(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found = {"date": time.strftime("%Y-%m-%d"), "device": name, "torch": torch.__version__}
    return found | ({"GPUs": torch.cuda.device_count(), "CUDA": torch.version.cuda} if device.type == "cuda" else {})


def check(setting: Setting, only: str) -> list[dict[str, Any]]:
    """Runs all checks; a line for each. A check whose needs are not met is skipped, and says why."""
    lines = []
    for name, run in CHECKS.items():
        if only not in name:
            continue
        start = time.perf_counter()
        try:
            text = run(setting)
            result = "skipped" if text.startswith("skipped") else "passed"
        except (CheckFailed, RuntimeError, FloatingPointError, AssertionError) as error:
            result, text = (
                "failed",
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
            )
        seconds = time.perf_counter() - start
        print(f"{result:<8}{name:<44}{seconds:6.1f} s  {text}", flush=True)
        lines.append({"check": name, "result": result, "seconds": round(seconds, 1), "text": text})
    return lines


def measured(setting: Setting, stage: str, amp: str, switch: str, iterations: int) -> Row:
    flags = SWITCHES[switch] | {"amp": amp}
    print(f"{stage} {amp} {switch} ...", flush=True)
    made, batch = setting.stage(stage, **flags)
    on_gpu = setting.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = iteration_times(made.trainer, batch, setting.device, WARM + iterations)[WARM:]
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    shares = operation_shares(made.trainer, batch, on_gpu)
    flop, seconds = operations(setting, stage), median(times)
    memory = stage_memory(setting.config(stage, **flags), build_of(stage), setting.sizes)
    limit = peak_of(setting.device, amp)
    return Row(
        *(stage, amp, switch, (1000 * min(times), 1000 * seconds, 1000 * max(times))),
        images_per_second=setting.images / seconds,
        tflop=flop / 1e12,
        share_of_peak=flop / 1e12 / seconds / limit if limit else None,
        memory_gb=peak,
        counted_gb=memory.peaks["training"] / 2**30,
        convolutions=sum(share for name, share in shares.items() if "conv" in name),
        top=sorted(shares.items(), key=lambda item: -item[1])[:10],
    )


def counted(setting: Setting, stage: str, amp: str, switch: str) -> dict[str, Any] | None:
    """Memory in training and operations of one row; compiling changes neither in a way that can be counted."""
    flags = SWITCHES[switch] | {"amp": amp}
    if amp == "fp16" or switch == "compile":  # fp16 takes what bf16 takes
        return None
    memory = stage_memory(setting.config(stage, **flags), build_of(stage), setting.sizes)
    gb = memory.peaks["training"] / 2**30
    print(f"{stage} {amp} {switch}: {gb:.2f} GB", flush=True)
    return {"stage": stage, "amp": amp, "switch": switch, "gb": gb, "tflop": operations(setting, stage) / 1e12}


def iteration_times(trainer: Engine, batch: Any, device: torch.device, number: int) -> list[float]:
    """Seconds of each iteration. On a GPU they are taken there, so that the program need not wait for it."""
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)
        else:
            marks.append(time.perf_counter())

    with trainer.add_event_handler(Events.ITERATION_STARTED | Events.COMPLETED, mark):
        trainer.run([batch] * number)
    if device.type == "cuda":
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]
    return [end - start for start, end in pairwise(marks)]


def operation_shares(trainer: Engine, batch: Any, on_gpu: bool) -> dict[str, float]:
    """Operation -> share of the time, over two iterations."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        trainer.run([batch] * 2)
        if on_gpu:
            torch.cuda.synchronize()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = {event.key: getattr(event, attribute) for event in profiler.key_averages()}
    total = sum(found.values())
    return {name: value / total for name, value in found.items() if value > 0}


def operations(setting: Setting, stage: str) -> int:
    """Floating-point operations of one iteration, counted in float32 without switches."""
    with fake_tensors():
        made, _ = made_up_stage(setting.config(stage), build_of(stage), setting.sizes, Precision("cpu"))
        batch = tree_map_only(
            torch.Tensor, lambda x: torch.empty_strided(x.size(), x.stride(), dtype=x.dtype), training_batch(made)
        )
        with FlopCounterMode(display=False) as counter:
            made.trainer._process_function(made.trainer, batch)
    return counter.get_total_flops()


def peak_of(device: torch.device, amp: str) -> float | None:
    """TFLOP/s that the maker promises, None for an unknown device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    half, tf32, single = next((value for key, value in PEAKS.items() if key in name), (None, None, None))
    if amp != "off":
        return half
    return tf32 if torch.backends.cudnn.allow_tf32 else single


def loader_rows(setting: Setting, workers: list[int]) -> list[dict[str, Any]]:
    """Batches a second of stage 1's loader by number of workers, beside those that the device computes."""
    from loaders import write_files

    from proda.data.benchmarks import open_dataset
    from proda.data.label_store import SoftLabelStore
    from proda.data.loaders import training_batches
    from proda.data.samples import SourceTraining, TargetTraining

    made, batch = setting.stage("stage1_denoise", amp="bf16")
    computed = 1 / median(iteration_times(made.trainer, batch, setting.device, WARM + 5)[WARM:])
    rows, number = [], 24
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, 4)
        source = SourceTraining(open_dataset("gta5", root))
        target = TargetTraining(
            open_dataset("cityscapes", root, with_labels=False),
            **{"full_image": True, "strong": True, "soft_labels": SoftLabelStore(root / "soft", 19)},
        )
        for count in workers:
            pinned = setting.device.type == "cuda"
            options = {"batch_size": 4, "iterations": number, "seed": 0, "num_workers": count, "pin_memory": pinned}
            batches_ = iter(training_batches(source, target, **options))
            for _ in range(4):  # workers have to start
                next(batches_)
            start = time.perf_counter()
            done = sum(1 for _ in batches_)
            rows.append({"workers": count, "batches_per_second": done / (time.perf_counter() - start)})
            rows[-1]["enough"] = rows[-1]["batches_per_second"] >= computed
            print(f"{count} workers: {rows[-1]['batches_per_second']:.2f} batches a second", flush=True)
    return [{"workers": "the network", "batches_per_second": computed, "enough": None}, *rows]


def page(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in found["machine"].items()), ""]
    if "checks" in found:
        lines += ["| check | result | seconds | |", "|---|---|---:|---|"]
        lines += [f"| {c['check']} | {c['result']} | {c['seconds']} | {c['text']} |" for c in found["checks"]]
    if "rows" in found:
        lines += [
            "| stage | precision | switch | ms, median (lowest..highest) | images/s | TFLOP | share of peak | GB | "
            "GB counted | convolutions |",
            "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in found["rows"]:
            low, middle, high = row["milliseconds"]
            share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f}%"
            memory = "" if row["memory_gb"] is None else f"{row['memory_gb']:.1f}"
            lines.append(
                f"| {row['stage']} | {row['amp']} | {row['switch']} | {middle:.0f} ({low:.0f}..{high:.0f}) | "
                f"{row['images_per_second']:.1f} | {row['tflop']:.2f} | {share} | {memory} | "
                f"{row['counted_gb']:.2f} | {100 * row['convolutions']:.0f}% |"
            )
        for row in found["rows"]:
            if row["switch"] == "plain":
                top = ", ".join(f"`{name}` {100 * share:.0f}%" for name, share in row["top"])
                lines += ["", f"{row['stage']}, {row['amp']}: {top}"]
    if "counted" in found:
        lines += ["| stage | precision | switch | GB counted | TFLOP |", "|---|---|---|---:|---:|"]
        lines += [
            f"| {row['stage']} | {row['amp']} | {row['switch']} | {row['gb']:.1f} | {row['tflop']:.1f} |"
            for row in found["counted"]
        ]
    if "loader" in found:
        lines += ["| workers | batches of 4 a second | enough |", "|---|---:|---|"]
        lines += [
            f"| {row['workers']} | {row['batches_per_second']:.2f} | {'yes' if row['enough'] else ''} |"
            for row in found["loader"]
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
