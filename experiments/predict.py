"""Predicts images and videos with a weights file, ours or a released .pkl.

    python run.py experiments/predict.py --weights=runs/stage3_distill/last.pt --images=photos
    python run.py experiments/predict.py --weights=X --images="drive/*_left.jpg,garage.mp4"
    python run.py experiments/predict.py --weights=X --images=list.txt --flip --scales=0.75,1,1.25

Writes for each image OUTPUT/labels/NAME.png, whose pixel values are class numbers (with a palette for image viewers),
OUTPUT/overlays/NAME.jpg with a legend, and OUTPUT/confidence/NAME.png; for each video OUTPUT/videos/NAME.mp4; and
OUTPUT/shares.csv, how much of each image every class covers. docs/predict.md describes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from PIL import Image

from proda.data.labelled_files import read_skip_list
from proda.data.media import Media, ReadableBatches, ReadableImages, batched, find_media, of_equal_size, sample
from proda.data.videos import VideoFile, require_pyav, writing_video
from proda.engines.prediction import prediction_engine
from proda.engines.tiling import automatic_tile
from proda.handlers.predictions import (
    AddToVideo,
    ClassShares,
    SaveConfidence,
    SaveOverlays,
    SavePredictions,
    of_all_processes,
)
from proda.metrics import LabelFreeOfTerms
from proda.models.weights import read_weights
from proda.run.config import UseConfig, parse_scales
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import Networks
from proda.settings.options import NonNegativeInt, PathText
from proda.settings.presets import CAMVID_DATA, EVALUATION_PRESETS, STREETS_DATA
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import safe_path
from proda.utils.progress import Progress
from proda.visualization import legend as legend_picture


@dataclass
class Config(UseConfig):
    # -- Data
    images: PathText = ""  # images and videos: files, folders, patterns, or lists NAME.txt of them; commas between them
    # -- Method
    tile: NonNegativeInt = 0  # larger images are predicted in overlapping tiles of at most this side; 0: automatic
    flip: bool = False  # average the predictions of the image and its mirror image
    scales: str = "1"  # scales of the image to average over, separated by commas: 0.75,1,1.25
    # -- Output
    legend: bool = True  # add a legend to overlays of images
    confidence: bool = True  # write pictures of the confidence of each pixel
    side_by_side: bool = False  # videos show the original beside the overlay

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        from proda.engines.tiling import SMALLEST_TILE  # imports torch, which --help does not need

        yield from super().problems()
        if 0 < self.tile < SMALLEST_TILE:
            yield f"--tile={self.tile}: expected 0 or at least {SMALLEST_TILE} pixels"


PRESETS = {**EVALUATION_PRESETS, "streets": STREETS_DATA, "camvid": CAMVID_DATA}


def run(local_rank: int, config: Config) -> dict:
    job, trained, scales = Job(config), read_weights(config.weights), parse_scales(config.scales, "scales")
    data = Domains(config, trained)
    names, colors = data.classes.names, data.classes.colors
    media = media_to_predict(config, job.folder)
    network = Networks(config, data.classes, job.precision).load("weights", file=trained)
    options = {"tile": config.tile or automatic_tile(trained.info.mean_width), "flip": config.flip, "scales": scales}
    lines = {"weights": config.weights, "network": trained.info}
    lines |= {"images": len(media.images), "videos": len(media.videos), "tiles": f"above {options['tile']} pixels"}
    job.open(lines)
    for line in [*(f"left out: {files}" for files in media.left_out), *media.warnings]:
        job.log.warning("%s", line)
    if idist.get_rank() == 0:
        legend_picture(names, colors, 480).save(job.folder / "legend.png")
    process = {"rank": idist.get_rank(), "world_size": idist.get_world_size()}

    # Images, in batches of equal size. Each process has its share of them.
    engine = prediction_engine(network, job.precision, **options)
    LabelFreeOfTerms(output_transform=lambda out: out["information"]).attach(engine, "label_free")
    SavePredictions(job.folder / "labels", colors=colors).attach(engine)
    SaveOverlays(job.folder / "overlays", colors, names=names if config.legend else ()).attach(engine)
    if config.confidence:
        SaveConfidence(job.folder / "confidence").attach(engine)
    ClassShares(job.folder / "shares.csv", names, of_all=True).attach(engine)
    images = ReadableImages(media.images, data.input_size)
    batches = ReadableBatches(images, batch_size=config.val_batch_size, num_workers=config.num_workers, **process)
    with progress(engine, "image", batches.images):
        engine.run(batches)
    problems, label_free = batches.problems, engine.state.metrics["label_free"]

    # Videos, each on one process.
    for name, path in list(media.videos.items())[idist.get_rank() :: idist.get_world_size()]:
        engine = prediction_engine(network, job.precision, **options)
        ClassShares(safe_path(job.folder / "videos", name, ".csv"), names).attach(engine)
        try:
            video = VideoFile(path)
            output = safe_path(job.folder / "videos", name, ".mp4")
            with writing_video(output, video.rate) as encoder, progress(engine, f"{name}, frame", video.count):
                AddToVideo(encoder, colors, side_by_side=config.side_by_side).attach(engine)
                engine.run(frames(video, data.input_size, config.val_batch_size))
            if video.decoded < video.announced:
                found = f"only {video.decoded} of {video.announced} frames could be decoded"
                job.log.warning("%s: %s; the result has no others", path, found)
        except UserError as error:
            problems.append(str(error))

    job.log.info("class numbers: %s", ", ".join(f"{k} {name}" for k, name in enumerate(names)))
    problems = [*media.problems, *of_all_processes(problems)]
    for problem in problems:
        job.log.error("not predicted: %s", problem)
    summary = {"images": len(media.images), "videos": len(media.videos), "not_predicted": problems}
    return job.finish(summary | {"label_free": label_free, "exit_status": int(bool(problems))})


def media_to_predict(config: Config, folder: Path) -> Media:
    """What ``--images`` names, without what ``--skip_bad`` lists. A UserError if its results could not be written."""
    media = find_media(config.images)
    if config.skip_bad:
        skipped = read_skip_list(config.skip_bad, "images")
        if unknown := sorted(skipped - media.images.keys() - media.videos.keys()):
            line = f"names in {config.skip_bad} that match no image: {len(unknown)}, the first is {unknown[0]}"
            media.warnings.append(line)
        media.images = {name: path for name, path in media.images.items() if name not in skipped}
        media.videos = {name: path for name, path in media.videos.items() if name not in skipped}
        if not media.images and not media.videos:
            raise MissingFileError(f"--images={config.images}: none is left; all are listed in {config.skip_bad}")
    for kind, names, suffix in (("labels", media.images, ".png"), ("videos", media.videos, ".mp4")):
        known = {safe_path(folder, name, suffix).stem for name in names}  # raises now rather than when it is written
        if others := sorted({path.stem for path in (folder / kind).glob("*") if path.is_file()} - known):
            media.warnings.append(
                f"{folder / kind}: results of files that are not among --images stay there: {len(others)}, the first "
                f"is {others[0]}"
            )
    if media.videos:
        require_pyav(next(iter(media.videos.values())))
    return media


def frames(video: VideoFile, size: tuple[int, int] | None, batch_size: int) -> Iterator[dict[str, Any]]:
    """Batches of the frames of a video, whose names are their numbers."""
    numbered = (sample(f"{number:06}", Image.fromarray(frame), size) for number, frame in enumerate(video))
    for several in batched(numbered, batch_size):
        yield from of_equal_size(several)


@contextmanager
def progress(engine: Engine, title: str, total: int) -> Iterator[None]:
    """Shows the images of this process that are done, or the frames of its video; nothing if ``total`` is unknown."""
    if idist.get_rank() > 0 or not total:
        yield
        return
    shown = Progress(title, total)
    count = engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: shown.update(shown.done + len(engine.state.batch["name"]))
    )
    try:
        yield
    finally:
        shown.close()
        count.remove()
