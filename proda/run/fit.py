"""Code shared by all training runs: the start-up summary, and the run from first iteration to ``summary.json``."""

import math
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

import proda
from proda.cli.processes import TIMEOUT
from proda.data.labels import ColorTable
from proda.data.loaders import TrainingBatches, prefetched
from proda.engines.events import remember
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.stopping import StopRequests
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.run.domains import Domains
from proda.run.job import Job, experiment_name, git_commit
from proda.run.networks import synchronises_batch_norm
from proda.run.successors import check_attached, check_successors
from proda.settings.config import LoopConfig
from proda.utils.errors import UserError

PUBLISHED_BATCH_SIZE = 4


def summary_lines(config: Any, data: Domains, batches: TrainingBatches) -> dict[str, Any]:
    """The start-up summary of a training run, name -> value; warns if the batch size is not that of the recipe.

    ``config`` has the fields of ``TrainConfig`` and of ``StudentOptions``.
    """
    factor, own = config.head_lr_factor, data.own_target
    check_flags(config, data)
    lines = {
        "preset": config.preset,
        "source -> target": f"{config.source} -> {config.target}, {len(data.classes.names)} classes",
        **data.skip_lines(),
        **loop_lines(config, batches),
    }
    if config.batch_size != PUBLISHED_BATCH_SIZE:
        lines["global batch"] += (
            f"  WARNING: the recipe uses {PUBLISHED_BATCH_SIZE}; its learning rate and length are tuned for that"
        )
    if config.accumulate > 1:
        lines["global batch"] += f", in {config.accumulate} parts"
    if factor != 1:
        lines["learning rate"] += f", head {factor * config.lr:g}"
    if config.layer_decay != 1:
        lines["learning rate"] += f", layers of the backbone {config.layer_decay:g} times that of the next"
    head = "" if config.backbone.endswith(".py") else f", head {config.head}"  # such a file may bring its own
    lines["network"] = f"{config.backbone}{head}, {config.optimizer}"
    alike = config.freeze_bn or synchronises_batch_norm(config, idist.device())
    if idist.get_world_size() > 1 and not alike:
        lines["batch norm"] = "statistics of each process alone: results depend on the number of processes"
    if own is not None and not own.has_labels("val"):
        lines["validation"] = f"label-free score only: {config.target} has no labels under [val]"
    return lines


def check_flags(config: Any, data: Domains) -> None:
    """Raises UserError for flags that do not fit the classes of ``data`` or the number of processes."""
    check_successors(config, data.classes.names)
    share = config.batch_size // idist.get_world_size()
    if share % config.accumulate:
        raise UserError(
            f"--accumulate={config.accumulate}: each process has {share} images of a batch, which cannot be split into "
            f"{config.accumulate} equal parts"
        )


def check_training(config: Any, data: Domains, **parts: Any) -> None:
    """Raises UserError if no training run could use these flags and images; ``parts`` as in ``Domains.target_views``.

    For stages that open a label store, which writes to its folder, before they have their batches.
    """
    data.check_training(**parts)
    check_flags(config, data)


def loop_lines(config: LoopConfig, batches: TrainingBatches) -> dict[str, Any]:
    """The part of the start-up summary that pretraining has too."""
    rate, zero = f"{config.lr:g}", config.schedule_iterations
    if 0 < zero < batches.iterations:
        rate += f"  WARNING: 0 from iteration {zero} on (--schedule_iterations), so nothing is learnt afterwards"
    if (warmup := getattr(config, "warmup_iterations", 0)) >= batches.iterations:
        rate += f"  WARNING: not reached before the end, as --warmup_iterations={warmup}"
    return {
        "global batch": f"{config.batch_size} ({config.batch_size // idist.get_world_size()} per process)",
        "iterations": f"{batches.iterations} ({batches.epoch_length} per epoch)",
        "learning rate": rate,
        "mixed precision": config.amp,
    }


def model_info(job: Job, data: Domains) -> ModelInfo:
    """What the weights files of a training run say about its networks, apart from their scores.

    It holds no time and no path, so that a repeated run writes the same bytes.
    """
    config, classes, own = job.config, data.classes, data.own_target
    return ModelInfo(
        class_names=tuple(classes.names),
        colors=tuple(map(tuple, classes.colors.tolist())),
        label_ids=() if isinstance(classes.table, ColorTable) else tuple(classes.table.tolist()),
        size=own.size if own else None,
        mean_width=config.mean_width,
        source=Path(config.source).name,
        target=Path(config.target).name,
        recipe=config.preset,
        stage=experiment_name(config),
        proda=proda.__version__,
        torch=str(torch.__version__),
        git_commit=git_commit(),
    )


def run(
    job: Job,
    trainer: Engine,
    batches: TrainingBatches,
    checkpoints: Checkpoints,
    validation: Validation,
    models: KeptModels,
    board: Board,
) -> dict[str, Any]:
    """Trains to the end and writes ``summary.json``; with ``--resume`` it starts from the last good checkpoint.

    If the last iteration was completed before, only an interrupted validation is repeated. Values that handlers store
    in ``trainer.state.summary`` are part of the summary.

    Returns:
        The content of ``summary.json``.

    Raises:
        Stopped: on SIGTERM, on Ctrl-C, or after iteration ``--stop_after``; a checkpoint has been saved.
        UserError: the checkpoint to resume belongs to another experiment, or has epochs of another length.
    """
    config, state = job.config, trainer.state
    check_attached(config, trainer)
    remember(trainer, stopwatch=job.stopwatch)
    start = checkpoints.resume(trainer) if config.resume else 0
    checkpoints.check(trainer)
    board.open()
    if state.epoch_length not in (None, batches.epoch_length):
        raise UserError(
            f"the run to resume has {state.epoch_length} iterations per epoch, this command {batches.epoch_length}: "
            "use the same --batch_size and images, or another --output"
        )
    # Ignite accepts either max_epochs or max_iters. Its profilers need max_epochs, and max_iters ends the run.
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "max_iters", batches.iterations))
    try:
        if start < batches.iterations:
            epochs = math.ceil(batches.iterations / batches.epoch_length)
            state.max_iters, state.max_epochs = None, epochs if start else None
            with StopRequests(trainer, after=config.stop_after, timeout=TIMEOUT) as stop:
                for evaluator in validation.evaluators.values():
                    stop.attach_to(evaluator)
                trainer.run(
                    prefetched(batches.loader(start), job.device), max_epochs=epochs, epoch_length=batches.epoch_length
                )
        else:
            job.log.info("nothing to train: the run already has %d of %d iterations", start, batches.iterations)
            trainer.fire_event(Events.COMPLETED)
            checkpoints.save(trainer)  # with the validation that had been interrupted
    finally:
        board.close()
    models.raise_failures()
    images = (state.iteration - start) * batches.images_per_iteration
    return job.finish({**validation.summary(), **state.summary}, iterations=state.iteration, images=images)
