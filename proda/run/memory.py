"""The memory that a process of a training run takes, and the flags with which it fits a GPU.

It is counted on tensors without data (:mod:`proda.run.live_bytes`), in an iteration of the stage on made-up data
(:mod:`proda.run.made_up`) and in what the run does besides. It does not depend on the machine that counts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from proda.engines.inference import segmentation_evaluator
from proda.engines.labelling import averaged_probabilities
from proda.engines.optimization import Precision
from proda.handlers.statistics import AdaBN
from proda.method.metrics import mutual_information
from proda.method.tensors import to_float
from proda.run.config import AdaptConfig, TrainConfig
from proda.run.data import STATISTICS_BATCH
from proda.run.live_bytes import LiveBytes, fake_tensors, tensor_bytes
from proda.run.made_up import Sizes, made_up_stage, training_batch
from proda.run.networks import Networks
from proda.run.stage import Build, Stage

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


def stage_memory(config: TrainConfig, build: Build, sizes: Sizes, processes: int = 1) -> Memory:
    """The memory of a process, counted on tensors without data. It does not depend on this machine."""
    config = replace(config, compile=False)
    precision = Precision("cpu", "off" if config.amp == "off" else "bf16")  # fp16 has the same size
    with fake_tensors() as count:
        stage, others = made_up_stage(config, build, sizes, precision)
        trainer, optimizers = stage.trainer, list(stage.optimizers.values())
        training = tree_map_only(torch.Tensor, _without_data, training_batch(stage))
        _fill_optimizers(optimizers)
        networks = stage_networks(stage, others)
        bytes_of = {name: tensor_bytes(list(network.state_dict().values())) for name, network in networks.items()}
        checkpoint = tensor_bytes([part.state_dict() for part in trainer.state.remembered.values()])
        peaks = {"training": _peak(count, lambda: trainer._process_function(trainer, training))}
        trainer.state.output = trainer.state.batch = {}
        trained = [parameter for network in networks.values() for parameter in network.parameters()]
        gradients = tensor_bytes([parameter.grad for parameter in trained if parameter.grad is not None])
        for phase, run in _other_phases(config, sizes, precision, stage):
            peaks[phase] = _peak(count, run)
        buckets = gradients if processes > 1 else 0  # DDP copies gradients into them
        return Memory(
            networks=bytes_of,
            optimizers=tensor_bytes([optimizer.state_dict()["state"] for optimizer in optimizers]),
            gradients=gradients + buckets,
            peaks={phase: peak + buckets for phase, peak in peaks.items()},
            checkpoint=checkpoint,
            model=bytes_of["student"],
            parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        )


def stage_networks(stage: Stage, networks: Networks) -> dict[str, nn.Module]:
    """The networks of a stage by name: the student first; frozen ones as ``--FLAG``, the flag that names their file."""
    found: dict[str, nn.Module] = {"student": stage.student}
    if stage.teacher is not None:
        found["mean teacher"] = stage.teacher.ema_model
    flags = {field.name for field in fields(networks.config)}
    others = {name: network for name, network in networks.made.items() if network is not stage.student}
    return found | {f"--{name}" if name in flags else name: network for name, network in others.items()}


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)


def _fill_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Gives the optimizers the state that they have from their first step on."""
    for optimizer in optimizers:
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
    config: TrainConfig, sizes: Sizes, precision: Precision, stage: Stage
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a run does besides training, where it may take more memory. Gradients are still there meanwhile."""
    image = torch.zeros(config.val_batch_size, 3, *sizes.full_image, dtype=torch.uint8)
    labels = stage.labels

    def validate() -> None:
        evaluator = segmentation_evaluator(stage.student, precision, scales=(stage.val_scale,))
        size = (config.val_batch_size, *sizes.validation_image)
        batch = {"image": torch.zeros(size[0], 3, *size[1:], dtype=torch.uint8)}
        batch["labels"] = torch.zeros(size, dtype=torch.uint8)
        mutual_information(evaluator._process_function(evaluator, batch)["logits"])

    @torch.no_grad()
    def write_hard_labels() -> None:
        assert labels is not None
        with precision.autocast():
            networks = (labels.network, *labels.ensemble)
            averaged_probabilities(networks, to_float(image), flip=labels.flip, scales=labels.scales).max(1)

    def statistics() -> None:
        batch = {"image": torch.zeros(STATISTICS_BATCH, 3, *sizes.full_image, dtype=torch.uint8)}
        stage.student.train()
        AdaBN(stage.student, [batch], precision)(stage.trainer)

    yield "validation", validate
    if labels is not None and labels.store.kind == "hard":  # soft labels take less than the validation
        yield "pseudo labels", write_hard_labels
    if isinstance(config, AdaptConfig) and config.adabn:
        yield "AdaBN", statistics


def fitting(
    config: TrainConfig, build: Build, sizes: Sizes, processes: int, memory: Memory
) -> dict[int, tuple[dict[str, Any], Memory]]:
    """GB of a GPU -> the first changes of flags with which a process fits it, and its memory then.

    GPUs that no change suffices for are left out. ``memory``: that of ``config`` itself.
    """
    found: dict[int, tuple[dict[str, Any], Memory]] = {}
    for changes in ladder(config, sizes, memory):
        changed = stage_memory(replace(config, **changes), build, sizes, processes) if changes else memory
        for size in GPUS:
            if changed.with_margin <= size * GB:
                found.setdefault(size, (changes, changed))
        if len(found) == len(GPUS):
            break
    return found


def ladder(config: TrainConfig, sizes: Sizes, memory: Memory) -> Iterator[dict[str, Any]]:
    """Changes of flags that save more and more memory; those that change least come first. The first is none."""
    changes: dict[str, Any] = {}
    yield changes
    if config.val_batch_size > 1 and memory.peak_phase != "training":
        changes = changes | {"val_batch_size": 1}
        yield changes
    if config.amp == "off":
        changes = changes | {"amp": "bf16"}
        yield changes
    if not config.checkpoint_activations:
        changes = changes | {"checkpoint_activations": True}
        yield changes
    for number in sorted({2, sizes.images}):
        if number > config.accumulate and sizes.images % number == 0:
            changes = changes | {"accumulate": number}
            yield changes
