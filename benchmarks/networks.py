"""What the recommended networks cost: the table of docs/networks.md, counted on tensors without data.

    python benchmarks/networks.py        # minutes on a CPU; nothing is downloaded
    python benchmarks/networks.py --only=convnext

Floating-point operations are those of a forward pass for one image of 896 x 512 pixels, a multiplication with its
addition as two, as torch's FlopCounterMode counts them. Memory is the peak of stage 1 in one process, as
``stage1_denoise --plan`` counts it: crops of 896 x 512, batches of 4 images of each domain, whole images of
2048 x 1024, 19 classes; the recipe's SGD for ResNets, AdamW for the others. Needs timm.
"""

import argparse
import time
from dataclasses import replace

import timm
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from experiments.stage1_denoise import Config, build
from proda.models.build import build_network
from proda.run.made_up import Sizes
from proda.run.memory import GB, stage_memory
from proda.studies.tables import markdown_table

NETWORKS = (
    ("resnet101", "deeplab"),
    ("resnet50", "deeplab"),
    ("resnet101", "daformer"),
    ("timm:tf_efficientnet_lite0", "light"),
    ("convnext_tiny", "daformer"),
    ("convnext_small", "daformer"),
    ("convnext_base", "daformer"),
    ("convnext_large", "daformer"),
    ("swin_v2_t", "daformer"),
    ("swin_v2_b", "daformer"),
    ("timm:convnext_tiny.fb_in22k_ft_in1k", "daformer"),
    ("timm:vit_small_patch14_dinov2.lvd142m", "daformer"),
    ("timm:vit_base_patch14_dinov2.lvd142m", "daformer"),
    ("timm:vit_large_patch14_dinov2.lvd142m", "daformer"),
    ("timm:eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "daformer"),
)
SIZES = Sizes(num_classes=19, full_image=(1024, 2048), validation_image=(1024, 2048), images=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    only = parser.parse_args().only
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    print(f"{time.strftime('%Y-%m-%d')}, {versions}\n")
    rows = [row(*network) for network in NETWORKS if only in network[0]]
    header = ["backbone", "head", "million parameters", "GFLOP", "stage 1, GB", "with --amp=bf16, GB"]
    print(markdown_table(header, rows))


def row(backbone: str, head: str) -> list[str]:
    with torch.device("meta"), torch.no_grad():
        network = build_network(backbone, SIZES.num_classes, head=head).eval()
        with FlopCounterMode(display=False) as count:
            network(torch.empty(1, 3, 512, 896))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    optimizer = "sgd" if backbone.startswith("resnet") else "adamw"
    config = Config(backbone=backbone, head=head, optimizer=optimizer)
    peaks = [stage_memory(replace(config, amp=amp), build, SIZES).peak for amp in ("off", "bf16")]
    found = [parameters / 1e6, count.get_total_flops() / 1e9, *(peak / GB for peak in peaks)]
    print(backbone, head, *(f"{value:.1f}" for value in found), flush=True)
    return [f"`{backbone}`", head, f"{found[0]:.0f}", f"{found[1]:.0f}", *(f"{peak:.1f}" for peak in found[2:])]


if __name__ == "__main__":
    main()
