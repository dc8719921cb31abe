"""Any stage on made-up data and with fresh networks: the work of a run without its files.

The stage's own ``build`` makes it, so it takes the time and memory of the stage on whatever device it is built.
``--plan``, benchmarks and tests use it. Samples come from the data sets and loaders of the stage, on images of random
pixels. Learning rates, files and scores play no part in it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torchvision.models.resnet import Bottleneck

from proda.data.class_statistics import ClassStatistics
from proda.data.label_store import HardLabelStore, Manifest, SoftLabelStore
from proda.data.labelled_files import Example
from proda.data.labels import LabelSpace
from proda.engines.optimization import Precision
from proda.method.feature_distance import THINGS
from proda.models.build import build_network
from proda.models.encoder_decoder import EncoderDecoder
from proda.models.network import SegmentationNetwork
from proda.run.config import TrainConfig
from proda.run.data import Data
from proda.run.live_bytes import built
from proda.run.networks import Networks
from proda.run.stage import Build, Stage
from proda.run.successors import attach_successors


class Sizes(NamedTuple):
    """What the work of a stage depends on, apart from the flags."""

    num_classes: int  # K
    full_image: tuple[int, int]  # height and width of a target training image
    validation_image: tuple[int, int]  # height and width of a validation image
    images: int  # of each domain in the batch of one process
    teachers: Mapping[str, tuple[str, str]] = {}  # flag -> backbone and head of the network in its file, if it is there


def made_up_stage(config: TrainConfig, build: Build, sizes: Sizes, precision: Precision) -> tuple[Stage, Networks]:
    """A stage with fresh networks on ``precision.device``, whose batches are made up; and these networks.

    Which classes are objects makes no difference to time and memory.
    """
    config = replace(config, batch_size=sizes.images, num_workers=0, epochs=1, iterations=1, thing_classes="")
    data = MadeUpData(config, sizes)
    networks = FreshNetworks(config, data.classes, precision, sizes.teachers)
    stage = build(data.config, data, networks)
    data.prepare()
    attach_successors(data.config, stage, data.classes.names, precision)
    return stage, networks


def training_batch(stage: Stage) -> dict[str, Any]:
    """A batch of the stage on the CPU, as its loader gives it; with real values, even among fake tensors."""
    with _disable_current_modes():
        return next(iter(stage.batches.loader()))


class FreshNetworks(Networks):
    """Networks of the architectures that the flags and the weights files say, with random weights; no file is needed.

    ``device``: where they are made, if not on that of ``precision``; "meta" for networks without any weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: LabelSpace,
        precision: Precision,
        teachers: Mapping[str, tuple[str, str]] = {},
        device: str = "",
    ) -> None:
        super().__init__(config, classes, precision)
        self.teachers, self._device = teachers, torch.device(device) if device else precision.device

    @property
    def device(self) -> torch.device:
        return self._device

    def initial(self, *, bn_pretrain: bool = False) -> SegmentationNetwork:
        return self._fresh("student", bn_pretrain=bn_pretrain)

    def load(self, flag: str = "weights", *, name: str = "", file: Any = None) -> SegmentationNetwork:
        return self._fresh(name or flag)

    def frozen(self, flag: str) -> SegmentationNetwork:
        # The network of a missing file has the extra batch norm if the student's has.
        return self._fresh(flag, bn_pretrain=getattr(self.config, "bn_pretrain", False))

    def _fresh(self, name: str, *, bn_pretrain: bool = False) -> SegmentationNetwork:
        config: Any = self.config
        backbone, head = self.teachers.get(name, (self.config.backbone, self.config.head))
        options: dict[str, Any] = {"head": head, "bn_pretrain": bn_pretrain, "dropout": config.dropout}
        network = built(lambda: build_network(backbone, len(self.classes.names), **options), self.device)
        _draw_weights(network)
        return self._ready(network, name)

    def _laid_out(self, network: SegmentationNetwork) -> SegmentationNetwork:
        for parameter in network.parameters():  # as network.to(memory_format=...), which fake tensors do not support
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return network

    def place(self, name: str, network: nn.Module) -> nn.Module:
        self.made[name] = network if self.device.type == "cpu" else network.to(self.device)  # fake tensors stay
        return self.made[name]


