"""One step of the optimizer: losses, gradients, mixed precision, and the exchange of gradients between processes.

Every trainer has a ``StudentUpdate``, which fires ``LOSSES_READY``, ``BACKWARD_DONE`` and ``OPTIMIZER_STEPPED``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proda.engines.events import ProdaEvents, Trainer
from proda.models.network import freeze_batch_norm
from proda.settings.options import Options, PositiveInt

Function = TypeVar("Function", bound=Callable)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StudentOptions(Options):
    """Options of the student, common to all trainers."""

    # -- Network
    freeze_bn: bool = False  # keep the initial statistics, scales and shifts of batch norm
    # -- Machine
    accumulate: PositiveInt = 1  # number of micro-batches of a process's batch, one after another, to save memory


@dataclass
class MeanTeacherOptions(StudentOptions):
    """Options of trainers whose teacher is the moving average of the student."""

    # -- Method
    teacher_mode: Literal["train", "eval"] = "train"  # batch statistics (and dropout in stage 1), as published, or not


class Precision:
    """How a run computes: its device, its mixed precision, and whether functions are compiled.

    ``amp`` is ``off``, ``bf16`` or ``fp16`` (with loss scaling on CUDA). ``compile`` uses ``torch.compile``.
    """

    def __init__(self, device: torch.device | str, amp: str = "off", *, compile: bool = False) -> None:
        self.compile = compile
        self._compiled: dict[Callable, Callable] = {}
        self.device = torch.device(device)
        self.dtype = _DTYPES.get(amp)
        scaling = amp == "fp16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaling)

    def compiled(self, function: Function) -> Function:
        """The function itself, or a compiled one of the same results up to rounding."""
        if not self.compile:
            return function
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, dynamic=False)
        return cast(Function, self._compiled[function])

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides gradients by the loss scale. A parameter that the optimizer lists repeatedly is divided once."""
        if not self.scaler.is_enabled():
            return
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": list(dict.fromkeys(group["params"]))} for group in groups]
        try:
            self.scaler.unscale_(optimizer)
        finally:
            optimizer.param_groups = groups

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Performs the optimizer's step. Returns False if loss scaling skipped it because a gradient was not finite."""
        steps: list[bool] = []
        hook = optimizer.register_step_post_hook(lambda *_: steps.append(True))
        self.scaler.step(optimizer)
        self.scaler.update()
        hook.remove()
        return bool(steps)

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:  # empty in the checkpoint of a run without loss scaling
            self.scaler.load_state_dict(state)


def micro_batches(model: nn.Module, tensors: Any, number: int, *, exchange: bool = True) -> Iterator[Any]:
    """The parts of ``split``, one after another, for a forward and a backward pass of ``model`` each.

    The backward pass of the last part exchanges the sum of all gradients between the processes; with
    ``exchange=False`` that is left to other losses of the same iteration.
    """
    pieces = split(tensors, number)
    for position, piece in enumerate(pieces, 1):
        last = exchange and position == len(pieces)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            yield piece


