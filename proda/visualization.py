"""Pictures for people: images, label maps and confidence side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from proda.data.labels import colorize

GAP = 3  # pixels of white between the pictures
TITLE = 14  # pixels of height for a row of titles
_LINE = 18  # pixels of height for the title of one picture
_NAMED_SHARE = 0.004  # of the pixels of an example: smaller classes get no name in it
_FONT = ImageFont.load_default(11)


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


def overlay(photo: np.ndarray, labels: np.ndarray, colors: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """A picture uint8 [H, W, 3] blended with the colours of its label map [H, W]; ``strength`` 1 shows these alone."""
    return np.asarray(Image.blend(Image.fromarray(photo), Image.fromarray(colorize(labels, colors)), strength))


def legend(names: Sequence[str], colors: Iterable[np.ndarray | None], width: int) -> Image.Image:
    """Classes with their colours in as many rows as they need, for a picture of this width in pixels.

    A class without a colour is striped. The size of the text grows with the width. The legend is wider than asked for
    if a name would not fit.
    """
    size = max(12, width // 64)
    font, gap = ImageFont.load_default(size), size // 2
    places, x, y, line = [], gap, gap, size + gap
    for name in names:
        length = size + gap // 2 + math.ceil(font.getlength(_words(name)))
        if x > gap and x + length + gap > width:
            x, y = gap, y + line
        places.append((x, y))
        width = max(width, x + length + gap)
        x += length + 2 * gap
    sheet = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(sheet)
    for name, color, (x, y) in zip(names, colors, places, strict=True):
        if color is None:
            sheet.paste(Image.fromarray(_stripes(size, size)), (x, y))
        else:
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(map(int, color)), outline="black")
        draw.text((x + size + gap // 2, y + size // 2), _words(name), fill="black", font=font, anchor="lm")
    return sheet


def below(picture: np.ndarray, note: Image.Image) -> Image.Image:
    """A picture uint8 [H, W, 3] with another one under it."""
    height, width = picture.shape[:2]
    sheet = Image.new("RGB", (max(width, note.width), height + note.height), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    sheet.paste(note, (0, height))
    return sheet


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Rows of pictures, each resized to ``size`` (width, height) without smoothing, under one row of titles."""
    width, height = size
    sheet = Image.new("RGB", (len(titles) * (width + GAP) - GAP, TITLE + len(rows) * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + GAP) + 2, 1), title, "black", _FONT)
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column]).resize(size, Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (width + GAP), TITLE + row * (height + GAP)))
    return sheet