@torch.no_grad()
def _draw_weights(network: SegmentationNetwork) -> None:
    """Weights with which features neither vanish nor explode from layer to layer, as trained ones would have."""
    if not isinstance(network, EncoderDecoder):  # whose encoders have such weights from the start
        for part in network.backbone_parts():
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, Bottleneck):  # with 1, and frozen batch norm, features would double in every block
            module.get_parameter("bn3.weight").fill_(0.2)


class MadeUpData(Data):
    """Images of random pixels and random labels of the given sizes, in place of the files of a run."""

    def __init__(self, config: TrainConfig, sizes: Sizes) -> None:
        domains: Any = MadeUpDomains(sizes, config.val_batch_size)
        super().__init__(config, domains)
        self.sizes = sizes

    def label_store(self, kind: str, network: SegmentationNetwork, **settings: Any) -> SoftLabelStore | HardLabelStore:
        store = MadeUpSoftLabels(self.sizes) if kind == "soft" else MadeUpHardLabels(self.sizes)
        store.manifest = Manifest(self.sizes.num_classes, "", settings, self.domains.target.names)
        return store

    def made_from(self, network: SegmentationNetwork) -> dict[str, Any]:
        return {}

    def prepare(self) -> None:
        images, classes = self.sizes.images, self.sizes.num_classes
        for rare_classes, _, _ in self._to_count:  # every image shows enough of every class
            rare_classes.use(ClassStatistics(np.full((images, classes), 10**6), np.full(images, 10**6)))


class MadeUpDomains:
    """What ``Data`` asks its ``Domains`` for."""

    own_source = own_target = None

    def __init__(self, sizes: Sizes, validation_images: int) -> None:
        K = sizes.num_classes
        names = [*THINGS, *map(str, range(K))][:K]
        self.classes = LabelSpace(names, np.zeros((K, 3), np.uint8), np.arange(256, dtype=np.uint8))
        self.source = self.target = self.labelled_target = MadeUpImages(sizes.full_image, K, sizes.images)
        self.validation = MadeUpImages(sizes.validation_image, K, validation_images)

    def images(self, split: str, *, with_labels: bool) -> "MadeUpImages":
        return self.validation if split == "val" else self.target

    def target_truth(self) -> None:
        return None


class MadeUpImages:
    """Labelled images of random pixels and of one size (height, width), in place of the files of a domain."""

    def __init__(self, size: tuple[int, int], num_classes: int, number: int) -> None:
        self.shape, self.num_classes, self.names = size, num_classes, [f"image_{index}" for index in range(number)]
        self.size = size[::-1]  # all images have it

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Example:
        rng, (height, width) = np.random.default_rng(index), self.shape
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        labels = rng.integers(0, self.num_classes, (height, width), dtype=np.uint8)
        return Example(image, labels, self.names[index], (width, height))


class MadeUpSoftLabels(SoftLabelStore):
    """Random soft labels in place of stored ones."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("", sizes.num_classes)
        self.sizes = sizes

    def read(self, name: str) -> Tensor:
        height, width = (side // 8 + 1 for side in self.sizes.full_image)  # samples do not depend on the resolution
        return torch.randn(self.num_classes, height, width).softmax(0)


class MadeUpHardLabels(HardLabelStore):
    """Random labels in place of stored ones; the confidence is 1 everywhere."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("")
        self.sizes = sizes

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        size = self.sizes.full_image
        labels = torch.randint(0, self.sizes.num_classes, size, dtype=torch.uint8)
        return labels, torch.ones(size)
