"""What an exported file computes: from images to logits, probabilities or labels at the size of the images."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import proda
from proda.data.labels import stored_labels
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork

Result = Literal["logits", "probabilities", "labels"]
INPUT = "image"  # name of the input; that of the output is the result's
RUN_FIELDS = ("stage", "recipe", "source", "target", "iteration", "miou", "label_free", "git_commit")


class ImageProgram(nn.Module):
    """A copy of a network in evaluation mode, followed by the steps to its result at the size of the images.

    ``forward`` takes RGB in 0..1, float32 [B, 3, H, W], and returns ``logits``, float32 [B, K, H, W] (resized as
    everywhere in the method: bilinearly with aligned corners), ``probabilities``, their softmax, float32
    [B, K, H, W], or ``labels``, the numbers of the most probable classes, uint8 [B, H, W]. With ``fp16`` weights and
    computation of the network are float16; input, resizing and output stay as they are.
    """

    def __init__(self, network: SegmentationNetwork, result: Result = "logits", *, fp16: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.result, self.dtype = result, torch.float16 if fp16 else torch.float32
        self.network.to(self.dtype).to(memory_format=torch.channels_last)
        self.num_classes = network.num_classes
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        # Contiguous: softmax and maximum over classes take three times as long in the memory layout channels-last.
        logits = self.network(image.to(self.dtype)).logits.float().contiguous()
        # Not ``resize`` of the engines: its comparison of sizes would be a condition on the size of the images.
        logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=True)
        if self.result == "labels":
            return logits.max(1).indices.to(torch.uint8)
        return logits.softmax(1) if self.result == "probabilities" else logits


def metadata(
    program: ImageProgram, info: ModelInfo, *, class_names: Sequence[str] = (), git_commit: str = ""
) -> dict[str, Any]:
    """What an exported file says about itself, as plain values: texts, numbers, lists, and a dict about the training.

    Args:
        program: the program in the file.
        info: what the weights file says.
        class_names: in the order of the logits; if empty, those of ``info`` or else of the benchmark of as many.
        git_commit: commit of the package that exports.
    """
    names = class_names or info.class_names
    space = stored_labels(program.num_classes, names, info.colors, info.label_ids)
    kind = "uint8 [B, H, W]" if program.result == "labels" else f"float32 [B, {program.num_classes}, H, W]"
    said = {
        "class_names": list(space.names),
        "class_ids": space.ids.tolist(),
        "colors": space.colors.tolist(),
        "input": f"{INPUT}: float32 [B, 3, H, W], {info.normalisation} (8-bit values divided by 255)",
        "output": f"{program.result}: {kind}",
        "precision": str(program.dtype).removeprefix("torch."),
        "proda": proda.__version__,
        "torch": torch.__version__,
        "git_commit": git_commit,
        "weights_sha256": program.network.origin,
        "training": {name: value for name, value in info.plain().items() if name in RUN_FIELDS},
    }
    return said | ({"size": list(info.size)} if info.size else {})
