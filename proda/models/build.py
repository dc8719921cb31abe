"""From the name of a backbone to a network."""

from collections.abc import Callable

from proda.models import deeplab
from proda.models.network import SegmentationNetwork
from proda.utils.errors import UserError

# A new backbone is a file of its own with a function like these, and one line here. The function takes the number of
# classes and the keywords of ``build_network`` and returns a ``SegmentationNetwork``. If torchvision has ImageNet
# weights for it, they are one more line in ``pretrained.IMAGENET``.
BUILDERS: dict[str, Callable[..., SegmentationNetwork]] = {
    "resnet101": deeplab.resnet101,
    "resnet50": deeplab.resnet50,
    "tiny": deeplab.tiny,
}
BACKBONES: tuple[str, ...] = tuple(BUILDERS)  # choices of --backbone


def build_network(
    backbone: str, num_classes: int, *, bn_pretrain: bool = False, dropout: float = 0.1
) -> SegmentationNetwork:
    """The network on the ``backbone`` of that name, with fresh weights; nothing is downloaded.

    ``bn_pretrain``: one more batch norm between backbone and head, for self-supervised weights, whose scale is not
    that of ImageNet's. ``dropout``: probability with which a whole feature channel is dropped.
    Raises UserError for a name that is not in ``BUILDERS``.
    """
    if backbone not in BUILDERS:
        raise UserError(f"--backbone={backbone}: expected one of {', '.join(BUILDERS)}")
    network = BUILDERS[backbone](num_classes, bn_pretrain=bn_pretrain, dropout=dropout)
    network.backbone = backbone
    return network
