"""Feature distance: the backbone must not forget what it knew about objects before the training."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision
from proda.method import IGNORE
from proda.method.feature_distance import feature_distance, mostly_one_of
from proda.method.tensors import to_float
from proda.models.network import SegmentationNetwork
from proda.utils.errors import UserError


class FeatureDistance:
    """Adds the distance between the backbone's features of the source and those of its initial state.

    It is the loss ``feature_distance`` at ``SOURCE_LOSSES_READY``: the mean Euclidean distance over the positions of
    the last stage whose label is one of ``things``, times ``weight``. The initial state is that of ``network`` when
    this object is made. Source: DAFormer (arXiv:2111.14887), where it has ImageNet's weights.

    Args:
        network: the student, without a DDP wrapper, with its initial weights.
        things: numbers of the classes.

    Raises:
        UserError: the network has no ``backbone_features``.
    """

    def __init__(
        self, network: SegmentationNetwork, precision: Precision, things: Sequence[int], *, weight: float = 0.005
    ) -> None:
        self.network, self.precision, self.things, self.weight = network, precision, list(things), weight
        if type(network).backbone_features is SegmentationNetwork.backbone_features:
            raise UserError(self._cannot("have backbone_features"))
        self.frozen = copy.deepcopy(network).requires_grad_(False).eval()
        self.features: Tensor | None = None  # [B, C, h, w] of the student's last pass with gradients

    def attach(self, trainer: Trainer) -> None:
        """Copies of the network that are made afterwards have its hook, too."""
        self.network.backbone_output.register_forward_hook(self._keep)
        trainer.add_event_handler(ProdaEvents.SOURCE_LOSSES_READY, self)
        trainer.add_event_handler(ProdaEvents.BACKWARD_DONE, self._forget)

    def _keep(self, module: object, inputs: object, features: Tensor) -> None:
        if torch.is_grad_enabled():
            self.features = features

    def _forget(self) -> None:
        """Lets go of the features of the target's passes."""
        self.features = None

    def __call__(self, engine: Trainer) -> None:
        """Raises UserError if the network does not pass the output of its backbone through ``backbone_output``."""
        features, graph = self.features, engine.state.graph
        if features is None:
            raise UserError(self._cannot("pass the output of its backbone through backbone_output"))
        self.features = None
        with torch.no_grad():
            with self.precision.autocast():
                frozen = self.frozen.backbone_features(to_float(graph["source_image"]))
            counted = self._counted(graph["source_labels"], features)
            everywhere = self._counted(engine.state.batch["source"]["labels"], features).sum()
        distance = feature_distance(
            features, frozen, counted, positions=engine.state.update.loss_denominator(everywhere)
        )
        engine.state.losses["feature_distance"] = self.weight * distance

    def _counted(self, labels: Tensor, features: Tensor) -> Tensor:
        """Positions of the features that are of an object, bool [B, h, w]."""
        height, width = labels.shape[-2:]
        filled = self.network.filled_size(height, width)
        labels = F.pad(labels, (0, filled[1] - width, 0, filled[0] - height), value=IGNORE)
        return mostly_one_of(labels, self.things, (features.shape[-2], features.shape[-1]))

    def _cannot(self, what: str) -> str:
        return f"--feature_distance: the network {type(self.network).__name__} does not {what}"
