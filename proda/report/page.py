"""The report as one HTML file, with its style, charts and pictures inside."""

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from proda.data.labels import colorize
from proda.report import charts
from proda.report.predictions import (
    MODEL,
    ImageResult,
    Predictions,
    confusions,
    data_counts,
    error_picture,
    look_at_predictions,
    open_data,
)
from proda.report.pseudo_labels import denoising
from proda.report.runs import Group, read_group
from proda.report.scores import classes, differences, headline, scores, tiles
from proda.report.texts import NONE, full_title, labels, percent, points
from proda.report.training import repeating, running
from proda.utils.errors import UserError
from proda.utils.files import atomic_write
from proda.utils.words import duration

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_WIDTH = 512  # pixels; wider pictures are made smaller
MOST_CONFUSIONS = 8  # listed below the confusion matrix


def write_report(folders: Sequence[str | Path], file: Path, **options: Any) -> Path:
    """Writes the report on the runs in ``folders``; returns ``file``.

    Options are those of :func:`report_page`.

    Raises:
        UserError: a folder holds no training run, or a file of a run is damaged.
    """
    page = report_page([read_group(folder) for folder in folders], **options)
    with atomic_write(Path(file)) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of folders may not be UTF-8
    return Path(file)


def report_page(
    groups: Sequence[Group],
    *,
    device: torch.device,
    data_root: str = "",
    worst: int = 4,
    max_images: int = 100,
    num_workers: int = 0,
) -> str:
    """The HTML of the report on one or more groups of runs.

    Args:
        device: where validation images are predicted.
        data_root: folder of the data sets, if it is not that which the runs have read.
        worst: number of validation images to show; 0 shows none, and predicts none.
        max_images: number of validation images to predict; 0 for all.
        num_workers: processes that load images.
    """
    looks = [
        _look(group, device, data_root, worst=worst, max_images=max_images, num_workers=num_workers) for group in groups
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, duration=duration)
    return environment.get_template("report.html").render(
        title=" and ".join(labels(groups)),
        folders=[str(group.folder) for group in groups],
        written=time.strftime("%Y-%m-%d %H:%M"),
        headline=headline(groups),
        tiles=tiles(groups[0]) if len(groups) == 1 else [],
        scores=scores(groups),
        differences=differences(groups) if len(groups) > 1 else None,
        classes=classes(groups),
        failures=[
            {"title": full_title(groups, group, group.result), **look}
            for group, look in zip(groups, looks, strict=True)
        ],
        denoising=denoising(groups),
        running=running(groups),
        repeating=repeating(groups),
        chart=charts,
        dash=NONE,
    )


def _look(group: Group, device: torch.device, data_root: str, **options: Any) -> dict[str, Any]:
    """The section "where it fails" for one group: its predictions, or why there are none; and the counts of images."""
    run, found = group.result, dict[str, Any](counts=[], reason="", worst=[])
    try:
        data = open_data(run, data_root)
        found["counts"] = data_counts(run, data)
        if options["worst"] == 0:
            raise UserError("--worst=0")
        found |= _predictions(look_at_predictions(run, data, device, **options), run.summary.get("miou"))
    except UserError as error:
        found["reason"] = str(error)
    return found


def _predictions(seen: Predictions, recorded: float | None) -> dict[str, Any]:
    table, names = seen.confusion, seen.classes.names
    totals = table.sum(1)
    return {
        "model": MODEL,
        "images": seen.images,
        "available": seen.available,
        "miou": seen.miou,
        "recorded": recorded,
        "matrix": {
            "names": names,
            "rows": [
                (name, None if totals[k] == 0 else (table[k] / totals[k]).tolist()) for k, name in enumerate(names)
            ],
        },
        "confusions": [
            (names[true], names[predicted], share, errors)
            for true, predicted, share, errors in confusions(table, MOST_CONFUSIONS)
        ],
        "legend": [
            (name, "#" + bytes(color.tolist()).hex()) for name, color in zip(names, seen.classes.colors, strict=True)
        ],
        "worst": [_image(result, seen.classes.colors, names) for result in seen.worst],
    }


def _image(result: ImageResult, colors: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    mistakes = [(names[true], names[predicted], count) for true, predicted, _, count in confusions(result.confusion, 3)]
    return {
        "name": result.name,
        "miou": result.miou,
        "accuracy": result.accuracy,
        "mistakes": mistakes,
        "pictures": [
            ("image", _jpeg(result.picture)),
            ("ground truth", _png(colorize(result.truth, colors))),
            ("prediction", _png(colorize(result.predicted, colors))),
            ("errors", _png(error_picture(result))),
        ],
    }


def _jpeg(picture: np.ndarray) -> str:
    return _data_url(_small(Image.fromarray(picture), Image.Resampling.LANCZOS), "jpeg", quality=80, optimize=True)


def _png(picture: np.ndarray) -> str:
    """Of a picture with few colours."""
    small = _small(Image.fromarray(picture), Image.Resampling.NEAREST)
    return _data_url(small.quantize(256, dither=Image.Dither.NONE), "png", optimize=True)


def _small(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    if picture.width <= PICTURE_WIDTH:
        return picture
    return picture.resize((PICTURE_WIDTH, max(1, round(picture.height * PICTURE_WIDTH / picture.width))), how)


def _data_url(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
