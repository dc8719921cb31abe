"""The moments of the method that Ignite's own events do not name, and what an engine remembers.

Within one iteration the events fire in the order of the class body, as far as the stage has them. Training on source
labels alone has one backward pass: there ``LOSSES_READY`` comes before ``SOURCE_BACKWARD_DONE``.
``engine.state.output`` is a dict that grows during the iteration: at each event it holds what has been computed so
far, detached from the graph (the trainer factories list its keys).
"""

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum
from torch import Tensor


class ProdaEvents(EventEnum):
    """Attach with ``@trainer.on(ProdaEvents.LABELS_RECTIFIED)``; filters (``every=``, ``once=``) count iterations."""

    PSEUDO_LABELS_DUE = "pseudo_labels_due"  # the student is about to write new labels (between iterations)
    PSEUDO_LABELS_REFRESHED = "pseudo_labels_refreshed"  # new labels of the target set are on disk (between iterations)
    SOURCE_BACKWARD_DONE = "source_backward_done"  # the gradients of the source loss are there
    TEACHER_FORWARD_DONE = "teacher_forward_done"  # the teacher has seen the target image
    LABELS_RECTIFIED = "labels_rectified"  # stage 1: soft labels times prototype weights, and their arg-max
    LOSSES_READY = "losses_ready"  # before the last backward pass: ``engine.state.losses["mine"] = weight * term``
    BACKWARD_DONE = "backward_done"  # all gradients of the iteration are there; clip or inspect them here
    OPTIMIZER_STEPPED = "optimizer_stepped"  # the student's weights have changed; not fired when fp16 skips the step
    PROTOTYPES_UPDATED = "prototypes_updated"  # stage 1: the prototypes have moved
    DISCRIMINATOR_STEPPED = "discriminator_stepped"  # warm-up: the discriminator's weights have changed
    VALIDATED = "validated"  # new scores are in ``engine.state.metrics`` (between iterations)


def proda_engine(step: Callable[[Engine, Any], dict[str, Any]], **remembered: Any) -> Engine:
    """An Engine that knows ``ProdaEvents`` and remembers the given parts (see :func:`remember`).

    ``engine.state.summary`` is a dict for entries that handlers add to ``summary.json``.

    The losses in the output (entries whose name starts with ``loss``) are averaged over the processes before any
    handler of ``ITERATION_COMPLETED`` sees them: they are those of the global batch.
    """

    def step_and_average(engine: Engine, batch: Any) -> dict[str, Any]:
        output = step(engine, batch)
        average_losses(output or {})  # a user's step may return nothing
        return output

    engine = Engine(step_and_average)
    engine.register_events(*ProdaEvents, event_to_attr=dict.fromkeys(ProdaEvents, "iteration"))
    engine.state.remembered, engine.state.summary = {}, {}
    remember(engine, **remembered)
    return engine


def remember(engine: Engine, **parts: Any) -> None:
    """Adds objects with ``state_dict`` and ``load_state_dict`` to what the checkpoints of the engine's run hold.

    A handler calls it in its ``attach``: what it remembers then survives ``--resume``.

    Raises:
        TypeError: an object without these two methods.
        ValueError: a name that another object has.
    """
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(f"{name}: {type(part).__name__} has no state_dict and load_state_dict to be remembered by")
        if engine.state.remembered.setdefault(name, part) is not part:
            raise ValueError(f"the engine already remembers another {name!r}")


def average_losses(output: dict[str, Any]) -> None:
    """Replaces each loss in ``output`` by its mean over the processes; numbers become tensors, maps their mean."""
    names = sorted(name for name in output if name.startswith("loss"))
    if not names:
        return
    for name in names:
        output[name] = torch.as_tensor(output[name], device=idist.device()).detach()
        if output[name].ndim:
            output[name] = output[name].float().mean()
    if idist.get_world_size() > 1:
        mean: Tensor = idist.all_reduce(torch.stack([output[name].double() for name in names]))
        output.update(zip(names, mean / idist.get_world_size(), strict=True))
