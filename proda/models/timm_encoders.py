"""Encoders of timm (https://github.com/huggingface/pytorch-image-models): ``--backbone=timm:NAME``.

timm is imported only when one is built. Nothing is downloaded but by ``pretrained_tensors``.
"""

import difflib
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from proda.models.encoders import Encoder
from proda.utils.errors import MissingFileError, UserError

PREFIX = "timm:"
SCALES = (4, 8, 16, 32)  # an image side divided by that of each map
# Arguments of timm's models that make them take images of any size; which one a model knows depends on its family.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Layout(NamedTuple):
    """How a model of timm is built as an encoder."""

    options: Mapping[str, bool]  # arguments of create_model
    indices: tuple[int, ...]  # of the maps that it returns
    multiple: int  # image sides have to be multiples of it
    stride: float  # see Encoder
    trained: frozenset[str]  # names of the parameters that the maps depend on


class TimmEncoder(Encoder):
    """An encoder of timm, with fresh weights and the normalisation that timm's weights for it expect.

    Hierarchical models give their maps at 1/4, 1/8, 1/16 and 1/32 of the image. A plain ViT (DINOv2, EVA-02) has maps
    of one stride, the side of a patch; those after a quarter, half, three quarters and all of its blocks are returned.
    The head brings them to four times their size after its projections, bilinearly (twice their size for ProDA's
    head). It is the same as doing so before, because a projection of single positions and bilinear interpolation
    commute, and takes less memory. Halving the last map would only lose resolution, since it is enlarged again.
    A patch of 14 x 14 pixels thus gives an output of 1/3.5 of the image size instead of 1/4.

    Raises:
        UserError: timm is not installed; it has no such model; or the model gives other scales, or takes images of one
            size alone.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = require_timm(name)
        _check_name(name)
        layout, config = _layout(name), timm.get_pretrained_cfg(name)
        self.name = name
        self.model = timm.create_model(name, features_only=True, out_indices=layout.indices, **layout.options)
        for module in self.model.modules():
            if type(module) is timm.layers.Conv2dSame:
                module.__class__ = EvenConv2d
        for parameter_name, parameter in self.model.named_parameters():  # DDP expects a gradient for all that need one
            parameter.requires_grad_(parameter_name in layout.trained)
        self.channels = self.model.feature_info.channels()
        self.channels_last = _gives_channels_last(self.model)
        self.multiple, self.stride = layout.multiple, layout.stride
        if config is not None:
            self.mean, self.deviation = config.mean, config.std
        # timm's own recomputation would count the statistics of batch norm twice.
        has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())
        self.recomputes_stages = not has_batch_norm and _switch_of_recomputation(self.model) is not None

    def forward(self, image: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) if self.channels_last else x for x in self.model(image)]

    @property
    def checkpoint_activations(self) -> bool:
        return self._checkpoint

    @checkpoint_activations.setter
    def checkpoint_activations(self, value: bool) -> None:
        self._checkpoint = value
        if self.recomputes_stages:
            _switch_of_recomputation(self.model)(value)

    _checkpoint = False

    def renamed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts a released file as timm does, if it has not timm's names; what is not needed keeps its name."""
        whole = _without_memory(self.name, **_layout(self.name).options)
        convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        own = {_plain(name): f"model.{name}" for name in self.model.state_dict()}
        if convert is not None and not own.keys() <= {_plain(name) for name in found}:
            found = convert(dict(found), whole)
        return {own.get(_plain(name), name): value for name, value in found.items()}


class EvenConv2d(nn.Conv2d):
    """timm's ``Conv2dSame`` for maps [B, C, H, W] whose sides are multiples of the stride, as all are here.

    The padding is the same for all of them. timm computes it from each size, so that an ONNX file, in which sizes are
    open, could not be written.
    """

    def forward(self, x: Tensor) -> Tensor:
        needed = [
            max(0, dilation * (kernel - 1) + 1 - stride)
            for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in needed)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pretrained_tensors(name: str) -> dict[str, Tensor]:
    """The state dict of timm's pretrained classifier, from the cache of Hugging Face, or downloaded into it.

    With ``HF_HUB_OFFLINE=1`` nothing is downloaded.

    Raises:
        UserError: timm has no such model, or no weights for it.
        MissingFileError: they are neither there nor can be fetched.
    """
    timm = require_timm(name)
    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"--backbone={PREFIX}{name}: timm has no pretrained weights of it; give --init_file")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of several libraries: no network, offline, no space
        reason = str(error).strip().partition("\n")[0][:160]
        raise MissingFileError(
            f"--init=imagenet: the weights of {PREFIX}{name} are not in the cache of Hugging Face ($HF_HOME) and "
            f"cannot be fetched ({type(error).__name__}: {reason}); give a local file with --init_file"
        ) from None