def split(tree: Any, number: int) -> list[Any]:
    """``number`` equal parts of the first dimension of every tensor in dicts and NamedTuples, in order; None stays.

    Raises ValueError if a tensor's length is not a multiple of ``number``.
    """
    if isinstance(tree, Tensor):
        if len(tree) % number:
            raise ValueError(f"a batch of {len(tree)} cannot be split into {number} equal parts")
        return list(tree.split(len(tree) // number))
    if tree is None:
        return [None] * number
    if isinstance(tree, dict):
        columns = [split(value, number) for value in tree.values()]
        return [dict(zip(tree, part, strict=True)) for part in zip(*columns, strict=True)]
    return [type(tree)(*part) for part in zip(*(split(value, number) for value in tree), strict=True)]


def append_slice(output: dict[str, Any], **tensors: Tensor) -> None:
    """Adds the results of a part of the batch to those of the parts before it."""
    for name, tensor in tensors.items():
        output[name] = torch.cat([output[name], tensor]) if name in output else tensor


class StudentUpdate:
    """One update of the student: its mode, its gradients, their exchange between processes, and the optimizer's step.

    The process's batch goes through the student in ``accumulate`` equal parts, so that only the activations of one part
    are in memory. The gradients are those of the whole batch's loss; batch statistics and dropout are of each part.

    An iteration is: ``start``; for each of the :meth:`micro_batches` a forward pass and a ``backward``; ``step``.
    Handlers find this object in ``engine.state.update``.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        freeze_bn: bool = False,
        accumulate: int = 1,
    ) -> None:
        self.student, self.optimizer, self.precision = student, optimizer, precision
        self.freeze_bn, self.accumulate = freeze_bn, accumulate

    def start(self, engine: Trainer) -> None:
        engine.state.update = self
        self.student.train()
        if self.freeze_bn:
            freeze_batch_norm(self.student)
        self.optimizer.zero_grad(set_to_none=True)

    def micro_batches(self, tensors: Any, *, exchange: bool = True) -> Iterator[Any]:
        """The parts of this process's batch, see :func:`micro_batches`."""
        yield from micro_batches(self.student, tensors, self.accumulate, exchange=exchange)

    def loss_denominator(self, count: Tensor) -> Tensor:
        """The number of pixels that a loss of one part divides by, from the number in the process's whole batch.

        The gradient of the mean over all parts and processes is then that of the global batch's loss.
        """
        mean = mean_over_processes(count)
        return mean if self.accumulate == 1 else mean / self.accumulate

    def backward(
        self,
        engine: Trainer,
        losses: dict[str, Tensor],
        graph: Mapping[str, Tensor],
        *,
        events: Sequence[Any] = (ProdaEvents.LOSSES_READY,),
    ) -> None:
        """Fires ``events``, then computes the gradients of the sum of all losses of this part.

        Handlers find the weighted terms in ``engine.state.losses`` and may add their own, computed from the tensors in
        ``engine.state.graph``. Both are None afterwards, so that nothing keeps the graph in memory. Adds ``loss_NAME``
        for every term to ``engine.state.output``, and their sum to ``loss``: detached scalars, means over the parts.
        """
        engine.state.losses, engine.state.graph = losses, graph
        for event in events:
            engine.fire_event(event)
        self._add_gradients(engine, losses)
        nothing: Any = None
        engine.state.losses = engine.state.graph = nothing

    def extra_loss(self, engine: Trainer, name: str, tensors: Any, loss: Callable[[Any], Tensor]) -> None:
        """Adds the gradients of a loss that needs forward passes of the student of its own.

        Handlers of ``EXTRA_LOSSES`` call it. ``loss`` takes a part of ``tensors`` (of the whole batch; see
        :func:`split`), calls ``self.student`` on it, and returns the weighted term, a scalar. The gradients are
        exchanged together with those of the losses that follow.
        """
        for part in self.micro_batches(tensors, exchange=False):
            self._add_gradients(engine, {name: loss(part)})

    def _add_gradients(self, engine: Trainer, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.ndim:
                found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss {name!r}: expected a scalar tensor, found {found}")
        share = 1 / self.accumulate
        total: Tensor = sum(losses.values(), start=torch.zeros((), device=self.precision.device))
        self.precision.backward(total if self.accumulate == 1 else share * total)
        out = engine.state.output
        for name, loss in {"loss": total, **{f"loss_{name}": loss for name, loss in losses.items()}}.items():
            value = loss.detach() if self.accumulate == 1 else share * loss.detach()
            out[name] = out[name] + value if name in out else value

    def step(self, engine: Trainer) -> None:
        """One step of the optimizer, between ``BACKWARD_DONE`` and ``OPTIMIZER_STEPPED``.

        Gradients are unscaled before ``BACKWARD_DONE``, so that handlers see (and clip) their true values.
        ``OPTIMIZER_STEPPED`` does not fire if loss scaling skipped the step.
        """
        self.precision.unscale(self.optimizer)
        engine.fire_event(ProdaEvents.BACKWARD_DONE)
        if self.precision.step(self.optimizer):
            engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)


def rand_per_image(images: Tensor, *shape: int) -> Tensor:
    """Uniform random numbers in 0..1 for each of this process's ``images`` [B, ...]: float32 [B, *shape], same device.

    They are drawn for the global batch, of which each process has one contiguous part, so that they do not depend on
    the number of processes, whose generators are in the same state (see ``SeedIterations``).
    """
    return of_own_images(torch.rand(idist.get_world_size() * len(images), *shape, device=images.device))


def of_own_images(draws: Any) -> Any:
    """This process's part of numbers that were drawn for the global batch: a tensor or array, images first."""
    count = len(draws) // idist.get_world_size()
    return draws[idist.get_rank() * count :][:count]


def mean_over_processes(count: Tensor) -> Tensor:
    """The number of pixels, averaged over the processes. Losses divide by it instead of by the process's own number.

    DDP averages gradients over processes, so the result is the gradient of the global batch's loss, however the batch
    is split.
    """
    if idist.get_world_size() == 1:
        return count
    return idist.all_reduce(count.double()) / idist.get_world_size()
