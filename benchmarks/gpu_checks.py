"""The checks of ``benchmarks/gpu.py --check``: name -> function of a ``Setting``, which returns what it saw.

A check raises ``CheckFailed`` or any error if something is wrong, and returns "skipped: ..." if it cannot run here.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.utils import manual_seed

from proda.cli.launch import load_experiment
from proda.data.loaders import to_device
from proda.engines.optimization import Precision
from proda.handlers.nan import StopOnNan
from proda.run.made_up import Sizes, made_up_stage, training_batch
from proda.run.networks import compile_network
from proda.run.stage import Build, Stage
from proda.settings.reading import make_config

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("source_only", "warmup", "stage1_denoise", "stage2_distill")  # stage 3 is computed as stage 2
AMPS = ("off", "bf16", "fp16")
ITERATIONS = 5


class CheckFailed(Exception):  # noqa: N818 not an error of the program
    """A result is wrong."""


@dataclass(frozen=True)
class Setting:
    """Where and how large the checks run."""

    device: torch.device
    tiny: bool
    images: int = 4  # of each domain in a batch

    @property
    def sizes(self) -> Sizes:
        full = (128, 256) if self.tiny else (1024, 2048)
        return Sizes(13 if self.tiny else 19, full, full, self.images)

    def config(self, stage: str, **flags: Any) -> Any:
        module = load_experiment(f"experiments/{stage}.py")
        values = {"preset": "streets" if self.tiny else "gta5", "batch_size": self.images, "num_workers": 0, **flags}
        return make_config(module.Config, values, module.PRESETS)

    def stage(self, name: str, *, device: torch.device | None = None, **flags: Any) -> tuple[Stage, Any]:
        """The stage with seed 0, compiled if ``flags`` say so, and its batch on the device."""
        device, config = device or self.device, self.config(name, **flags)
        manual_seed(0)
        stage, _ = made_up_stage(
            config, build_of(name), self.sizes, Precision(device, config.amp, compile=config.compile)
        )
        trainer = stage.trainer
        if stage.teacher is not None:
            compile_network(config, stage.teacher.ema_model)
        if stage.labels is not None:  # labels and prototypes are made up
            trainer.remove_event_handler(stage.labels.prepare, Events.STARTED)
        if stage.prototypes is not None:
            trainer.remove_event_handler(stage.prototypes, Events.STARTED)
            stage.prototypes.prototypes.values.normal_()
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: manual_seed(engine.state.iteration))
        return stage, to_device(training_batch(stage), device)


def build_of(stage: str) -> Build:
    return load_experiment(f"experiments/{stage}.py").build


def losses(stage: Stage, batch: Any, number: int = ITERATIONS) -> list[dict[str, float]]:
    """The losses of each iteration. Reading them waits for the GPU."""
    found: list[dict[str, float]] = []

    def note(engine: Any) -> None:
        found.append({name: float(value) for name, value in engine.state.output.items() if name.startswith("loss")})

    with stage.trainer.add_event_handler(Events.ITERATION_COMPLETED, note):
        stage.trainer.run([batch] * number)
    return found


def state(stage: Stage) -> dict[str, torch.Tensor]:
    """Every number of the student and the optimiser's momenta, on the CPU."""
    student, optimizer = stage.student, stage.optimizers["student"]
    found = {name: value.cpu() for name, value in student.state_dict().items()}
    momenta = [part["momentum_buffer"].cpu() for part in optimizer.state.values()]
    return found | {f"momentum {number}": momentum for number, momentum in enumerate(momenta)}


