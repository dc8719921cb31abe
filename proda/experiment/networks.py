"""Networks and their optimiser, as the flags of an experiment ask for them."""

import warnings
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from proda.experiment.config import DataConfig, TrainConfig
from proda.experiment.domains import label_space
from proda.models.build import build_network
from proda.models.deeplab import DeepLab
from proda.models.network import freeze_batch_norm, parameter_groups
from proda.models.pretrained import load_imagenet, load_simclr
from proda.models.weights import load_into, load_weights


def initial_network(config: TrainConfig, init: str, init_file: str, *, bn_pretrain: bool = False) -> DeepLab:
    """A network at the start of its training: ``init`` is imagenet, simclr, random or weights (see ``--init``).

    Raises:
        ValueError: another ``init``, or a file that does not fit the network.
        FileNotFoundError: no such ``init_file``.
    """
    if init == "weights":
        return network_from(config, init_file, "init_file", dropout=config.dropout)
    network = _build(config, bn_pretrain=bn_pretrain, dropout=config.dropout)
    if init == "imagenet":
        load_imagenet(network, init_file or None)
    elif init == "simclr":
        if not init_file:
            raise ValueError("--init=simclr needs --init_file: the converted SimCLRv2 r101 1x weights")
        load_simclr(network, init_file)
    elif init != "random":
        raise ValueError(f"--init={init}: expected imagenet, simclr, random or weights")
    return network


def network_from(config: DataConfig, path: str, flag: str = "weights", *, dropout: float = 0.1) -> DeepLab:
    """A network with the weights of the file that ``--flag`` names; with the extra batch norm if they have it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--{flag}={path}: no such file; expected weights, as a stage leaves in last.pt")
    weights = load_weights(path)
    made_with = weights.info.get("backbone", config.backbone)  # released files do not say
    if made_with != config.backbone:
        raise ValueError(f"{path}: found weights of --backbone={made_with}, expected --backbone={config.backbone}")
    extra = any(key.startswith("bn_pretrain.") for key in weights.model)
    network = _build(config, bn_pretrain=extra, dropout=dropout)
    load_into(network, weights)
    return network


def sgd(config: TrainConfig, network: DeepLab) -> torch.optim.SGD:
    """SGD whose head learns faster by ``--head_lr_factor``."""
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


def network_content(config: DataConfig, network: DeepLab, **more: Any) -> dict[str, Any]:
    """What a weights file holds: enough to build and judge the network again."""
    return {
        "model": network.state_dict(),
        "num_classes": network.layer5.head[-1].out_channels,
        "backbone": config.backbone,
        **more,
    }


def _build(config: DataConfig, *, bn_pretrain: bool, dropout: float) -> DeepLab:
    return build_network(config.backbone, len(label_space(config).names), bn_pretrain=bn_pretrain, dropout=dropout)
