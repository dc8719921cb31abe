"""From the names of a backbone and a head to a network."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from proda.models import deeplab, encoders
from proda.models.encoder_decoder import on_encoder
from proda.models.network import SegmentationNetwork
from proda.models.timm_encoders import PREFIX, TimmEncoder
from proda.utils.errors import UserError

# Name of a backbone -> what takes the number of classes and the keywords of ``build_network`` and returns a
# ``SegmentationNetwork``; ``on_encoder`` makes that from an encoder. ImageNet weights: see ``pretrained.IMAGENET``.
BUILDERS: dict[str, Callable[..., SegmentationNetwork]] = {
    "resnet101": deeplab.DeepLab,  # the published network
    "resnet50": partial(deeplab.DeepLab, blocks=(3, 4, 6, 3)),
    "tiny": deeplab.tiny,
    **{name: on_encoder(make) for name, make in encoders.BUILDERS.items()},
}
HEADS = ("deeplab", "daformer", "light")  # choices of --head


def build_network(
    backbone: str, num_classes: int, *, head: str = "deeplab", bn_pretrain: bool = False, dropout: float = 0.1
) -> SegmentationNetwork:
    """The network on the ``backbone`` of that name, with fresh weights; nothing is downloaded.

    ``backbone``: one of ``BUILDERS``, ``timm:NAME``, or the path of a file ``NAME.py``, which is executed: it defines
    ``build``, which is called as a builder is, or ``encoder``, which returns an encoder.
    ``head``: one of ``HEADS``; a backbone that brings a head of its own has that instead. ``bn_pretrain``: one more
    batch norm between backbone and head, for self-supervised weights, whose scale is not that of ImageNet's.
    ``dropout``: probability with which a whole feature channel is dropped.
    Raises UserError for an unknown name.
    """
    build = _builder(backbone)
    if head not in HEADS:
        raise UserError(f"--head={head}: expected one of {', '.join(HEADS)}")
    network = build(num_classes, head=head, bn_pretrain=bn_pretrain, dropout=dropout)
    if not isinstance(network, SegmentationNetwork):
        raise UserError(
            f"--backbone={backbone}: build returns {type(network).__name__}, expected a SegmentationNetwork"
        )
    network.backbone = recorded_name(backbone)
    return network


def recorded_name(backbone: str) -> str:
    """The name of a backbone as weights files have it: of a file ``NAME.py`` without its folder."""
    return Path(backbone).name if is_file(backbone) else backbone


def is_file(backbone: str) -> bool:
    """Whether ``build_network`` would execute a file."""
    return backbone.endswith(".py")


def _builder(backbone: str) -> Callable[..., SegmentationNetwork]:
    if backbone in BUILDERS:
        return BUILDERS[backbone]
    if backbone.startswith(PREFIX):
        return on_encoder(partial(TimmEncoder, backbone.removeprefix(PREFIX)))
    if is_file(backbone):
        return _builder_of_file(Path(backbone).resolve())
    raise UserError(f"--backbone={backbone}: expected one of {', '.join(BUILDERS)}, timm:NAME or a file NAME.py")


@cache
def _builder_of_file(file: Path) -> Callable[..., SegmentationNetwork]:
    """What a user's file defines; the file is executed once in a process."""
    name = f"proda_backbone_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--backbone={file}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "build"):
        return module.build
    if hasattr(module, "encoder"):
        return on_encoder(module.encoder)
    raise UserError(f"--backbone={file}: defines neither build(num_classes, **options) nor encoder()")
