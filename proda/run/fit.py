"""Trains any stage: what every training run has, from the first iteration to ``summary.json``."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Events

import proda
from proda.data.labels import ColorTable
from proda.data.loaders import TrainingBatches, prefetched
from proda.data.view_sizes import fitting_size
from proda.engines.events import ProdaEvents, remember
from proda.engines.inference import segmentation_evaluator
from proda.handlers.board import Board
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.schedule import ClipGradients, PolynomialDecay
from proda.handlers.seeding import SeedIterations
from proda.handlers.statistics import AdaBN, AverageStatistics
from proda.handlers.stopping import TIMEOUT, StopRequests
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.run.changed_files import PARTS
from proda.run.config import AdaptConfig, MeanTeacherConfig, PseudoLabelConfig, TrainConfig
from proda.run.data import Data, views_in_words
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import Networks, synchronizes_batch_norm
from proda.run.record import experiment_name, git_commit
from proda.run.stage import Build, Stage
from proda.run.successors import attach_successors, check_successors
from proda.settings.reading import recipe_value
from proda.utils.errors import UserError
from proda.utils.run_files import all_run_files


class CommonHandlers(NamedTuple):
    """The handlers that ``fit`` uses after it has attached them."""

    checkpoints: Checkpoints
    validation: Validation
    models: KeptModels
    board: Board


def fit(config: TrainConfig, build: Build) -> dict[str, Any]:
    """Builds a stage and trains it to the end; with ``--resume`` from the last good checkpoint.

    The folder of the run is untouched until the stage has been checked.

    Returns:
        The content of ``summary.json``. Values that handlers store in ``trainer.state.summary`` are part of it.

    Raises:
        Stopped: on SIGTERM or on Ctrl-C; a checkpoint has been saved.
        UserError: a flag, a file or the output folder cannot be used.
    """
    job = Job(config)
    domains = Domains(config, before=job.data_before)
    try:
        return _fit(build, job, Data(config, domains))
    except UserError as error:
        if example := domains.example_of(error):
            job.note_stopper(*example)
        raise


def _fit(build: Build, job: Job, data: Data) -> dict[str, Any]:
    config = data.config  # with the views; config.json has the flags as they were given
    check_flags(config, data.classes.names)
    stage = build(config, data, Networks(config, data.classes, job.precision))
    if not isinstance(stage, Stage):
        raise TypeError(f"build has to return a Stage (proda/run/stage.py), found {type(stage).__name__}")
    common = attach_common_handlers(config, stage, data, job)
    remember(stage.trainer, stopwatch=job.stopwatch)
    stage.check(doomed=all_run_files(job.folder) if config.overwrite else ())
    common.checkpoints.check_states(stage.trainer)
    data.prepare()
    lines, domains = summary_lines(config, data, stage.batches), data.domains
    if stage.student.pretrained:
        lines["initial weights"] = stage.student.pretrained
    left_out = {part: domains.left_out(part) for part in PARTS}
    job.open(lines, domains.fingerprints() | {"views": views_in_words(config)}, domains.listings(), left_out)
    if stage.labels is not None and not getattr(config, "pseudo_labels", ""):
        stage.labels.store.forget(job.repaired)
    start = _resume(config, stage, common)
    length, epoch_length = stage.batches.iterations, stage.batches.epoch_length
    job.save_record(trained=start >= length, start=start, length=length, epoch_length=epoch_length)
    return _train(job, stage, common, start)


def attach_common_handlers(config: TrainConfig, stage: Stage, data: Data, job: Job) -> CommonHandlers:
    """Attaches what every training run has, after the handlers of the method.

    Handlers of one event run in the order in which they are attached here.
    """
    trainer, student, names, precision = stage.trainer, stage.student, data.classes.names, job.precision
    attach_successors(config, stage, names, precision)

    # Validation of the student and, if asked for, of the mean teacher.
    judged = {"": student}
    if stage.teacher is not None and isinstance(config, MeanTeacherConfig) and config.validate_teacher:
        judged["teacher_"] = stage.teacher.ema_model
    evaluators = {
        name: segmentation_evaluator(network, precision, scales=(stage.val_scale,)) for name, network in judged.items()
    }
    if isinstance(config, AdaptConfig) and config.adabn:
        for name, network in judged.items():
            AdaBN(network, data.statistics_batches(), precision).attach(evaluators[name])
        AdaBN(student, data.statistics_batches(), precision).attach(trainer, ProdaEvents.BEFORE_LABELS_WRITTEN)
    if isinstance(config, PseudoLabelConfig):
        prototypes = None if stage.prototypes is None else stage.prototypes.prototypes.values
        truth = data.domains.target_truth()
        report = LabelQuality(names, prototypes=prototypes, truth=truth, replay_as_released=config.as_released)
        report.attach(trainer, every=config.label_report_every)

    # The iteration: its random numbers, the learning rate, the gradients.
    SeedIterations(config.seed).attach(trainer)
    length = config.schedule_iterations or stage.batches.iterations
    schedule = PolynomialDecay(
        stage.optimizers["student"], length, power=config.decay_power, warmup=config.warmup_iterations
    )
    schedule.attach(trainer)
    ClipGradients(student, config.grad_clip).attach(trainer)
    AverageStatistics(student).attach(trainer)

    # After it: stop on NaN, save, validate, keep models, log.
    StopOnNan().attach(trainer)
    checkpoints = Checkpoints(job.folder)
    checkpoints.attach(trainer, every=config.checkpoint_every)
    validation = Validation(evaluators[""], data.validation_batches(), names, teacher=evaluators.get("teacher_"))
    validation.attach(trainer, every=config.val_every)
    models = KeptModels(
        validation,
        student,
        model_info(config, data),
        job.folder,
        prototypes=None if stage.prototypes is None else stage.prototypes.prototypes.values,
        teacher=judged.get("teacher_"),
    )
    models.attach(trainer)
    board = Board(job.folder, evaluators[""], stage.optimizers, data.classes.colors)
    board.attach(trainer, every=config.log_every)
    return CommonHandlers(checkpoints, validation, models, board)


def _resume(config: TrainConfig, stage: Stage, common: CommonHandlers) -> int:
    """Loads the last good checkpoint with ``--resume``; returns its iteration, or 0.

    Raises:
        UserError: the checkpoint belongs to another network or experiment, or has epochs of another length; or the
            folder holds checkpoints of another run.
    """
    trainer, expected = stage.trainer, stage.batches.epoch_length
    start = common.checkpoints.resume(trainer) if config.resume else 0
    common.checkpoints.check_folder()
    if trainer.state.epoch_length not in (None, expected):
        raise UserError(
            f"the run to resume has {trainer.state.epoch_length} iterations per epoch, this command {expected}: use "
            "the same --batch_size and images, or another --output"
        )
    if start:
        common.models.recover(trainer)
    return start


def _train(job: Job, stage: Stage, common: CommonHandlers, start: int) -> dict[str, Any]:
    """Runs the trainer. If the last iteration was completed before, only an interrupted validation is repeated."""
    trainer, batches, state = stage.trainer, stage.batches, stage.trainer.state
    common.board.open()
    # Ignite accepts either max_epochs or max_iters. Its profilers need max_epochs, and max_iters ends the run.
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "max_iters", batches.iterations))
    try:
        if start < batches.iterations:
            epochs = math.ceil(batches.iterations / batches.epoch_length)
            state.max_iters, state.max_epochs = None, epochs if start else None
            with StopRequests(trainer, timeout=TIMEOUT) as stop:
                for evaluator in common.validation.evaluators.values():
                    stop.attach_to(evaluator)
                data = prefetched(batches.loader(start), job.device)
                try:
                    trainer.run(data, max_epochs=epochs, epoch_length=batches.epoch_length)
                except Exception as error:
                    if not isinstance(error, FloatingPointError):  # weights or losses are not finite
                        common.checkpoints.save_after_error(trainer)
                    raise
        else:
            job.log.info("nothing to train: the run already has %d of %d iterations", start, batches.iterations)
            trainer.fire_event(Events.COMPLETED)
            common.checkpoints.save(trainer)  # with the validation that had been interrupted
    finally:
        common.board.close()
    common.models.raise_failures()
    images = (state.iteration - start) * batches.images_per_iteration
    summary = {**common.validation.summary(), **state.summary}
    return job.finish(summary, iterations=state.iteration, images=images)


def check_flags(config: TrainConfig, class_names: list[str], processes: int = 0) -> None:
    """Raises UserError for flags that do not fit the classes, or the number of processes (of this run, if 0)."""
    check_successors(config, class_names)
    processes = processes or idist.get_world_size()
    if config.batch_size % processes:
        raise UserError(f"--batch_size={config.batch_size} cannot be split evenly over {processes} processes")
    share = config.batch_size // processes
    if share % config.accumulate:
        raise UserError(
            f"--accumulate={config.accumulate}: each process has {share} images of a batch, which cannot be split into "
            f"{config.accumulate} equal micro-batches"
        )


def summary_lines(config: TrainConfig, data: Data, batches: TrainingBatches) -> dict[str, Any]:
    """The start-up summary of a training run, name -> value; warns if the batch size is not that of the recipe."""
    share = config.batch_size // idist.get_world_size()
    batch, rate = f"{config.batch_size} ({share} per process)", f"{config.lr:g}"
    if config.batch_size != (recipe := recipe_value(config, "batch_size")):
        batch += f"  WARNING: the recipe uses {recipe}; its learning rate and length are tuned for that"
    if config.accumulate > 1:
        batch += f", in {config.accumulate} micro-batches"
    if 0 < config.schedule_iterations < batches.iterations:
        rate += f"  WARNING: 0 from iteration {config.schedule_iterations} on (--schedule_iterations)"
    if config.warmup_iterations >= batches.iterations:
        rate += f"  WARNING: not reached before the end, as --warmup_iterations={config.warmup_iterations}"
    if config.head_lr_factor != 1:
        rate += f", head {config.head_lr_factor * config.lr:g}"
    head = "" if config.backbone.endswith(".py") else f", head {config.head}"  # such a file may bring its own
    lines = {
        "preset": config.preset,
        "source -> target": f"{config.source} -> {config.target}, {len(data.classes.names)} classes",
        **data.domains.skip_lines(),
        "views": views_in_words(config),
        "global batch": batch,
        "iterations": f"{batches.iterations} ({batches.epoch_length} per epoch)",
        "learning rate": rate,
        "mixed precision": config.amp,
        "network": f"{config.backbone}{head}, {config.optimizer}",
    }
    if idist.get_world_size() > 1 and not (config.freeze_bn or synchronizes_batch_norm(config, idist.device())):
        lines["batch norm"] = "statistics of each process alone: results depend on the number of processes"
    own = data.domains.own_target
    if own is not None and own.size is None and (large := data.large_target()):
        width, height = fitting_size(large)
        lines["whole images"] = (
            f"{large[0]}x{large[1]}  WARNING: teachers, pseudo labels and validation take whole images; --plan counts "
            f"their memory and time, and size = [{width}, {height}] in {own.path} makes them smaller"
        )
    if own is not None and not own.has_labels("val"):
        lines["validation"] = f"label-free score only: {config.target} has no labels under [val]"
    return lines


def model_info(config: TrainConfig, data: Data) -> ModelInfo:
    """What the weights files of a training run say about its networks, apart from their scores.

    It holds no time and no path, so that a repeated run writes the same bytes.
    """
    classes, own = data.classes, data.domains.own_target
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
