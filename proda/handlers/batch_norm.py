"""Which images batch norm remembers."""

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.engines.events import ProdaEvents


def target_statistics(trainer: Engine, student: nn.Module) -> None:
    """Attaches handlers that keep the running statistics of the student's batch norm to the target.

    Source batches, and in stage 1 strong views, are still normalised by their own mean and variance, but leave no
    trace in those that evaluation normalises by. (The student of stages 2 and 3 sees the target in strong views only;
    there they count.) A network that was trained from scratch needs it more than one that began with the wide
    statistics of ImageNet. Without effect where batch norm is frozen.
    """
    layers = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]

    def look_away() -> None:
        for layer in layers:
            layer.momentum = 0.0

    def look() -> None:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    trainer.add_event_handler(Events.ITERATION_STARTED, look_away)
    trainer.add_event_handler(ProdaEvents.SOURCE_BACKWARD_DONE, look)
    trainer.add_event_handler(ProdaEvents.WEAK_FORWARD_DONE, look_away)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)


def shared_statistics(trainer: Engine, student: nn.Module) -> None:
    """Attaches a handler that averages running statistics over the processes after every iteration.

    For batch norm that is neither synchronised nor frozen: each process would keep statistics of its own images, be
    validated with them, and only those of rank 0 would be saved. Attach it before whatever reads the student (EMA
    teacher, validation, checkpoints). Nothing is attached where there is one process.
    """
    if idist.get_world_size() == 1:
        return
    batch_norm, synchronised = nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm
    layers = [m for m in student.modules() if isinstance(m, batch_norm) and not isinstance(m, synchronised)]

    @trainer.on(Events.ITERATION_COMPLETED)
    def average() -> None:
        buffers = [b for layer in layers if layer.training for b in (layer.running_mean, layer.running_var)]
        if buffers:
            means = idist.all_reduce(torch.cat(buffers)) / idist.get_world_size()
            for buffer, mean in zip(buffers, means.split([len(b) for b in buffers]), strict=True):
                buffer.copy_(mean)
