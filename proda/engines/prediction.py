"""Prediction without labels, for images of any size: the engine, and the function that programs of users call."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from proda.data.loaders import to_device
from proda.engines.inference import predict, require_finite
from proda.engines.optimization import Precision
from proda.engines.tiling import blended_rows
from proda.method.tensors import resize, to_float
from proda.models.network import SegmentationNetwork, evaluation_mode


def probability_rows(
    network: SegmentationNetwork,
    image: Tensor,
    size: tuple[int, int],
    *,
    tile: int,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Iterator[Tensor]:
    """Class probabilities, float32 [B, K, h, W], in strips from top to bottom that together have the given size.

    ``image`` [B, 3, h, w] in 0..1. An image with a side above ``tile`` is predicted in overlapping tiles (see
    ``proda.engines.tiling``). If it was resized for the network, ``size`` is its size before, (height, width), to which
    the probabilities are resized; there is one strip then.
    """

    def scores(part: Tensor) -> Tensor:
        return predict(network, part, (part.shape[-2], part.shape[-1]), flip=flip, scales=scales)

    rows = blended_rows(scores, image, tile)
    if tuple(image.shape[-2:]) == tuple(size):
        yield from rows
    else:
        yield resize(torch.cat(list(rows), dim=2), size)


def prediction_engine(
    network: SegmentationNetwork,
    precision: Precision,
    *,
    tile: int,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Engine:
    """An engine that predicts batches of images.

    Batches: ``{"image": uint8 [B, 3, h, w], "name": [...], "file_size": int64 [B, 2]}``; the images of a batch are from
    files of one size. Output, all of that size [H, W]: ``predicted``, the most probable classes, long [B, H, W];
    ``confidence``, their probabilities, float32 [B, H, W]; and ``information``, what the metric ``LabelFreeOfTerms``
    expects. Other arguments as for :func:`probability_rows`. FloatingPointError if the network predicts NaN.
    """

    @torch.no_grad()
    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.output = None
        engine.state.batch = batch = to_device(batch, precision.device)
        height, width = batch["file_size"][0].tolist()
        with precision.autocast(), evaluation_mode(network):
            image = to_float(batch["image"])
            found = []
            mean = torch.zeros(network.num_classes, dtype=torch.float64, device=image.device)
            entropy = torch.zeros((), dtype=torch.float64, device=image.device)
            for row in probability_rows(network, image, (height, width), tile=tile, flip=flip, scales=scales):
                found.append(row.max(1))  # faster than argmax on a CPU
                mean += row.sum((0, 2, 3), dtype=torch.float64)
                entropy -= torch.special.xlogy(row, row).sum(dtype=torch.float64)
        require_finite(mean, batch["name"])
        return {
            "predicted": torch.cat([part.indices for part in found], dim=1),
            "confidence": torch.cat([part.values for part in found], dim=1).float(),
            "information": (mean / (height * width), entropy / (height * width), len(image)),
        }

    return Engine(step)
