"""Moving weights: autocast, loss scaling and when processes exchange gradients."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.utils import manual_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proda.engines.events import ProdaEvents
from proda.models.network import freeze_batch_norm

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Mixed precision of one training run: ``amp`` is ``off``, ``bf16`` or ``fp16`` (with loss scaling on CUDA)."""

    def __init__(self, device: torch.device | str, amp: str = "off") -> None:
        self.device_type = torch.device(device).type
        self.dtype = _DTYPES.get(amp)
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp == "fp16" and self.device_type == "cuda")

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, self.dtype) if self.dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients at their true values; those of a parameter that the optimizer lists repeatedly only once."""
        if not self.scaler.is_enabled():
            return
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": list(dict.fromkeys(group["params"]))} for group in groups]
        try:
            self.scaler.unscale_(optimizer)
        finally:
            optimizer.param_groups = groups

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:  # empty: of a run without loss scaling, to be gone on with by --amp=fp16
            self.scaler.load_state_dict(state)


def accumulate_only(model: nn.Module) -> AbstractContextManager:
    """Forward and backward passes in here leave gradients local; the next backward outside exchanges the sum once."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def move(engine: Engine, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
    """One optimiser step on the gradients at hand, with the events around it.

    Gradients are unscaled before ``BACKWARD_DONE``, so that handlers see (and clip) true values.
    """
    precision.unscale(optimizer)
    engine.fire_event(ProdaEvents.BACKWARD_DONE)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)


def learn(student: nn.Module, *, freeze_bn: bool) -> None:
    """Training mode; with ``freeze_bn`` batch norm keeps its running statistics and scales."""
    student.train()
    if freeze_bn:
        freeze_batch_norm(student)


def images(batch: dict[str, Any], key: str = "image") -> Tensor:
    """uint8 [B, 3, H, W] of a batch as float in 0..1, the networks' input range (no mean, no deviation)."""
    return batch[key].float() / 255


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] brought to [B, C, *size] in float32: bilinear, corners aligned, as everywhere in the method."""
    maps = maps.float()
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def mean_over_processes(count: Tensor) -> Tensor:
    """A count as the mean over processes.

    Losses divide by it instead of by the process's own count: gradients are averaged over processes, so the result is
    the loss of the global batch, however the batch is split.
    """
    if idist.get_world_size() == 1:
        return count
    return idist.all_reduce(count.double()) / idist.get_world_size()


def seeded_by_iteration(seed: int) -> Callable[[Engine], None]:
    """A handler for ``ITERATION_STARTED``: all random numbers of an iteration follow from seed and iteration.

    So a resumed run needs no generator states to draw what an uninterrupted one would have drawn. All processes draw
    the same: what differs between the images of a batch is drawn for the global batch (see ``Dropout``).
    """

    def reseed(engine: Engine) -> None:
        manual_seed((seed * 1_000_003 + engine.state.iteration * 1_009) % 2**32)

    return reseed
