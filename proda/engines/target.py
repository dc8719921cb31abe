"""What the loss on the target is computed from."""

from typing import NamedTuple

from torch import Tensor


class TargetView(NamedTuple):
    """Images and labels of the target loss, in ``engine.state.target`` from ``FURTHER_LOSSES_DUE`` on.

    Handlers of ``TARGET_READY`` may put another one in its place: mixed with the source, masked or augmented.
    """

    image: Tensor  # uint8 [B, 3, H, W]
    labels: Tensor  # long [B, h, w] in 0..K-1 or ``IGNORE``; h, w are H, W or a quarter of them
    weights: Tensor | None = None  # float32 [B, h, w]; None: each pixel that has a label has the weight 1
