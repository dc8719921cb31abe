"""What every segmentation network offers."""

from proda.models.deeplab import DeepLab as SegmentationNetwork
from proda.models.deeplab import Segmentation, build_deeplab

__all__ = ["Segmentation", "SegmentationNetwork", "build_network"]


def build_network(backbone, num_classes, **options):
    network = build_deeplab(backbone, num_classes, **options)
    network.backbone = backbone
    network.num_features = network.layer5.head[-1].in_channels
    return network
