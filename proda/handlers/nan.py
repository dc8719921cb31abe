"""Stops a run whose losses are not finite."""

import torch
from ignite.engine import Engine, Events

REMEDY = "lower --lr, set --grad_clip, or try --amp=off"


class StopOnNan:
    """Ends the run with a FloatingPointError when a loss of the global batch is not a finite number.

    Ignite's ``TerminateOnNan`` only asks the engine to terminate. Later handlers and those of ``COMPLETED`` would still
    run and save the spoilt weights. Attach it before the handlers that save.
    """

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not bool(_sum_of_losses(engine.state.output).isfinite().all()):
            found = {name: float(value) for name, value in engine.state.output.items() if name.startswith("loss")}
            raise FloatingPointError(
                f"the loss is not a finite number at iteration {engine.state.iteration} "
                f"({', '.join(f'{name} {value:g}' for name, value in found.items())}); "
                f"files saved before are kept: {REMEDY}"
            )


def _sum_of_losses(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """Finite if and only if every loss is."""
    return torch.as_tensor(sum(value for name, value in output.items() if name.startswith("loss")))
