"""Which images batch norm remembers."""

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
