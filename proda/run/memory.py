"""The memory that a process of a training run takes, and the flags with which it fits a GPU.

It is counted on tensors without data (:mod:`proda.run.live_bytes`), in an iteration of the run's own update
(:mod:`proda.run.workloads`) and in what the run does besides. It does not depend on the machine that counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from proda.engines.labelling import averaged_probabilities
from proda.engines.optimization import Precision
from proda.engines.options import ContrastiveOptions, DistillOptions
from proda.handlers.statistics import AdaBN
from proda.method.metrics import mutual_information
from proda.method.tensors import to_float
from proda.run.domains import STATISTICS_BATCH
from proda.run.live_bytes import LiveBytes, fake_tensors, tensor_bytes
from proda.run.workloads import Sizes, Workload, batches, stage_kind, workload
from proda.settings.config import parse_scales

GB = 2**30  # of memory, as for GPUs; of disk space 1e9 bytes
GPUS = (11, 16, 24, 80)  # GB of memory
# What is not counted: the context of CUDA with its libraries, and gaps between blocks and work space of convolutions.
CONTEXT, MARGIN = 0.6 * GB, 1.1


class Memory(NamedTuple):
    """Bytes of one process."""

    networks: dict[str, int]  # parameters and buffers of each network
    optimizers: int
    gradients: int  # with several processes, the copies in DDP's buckets too
    peaks: dict[str, int]  # phase of the run -> everything that is in memory at its peak
    checkpoint: int  # bytes of a checkpoint file
    model: int  # bytes of a file such as last.pt
    parameters: dict[str, int]  # number of parameters of each network

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def peak_phase(self) -> str:
        return max(self.peaks, key=self.peaks.__getitem__)

    @property
    def with_margin(self) -> float:
        """What a GPU has to have: the peak, and an allowance for what is not counted."""
        return MARGIN * self.peak + CONTEXT


def stage_memory(config: Any, sizes: Sizes, processes: int = 1) -> Memory:
    """The memory of a process, counted on tensors without data. It does not depend on this machine."""
    config = replace(config, compile=False)
    precision = Precision("cpu", "off" if config.amp == "off" else "bf16")  # fp16 has the same size
    real = batches(config, sizes)
    with fake_tensors() as count:
        training, validation = (tree_map_only(torch.Tensor, _without_data, batch) for batch in real)
        work = workload(config, sizes, precision, training, validation)
        _fill_optimizers(work)
        networks = {name: tensor_bytes(list(net.state_dict().values())) for name, net in work.networks.items()}
        checkpoint = tensor_bytes([part.state_dict() for part in work.trainer.state.remembered.values()])
        peaks = {"training": _peak(count, lambda: work.trainer.run([work.batch]))}
        work.trainer.state.output = work.trainer.state.batch = None
        trained = [parameter for net in work.networks.values() for parameter in net.parameters()]
        gradients = tensor_bytes([parameter.grad for parameter in trained if parameter.grad is not None])
        for phase, run in _other_phases(config, sizes, precision, work):
            peaks[phase] = _peak(count, run)
        buckets = gradients if processes > 1 else 0  # DDP copies gradients into them
        return Memory(
            networks=networks,
            optimizers=tensor_bytes([optimizer.state_dict()["state"] for optimizer in work.optimizers]),
            gradients=gradients + buckets,
            peaks={phase: peak + buckets for phase, peak in peaks.items()},
            checkpoint=checkpoint,
            model=networks["student"] + networks.get("discriminator", 0),
            parameters={name: sum(p.numel() for p in net.parameters()) for name, net in work.networks.items()},
        )


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)


def _fill_optimizers(work: Workload) -> None:
    """Gives the optimisers the state that they have from their first step on."""
    for optimizer in work.optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()


def _peak(count: LiveBytes, run: Callable[[], Any]) -> int:
    """The bytes in memory at the peak of ``run()``, with all that was there before."""
    count.reset_peak()
    run()
    return count.peak


def _other_phases(
    config: Any, sizes: Sizes, precision: Precision, work: Workload
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a run does besides training, where it may take more memory. Gradients are still there meanwhile."""
    image = torch.zeros(config.val_batch_size, 3, *sizes.full_image, dtype=torch.uint8)

    def validate() -> None:
        output = work.evaluator._process_function(work.evaluator, work.validation_batch)
        if isinstance(output, dict):  # pretraining has embeddings instead
            mutual_information(output["logits"])

    @torch.no_grad()
    def write_hard_labels() -> None:
        with precision.autocast():
            flip, scales = averaged_over(config)
            averaged_probabilities(work.labellers, to_float(image), flip=flip, scales=scales).max(1)

    def statistics() -> None:
        batch = {"image": torch.zeros(STATISTICS_BATCH, 3, *sizes.full_image, dtype=torch.uint8)}
        work.networks["student"].train()
        AdaBN(work.networks["student"], [batch], precision)(work.trainer)

    yield "validation", validate
    if stage_kind(config) is DistillOptions:  # soft labels take less than the validation, for lack of full-size maps
        yield "pseudo labels", write_hard_labels
    if getattr(config, "adabn", False):
        yield "AdaBN", statistics


def fitting(config: Any, sizes: Sizes, processes: int, memory: Memory) -> dict[int, tuple[dict[str, Any], Memory]]:
    """GB of a GPU -> the first changes of flags with which a process fits it, and its memory then.

    A GPU that none is enough for is missing. ``memory``: that of ``config`` itself.
    """
    found: dict[int, tuple[dict[str, Any], Memory]] = {}
    for changes in ladder(config, sizes, memory):
        changed = stage_memory(replace(config, **changes), sizes, processes) if changes else memory
        for size in GPUS:
            if changed.with_margin <= size * GB:
                found.setdefault(size, (changes, changed))
        if len(found) == len(GPUS):
            break
    return found


def ladder(config: Any, sizes: Sizes, memory: Memory) -> Iterator[dict[str, Any]]:
    """Changes of flags that save more and more memory; those that change least come first. The first is none."""
    known = {field.name for field in fields(config)}
    changes: dict[str, Any] = {}
    yield changes
    if config.val_batch_size > 1 and memory.peak_phase != "training":
        changes = changes | {"val_batch_size": 1}
        yield changes
    if config.amp == "off":
        changes = changes | {"amp": "bf16"}
        yield changes
    if "checkpoint_activations" in known and not config.checkpoint_activations:
        changes = changes | {"checkpoint_activations": True}
        yield changes
    if stage_kind(config) is not ContrastiveOptions:  # it compares all images of a batch with one another
        for parts in sorted({2, sizes.images}):
            if parts > config.accumulate and sizes.images % parts == 0:
                changes = changes | {"accumulate": parts}
                yield changes


def averaged_over(config: Any) -> tuple[bool, tuple[float, ...]]:
    """``--flip`` and ``--scales`` of an experiment that has these flags."""
    return getattr(config, "flip", False), parse_scales(getattr(config, "scales", "1"))
