"""Validation of a contrastive network, and the file of its backbone."""

from pathlib import Path
from typing import Any

from ignite.engine import Engine

from proda.handlers.kept_models import KeptModels
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork
from proda.models.pretrained import backbone_content


class ContrastiveValidation(Validation):
    """``Validation`` by the scores of ``ContrastiveScores``, on pairs of views; no labels are needed."""

    always = "contrastive_loss"

    def scores(self, evaluator: Engine) -> dict[str, Any]:
        return dict(evaluator.state.metrics["contrastive"])

    def describe(self, scores: dict[str, Any]) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())

    def summary(self) -> dict[str, Any]:
        """The scores of the last validation."""
        return self.results[-1]


class KeptBackbone(KeptModels):
    """Saves the backbone of the last validation as ``last.pt``, which ``--init=simclr`` of the stages reads.

    There is no best model: no score without labels says which backbone segments best.
    """

    def __init__(self, validation: ContrastiveValidation, network: SegmentationNetwork, folder: Path) -> None:
        super().__init__(validation, network, ModelInfo(), folder)

    def names(self, result: dict[str, Any]) -> list[str]:
        return ["last.pt"]

    def content(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        return backbone_content(self.network, **result)