def largest_difference(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Relative to the expected losses, over all terms and iterations."""
    pairs = [(one[name], other[name]) for one, other in zip(found, expected, strict=True) for name in other]
    return max(abs(one - other) / max(abs(other), 1e-3) for one, other in pairs)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def trains(setting: Setting, *, stage: str, amp: str) -> str:
    """Five iterations: all losses are finite, and they change."""
    made, batch = setting.stage(stage, amp=amp)
    found = losses(made, batch)
    StopOnNan(every=1)(made.trainer)
    if found[0] == found[-1]:
        raise CheckFailed(f"the losses do not change: {found[0]}")
    return f"loss {found[0]['loss']:.4f} -> {found[-1]['loss']:.4f}"


def equals_cpu(setting: Setting, *, stage: str) -> str:
    """The first losses in float32 without TF32, at tiny sizes: more would take a CPU minutes."""
    small = Setting(setting.device, tiny=True, images=setting.images)
    flags = {"dropout": 0.0}
    with without_tf32():
        found = losses(*small.stage(stage, **flags), number=2)
        expected = losses(*small.stage(stage, device=torch.device("cpu"), **flags), number=2)
    difference = largest_difference(found, expected)
    if difference > 2e-3:
        raise CheckFailed(f"losses differ by {difference:.1e}: found {found[-1]}, on the CPU {expected[-1]}")
    return f"largest relative difference {difference:.1e}"


def golden_steps(setting: Setting) -> str:
    """The golden training steps and the deterministic and resumed runs, by the package's own tests."""
    return _pytest("tests/golden/test_train_steps.py", "tests/test_gpu.py", marks="not slow")


def several_gpus(setting: Setting) -> str:
    """NCCL with synchronised batch norm equals one process."""
    if torch.cuda.device_count() < 2:
        return f"skipped: needs two GPUs, found {torch.cuda.device_count()}"
    return _pytest("tests/test_gpu.py", marks="slow or not slow")


def _pytest(*files: str, marks: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
    if done.returncode:
        raise CheckFailed(f"{last} ({' '.join(command[1:])})")
    return last


def same_bits_twice(setting: Setting, *, stage: str) -> str:
    with deterministic():
        first, second = (state(_run(setting, stage)) for _ in range(2))
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    if differing:
        raise CheckFailed(f"{len(differing)} of {len(first)} tensors differ, {differing[0]} first")
    return f"{len(first)} tensors"


def resumes(setting: Setting, *, stage: str) -> str:
    """Two iterations, all parts saved and loaded into fresh ones, and three more, against five."""
    with deterministic():
        whole = state(_run(setting, stage))
        made, batch = setting.stage(stage)
        made.trainer.run([batch] * 2)
        saved = {name: part.state_dict() for name, part in made.trainer.state.remembered.items()}
        saved = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, saved)
        resumed, batch = setting.stage(stage)
        for name, part in resumed.trainer.state.remembered.items():
            part.load_state_dict(saved[name])
        resumed.trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: manual_seed(engine.state.iteration + 2)
        )
        resumed.trainer.run([batch] * (ITERATIONS - 2))
    found = state(resumed)
    differing = [name for name, value in whole.items() if not torch.equal(value, found[name])]
    if differing:
        raise CheckFailed(f"{len(differing)} of {len(whole)} tensors differ, {differing[0]} first")
    return f"{len(whole)} tensors"


def _run(setting: Setting, stage: str) -> Stage:
    made, batch = setting.stage(stage)
    made.trainer.run([batch] * ITERATIONS)
    return made


def compiled_agrees(setting: Setting, *, stage: str) -> str:
    """Losses in float32 without dropout, compiled and not. At tiny sizes, as compiling takes minutes otherwise."""
    small = Setting(setting.device, tiny=True, images=setting.images)
    with without_tf32():
        plain, compiled = (losses(*small.stage(stage, dropout=0.0, compile=flag), number=3) for flag in (False, True))
    difference = largest_difference(compiled, plain)
    if difference > 1e-2:
        raise CheckFailed(f"losses differ by {difference:.1e}")
    return f"largest relative difference {difference:.1e}"


def waits_for_nothing(setting: Setting, *, stage: str) -> str:
    """No operation of a steady iteration in bfloat16 waits for the GPU."""
    if setting.device.type != "cuda":
        return "skipped: needs a GPU"
    made, batch = setting.stage(stage, amp="bf16")
    StopOnNan().attach(made.trainer)

    def mode(engine: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if engine.state.iteration >= 3 else "default")

    made.trainer.add_event_handler(Events.ITERATION_STARTED, mode)
    try:
        made.trainer.run([batch] * 6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "iterations 3 to 6"


def memory_is_steady(setting: Setting, *, stage: str) -> str:
    """What is allocated after an iteration does not grow from the third on."""
    if setting.device.type != "cuda":
        return "skipped: needs a GPU"
    made, batch = setting.stage(stage, amp="bf16")
    found: list[int] = []
    made.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: found.append(torch.cuda.memory_allocated(setting.device))
    )
    made.trainer.run([batch] * 8)
    if max(found[3:]) > found[2]:
        raise CheckFailed(f"bytes after each iteration: {found}")
    return f"{found[2] / 2**30:.2f} GB"


CHECKS: dict[str, Callable[[Setting], str]] = {
    **{f"trains: {s} {a}": partial(trains, stage=s, amp=a) for s in STAGES for a in AMPS},
    **{f"losses equal the CPU's: {s}": partial(equals_cpu, stage=s) for s in STAGES},
    "golden steps, resumed runs: tests": golden_steps,
    **{f"deterministic, same bits twice: {s}": partial(same_bits_twice, stage=s) for s in STAGES},
    **{f"resumed, same bits: {s}": partial(resumes, stage=s) for s in STAGES},
    **{f"compiled agrees: {s}": partial(compiled_agrees, stage=s) for s in STAGES},
    **{f"waits for nothing: {s}": partial(waits_for_nothing, stage=s) for s in STAGES},
    **{f"memory is steady: {s}": partial(memory_is_steady, stage=s) for s in STAGES},
    "two GPUs equal one": several_gpus,
}
