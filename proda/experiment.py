"""What the experiment files share: settings turned into data, networks, optimisers and the length of a run."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.handlers import TensorboardLogger
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from proda.config import DataConfig, TrainConfig, resolve_num_classes
from proda.data.datasets import open_dataset
from proda.data.labels import palette
from proda.data.loaders import (
    EvaluationSamples,
    SourceTraining,
    TargetTraining,
    evaluation_loader,
    training_batches,
)
from proda.data.store import Manifest, open_store
from proda.data.streets import write_streets
from proda.engines.events import ProdaEvents
from proda.files import sha256
from proda.handlers import monitoring
from proda.job import Job
from proda.launch import load_experiment
from proda.models.deeplab import DeepLab, build_deeplab, parameter_groups
from proda.models.weights import Weights, load_imagenet, load_into, load_simclr, load_weights

TARGET = "cityscapes"
PUBLISHED_BATCH_SIZE = 4


def data_root(config: DataConfig) -> Path:
    """Where the data sets are; with ``--preset=streets`` they are drawn first if they are not there yet."""
    root = Path(config.data_root or os.environ.get("PRODA_DATA") or "data")
    if config.preset == "streets":
        with idist.one_rank_first():
            write_streets(root, source=config.source, **streets_size(config))
    return root


def streets_size(config: Any) -> dict[str, int]:
    """Numbers of images where a config has them (quickstart), else those of ``write_streets``."""
    return {name: getattr(config, name) for name in ("num_train", "num_val") if hasattr(config, name)}


def views(config: TrainConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in ("mean_width", "crop_height", "crop_width")}


def source_training(config: TrainConfig) -> Dataset:
    """Labelled crops of the source domain."""
    classes = resolve_num_classes(config)
    return SourceTraining(
        open_dataset(config.source, data_root(config), "train", num_classes=classes, with_labels=True), **views(config)
    )


def target_training(config: TrainConfig, **parts: Any) -> Dataset:
    """Unlabelled views of the target domain; ``parts`` as ``TargetTraining`` takes them."""
    return TargetTraining(target_set(config, "train"), **views(config), **parts)


def target_set(config: DataConfig, split: str, *, with_labels: bool = False) -> Dataset:
    """The target domain's images of a split; labels only for whoever judges, never for adaptation."""
    classes = resolve_num_classes(config)
    return open_dataset(TARGET, data_root(config), split, num_classes=classes, with_labels=with_labels)


def whole_images(config: DataConfig, dataset: Dataset) -> DataLoader:
    """Unaugmented images in order, each on one process."""
    return evaluation_loader(
        EvaluationSamples(dataset),
        batch_size=config.val_batch_size,
        num_workers=config.num_workers,
        rank=idist.get_rank(),
        world_size=idist.get_world_size(),
    )


def named_images(config: DataConfig, dataset: Dataset) -> Callable[[list[str]], DataLoader]:
    """Batches of the whole images with given names, in this order."""
    return lambda names: whole_images(config, Subset(dataset, [dataset.names.index(name) for name in names]))


def labelled_if_possible(config: DataConfig, split: str) -> Dataset:
    """The target images with their ground truth where its files are there: pseudo labels are judged by it, no more."""
    try:
        return target_set(config, split, with_labels=True)
    except FileNotFoundError:
        return target_set(config, split)


def label_store(config: Any, kind: str, job: Job, names: list[str], **settings: Any) -> Any:
    """The store of the pseudo labels that the network in ``--weights`` makes; ``kind`` is soft or hard.

    In ``--pseudo_labels``, or else in the run's own folder.
    """
    classes = resolve_num_classes(config)
    return open_store(
        Path(config.pseudo_labels or job.folder / "pseudo_labels"),
        kind,
        Manifest(classes, sha256(config.weights), settings, names),
        palette=palette(classes),
        remedy="remove the folder, or give another --pseudo_labels",
    )


def num_iterations(config: TrainConfig, images: int) -> tuple[int, int]:
    """Iterations of one epoch over ``images`` target images (the incomplete last batch is dropped), and of the run."""
    epoch = images // config.batch_size
    if epoch == 0:
        raise ValueError(f"--batch_size={config.batch_size} is more than the {images} training images")
    return epoch, config.iterations or config.epochs * epoch


def batches(
    config: TrainConfig,
    source: Dataset,
    target: Dataset | None,
    *,
    iterations: int,
    device: torch.device,
    start: int = 0,
) -> Any:
    """The training batches of iterations ``start``..``iterations`` of this process."""
    if config.batch_size % idist.get_world_size():
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be split over {idist.get_world_size()} processes evenly"
        )
    return training_batches(
        source,
        target,
        batch_size=config.batch_size,
        iterations=iterations,
        start_iteration=start,
        seed=config.seed,
        num_workers=config.num_workers,
        rank=idist.get_rank(),
        world_size=idist.get_world_size(),
        pin_memory=device.type == "cuda",
    )


def build_network(config: DataConfig, *, bn_pretrain: bool = False, dropout: float = 0.1) -> DeepLab:
    return build_deeplab(config.backbone, resolve_num_classes(config), bn_pretrain=bn_pretrain, dropout=dropout)


