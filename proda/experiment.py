"""What the experiment files share: settings turned into data, networks, optimisers and the length of a run."""

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import TensorboardLogger
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from proda.config import DataConfig, TrainConfig, resolve_num_classes
from proda.data.augment import draw_weak_view
from proda.data.check import spot_check
from proda.data.datasets import LabelledFiles, open_dataset
from proda.data.labels import LabelSpace, benchmark_labels
from proda.data.loaders import (
    ONE_SIZE,
    EvaluationSamples,
    SourceTraining,
    TargetTraining,
    evaluation_loader,
    training_batches,
)
from proda.data.own import Description, read_description
from proda.data.store import Manifest, open_store
from proda.data.streets import write_streets
from proda.engines.events import ProdaEvents
from proda.files import sha256
from proda.handlers import monitoring
from proda.handlers.stopping import StopRequests
from proda.job import Job
from proda.models.deeplab import DeepLab, build_deeplab, freeze_batch_norm, parameter_groups
from proda.models.weights import Weights, load_imagenet, load_into, load_simclr, load_weights

LABEL_FREE_IMAGES = 100  # training images that stand in for validation images where there are none
PUBLISHED_BATCH_SIZE = 4


def data_root(config: DataConfig) -> Path:
    """Where the data sets are; with ``--preset=streets`` they are drawn first if they are not there yet."""
    root = Path(config.data_root or os.environ.get("PRODA_DATA") or "data")
    if config.preset == "streets":
        with idist.one_rank_first():
            write_streets(root, source=config.source)
    return root


def views(config: Any) -> dict[str, int]:
    return {name: getattr(config, name) for name in ("mean_width", "crop_height", "crop_width")}


def own_data(name: str) -> Description | None:
    """The description file that ``--source`` or ``--target`` names, None for a benchmark."""
    return read_description(name) if name.endswith(".toml") else None


def label_space(config: DataConfig) -> LabelSpace:
    """Names and colours of the classes of a run, which the source decides, and their ids in the target's label files.

    Raises:
        ValueError: source, target and ``--num_classes`` do not agree.
    """
    source, target = own_data(config.source), own_data(config.target)
    if source is None:
        space = benchmark_labels(resolve_num_classes(config))
    elif source.space is None:
        raise ValueError(f"{source.path}: no classes = [...]; the source has to list them")
    else:
        space = source.space
    if config.num_classes not in (0, len(space.names)):
        raise ValueError(f"--num_classes={config.num_classes}: {config.source} has {len(space.names)} classes")
    if target is not None and target.space is not None:
        if target.space.names != space.names:
            raise ValueError(
                f"{target.path}: its classes are {', '.join(target.space.names)}; expected those of the source, in "
                f"its order: {', '.join(space.names)}"
            )
        space = space._replace(table=target.space.table)
    return space


def open_data(config: DataConfig, domain: str, split: str, *, with_labels: bool) -> LabelledFiles:
    """The images of a split of ``domain``, which is "source" or "target"; none is read yet."""
    name, space = getattr(config, domain), label_space(config)
    own = own_data(name)
    if own is None and own_data(config.source):
        raise ValueError(f"--source={config.source} needs a --target: a description of the photographs (NAME.toml)")
    if own is None:
        return open_dataset(name, data_root(config), split, num_classes=len(space.names), with_labels=with_labels)
    return own.open(split, own.space if domain == "source" else space, with_labels=with_labels)


def check_views(config: Any, sizes: Iterable[tuple[int, int]]) -> None:
    """ValueError if images of these sizes (height, width) are too small for the views."""
    for size in sizes:
        draw_weak_view(np.random.default_rng(0), size, **views(config))


def source_training(config: TrainConfig) -> Dataset:
    """Labelled crops of the source domain; some examples are read to see that it can be done."""
    dataset = open_data(config, "source", "train", with_labels=True)
    check_views(config, spot_check(dataset))
    return SourceTraining(dataset, **views(config))


def target_training(config: TrainConfig, **parts: Any) -> Dataset:
    """Unlabelled views of the target domain; ``parts`` as ``TargetTraining`` takes them."""
    dataset = open_data(config, "target", "train", with_labels=False)
    sizes = spot_check(dataset)
    check_views(config, sizes)
    if parts.get("full_image") and len(sizes) > 1 and config.batch_size > idist.get_world_size():
        found = " and ".join(f"{width}x{height}" for height, width in sizes)
        raise ValueError(f"{config.target}: training images of {found}; {ONE_SIZE}")
    return TargetTraining(dataset, **views(config), **parts)


def target_set(config: DataConfig, split: str, *, with_labels: bool = False) -> LabelledFiles:
    """The target domain's images of a split; labels only for whoever judges, never for adaptation."""
    dataset = open_data(config, "target", split, with_labels=with_labels)
    spot_check(dataset)
    return dataset


