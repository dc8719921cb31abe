"""Stops a run whose losses are not finite."""

import torch
from ignite.engine import Events
from torch import Tensor

from proda.engines.events import ProdaEvents, Trainer, check_before_validation

REMEDY = "lower --lr, set --grad_clip, or try --amp=off"
EVERY = {"cpu": 1, "cuda": 20}  # iterations between two checks, by device


class StopOnNan:
    """Ends the run with a FloatingPointError when a loss of the global batch is not a finite number.

    Reading a number from a GPU means to wait for it. So the first iteration with such a loss is noted on the device,
    and read every 20 iterations (on a CPU in each) and before the weights are validated, saved, or used to write pseudo
    labels. After Ignite's ``TerminateOnNan``, later handlers and those of ``COMPLETED`` would still save such weights.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every  # iterations between two checks; as above if None
        self.first: Tensor | None = None  # number of the first iteration with such a loss, 0 if there is none

    def attach(self, trainer: Trainer) -> None:
        check_before_validation(trainer, self)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self)
        for event in (ProdaEvents.BEFORE_WEIGHTS_USED, ProdaEvents.BEFORE_LABELS_WRITTEN, Events.COMPLETED):
            trainer.add_event_handler(event, self.check)

    def __call__(self, engine: Trainer) -> None:
        losses = torch.stack([torch.as_tensor(value).float().sum() for value in _losses(engine).values()])
        finite = losses.isfinite().all()
        if self.first is None:
            self.first = torch.zeros((), dtype=torch.long, device=losses.device)
        self.first = torch.where((self.first == 0) & ~finite, engine.state.iteration, self.first)
        if engine.state.iteration % (self.every or EVERY[losses.device.type]) == 0:
            self.check(engine)

    def check(self, engine: Trainer) -> None:
        """Raises FloatingPointError if a loss has not been finite so far."""
        if self.first is not None and (iteration := int(self.first)):
            losses = ", ".join(f"{name} {float(value):g}" for name, value in _losses(engine).items())
            found = f" ({losses})" if iteration == engine.state.iteration else ""  # those of later ones mislead
            raise FloatingPointError(
                f"the loss is not a finite number at iteration {iteration}{found}; files saved before are kept: "
                f"{REMEDY}"
            )


def _losses(engine: Trainer) -> dict[str, Tensor]:
    return {name: value for name, value in engine.state.output.items() if name.startswith("loss")}
