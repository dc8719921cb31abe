"""Learning-rate schedules and gradient clipping."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from proda.engines.events import ProdaEvents, Trainer, remember

POWER = 0.9


class PolynomialDecay:
    """Sets lr(i) = base * (1 - i / iterations) ** power after i steps of the optimizer; 0 from ``iterations`` on.

    As long as i is less than ``warmup``, this is multiplied by (i + 1) / warmup: a linear warm-up.
    """

    def __init__(self, optimizer: Optimizer, iterations: int, *, power: float = POWER, warmup: int = 0) -> None:
        def factor(i: int) -> float:
            if i >= iterations:
                return 0.0
            return (1 - i / iterations) ** power * ((i + 1) / warmup if i < warmup else 1.0)

        # Not torch's PolynomialLR, whose recursive formula accumulates rounding errors over 90,000 iterations.
        self.scheduler = LambdaLR(optimizer, factor)

    def attach(self, trainer: Trainer, event: Any = ProdaEvents.OPTIMIZER_STEPPED, *, name: str = "schedule") -> None:
        """``event``: fires after each step of the optimizer. ``name``: key of the schedule in the checkpoint."""
        trainer.add_event_handler(event, self)
        remember(trainer, **{name: self.scheduler})

    def __call__(self, _: Trainer) -> None:
        self.scheduler.step()


class ClipGradients:
    """Clips the norm of the gradients of ``network`` at ``largest``; 0 disables clipping."""

    def __init__(self, network: nn.Module, largest: float) -> None:
        self.network, self.largest = network, largest

    def attach(self, trainer: Trainer) -> None:
        if self.largest > 0:
            trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, self)

    def __call__(self, _: Trainer) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.largest)