def initial_network(
    config: DataConfig, init: str, init_file: str, *, bn_pretrain: bool = False, dropout: float | None = None
) -> DeepLab:
    """A network at the start of its training: ``init`` is imagenet, simclr, random or weights (see ``--init``).

    Raises:
        ValueError: another ``init``, or a file that does not fit the network.
        FileNotFoundError: no such ``init_file``.
    """
    dropout = config.dropout if dropout is None else dropout
    if init == "weights":
        return network_from(config, init_file, "init_file", dropout=dropout)[0]
    network = build_network(config, bn_pretrain=bn_pretrain, dropout=dropout)
    if init == "imagenet":
        load_imagenet(network, init_file or None)
    elif init == "simclr":
        if not init_file:
            raise ValueError("--init=simclr needs --init_file: the converted SimCLRv2 r101 1x weights")
        load_simclr(network, init_file)
    elif init != "random":
        raise ValueError(f"--init={init}: expected imagenet, simclr, random or weights")
    return network


def network_from(config: DataConfig, path: str, flag: str, *, dropout: float = 0.1) -> tuple[DeepLab, Weights]:
    """A network with the weights of a file; with the extra batch norm if they have it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--{flag}={path}: no such file; expected the weights of the stage before")
    weights = load_weights(path)
    extra = any(key.startswith("bn_pretrain.") for key in weights.model)
    network = build_network(config, bn_pretrain=extra, dropout=dropout)
    load_into(network, weights)
    return network, weights


def sgd(config: TrainConfig, network: DeepLab) -> torch.optim.SGD:
    groups = parameter_groups(
        network, config.lr, head_factor=config.head_lr_factor, repeat_backbone=config.repeat_backbone_parameters
    )
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def parallel(network: nn.Module, device: torch.device, *, sync_bn: bool) -> nn.Module:
    """The network on its device, wrapped to exchange gradients where there are several processes."""
    network.to(device)
    if idist.get_world_size() == 1:
        return network
    # Buffers are not broadcast: that would write into batch-norm statistics between two forward passes of one backward.
    return idist.auto_model(network, sync_bn=sync_bn and device.type == "cuda", broadcast_buffers=False)


def bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


def network_content(config: DataConfig, network: nn.Module, **more: Any) -> dict[str, Any]:
    """What a weights file holds: enough to build and judge the network again."""
    return {
        "model": bare(network).state_dict(),
        "num_classes": resolve_num_classes(config),
        "backbone": config.backbone,
        **more,
    }


def summary_lines(config: TrainConfig, job: Job, epoch: int, iterations: int) -> dict[str, Any]:
    """The start-up summary of a training run; warns where the batch is not the recipe's."""
    processes = idist.get_world_size()
    batch = f"{config.batch_size} ({config.batch_size // processes} a process)"
    if config.batch_size != PUBLISHED_BATCH_SIZE:
        batch += f"  WARNING: the recipe's is {PUBLISHED_BATCH_SIZE}; learning rate and length were chosen for that"
    factor = config.head_lr_factor
    return {
        "preset": config.preset,
        "source -> target": f"{config.source} -> {TARGET}, {resolve_num_classes(config)} classes",
        "global batch": batch,
        "iterations": f"{iterations} ({epoch} an epoch)",
        "learning rate": f"{config.lr:g}" + (f", head {factor * config.lr:g}" if factor != 1 else ""),
        "mixed precision": config.amp,
    }


def train(trainer: Engine, data: Any, board: TensorboardLogger | None, *, iterations: int, epoch: int) -> None:
    """Runs ``trainer`` up to ``iterations``; a run that was complete already is left alone. Closes the board.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    try:
        if trainer.state.iteration < iterations:
            trainer.run(data, max_iters=iterations, epoch_length=epoch)
            loss = float(trainer.state.output["loss"])
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at iteration {trainer.state.iteration}; the checkpoint before it is kept: "
                    "lower --lr, set --grad_clip, or try --amp=off"
                )
    finally:
        if board is not None:
            board.close()


def clip_gradients(trainer: Engine, network: nn.Module, largest: float) -> None:
    """Gradient norm at most ``largest``, if that is above 0."""
    if largest > 0:

        @trainer.on(ProdaEvents.BACKWARD_DONE)
        def clip(_: Engine) -> None:
            nn.utils.clip_grad_norm_(network.parameters(), largest)


def watch(
    config: TrainConfig, job: Job, trainer: Engine, evaluator: Engine, **optimizers: torch.optim.Optimizer
) -> TensorboardLogger | None:
    """Progress bar and TensorBoard for a training run, as its flags say."""
    colors = palette(resolve_num_classes(config))
    return monitoring.watch(
        trainer,
        evaluator,
        optimizers,
        job.folder,
        colors,
        log_every=config.log_every,
        panels_every=config.panels_every,
    )


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """A flag's numbers separated by commas, each above 0."""
    try:
        values = tuple(float(part) for part in text.strip("()").split(","))
    except ValueError:
        values = ()
    if not values or min(values) <= 0:
        raise ValueError(f"--{flag}={text}: expected numbers above 0, separated by commas")
    return values


def shortened(experiment: str, factor: float) -> dict[str, int]:
    """Flags that multiply the length of an experiment's streets preset, and the pace of its validations."""
    preset = load_experiment(experiment).PRESETS["streets"]
    return {name: max(1, round(preset[name] * factor)) for name in ("iterations", "val_every")}