def classifier_shapes(name: str) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of timm's classifier, in its order."""
    return {key: value.shape for key, value in _without_memory(name).state_dict().items()}


def require_timm(name: str) -> Any:
    """The module ``timm``. UserError that says how to install it."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f'--backbone={PREFIX}{name}: needs timm, which is not installed: pip install -e ".[timm]"'
        ) from None
    return timm


def _check_name(name: str) -> None:
    """Raises UserError for a name that timm does not have itself: names on the Hugging Face hub would be looked up."""
    import timm

    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        raise UserError(f"--backbone={PREFIX}{name}: timm has no such model; nearest: {', '.join(near) or 'none'}")
    if tag and name not in timm.list_models(f"{architecture}.*", pretrained=True):
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UserError(f"--backbone={PREFIX}{name}: timm has no such weights; it has {', '.join(tags) or 'none'}")


@cache
def _layout(name: str) -> Layout:
    """How the model is built, found out by building it without memory."""
    reason = ""
    for options in ANY_SIZE:
        try:
            model = _without_memory(name, features_only=True, **options)
            strides = [info["reduction"] for info in model.feature_info.info]
            plain, indices = len(set(strides)) == 1, _indices(name, strides)
            multiple, stride = (strides[0], strides[0] / round(strides[0] / 4)) if plain else (32, 4.0)
            model = _without_memory(name, features_only=True, out_indices=indices, **options)
            return Layout(options, indices, multiple, stride, _parameters_used(model, 2 * multiple, 3 * multiple))
        except UserError:
            raise
        except Exception as error:  # whatever a model raises for an argument or an image size that it does not know
            reason = str(error).strip().partition("\n")[0][:100] or reason
    raise UserError(f"--backbone={PREFIX}{name}: it does not take images of any size ({reason}); choose another")


def _indices(name: str, strides: list[int]) -> tuple[int, ...]:
    """Which maps make up the scales."""
    number = len(strides)
    if len(set(strides)) == 1 and number >= len(SCALES):
        return tuple(number * (quarter + 1) // 4 - 1 for quarter in range(4))
    if not set(SCALES) <= set(strides):
        raise UserError(
            f"--backbone={PREFIX}{name}: its maps are 1/{', 1/'.join(map(str, strides))} of the image; expected 1/4, "
            "1/8, 1/16 and 1/32, or a plain ViT"
        )
    return tuple(max(index for index, stride in enumerate(strides) if stride == scale) for scale in SCALES)


def _parameters_used(model: nn.Module, height: int, width: int) -> frozenset[str]:
    """Names of the parameters that the maps of an image depend on. Everything is on the meta device."""
    with _disable_current_modes(), torch.device("meta"), torch.enable_grad():
        sum(x.sum() for x in model(torch.empty(2, 3, height, width))).backward()
    return frozenset(name for name, parameter in model.named_parameters() if parameter.grad is not None)


def _gives_channels_last(model: Any) -> bool:
    return str(getattr(getattr(model, "output_fmt", None), "value", "NCHW")) == "NHWC"


def _switch_of_recomputation(model: Any) -> Any:
    """The function that switches timm's recomputation of activations on and off, if there is one."""
    return getattr(getattr(model, "model", model), "set_grad_checkpointing", None)


def _without_memory(name: str, **options: Any) -> Any:
    """A model of timm on the meta device. Not counted where a plan counts memory, nor made of its tensors without data,
    out of which timm could not read the numbers that it needs.
    """
    import timm

    with _disable_current_modes(), torch.device("meta"):
        return timm.create_model(name, **options)


def _plain(name: str) -> str:
    """A tensor's name without what timm changes in the names of encoders: ``stages_0.x`` for ``stages.0.x``."""
    return re.sub(r"_(\d+)(?=\.)", r".\1", name.removeprefix("model."))
