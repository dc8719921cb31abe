"""What the loss on the target is computed from."""

from typing import NamedTuple

from torch import Tensor


class TargetView(NamedTuple):
    """Images and labels of the target loss, in ``engine.state.target`` from ``EXTRA_LOSSES`` on.

    Handlers of ``TARGET_READY`` may put another one in its place: mixed with the source, masked or augmented.
    """

    image: Tensor  # uint8 [B, 3, H, W]
    labels: Tensor  # long [B, h, w] in 0..K-1 or ``IGNORE``; h, w are H, W or a quarter of them
    # Weight of each pixel, float32 [B, h, w]; None: 1 where there is a label. Only online self-training has weights.
    weights: Tensor | None = None


def unweighted(target: TargetView) -> tuple[Tensor, Tensor]:
    """Image and labels for a loss that knows no weights; ValueError if a handler has set some."""
    if target.weights is not None:
        raise ValueError("a handler has set weights of pixels in engine.state.target, which this stage does not use")
    return target.image, target.labels
