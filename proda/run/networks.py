"""Networks and their optimiser, as the flags of an experiment specify them."""

import warnings
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from proda.data.labels import LabelSpace
from proda.engines.options import StudentOptions
from proda.models import weights
from proda.models.build import build_network, is_file, recorded_name
from proda.models.contrastive import he_initialise
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork, freeze_batch_norm, parameter_groups
from proda.models.pretrained import load_imagenet, load_simclr
from proda.settings.config import DataConfig, InitConfig, TrainConfig
from proda.utils.errors import UserError


def initial_network(
    config: InitConfig, classes: LabelSpace, device: torch.device, *, bn_pretrain: bool = False
) -> SegmentationNetwork:
    """A network with the initial weights that ``--init`` and ``--init_file`` select.

    Raises:
        UserError: the file does not fit the network.
        MissingFileError: ``--init_file`` does not exist.
    """
    if config.init == "weights":
        return load_network(config, classes, device, flag="init_file")
    options: dict[str, Any] = {"head": config.head, "bn_pretrain": bn_pretrain, "dropout": config.dropout}
    network = build_network(config.backbone, len(classes.names), **options)
    _fill_backbone(network, config)
    return _ready(network, config, device)


def network_to_pretrain(config: DataConfig) -> SegmentationNetwork:
    """A network, on the CPU, whose backbone has the initial weights that ``--init`` and ``--init_file`` select.

    Its head is of no use. Raises as :func:`initial_network`.
    """
    network = build_network(config.backbone, num_classes=1, head=config.head)
    he_initialise(network)
    _fill_backbone(network, config)
    return network


def _fill_backbone(network: SegmentationNetwork, config: Any) -> None:
    """Loads what ``--init`` selects; "random" leaves the network as it is."""
    if config.init == "imagenet":
        load_imagenet(network, config.init_file or None)
    elif config.init == "simclr":
        if not config.init_file:
            raise UserError(
                "--init=simclr needs --init_file: the converted SimCLRv2 r101 1x weights, or last.pt of pretrain"
            )
        load_simclr(network, config.init_file)


def load_network(
    config: DataConfig,
    classes: LabelSpace,
    device: torch.device,
    *,
    flag: str = "weights",
    file: weights.Weights | None = None,
) -> SegmentationNetwork:
    """The network with the weights in the file that ``--flag`` names, with the extra batch norm if the file has one.

    ``file`` is the content of that file if it has been read already.

    Raises:
        UserError: the file does not fit ``--backbone``, ``--head`` or the classes.
        MissingFileError: the file does not exist.
    """
    return _loaded(file or getattr(config, flag), config, classes, device, config.backbone, config.head, flag)


def load_teacher(
    config: DataConfig, classes: LabelSpace, device: torch.device, *, flag: str = "teacher"
) -> SegmentationNetwork:
    """A network that only predicts, with the weights in the file that ``--flag`` names.

    The file says its backbone and its head; ``--backbone`` and ``--head`` are the student's, and those of a file that
    does not say its own.

    Raises:
        UserError: the file does not fit the classes, or holds a network of your own that is not ``--backbone``.
        MissingFileError: the file does not exist.
    """
    file = weights.read_weights(getattr(config, flag), flag=flag)
    backbone, head = architecture(file.info, config)
    if is_file(file.info.backbone) and not backbone:
        raise UserError(
            f"{file.path}: found weights of {file.info.backbone}, a network of your own; its student has to have the "
            f"same --backbone, found --backbone={config.backbone}"
        )
    return _loaded(file, config, classes, device, backbone, head, flag)


def architecture(info: ModelInfo, config: DataConfig) -> tuple[str, str]:
    """Backbone and head of a network that is described by ``info``, and by ``config`` where that says nothing.

    A network of your own (``NAME.py``) is executed only from the path in ``--backbone``, whatever a file says.
    """
    if not info.backbone or info.backbone == recorded_name(config.backbone):
        return config.backbone, info.head or config.head
    return ("" if is_file(info.backbone) else info.backbone), info.head


def _loaded(
    source: Any, config: DataConfig, classes: LabelSpace, device: torch.device, backbone: str, head: str, flag: str
) -> SegmentationNetwork:
    network = weights.load_network(
        source,
        backbone=backbone,
        head=head,
        class_names=classes.names,
        dropout=getattr(config, "dropout", 0.0),  # only training uses dropout
        flag=flag,
    )
    return _ready(network, config, device)


def _ready(network: SegmentationNetwork, config: DataConfig, device: torch.device) -> SegmentationNetwork:
    """The network on the device, laid out in memory and compiled as it will compute."""
    network.checkpoint_activations = getattr(config, "checkpoint_activations", False)  # only training has the flag
    compile_network(config, network)
    return network.to(device).to(memory_format=torch.channels_last)


def compile_network(config: DataConfig, network: nn.Module) -> None:
    """Makes the network's forward pass a compiled one with ``--compile``; copies of it are not compiled.

    The network stays the same object with the same state dict. Call it before the network is wrapped.
    """
    if config.compile:
        network.compile(dynamic=False)


def make_optimizer(config: TrainConfig, network: SegmentationNetwork) -> torch.optim.Optimizer:
    """The optimiser of ``--optimizer``, with a learning rate ``--head_lr_factor`` times as high for the head."""
    groups = parameter_groups(
        network,
        config.lr,
        head_factor=config.head_lr_factor,
        repeat_backbone=config.repeat_backbone_parameters,
        layer_decay=config.layer_decay,
        spare_norms=config.optimizer == "adamw",
    )
    # One kernel for the whole step. It would hide from OPTIMIZER_STEPPED that loss scaling skipped a step.
    on_gpu = next(network.parameters()).device.type == "cuda"
    fused = True if on_gpu and config.amp != "fp16" and not config.repeat_backbone_parameters else None
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
    )


def synchronises_batch_norm(config: StudentOptions, device: torch.device) -> bool:
    """Whether batch statistics are those of all processes. PyTorch's synchronised batch norm needs a GPU."""
    return config.sync_bn and not config.freeze_bn and device.type == "cuda"


def parallel(config: StudentOptions, network: nn.Module) -> nn.Module:
    """The network; with several processes it is wrapped to average gradients over them (DDP)."""
    if config.freeze_bn:
        freeze_batch_norm(network)  # before DDP, which expects a gradient for every trainable parameter
    if idist.get_world_size() == 1:
        return network
    sync_bn = synchronises_batch_norm(config, next(network.parameters()).device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # older torch does not know its new name
        # Broadcasting buffers would overwrite batch-norm statistics between two forward passes of one backward pass.
        return idist.auto_model(network, sync_bn=sync_bn, broadcast_buffers=False)
