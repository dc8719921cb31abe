"""The trainer: an Ignite ``Engine`` with the events of this method, and a state whose attributes are declared.

One iteration, with its events in their order (:class:`ProdaEvents`). A stage fires those that apply to it:

1. The source loss: ``SOURCE_LOSSES_READY``, its backward pass, ``SOURCE_BACKWARD_DONE``. The gradients stay local.
2. The teacher's forward pass on the target: ``TEACHER_FORWARD_DONE``. Stage 1 then rectifies the pseudo labels
   (equations 3 and 4): ``LABELS_RECTIFIED``.
3. Losses with forward passes of their own: ``EXTRA_LOSSES``. Then the target may be replaced: ``TARGET_READY``.
   In stages 2 and 3 the teacher runs only now, because it predicts the replaced target.
4. The student's forward pass on the target: ``LOSSES_READY``, and the backward pass of the sum of these losses, after
   which processes have exchanged all gradients: ``BACKWARD_DONE``. Gradients are clipped here.
5. The optimizer's step: ``OPTIMIZER_STEPPED``. Stage 1 then updates its prototypes (equation 6:
   ``PROTOTYPES_UPDATED``); the mean teacher follows, and the learning rate.
6. In the warm-up, the discriminator's step: ``DISCRIMINATOR_STEPPED``.

In source-only training, ``EXTRA_LOSSES`` comes first, and the events of both kinds of losses precede the only backward
pass. After the iteration (``ITERATION_COMPLETED``) come the label report, the stop on NaN, the checkpoint, the
validation with the models to keep, and TensorBoard, in this order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum, State
from torch import Tensor

from proda.engines.target import TargetView


class ProdaEvents(EventEnum):
    """Attach with ``@trainer.on(ProdaEvents.LABELS_RECTIFIED)``; filters (``every=``, ``once=``) count iterations."""

    BEFORE_LABELS_WRITTEN = "before_labels_written"  # the student is about to renew the labels (between iterations)
    PSEUDO_LABELS_REFRESHED = "pseudo_labels_refreshed"  # the target's labels are on disk (between iterations)
    SOURCE_LOSSES_READY = "source_losses_ready"  # before the source's backward pass; add terms as at ``LOSSES_READY``
    SOURCE_BACKWARD_DONE = "source_backward_done"  # the gradients of the source loss are computed
    TEACHER_FORWARD_DONE = "teacher_forward_done"  # the teacher's prediction for the target is computed
    LABELS_RECTIFIED = "labels_rectified"  # stage 1: pseudo labels are weighted by the prototypes
    EXTRA_LOSSES = "extra_losses"  # for ``engine.state.update.extra_loss``, with a forward pass of its own
    TARGET_READY = "target_ready"  # ``engine.state.target`` is what the target loss will use; mix or augment it here
    LOSSES_READY = "losses_ready"  # before the last backward pass: ``engine.state.losses["mine"] = weight * term``
    BACKWARD_DONE = "backward_done"  # all gradients are computed; clip or inspect them here
    OPTIMIZER_STEPPED = "optimizer_stepped"  # the student's weights have changed; not fired when fp16 skips the step
    PROTOTYPES_UPDATED = "prototypes_updated"  # stage 1: the prototypes have changed
    DISCRIMINATOR_STEPPED = "discriminator_stepped"  # warm-up: the discriminator's weights have changed
    BEFORE_WEIGHTS_USED = "before_weights_used"  # the weights are about to be validated or saved (between iterations)
    LABELS_REPORTED = "labels_reported"  # new figures are in ``engine.state.label_quality`` (between iterations)
    VALIDATED = "validated"  # new scores are in ``engine.state.metrics`` (between iterations)


class TrainerState(State):
    """What trainers and handlers add to Ignite's ``State``."""

    # Written by the step, within an iteration
    batch: dict[str, Any]  # on the device
    output: dict[str, Tensor]  # grows during the iteration; detached. Each trainer's docstring lists its keys
    update: Any  # ``StudentUpdate``: the student's micro-batches, gradients and optimizer step
    # These three are None where a trainer has no target, and where no backward pass is being prepared.
    target: TargetView  # images and labels of the target loss; handlers of ``TARGET_READY`` may replace it
    losses: dict[str, Tensor]  # weighted terms of the backward pass
    graph: Mapping[str, Tensor]  # tensors with gradients, from which further terms can be computed

    # Written by handlers, over the run
    remembered: dict[str, Any]  # name -> object with a state dict, saved in checkpoints (``remember``)
    summary: dict[str, Any]  # entries for summary.json
    scores: dict[str, Any]  # of the last validation (``Validation``)
    pseudo_label_scores: dict[str, Any]  # of the labels last written, if there is ground truth (``PseudoLabels``)
    label_quality: dict[str, float]  # TensorBoard's tag -> figure of the last label report (``LabelQuality``)
    label_charts: dict[str, Any]  # which of these figures TensorBoard shows in one chart
    checkpoint_iterations: list[int]  # of the checkpoints that exist (``Checkpoints``)

    def __init__(self) -> None:
        super().__init__()
        nothing: Any = None
        self.target = self.losses = self.graph = nothing
        self.remembered, self.summary, self.scores = {}, {}, {}
        self.pseudo_label_scores, self.label_quality, self.label_charts = {}, {}, {}
        self.checkpoint_iterations = []


class Trainer(Engine):
    """An ``Engine`` with ``ProdaEvents`` and a ``TrainerState``; its checkpoints contain the objects ``remembered``.

    The losses in the output of ``step`` (entries whose name starts with ``loss``) are averaged over the processes
    before any handler of ``ITERATION_COMPLETED`` sees them, so they are the losses of the global batch.
    """

    state: TrainerState

    def __init__(self, step: Callable[[Any, Any], dict[str, Any]], **remembered: Any) -> None:
        self.computing = False  # within an iteration, also after an exception there: weights are half changed

        def step_and_average(trainer: Engine, batch: Any) -> dict[str, Any]:
            self.computing = True
            output = step(trainer, batch)
            average_losses(output)
            self.computing = False
            return output

        super().__init__(step_and_average)
        self.state = TrainerState()
        self.register_events(*ProdaEvents, event_to_attr=dict.fromkeys(ProdaEvents, "iteration"))
        remember(self, **remembered)


def remember(trainer: Engine, **parts: Any) -> None:
    """Adds objects with ``state_dict`` and ``load_state_dict`` to the checkpoints of the trainer's run.

    A handler calls it in its ``attach``, so that its state survives ``--resume``. Names are keys of the checkpoint.

    Raises:
        TypeError: an object lacks one of these methods.
        ValueError: the name is already used for another object.
    """
    for name, part in parts.items():
        if name in ("trainer", "format"):
            raise ValueError(f"{name!r} is in every checkpoint; choose another name")
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"{name}: {type(part).__name__} has no state_dict and load_state_dict, so it cannot be saved"
            )
        if trainer.state.remembered.setdefault(name, part) is not part:
            raise ValueError(f"the trainer already remembers another {name!r}")


def check_before_validation(trainer: Trainer, handler: object) -> None:
    """Raises ValueError if ``Validation`` is attached already, which has to come after ``handler``.

    What a handler does in an iteration has to be done before its checkpoint is saved, and validation, which may take
    long and be interrupted, follows the checkpoint.
    """
    if "validation" in trainer.state.remembered:
        raise ValueError(f"attach {type(handler).__name__} before Validation")


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
