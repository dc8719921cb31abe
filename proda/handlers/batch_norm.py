"""Which images batch norm remembers."""

from collections.abc import Iterable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.data.loaders import to_device
from proda.engines.step import Precision, images

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # the synchronised class derives from it too
STATISTICS = ("running_mean", "running_var")


class TargetStatistics:
    """Makes batch norm's running statistics anew from whole target images, before every validation.

    What training leaves there is a mixture of both domains' crops and of strong views. A network that was trained from
    scratch has known no other images, and the mixture fits neither domain. Training itself, which normalises by the
    statistics of each batch, goes on as without it. Statistics are those of all images together; in deeper layers they
    depend on the size of ``batches`` a little, since the layers before normalise batch by batch. Nothing happens where
    batch norm is frozen, and to a network that is not in training mode. Source: AdaBN (arXiv:1603.04779).

    Args:
        student: the bare network.
        batches: ``{"image"}`` of target images, the same on every process: so all processes find the same.
    """

    def __init__(self, student: nn.Module, batches: Iterable, precision: Precision, device: torch.device) -> None:
        self.student, self.batches, self.precision, self.device = student, batches, precision, device

    def attach(self, evaluator: Engine, event: Any = Events.STARTED) -> None:
        evaluator.add_event_handler(event, self)

    @torch.no_grad()
    def __call__(self, _: Engine) -> None:
        layers = [module for module in self.student.modules() if isinstance(module, BATCH_NORM) and module.training]
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        self.student.eval()  # no dropout
        for layer in layers:
            layer.train()
            layer.momentum = 1.0  # running statistics are those of the last batch
        count, means, squares = 0, 0.0, 0.0
        for batch in self.batches:
            batch = to_device(batch, self.device)
            with self.precision.autocast():
                self.student(images(batch))
            mean, variance = (torch.cat([getattr(m, name) for m in layers]).double() for name in STATISTICS)
            number = len(batch["image"])
            means, squares, count = means + number * mean, squares + number * (variance + mean**2), count + number
        mean = means / count
        variance = (squares / count - mean**2).clamp(min=0)
        sizes = [layer.num_features for layer in layers]
        for layer, momentum, *found in zip(layers, momenta, mean.split(sizes), variance.split(sizes), strict=True):
            layer.momentum = momentum
            for name, values in zip(STATISTICS, found, strict=True):
                getattr(layer, name).copy_(values)
        self.student.train()


def shared_statistics(trainer: Engine, student: nn.Module) -> None:
    """Attaches a handler that averages running statistics over the processes after every iteration.

    For batch norm that is neither synchronised nor frozen: each process would keep statistics of its own images, be
    validated with them, and only those of rank 0 would be saved. Attach it before whatever reads the student (EMA
    teacher, validation, checkpoints). Nothing is attached where there is one process.
    """
    if idist.get_world_size() == 1:
        return
    layers = [m for m in student.modules() if isinstance(m, BATCH_NORM) and not isinstance(m, nn.SyncBatchNorm)]

    @trainer.on(Events.ITERATION_COMPLETED)
    def average() -> None:
        buffers = [b for layer in layers if layer.training for b in (layer.running_mean, layer.running_var)]
        if buffers:
            means = idist.all_reduce(torch.cat(buffers)) / idist.get_world_size()
            for buffer, mean in zip(buffers, means.split([len(b) for b in buffers]), strict=True):
                buffer.copy_(mean)
