"""Batch-norm running statistics: recomputed on the target (AdaBN), or averaged over the processes."""

import logging
from collections.abc import Iterable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.method.tensors import to_float
from proda.models.network import evaluation_mode

log = logging.getLogger("proda")

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # the synchronized class derives from it too
STATISTICS = ("running_mean", "running_var")


class AdaBN:
    """Recomputes batch norm's running statistics on whole target images, before each validation and before new labels.

    After training, the running statistics mix crops of both domains and strong views, and fit neither domain. Training
    itself does not change, because it normalizes by the statistics of each batch. The statistics are those of all
    images together; in deeper layers they depend slightly on the batch size, because the layers before normalize each
    batch separately. Frozen batch norm, networks in evaluation mode and ``num_batches_tracked`` are left unchanged: the
    result depends on the weights alone, however often it is computed. Source: AdaBN (arXiv:1603.04779).

    Args:
        network: without a DDP wrapper.
        batches: ``{"image"}`` of target images; the same images on every process, so that the results agree.
    """

    def __init__(self, network: nn.Module, batches: Iterable, precision: Precision) -> None:
        self.network, self.batches, self.precision = network, batches, precision
        self.warned = False

    def attach(self, engine: Engine, event: Any = Events.STARTED) -> None:
        """To the network's evaluator, or to a trainer at ``BEFORE_LABELS_WRITTEN`` if the network writes the labels."""
        engine.add_event_handler(event, self)

    @torch.no_grad()
    def __call__(self, _: Engine) -> None:
        norms = [module for module in self.network.modules() if isinstance(module, BATCH_NORM)]
        if not norms and not self.warned:
            log.warning("--adabn has no effect: the network has no batch norm")
            self.warned = True
        layers = [module for module in norms if module.training]
        if not layers:
            return
        before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
        momenta = [layer.momentum for layer in layers]
        try:
            mean, variance = self._of_all_images(layers)
        finally:  # also if an image cannot be read: a checkpoint may still be saved
            for buffer, value in before:
                buffer.copy_(value)
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        sizes = [layer.num_features for layer in layers]
        for layer, *values in zip(layers, mean.split(sizes), variance.split(sizes), strict=True):
            for name, value in zip(STATISTICS, values, strict=True):
                getattr(layer, name).copy_(value)

    def _of_all_images(self, layers: list[BATCH_NORM]) -> tuple[Tensor, Tensor]:
        """Mean and variance of all features of the layers, float64; changes the layers' buffers and momentum."""
        count, means, squares = 0, torch.zeros(()), torch.zeros(())
        with evaluation_mode(self.network):  # no dropout
            for layer in layers:
                layer.train()
                layer.momentum = 1.0  # so the running statistics are those of the last batch
            for batch in self.batches:
                batch = to_device(batch, self.precision.device)
                with self.precision.autocast():
                    self.network(to_float(batch["image"]))
                mean, variance = (torch.cat([getattr(m, name) for m in layers]).double() for name in STATISTICS)
                number = len(batch["image"])
                means, squares = means + number * mean, squares + number * (variance + mean**2)
                count += number
        mean = means / count
        return mean, (squares / count - mean**2).clamp(min=0)


class AverageStatistics:
    """Averages running statistics over the processes in every iteration, before the optimizer's step.

    This is for batch norm that is neither synchronized nor frozen, with several processes: each would validate with the
    statistics of its own images, and only those of rank 0 would be saved.
    """

    def __init__(self, student: nn.Module) -> None:
        layers = (m for m in student.modules() if isinstance(m, BATCH_NORM) and not isinstance(m, nn.SyncBatchNorm))
        self.layers = list(layers)

    def attach(self, trainer: Engine) -> None:
        if idist.get_world_size() > 1:
            trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, self)

    def __call__(self, _: Engine) -> None:
        buffers = [getattr(layer, name) for layer in self.layers if layer.training for name in STATISTICS]
        if buffers:
            means = idist.all_reduce(torch.cat(buffers)) / idist.get_world_size()
            for buffer, mean in zip(buffers, means.split([len(b) for b in buffers]), strict=True):
                buffer.copy_(mean)
