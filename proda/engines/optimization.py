"""One step of the optimiser: losses, gradients, mixed precision, and the exchange of gradients between processes.

Every trainer calls ``backward`` and then ``optimizer_step``, which fire ``LOSSES_READY``, ``BACKWARD_DONE`` and
``OPTIMIZER_STEPPED``.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proda.engines.events import ProdaEvents
from proda.models.network import freeze_batch_norm

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Device and mixed precision of a run. ``amp`` is ``off``, ``bf16`` or ``fp16`` (with loss scaling on CUDA)."""

    def __init__(self, device: torch.device | str, amp: str = "off") -> None:
        self.device = torch.device(device)
        self.dtype = _DTYPES.get(amp)
        scaling = amp == "fp16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaling)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides gradients by the loss scale. A parameter that the optimizer lists repeatedly is divided once."""
        if not self.scaler.is_enabled():
            return
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": list(dict.fromkeys(group["params"]))} for group in groups]
        try:
            self.scaler.unscale_(optimizer)
        finally:
            optimizer.param_groups = groups

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Performs the optimizer's step. Returns False if loss scaling skipped it because a gradient was not finite."""
        steps: list[bool] = []
        hook = optimizer.register_step_post_hook(lambda *_: steps.append(True))
        self.scaler.step(optimizer)
        self.scaler.update()
        hook.remove()
        return bool(steps)

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:  # empty in the checkpoint of a run without loss scaling
            self.scaler.load_state_dict(state)


def no_grad_sync(model: nn.Module) -> AbstractContextManager:
    """Backward passes in this context keep gradients local; the next one outside exchanges their sum once."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def backward(
    engine: Engine, losses: dict[str, Tensor], graph: Mapping[str, Tensor], precision: Precision
) -> dict[str, Tensor]:
    """Fires ``LOSSES_READY``, then computes the gradients of the sum of all losses.

    Handlers find the weighted terms in ``engine.state.losses`` and may add their own, computed from the live tensors
    in ``engine.state.graph``. Both are set to None afterwards, so that nothing keeps the graph in memory.

    Returns:
        ``loss_NAME`` for every term, and their sum as ``loss``; all are detached scalars.
    """
    engine.state.losses, engine.state.graph = losses, graph
    engine.fire_event(ProdaEvents.LOSSES_READY)
    total: Tensor = sum(losses.values(), start=torch.zeros((), device=precision.device))
    precision.backward(total)
    engine.state.losses = engine.state.graph = None
    return {"loss": total.detach(), **{f"loss_{name}": loss.detach() for name, loss in losses.items()}}


def optimizer_step(engine: Engine, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
    """One step of the student's optimizer, between ``BACKWARD_DONE`` and ``OPTIMIZER_STEPPED``.

    Gradients are unscaled before ``BACKWARD_DONE``, so that handlers see (and clip) their true values.
    ``OPTIMIZER_STEPPED`` does not fire if loss scaling skipped the step.
    """
    precision.unscale(optimizer)
    engine.fire_event(ProdaEvents.BACKWARD_DONE)
    if precision.step(optimizer):
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)


def set_train_mode(student: nn.Module, *, freeze_bn: bool) -> None:
    """Sets training mode. With ``freeze_bn``, batch norm keeps its running statistics, scales and shifts."""
    student.train()
    if freeze_bn:
        freeze_batch_norm(student)


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 [B, 3, H, W] to float32 in 0..1, the networks' input range (no mean or deviation is applied)."""
    return images.float() / 255


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes [B, C, h, w] to float32 [B, C, *size], bilinearly with aligned corners, as everywhere in the method."""
    maps = maps.float()
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def mean_over_processes(count: Tensor) -> Tensor:
    """The number of pixels, averaged over the processes. Losses divide by it instead of by the process's own number.

    DDP averages gradients over processes, so the result is the gradient of the global batch's loss, however the batch
    is split.
    """
    if idist.get_world_size() == 1:
        return count
    return idist.all_reduce(count.double()) / idist.get_world_size()
