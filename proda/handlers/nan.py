"""Stops a run whose losses are not finite."""

import torch
from ignite.engine import Engine, Events
from ignite.handlers import TerminateOnNan

REMEDY = "lower --lr, set --grad_clip, or try --amp=off"


class StopOnNan(TerminateOnNan):
    """Ends the run with a FloatingPointError when a loss of the global batch is not a finite number.

    Ignite's handler only asks the engine to terminate. Later handlers and those of ``COMPLETED`` would still run and
    save the spoilt weights. Attach it before the handlers that save.
    """

    def __init__(self) -> None:
        super().__init__(output_transform=_sum_of_losses)
        self.logger.disabled = True  # the error already says it

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        another, engine.should_terminate = engine.should_terminate, False  # keep another handler's request apart
        super().__call__(engine)
        if engine.should_terminate:
            found = {name: float(value) for name, value in engine.state.output.items() if name.startswith("loss")}
            raise FloatingPointError(
                f"the loss is not a finite number at iteration {engine.state.iteration} "
                f"({', '.join(f'{name} {value:g}' for name, value in found.items())}); "
                f"files saved before are kept: {REMEDY}"
            )
        engine.should_terminate = another


def _sum_of_losses(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """Finite if and only if every loss is."""
    return torch.as_tensor(sum(value for name, value in output.items() if name.startswith("loss")))