def validation_set(config: DataConfig) -> Dataset:
    """What training is judged on: the labelled validation images.

    Own data may have none. Then there are images without labels, for the label-free score: those of [val], or else
    some of [train].
    """
    own = own_data(config.target)
    if own is None or own.has_labels("val"):
        return target_set(config, "val", with_labels=True)
    if "val" in own.splits:
        return target_set(config, "val")
    images = target_set(config, "train")
    return Subset(images, np.unique(np.linspace(0, len(images) - 1, LABEL_FREE_IMAGES).astype(int)).tolist())


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

    In ``--pseudo_labels``, or else in the run's own folder. ``settings``: what decides the labels beside the weights,
    the images and :func:`prediction_settings`.
    """
    space, settings = label_space(config), prediction_settings(config) | settings
    own = not config.pseudo_labels
    with idist.one_rank_first():  # to overwrite has to be over before the others look
        return open_store(
            Path(config.pseudo_labels or job.folder / "pseudo_labels"),
            kind,
            Manifest(len(space.names), sha256(config.weights), settings, names),
            palette=space.colors,
            overwrite=own and getattr(config, "overwrite", False),
            remedy="remove the folder, or give another --pseudo_labels",
        )


def prediction_settings(config: DataConfig) -> dict[str, Any]:
    """What a network's predictions on the target's training images depend on, its weights and their names aside.

    For own data the content of the description counts, not its place; the size that it gives is told by itself, so
    that a message can name it.
    """
    own = own_data(config.target)
    described = {"description": sha256(own.path), "size": own.size} if own else {}
    return {"amp": config.amp, **described}


def num_iterations(config: TrainConfig, images: int) -> tuple[int, int]:
    """Iterations of one epoch over ``images`` target images (the incomplete last batch is dropped), and of the run."""
    if config.batch_size % idist.get_world_size():
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be split over {idist.get_world_size()} processes evenly"
        )
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
    return build_deeplab(config.backbone, len(label_space(config).names), bn_pretrain=bn_pretrain, dropout=dropout)


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
        raise FileNotFoundError(f"--{flag}={path}: no such file; expected weights, as a stage leaves in last.pt")
    weights = load_weights(path)
    made_with = weights.info.get("backbone", config.backbone)  # released files do not say
    if made_with != config.backbone:
        raise ValueError(f"{path}: found weights of --backbone={made_with}, expected --backbone={config.backbone}")
    extra = any(key.startswith("bn_pretrain.") for key in weights.model)
    network = build_network(config, bn_pretrain=extra, dropout=dropout)
    load_into(network, weights)
    return network, weights


def sgd(config: TrainConfig, network: DeepLab) -> torch.optim.SGD:
    groups = parameter_groups(
        network, config.lr, head_factor=config.head_lr_factor, repeat_backbone=config.repeat_backbone_parameters
    )
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def parallel(network: nn.Module, device: torch.device, *, sync_bn: bool, freeze_bn: bool = False) -> nn.Module:
    """The network on its device, wrapped to exchange gradients where there are several processes."""
    network.to(device)
    if freeze_bn:
        freeze_batch_norm(network)  # now: the wrapper waits for gradients of all that seems to learn
    if idist.get_world_size() == 1:
        return network
    # Buffers are not broadcast: that would write into batch-norm statistics between two forward passes of one backward.
    sync_bn = sync_bn and not freeze_bn and device.type == "cuda"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # its new name is unknown to older torch
        return idist.auto_model(network, sync_bn=sync_bn, broadcast_buffers=False)


def bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


def network_content(config: DataConfig, network: nn.Module, **more: Any) -> dict[str, Any]:
    """What a weights file holds: enough to build and judge the network again."""
    return {
        "model": bare(network).state_dict(),
        "num_classes": bare(network).layer5.head[-1].out_channels,
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
        "source -> target": f"{config.source} -> {config.target}, {len(label_space(config).names)} classes",
        **_validation_line(config),
        "global batch": batch,
        "iterations": f"{iterations} ({epoch} an epoch)",
        "learning rate": f"{config.lr:g}" + (f", head {factor * config.lr:g}" if factor != 1 else ""),
        "mixed precision": config.amp,
    }


def _validation_line(config: DataConfig) -> dict[str, str]:
    own = own_data(config.target)
    if own is None or own.has_labels("val"):
        return {}
    return {"validation": f"skipped, {config.target} has no labels under [val]; the label-free score is still reported"}


def train(
    trainer: Engine, data: Any, board: TensorboardLogger | None, *, iterations: int, epoch: int, stop_after: int = 0
) -> None:
    """Runs ``trainer`` up to ``iterations``, or until it is asked to stop. Closes the board.

    A run whose last iteration was made before is only completed: validated, if that was interrupted.

    Raises:
        Stopped: on SIGTERM, Ctrl-C and after iteration ``stop_after``; all is saved then.
        ValueError: the checkpoint that was resumed is of epochs of another length.
    """
    if trainer.state.epoch_length not in (None, epoch):
        raise ValueError(
            f"the run to resume has {trainer.state.epoch_length} iterations an epoch, this command {epoch}: give the "
            "same --batch_size and images, or another --output"
        )
    try:
        if trainer.state.iteration < iterations:
            with StopRequests(trainer, after=stop_after):
                trainer.run(data, max_iters=iterations, epoch_length=epoch)
        else:
            trainer.fire_event(Events.COMPLETED)
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
    colors = label_space(config).colors
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
    """A flag's numbers separated by commas, each from 0.1 to 10."""
    try:
        values = tuple(float(part) for part in text.strip("()").split(","))
    except ValueError:
        values = ()
    if not values or not all(0.1 <= value <= 10 for value in values):
        raise ValueError(f"--{flag}={text}: expected numbers from 0.1 to 10, separated by commas")
    return values
