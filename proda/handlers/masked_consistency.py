"""Masked image consistency: the student predicts the teacher's labels of what it cannot see."""

import torch
from torch import Tensor

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import Precision, rand_per_image
from proda.handlers.color_augmentation import augmented
from proda.method import IGNORE
from proda.method.masking import block_mask, mask_grid, masked
from proda.method.online import CONFIDENT, confident_fraction, weighted_cross_entropy
from proda.method.tensors import resize, to_float
from proda.models.network import SegmentationNetwork

RATIO = 0.7  # of the squares that are masked


class MaskedConsistency:
    """Adds the loss of MIC (arXiv:2212.01322) at ``EXTRA_LOSSES``: ``loss_masked`` in the output.

    The target image, before ``TARGET_READY``, is augmented in color; then squares of ``block`` pixels are masked, each
    with the probability ``RATIO``. The loss is the cross entropy of the student on it with the labels of the image as
    a whole. Each pixel is weighted: by ``engine.state.target.weights`` where the stage has them; otherwise by the share
    of the image's pixels of which the labels are sure, in stage 1 those whose rectified label has at least the
    probability ``confidence``, in stages 2 and 3 those that have a label.

    ``network``: the student without a DDP wrapper, whose backbone's neutral color fills the squares.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        precision: Precision,
        *,
        weight: float = 1.0,
        block: int = 32,
        confidence: float = CONFIDENT,
    ) -> None:
        self.precision, self.weight, self.block = precision, weight, block
        self.confidence = confidence
        self.color = torch.tensor(network.neutral_color, device=precision.device)

    def attach(self, trainer: Trainer) -> None:
        trainer.add_event_handler(ProdaEvents.EXTRA_LOSSES, self)

    def __call__(self, engine: Trainer) -> None:
        target, update = engine.state.target, engine.state.update
        size = (target.image.shape[-2], target.image.shape[-1])
        draws = rand_per_image(target.image, *mask_grid(size, self.block))
        tensors = {
            "image": augmented(target.image),
            "mask": block_mask(draws, size, block=self.block, ratio=RATIO),
            "labels": target.labels,
            "weights": self._weights(engine),
        }

        def loss(views: dict[str, Tensor]) -> Tensor:
            with self.precision.autocast():
                logits = update.student(masked(to_float(views["image"]), views["mask"], self.color)).logits
            logits = resize(logits, views["labels"].shape[-2:])
            entropy = self.precision.compiled(weighted_cross_entropy)(logits, views["labels"], views["weights"])
            return self.weight * entropy

        update.extra_loss(engine, "masked", tensors, loss)

    @torch.no_grad()
    def _weights(self, engine: Trainer) -> Tensor:
        """Weight of each pixel, float32 [B, h, w]."""
        out, target = engine.state.output, engine.state.target
        if target.weights is not None:
            return target.weights
        if "rectified" in out:
            share = confident_fraction(out["rectified"].max(1).values, self.confidence)
        else:
            share = (target.labels != IGNORE).float().mean((1, 2))
        return share[:, None, None].expand(target.labels.shape)
