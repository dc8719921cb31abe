"""What every training run shares: its length, the handlers that all stages have, and the way to ``summary.json``."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import LRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from proda.data.loaders import training_batches
from proda.engines.events import ProdaEvents
from proda.engines.step import seeded_by_iteration
from proda.experiment.config import DataConfig, TrainConfig
from proda.experiment.domains import label_space, own_data
from proda.experiment.job import Job
from proda.handlers.batch_norm import shared_statistics
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.monitoring import StopOnNan, watch
from proda.handlers.stopping import StopRequests
from proda.handlers.validation import Validation

PUBLISHED_BATCH_SIZE = 4


class Length(NamedTuple):
    """How long a run is."""

    epoch: int  # iterations of one pass over the target images; the incomplete last batch is dropped
    iterations: int  # of the whole run


def run_length(config: TrainConfig, images: int) -> Length:
    """The length of a run on this many target images. ValueError if they do not make one batch."""
    if config.batch_size % idist.get_world_size():
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be split over {idist.get_world_size()} processes evenly"
        )
    epoch = images // config.batch_size
    if epoch == 0:
        raise ValueError(f"--batch_size={config.batch_size} is more than the {images} training images")
    return Length(epoch, config.iterations or config.epochs * epoch)


def summary_lines(config: TrainConfig, length: Length) -> dict[str, Any]:
    """The start-up summary of a training run; warns where the batch is not the recipe's."""
    processes = idist.get_world_size()
    batch = f"{config.batch_size} ({config.batch_size // processes} a process)"
    if config.batch_size != PUBLISHED_BATCH_SIZE:
        batch += f"  WARNING: the recipe's is {PUBLISHED_BATCH_SIZE}; learning rate and length were chosen for that"
    factor = config.head_lr_factor
    return {
        "preset": config.preset,
        "source -> target": f"{config.source} -> {config.target}, {len(label_space(config).names)} classes",
        **_validation_line(config),
        "global batch": batch,
        "iterations": f"{length.iterations} ({length.epoch} an epoch)",
        "learning rate": f"{config.lr:g}" + (f", head {factor * config.lr:g}" if factor != 1 else ""),
        "mixed precision": config.amp,
    }


def _validation_line(config: DataConfig) -> dict[str, str]:
    own = own_data(config.target)
    if own is None or own.has_labels("val"):
        return {}
    return {"validation": f"skipped, {config.target} has no labels under [val]; the label-free score is still reported"}


def batches(
    config: TrainConfig,
    source: Dataset,
    target: Dataset | None,
    length: Length,
    device: torch.device,
    *,
    start: int = 0,
) -> Iterable[dict[str, Any]]:
    """This process's training batches from iteration ``start`` to the end of the run."""
    return training_batches(
        source,
        target,
        batch_size=config.batch_size,
        iterations=length.iterations,
        start_iteration=start,
        seed=config.seed,
        num_workers=config.num_workers,
        rank=idist.get_rank(),
        world_size=idist.get_world_size(),
        pin_memory=device.type == "cuda",
    )


def attach_first(trainer: Engine, network: nn.Module, schedule: LRScheduler, config: TrainConfig) -> None:
    """Attaches what comes before a stage's own handlers in every training run.

    At the start of an iteration its random numbers and its learning rate; before the optimiser's step ``--grad_clip``;
    after the iteration, one set of batch-norm statistics for all processes.
    """
    trainer.add_event_handler(Events.ITERATION_STARTED, seeded_by_iteration(config.seed))
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    clip_gradients(trainer, network, config.grad_clip)
    shared_statistics(trainer, network)


def clip_gradients(trainer: Engine, network: nn.Module, largest: float) -> None:
    """Gradient norm at most ``largest``, if that is above 0."""
    if largest > 0:

        @trainer.on(ProdaEvents.BACKWARD_DONE)
        def clip(_: Engine) -> None:
            nn.utils.clip_grad_norm_(network.parameters(), largest)


def train(
    job: Job,
    trainer: Engine,
    source: Dataset,
    target: Dataset | None,
    validation: Validation,
    length: Length,
    *,
    state: Mapping[str, Any],
    optimizers: Mapping[str, Optimizer],
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Attaches what comes after a stage's own handlers in every training run, trains, and writes ``summary.json``.

    After each iteration, in this order: stop on NaN, validation, progress bar and TensorBoard, checkpoint. With
    ``--resume`` the run goes on from the last good checkpoint; one whose last iteration was made before is only
    completed: validated, if that was interrupted.

    Args:
        state: whatever remembers, by its name in the checkpoint; trainer and validation are added.
        optimizers: whose learning rates TensorBoard shows, by the name they have there.
        notes: further entries of the summary, read when training is over.

    Returns:
        What ``summary.json`` holds.

    Raises:
        Stopped: on SIGTERM, Ctrl-C and after iteration ``--stop_after``; all is saved then.
        ValueError: the checkpoint to resume is of another experiment, or of epochs of another length.
    """
    config = job.config
    trainer.add_event_handler(Events.ITERATION_COMPLETED, StopOnNan())
    validation.attach(trainer, every=config.val_every)
    trainer.state.remembered = {**state, "validation": validation, "stopwatch": job.stopwatch}
    checkpoints = Checkpoints(job.folder)
    start = checkpoints.resume(trainer) if config.resume else 0
    colors, pace = label_space(config).colors, {"log_every": config.log_every, "panels_every": config.panels_every}
    board = watch(trainer, validation.evaluator, optimizers, job.folder, colors, **pace)
    checkpoints.attach(trainer, every=config.checkpoint_every)

    if trainer.state.epoch_length not in (None, length.epoch):
        raise ValueError(
            f"the run to resume has {trainer.state.epoch_length} iterations an epoch, this command {length.epoch}: "
            "give the same --batch_size and images, or another --output"
        )
    try:
        if start < length.iterations:
            data = batches(config, source, target, length, job.device, start=start)
            with StopRequests(trainer, after=config.stop_after):
                trainer.run(data, max_iters=length.iterations, epoch_length=length.epoch)
        else:
            trainer.fire_event(Events.COMPLETED)
    finally:
        if board is not None:
            board.close()

    done = trainer.state.iteration
    images = (done - start) * config.batch_size * (1 if target is None else 2)
    return job.finish({**validation.summary(), **(notes or {})}, iterations=done, images=images)
