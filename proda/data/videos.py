"""Videos: reads and writes frames with PyAV, which is only imported here and when it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from proda.utils.errors import UserError
from proda.utils.files import atomic_write

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that PyAV's build has
USUAL_RATE = 25
TOLERANCE = 3  # frames by which a duration and the frames that there are may differ in a whole video


def require_pyav(path: Path) -> Any:
    """The module ``av``. UserError that says how to install it, for a video that needs it."""
    try:
        import av
    except ImportError:
        raise UserError(f'{path}: videos need PyAV, which is not installed: pip install -e ".[video]"') from None
    return av


class VideoFile:
    """Frames of a video, upright, as uint8 [H, W, 3] RGB.

    ``rate`` is the mean number of frames a second and ``count`` that of all frames as the header has it, 0 if unknown.
    ``decoded`` is the number of frames that were there when all had been read, and ``announced`` the number that there
    should have been, by the header's duration where it has no number (MKV, WebM).

    Raises:
        UserError: not a video, or damaged; also while frames are read.
    """

    decoded = 0

    def __init__(self, path: Path) -> None:
        self.path, self.av = path, require_pyav(path)
        with self._opened() as container:
            stream = container.streams.video[0]
            self.rate: Fraction = stream.average_rate or stream.guessed_rate or Fraction(USUAL_RATE)
            self.count = stream.frames
            self.seconds, self.end = _seconds(container, stream), 0.0

    @property
    def announced(self) -> int:
        missing = round((self.seconds - self.end) * float(self.rate))
        return self.count or self.decoded + (missing if missing > TOLERANCE else 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, picture in self.frames():
            yield picture

    def frames(self, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and pictures of every n-th frame, beginning with number 0."""
        self.decoded = 0
        size: dict[str, int] = {}
        with self._opened() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                self.decoded = number + 1
                if frame.time is not None:
                    start = float((stream.start_time or 0) * stream.time_base)
                    self.end = max(self.end, frame.time - start + float(1 / self.rate))
                size = size or {"width": frame.width, "height": frame.height}  # a stream may change its size
                if number % every:
                    continue
                # Degrees counterclockwise that make a frame upright; PyAV before 14 has them in the stream.
                rotation = frame.rotation if hasattr(frame, "rotation") else stream.side_data.get("DISPLAYMATRIX", 0)
                quarters = round(rotation / 90) % 4
                picture = frame.to_ndarray(format="rgb24", **size)
                yield number, np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture
        if not size:
            raise UserError(f"{self.path}: no frames in it, expected a video")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with self.av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise UserError(f"{self.path}: no pictures in it, expected a video")
                yield container
        except self.av.FFmpegError as error:
            where = f"after frame {self.decoded - 1}" if self.decoded else "at its start"
            raise UserError(f"{self.path}: cannot be decoded {where} ({error.strerror or error})") from None


def _seconds(container: Any, stream: Any) -> float:
    """The duration of the pictures according to the header; 0 if it does not say."""
    if text := stream.metadata.get("DURATION"):  # of Matroska, HH:MM:SS.fraction
        with suppress(ValueError):
            hours, minutes, seconds = map(float, text.split(":"))
            return 3600 * hours + 60 * minutes + seconds
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0


@contextmanager
def writing_video(path: Path, rate: Fraction) -> Iterator["Encoder"]:
    """An encoder of an MP4 file, which appears under its name only if the block ends without an error."""
    av = require_pyav(path)
    with atomic_write(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        encoder = Encoder(av, container, rate)
        yield encoder
        encoder.finish()


class Encoder:
    """Encodes frames as H.264 where PyAV's build has it, else as MPEG-4.

    Both store pairs of pixels, so a frame with an odd side is extended by one pixel.
    """

    def __init__(self, av: Any, container: Any, rate: Fraction) -> None:
        self.av, self.container, self.rate = av, container, rate
        self.stream: Any = None

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 [H, W, 3] RGB; all have one size."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.stream is None:
            self.stream = self._stream(frame.shape[1], frame.shape[0])
        picture = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self.container.mux(self.stream.encode(picture))

    def finish(self) -> None:
        """Writes the frames that the encoder has kept back."""
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))

    def _stream(self, width: int, height: int) -> Any:
        name = _codec(self.av)
        stream = self.container.add_stream(name, rate=self.rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"  # which every player can show
        if name == "libx264":
            stream.options = {"crf": "18"}
        else:  # these have a fixed rate: 0.15 bits a pixel
            stream.bit_rate = max(400_000, round(0.15 * width * height * float(self.rate)))
        return stream


def _codec(av: Any) -> str:
    for name in CODECS:
        try:
            av.Codec(name, "w")
        except ValueError:  # of which UnknownCodecError is one
            continue
        return name
    raise UserError(f"PyAV has none of the encoders {', '.join(CODECS)}; install another build: pip install av")
