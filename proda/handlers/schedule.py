"""The learning-rate schedule."""

from ignite.handlers import LRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

POWER = 0.9


def polynomial_decay(optimizer: Optimizer, iterations: int) -> LRScheduler:
    """lr(i) = base * (1 - i / iterations) ** 0.9 after i finished iterations; 0 from ``iterations`` on.

    Attach to ``Events.ITERATION_STARTED``.
    """
    # Not torch's PolynomialLR: it multiplies up rounding errors over 90,000 iterations.
    return LRScheduler(LambdaLR(optimizer, lambda i: max(1 - i / iterations, 0.0) ** POWER))
