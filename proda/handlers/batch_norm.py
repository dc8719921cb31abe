"""Which images batch norm remembers."""

from collections.abc import Iterable

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.data.loaders import to_device
from proda.engines.update import Precision, images

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # the synchronised class derives from it too
STATISTICS = ("running_mean", "running_var")


class TargetStatistics:
    """Before every validation, batch norm's running statistics become those of whole target images.

    What training leaves there is a mixture of both domains' crops and of strong views. A network that was trained from
    scratch has known no other images, and the mixture fits neither domain. The student is trained by the statistics of
    its batches as before; validation, and whoever loads the weights, normalise by these. Without effect where batch
    norm is frozen. Source: AdaBN (arXiv:1603.04779).

    Args:
        student: the bare network.
        batches: ``{"image"}`` of target images, the same on every process: so all processes find the same.
    """

    def __init__(self, student: nn.Module, batches: Iterable, precision: Precision, device: torch.device) -> None:
        self.student, self.batches, self.precision, self.device = student, batches, precision, device

    def attach(self, trainer: Engine, *, every: int) -> None:
        """Attach it before the validation that comes ``every`` so many iterations."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self)
        trainer.add_event_handler(Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, trainer: Engine) -> None:
        layers = [module for module in self.student.modules() if isinstance(module, BATCH_NORM) and module.training]
        if not layers:  # frozen, or validated already at this iteration
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
            mean, variance = (torch.cat([getattr(layer, name) for layer in layers]) for name in STATISTICS)
            number = len(batch["image"])
            means, squares, count = means + number * mean, squares + number * (variance + mean**2), count + number
        mean = means / count
        parts = [values.split([layer.num_features for layer in layers]) for values in (mean, squares / count - mean**2)]
        for layer, momentum, mean, variance in zip(layers, momenta, *parts, strict=True):
            layer.momentum = momentum
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
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