def confusion_picture(confusion: np.ndarray, names: Sequence[str], *, cell: int = 34) -> Image.Image:
    """A confusion matrix [K, K], rows true: each row as percentages of its pixels; darker means more.

    A class without pixels has an empty row.
    """
    count, margin = len(names), _margin(names)
    total = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, total, out=np.zeros(confusion.shape), where=total > 0)
    sheet = Image.new("RGB", (margin + count * cell + 8, margin + count * cell + 24), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(names):
        middle = margin + k * cell + cell // 2
        draw.text((margin - 6, middle), name, fill="black", font=_FONT, anchor="rm")
        upright = Image.new("RGB", (margin - 6, 16), "white")
        ImageDraw.Draw(upright).text((2, 8), name, fill="black", font=_FONT, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (middle - 8, 0))
    for (row, column), share in np.ndenumerate(shares):
        x, y = margin + column * cell, margin + row * cell
        dark = tuple(round(255 - share * (255 - c)) for c in ((20, 90, 50) if row == column else (150, 30, 30)))
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=dark if total[row] else (238, 238, 238))
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            draw.text((x + cell // 2 - 1, y + cell // 2), f"{100 * share:.0f}", color, _FONT, anchor="mm")
    draw.text((margin, margin + count * cell + 6), "rows: true class, columns: predicted; % of the row", "black", _FONT)
    return sheet


def frequency_picture(
    shares: Mapping[str, np.ndarray], names: Sequence[str], colors: np.ndarray, *, width: int = 220, row: int = 18
) -> Image.Image:
    """Bars of class frequencies [K] in 0..1, one column for each title; lengths are logarithmic from 0.001% to 100%."""
    margin = _margin(names)
    sheet = Image.new("RGB", (margin + len(shares) * (width + 60), 24 + len(names) * row + 22), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(names):
        draw.text((margin - 6, 24 + k * row + row // 2), name, fill="black", font=_FONT, anchor="rm")
    for column, (title, values) in enumerate(shares.items()):
        left = margin + column * (width + 60)
        draw.text((left, 12), title, fill="black", font=_FONT, anchor="lm")
        for k, value in enumerate(values):
            top, length = 24 + k * row, 0
            if value > 0:
                length = max(1, round(width * (1 + np.log10(value) / 5)))
                draw.rectangle((left, top + 2, left + length, top + row - 3), fill=tuple(map(int, colors[k])))
            text = f"{100 * value:.3g}%" if value > 0 else "none"
            draw.text((left + length + 5, top + row // 2), text, fill="black", font=_FONT, anchor="lm")
    draw.text((margin, 24 + len(names) * row + 5), "share of the labelled pixels, logarithmic", "black", _FONT)
    return sheet


def example_sheet(
    examples: Iterable[tuple[str, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colors: np.ndarray,
    *,
    columns: int = 3,
    width: int = 480,
) -> Image.Image:
    """Images with the colours of their labels over them and the names of the classes in their regions.

    ``examples``: title, image RGB uint8 [H, W, 3] and labels uint8 [H, W] of the same size, whose values 0..K-1 have
    ``names`` and ``colors`` uint8 [K, 3]; other pixels are striped. ``columns`` examples stand side by side, each
    ``width`` pixels wide.
    """
    pictures = [(title, _named_overlay(image, labels, names, colors, width)) for title, image, labels in examples]
    height = max(picture.height for _, picture in pictures) + _LINE
    numbered = [f"{k} {name}" for k, name in enumerate(names)]
    key = legend([*numbered, "no label"], [*colors, None], columns * (width + GAP) - GAP)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (key.width, key.height + rows * (height + GAP)), "white")
    sheet.paste(key, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = column * (width + GAP), key.height + row * (height + GAP)
        draw.text((x + 2, y + _LINE // 2), title, "black", _FONT, anchor="lm")
        sheet.paste(picture, (x, y + _LINE))
    return sheet


def _named_overlay(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], colors: np.ndarray, width: int
) -> Image.Image:
    size = (width, max(1, round(width * image.shape[0] / image.shape[1])))
    photo = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    tint = np.where((values < len(names))[..., None], colorize(values, colors), _stripes(*size))
    picture = Image.blend(photo, Image.fromarray(tint), 0.55)
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float, float]] = []  # boxes of the names so far
    shares = np.bincount(values.reshape(-1), minlength=256)[: len(names)] / values.size
    for k in np.argsort(-shares, kind="stable"):
        if shares[k] < _NAMED_SHARE:
            break
        place = _deepest_point(values == k)
        left, top, right, bottom = draw.textbbox(place, _words(names[k]), _FONT, anchor="mm", stroke_width=2)
        move = max(-left, 0) - max(right - size[0], 0), max(-top, 0) - max(bottom - size[1], 0)
        box = (left + move[0], top + move[1], right + move[0], bottom + move[1])
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        middle = (place[0] + move[0], place[1] + move[1])
        draw.text(middle, _words(names[k]), "white", _FONT, anchor="mm", stroke_width=2, stroke_fill="black")
    return picture


def _stripes(width: int, height: int) -> np.ndarray:
    """Black and white diagonals, uint8 [H, W, 3]."""
    rows, columns = np.indices((height, width))
    return np.repeat((255 * ((rows + columns) // 4 % 2)).astype(np.uint8)[..., None], 3, axis=2)


def _deepest_point(mask: np.ndarray) -> tuple[int, int]:
    """x and y of a pixel far inside the largest region of a mask [H, W] that is not empty."""
    step = 3  # coarse is enough for a place to write at
    inside = mask[::step, ::step] if mask[::step, ::step].any() else mask
    scale = step if inside is not mask else 1
    while True:
        padded = np.pad(inside, 1)
        smaller = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not smaller.any():
            break
        inside = smaller
    rows, columns = np.nonzero(inside)
    return int(columns[len(columns) // 2]) * scale, int(rows[len(rows) // 2]) * scale


def _words(name: str) -> str:
    return name.replace("_", " ")


def _margin(names: Sequence[str]) -> int:
    """Width of the longest name, and some space."""
    boxes = [_FONT.getbbox(name) for name in names]
    return max(int(right - left) for left, _, right, _ in boxes) + 12
