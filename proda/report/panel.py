"""One picture of a pipeline: validation images, their ground truth, and the prediction of every stage."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset

from proda.data.labelled_files import LabelledFiles
from proda.engines.inference import predict
from proda.method.tensors import to_float
from proda.models.weights import load_network
from proda.run.config import DataConfig
from proda.run.data import whole_images
from proda.run.domains import Domains
from proda.visualization import grid, image_picture, label_picture

WIDEST = 320  # of a cell, in pixels


@torch.no_grad()
def draw_panel(config: DataConfig, stages: Sequence[str], number: int) -> Image.Image | None:
    """A row for each of ``number`` validation images, spread evenly over the set; None without labelled ones.

    ``stages`` are folders of ``config.output`` whose last models predict.
    """
    data = Domains(config, single_process=True)
    images = data.validation
    if not isinstance(images, LabelledFiles) or not images.label_files:
        return None
    batches = whole_images(config, Subset(images, np.linspace(0, len(images) - 1, number).astype(int).tolist()))
    colors, names = data.classes.colors, data.classes.names
    files = [Path(config.output) / stage / "last.pt" for stage in stages]
    networks = [load_network(file, backbone=config.backbone, class_names=names).eval() for file in files]
    rows = []
    for batch in batches:
        size = tuple(batch["labels"].shape[-2:])
        predictions = [predict(network, to_float(batch["image"]), size).max(1).indices for network in networks]
        for picture, truth, *predicted in zip(batch["image"], batch["labels"], *predictions, strict=True):
            rows.append([image_picture(picture), *(label_picture(labels, colors) for labels in (truth, *predicted))])
    height, width = rows[0][0].shape[:2]
    cell = (min(width, WIDEST), round(height * min(1, WIDEST / width)))
    return grid(rows, ["target image", "ground truth", *stages], cell)
