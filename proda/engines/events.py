"""Events within an iteration, in addition to Ignite's own, and the objects that an engine's checkpoints contain.

A stage fires only the events that apply to it, within one iteration in the order of the class body. There are two
exceptions. Where there is no loss on the target, ``EXTRA_LOSSES`` comes first and ``SOURCE_BACKWARD_DONE`` after
``LOSSES_READY``. In stages 2 and 3 ``TEACHER_FORWARD_DONE`` comes after ``TARGET_READY``, as the teacher sees what that
leaves.
``engine.state.output`` is a dict that grows during the iteration: at each event it holds what has been computed so
far, detached from the graph. The functions that create the trainers list its keys.
"""

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum
from torch import Tensor


class ProdaEvents(EventEnum):
    """Attach with ``@trainer.on(ProdaEvents.LABELS_RECTIFIED)``; filters (``every=``, ``once=``) count iterations."""

    BEFORE_LABELS_WRITTEN = "before_labels_written"  # new labels are about to be written (between iterations)
    PSEUDO_LABELS_REFRESHED = "pseudo_labels_refreshed"  # the target's labels are on disk (between iterations)
    SOURCE_LOSSES_READY = "source_losses_ready"  # before the source's backward pass; add terms as at ``LOSSES_READY``
    SOURCE_BACKWARD_DONE = "source_backward_done"  # the gradients of the source loss are computed
    TEACHER_FORWARD_DONE = "teacher_forward_done"  # the teacher's prediction for the target is computed
    LABELS_RECTIFIED = "labels_rectified"  # stage 1: pseudo labels are weighted by the prototypes
    EXTRA_LOSSES = "extra_losses"  # for ``engine.state.update.extra_loss``, with a pass of its own
    TARGET_READY = "target_ready"  # ``engine.state.target`` is what the target loss will use; mix or augment it here
    LOSSES_READY = "losses_ready"  # before the last backward pass: ``engine.state.losses["mine"] = weight * term``
    BACKWARD_DONE = "backward_done"  # all gradients are computed; clip or inspect them here
    OPTIMIZER_STEPPED = "optimizer_stepped"  # the student's weights have changed; not fired when fp16 skips the step
    PROTOTYPES_UPDATED = "prototypes_updated"  # stage 1: the prototypes have changed
    DISCRIMINATOR_STEPPED = "discriminator_stepped"  # warm-up: the discriminator's weights have changed
    BEFORE_WEIGHTS_USED = "before_weights_used"  # the weights are about to be validated or saved (between iterations)
    LABELS_REPORTED = "labels_reported"  # new figures are in ``engine.state.label_quality`` (between iterations)
    VALIDATED = "validated"  # new scores are in ``engine.state.metrics`` (between iterations)


def proda_engine(step: Callable[[Engine, Any], dict[str, Any]], **remembered: Any) -> Engine:
    """An ``Engine`` with ``ProdaEvents`` whose checkpoints contain the given parts (see :func:`remember`).

    Handlers may add entries for ``summary.json`` to the dict ``engine.state.summary``.

    The losses in the output (entries whose name starts with ``loss``) are averaged over the processes before any
    handler of ``ITERATION_COMPLETED`` sees them, so they are the losses of the global batch.
    """

    def step_and_average(engine: Engine, batch: Any) -> dict[str, Any]:
        output = step(engine, batch)
        average_losses(output)
        return output

    engine = Engine(step_and_average)
    engine.register_events(*ProdaEvents, event_to_attr=dict.fromkeys(ProdaEvents, "iteration"))
    engine.state.remembered, engine.state.summary = {}, {}
    remember(engine, **remembered)
    return engine


def remember(engine: Engine, **parts: Any) -> None:
    """Adds objects with ``state_dict`` and ``load_state_dict`` to the checkpoints of the engine's run.

    A handler calls it in its ``attach``, so that its state survives ``--resume``. Names are keys of the checkpoint.

    Raises:
        TypeError: an object lacks one of these methods.
        ValueError: the name is already used for another object.
    """
    for name, part in parts.items():
        if name in ("trainer", "format"):
            raise ValueError(f"{name!r} is a part of every checkpoint; choose another name")
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"{name}: {type(part).__name__} has no state_dict and load_state_dict, so it cannot be saved"
            )
        if engine.state.remembered.setdefault(name, part) is not part:
            raise ValueError(f"the engine already remembers another {name!r}")


def average_losses(output: dict[str, Any] | None) -> None:
    """Replaces each loss in ``output`` by its mean over the processes.

    Numbers become tensors, and a loss with several elements is replaced by their mean. In a single process the losses
    stay on their device, which need not be the one that Ignite would choose.
    """
    names = sorted(name for name in output or {} if name.startswith("loss"))
    if output is None or not names:
        return
    devices = [output[name].device for name in names if isinstance(output[name], Tensor)]
    device = idist.device() if idist.get_world_size() > 1 else next(iter(devices), torch.device("cpu"))
    for name in names:
        output[name] = torch.as_tensor(output[name], device=device).detach()
        if output[name].ndim:
            output[name] = output[name].float().mean()
    if idist.get_world_size() > 1:
        mean: Tensor = idist.all_reduce(torch.stack([output[name].double() for name in names]))
        output.update(zip(names, mean / idist.get_world_size(), strict=True))
