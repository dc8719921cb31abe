"""Feature distance: the backbone must not forget what it knew about objects before the training."""

import copy
from collections.abc import Sequence

import torch
from ignite.engine import Engine
from torch import Tensor

from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision, to_float
from proda.method.feature_distance import feature_distance, mostly_one_of
from proda.models.network import SegmentationNetwork


class FeatureDistance:
    """Adds the distance between the backbone's features of the source and those of its initial state.

    It is the loss ``feature_distance`` at ``SOURCE_LOSSES_READY``: the mean Euclidean distance over the positions of
    the last stage whose label is one of ``things``, times ``weight``. The initial state is that of ``network`` when
    this object is made. Source: DAFormer (arXiv:2111.14887), where it has ImageNet's weights.

    Args:
        network: the student, without a DDP wrapper, with its initial weights.
        things: numbers of the classes.
    """

    def __init__(
        self, network: SegmentationNetwork, precision: Precision, things: Sequence[int], *, weight: float = 0.005
    ) -> None:
        self.network, self.precision, self.things, self.weight = network, precision, list(things), weight
        self.frozen = copy.deepcopy(network).requires_grad_(False).eval()
        self.features: Tensor | None = None  # [B, C, h, w] of the student's last pass with gradients

    def attach(self, trainer: Engine) -> None:
        """Attach it after copies of the network were made, which would have its hook too."""
        self.network.backbone_output.register_forward_hook(self._keep)
        trainer.add_event_handler(ProdaEvents.SOURCE_LOSSES_READY, self)
        trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, self._forget)

    def _keep(self, module: object, inputs: object, features: Tensor) -> None:
        if torch.is_grad_enabled():
            self.features = features

    def _forget(self) -> None:
        """Lets go of the features of the target's passes."""
        self.features = None

    def __call__(self, engine: Engine) -> None:
        """Raises RuntimeError if the network does not pass the output of its backbone through ``backbone_output``."""
        features, graph = self.features, engine.state.graph
        if features is None:
            name = type(self.network).__name__
            raise RuntimeError(f"{name} does not pass the output of its backbone through backbone_output")
        with torch.no_grad():
            with self.precision.autocast():
                frozen = self.frozen.backbone_features(to_float(graph["source_image"]))
            size = (features.shape[-2], features.shape[-1])
            counted = mostly_one_of(graph["source_labels"], self.things, size)
            everywhere = mostly_one_of(engine.state.batch["source"]["labels"], self.things, size).sum()
        distance = feature_distance(features, frozen, counted, positions=engine.state.update.pixels(everywhere))
        engine.state.losses["feature_distance"] = self.weight * distance
