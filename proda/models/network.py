"""What every segmentation network offers, whatever its backbone and head; nothing else of a network is used elsewhere.

B batch, K classes, D features of the head, H W image height and width, h w those of the network's output.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth


class Segmentation(NamedTuple):
    """The output for a batch, at network stride; the caller upsamples."""

    logits: Tensor  # [B, K, h, w] before softmax
    features: Tensor  # [B, D, h, w] between the head's dropout and last convolution; prototypes are means of these


class SegmentationNetwork(nn.Module):
    """Base class: a backbone that pretrained weights can fill, and a head on it.

    ``forward`` takes RGB in 0..1, neither centred nor scaled, float [B, 3, H, W]; it returns :class:`Segmentation`.
    A subclass sets ``num_classes``, ``num_features`` and ``head``, and says which of its modules are which. The names
    below are taken: its modules have others (``self.layers``, not ``self.backbone``).
    """

    num_classes: int  # K
    num_features: int  # D
    head: str  # name of the head
    backbone: str = ""  # name under which ``build_network`` made it
    class_names: tuple[str, ...] = ()  # in the order of the logits, where the weights' file says so
    checkpoint_activations: bool = False  # compute stages of the backbone again in the backward pass, to save memory
    neutral_color: tuple[float, float, float] = (0.0, 0.0, 0.0)  # RGB in 0..1 that the backbone sees as zeros
    origin: str = ""  # SHA-256 of the bytes of the weights' file, empty for fresh weights
    pretrained: str = ""  # where the backbone's initial weights came from, in one line; empty for others
    backbone_prefix: str = ""  # of the names of the backbone's tensors, which files of a backbone alone leave out

    def __init__(self) -> None:
        super().__init__()
        self.backbone_output = nn.Identity()  # hooks on it see the output of the backbone

    def backbone_parts(self) -> tuple[nn.Module, ...]:
        """Everything that ImageNet or self-supervised weights can fill, in the order of the forward pass."""
        raise NotImplementedError

    def head_parts(self) -> tuple[nn.Module, ...]:
        """All other modules that have parameters."""
        raise NotImplementedError

    def backbone_features(self, image: Tensor) -> Tensor:
        """Output [B, C, h, w] of the backbone for images as ``forward`` takes them.

        Only the feature distance needs it.
        """
        raise NotImplementedError

    def filled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the backbone's output covers: more than the image's where the network fills it up."""
        return height, width


# Parts of the names of parameters that say where something is, or scale a whole channel or head of attention.
_NOT_DECAYED = (
    *("pos_embed", "cls_token", "reg_token", "register_tokens", "dist_token", "mask_token", "rel_pos"),
    *("relative_position_bias_table", "cpb_mlp", "logit_scale", "layer_scale", "gamma"),
)


def parameter_groups(
    network: SegmentationNetwork,
    lr: float,
    *,
    head_factor: float = 10.0,
    repeat_backbone: bool = False,
    spare_norms: bool = False,
) -> list[dict]:
    """Groups for a torch optimizer: the backbone at ``lr``, the head at ``head_factor`` times ``lr``.

    A factor of 1 gives one group of all parameters, as in stage 1. ``repeat_backbone`` lists backbone parameters as
    often as the released code does, three or four times: it walks over nested modules and takes all parameters of
    each. SGD then steps that often. Repeated parameters always have a group of their own.

    ``spare_norms``: no weight decay for parameters of norms, embeddings of positions, tokens and scales of channels, as
    DAFormer has it; biases decay. It cannot be combined with ``repeat_backbone``.
    """
    if head_factor == 1 and not repeat_backbone and not spare_norms:
        return [{"params": list(network.parameters()), "lr": lr}]
    repeated = list(_walk_parameters(network))
    backbone, head = dict.fromkeys(repeated), [p for part in network.head_parts() for p in part.parameters()]
    if spare_norms:
        spared, groups = _not_decayed(network), []
        for parameters, rate in ((backbone, lr), (head, head_factor * lr)):
            groups.append({"params": [p for p in parameters if p not in spared], "lr": rate})
            groups.append({"params": [p for p in parameters if p in spared], "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]
    groups = [{"params": list(backbone), "lr": lr}, {"params": head, "lr": head_factor * lr}]
    if repeat_backbone:
        # Without foreach, whose one step over all tensors would write to a repeated one several times at once.
        groups[0] |= {"params": repeated, "foreach": False}
        warnings.filterwarnings("ignore", message="optimizer contains a parameter group with duplicate parameters")
    return groups


def _not_decayed(network: nn.Module) -> set[nn.Parameter]:
    """Parameters of norms, embeddings of positions, tokens, and scales of channels."""
    found = {p for name, p in network.named_parameters() if any(part in name for part in _NOT_DECAYED)}
    for module in network.modules():
        if "Norm" in type(module).__name__:  # torch's, torchvision's, timm's and ours
            found.update(module.parameters(recurse=False))
    return found


def _walk_parameters(network: SegmentationNetwork) -> Iterator[nn.Parameter]:
    for part in network.backbone_parts():
        for module in part.modules():
            yield from module.parameters()


def checkpointed(stage: nn.Module, x: Tensor) -> Any:
    """``stage(x)``, of whose activations only ``x`` is kept for the backward pass, which computes the others again.

    The second forward pass has the same random numbers, and leaves the buffers (running statistics) as they are, so
    that results are the same.
    """
    if not torch.is_grad_enabled():
        return stage(x)
    return checkpoint(stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _unchanged_buffers(stage)))


@contextmanager
def _unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Puts the module's buffers back at the end."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Sets evaluation mode; at the end each module returns to its previous mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def disable_dropout(network: nn.Module) -> None:
    """Switches dropout and stochastic depth off; call it again after ``network.train()``."""
    for module in network.modules():
        # timm has a class DropPath of its own, and proda does not need timm.
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth) or type(module).__name__ == "DropPath":
            module.eval()


def freeze_batch_norm(network: nn.Module) -> None:
    """Makes every batch norm use its running statistics and stop learning; call it again after ``network.train()``.

    The affine parameters may stay in an optimizer: without a gradient they do not even decay.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # the synchronised class derives from it too
            module.eval().requires_grad_(False)
