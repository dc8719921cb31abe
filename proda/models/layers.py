"""Layers that several networks share. B batch, C channels, H W height and width."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that does not count batches, as the released one does not; with a fixed momentum it need not."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *statistics, self.training, self.momentum or 0.0, self.eps)


class Dropout(nn.Dropout2d):
    """Dropout of whole channels, drawn for the global batch, of which each process has one contiguous part.

    Processes whose random generators are in the same state thus drop what a single process would drop, and a single
    process draws what torch's own layer draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        kept = F.dropout2d(x.new_ones(processes * len(x), x.shape[1], 1, 1), self.p)
        return x * kept[rank * len(x) : (rank + 1) * len(x)]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of maps [B, C, H, W]."""
    if torch.compiler.is_exporting():  # a slice would make a condition of whether there is anything to cut off
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, :height, :width]


def resize_half_pixel(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, C, H, W] brought to (height, width) of ``size``, bilinearly; the centres of pixels keep their places."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
