"""The mean teacher of stage 1 and of online self-training."""

from typing import Any

import torch
from ignite.handlers import EMAHandler
from torch import nn

from proda.engines.events import ProdaEvents, Trainer, remember
from proda.method.online import student_weight


class EMATeacher(EMAHandler):
    """Ignite's ``EMAHandler`` whose teacher also copies the student's buffers, by value.

    With Ignite's own ``handle_buffers="copy"``, teacher and student share the storage of their buffers, so a teacher in
    training mode would change the student's batch-norm statistics.

    The teacher network, ``ema_model``, starts as a copy of the student and is updated after each step of the student's
    optimizer. ``momentum`` is the weight of the student: 0.001 is the paper's alpha = 0.999. ``start_as_mean``: while
    that weighs the student more, the teacher is the mean of all students so far (``student_weight``).
    """

    def __init__(self, student: nn.Module, momentum: float = 0.001, *, start_as_mean: bool = False) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f"the momentum of the teacher must be in (0, 1], got {momentum}")
        super().__init__(student, momentum=0.5, handle_buffers="ema_train")
        self.start_as_mean = start_as_mean
        self.momentum = momentum  # set here, because Ignite refuses 1, with which the teacher equals the student
        self.ema_model.requires_grad_(False)

    def attach(self, engine: Trainer, event: Any = ProdaEvents.OPTIMIZER_STEPPED) -> None:
        super().attach(engine, name="ema_momentum", warn_if_exists=False, event=event)
        engine.add_event_handler(event, self.copy_buffers)
        remember(engine, teacher=self)

    def _update_ema_model(self, engine: Trainer, name: str) -> None:
        """Ignite's update, computed for all parameters at once: on a GPU that is two calls instead of two for each."""
        momentum = getattr(engine.state, name)
        if self.start_as_mean:
            momentum = student_weight(engine.state.iteration, momentum)
        ours, theirs = list(self.ema_model.parameters()), [p.detach() for p in self.model.parameters()]
        torch._foreach_mul_(ours, 1.0 - momentum)
        torch._foreach_add_(ours, theirs, alpha=momentum)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        ours, theirs = list(self.ema_model.buffers()), list(self.model.buffers())
        if ours:
            torch._foreach_copy_(ours, theirs)

    def state_dict(self) -> dict[str, Any]:
        return self.ema_model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema_model.load_state_dict(state)
