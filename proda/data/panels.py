"""Pictures for people: images, label maps and confidence side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from proda.data.labels import colorize

GAP = 3  # pixels of white between the pictures
TITLE = 14  # pixels of height for a row of titles


def label_picture(labels: Tensor, colors: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a label map [H, W]."""
    return colorize(labels.cpu().numpy(), colors)


def image_picture(image: Tensor) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an image uint8 [3, H, W]."""
    return image.cpu().numpy().transpose(1, 2, 0)


def confidence_picture(confidence: Tensor) -> np.ndarray:
    """Grey uint8 [H, W, 3] of values [H, W] in 0..1; white is certain."""
    grey = (confidence.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return np.repeat(grey[..., None], 3, axis=2)


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Rows of pictures, each resized to ``size`` (width, height) without smoothing, under one row of titles."""
    width, height = size
    sheet = Image.new(
        "RGB", (len(titles) * (width + GAP) - GAP, TITLE + len(rows) * (height + GAP) - GAP), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + GAP) + 2, 1), title, fill=(0, 0, 0), font=ImageFont.load_default(11))
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column])
            smooth = Image.Resampling.NEAREST
            sheet.paste(picture.resize(size, smooth), (column * (width + GAP), TITLE + row * (height + GAP)))
    return sheet
