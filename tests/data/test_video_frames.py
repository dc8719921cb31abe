import logging
import os
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.cli.launch import main
from proda.data.image_files import warn_once
from proda.data.labels import benchmark_labels
from proda.data.own_data import read_description
from proda.data.video_frames import video_frames
from proda.run.config import TrainConfig
from proda.run.data import Data
from proda.run.job import read_summary
from proda.settings.reading import make_config
from proda.utils.errors import MissingFileError, UserError
from tests.data.test_image_files import error_of
from tests.small_runs import ROOT

av = pytest.importorskip("av")


def film(path: Path, count: int = 25, size: tuple[int, int] = (64, 32), rotation: int = 0) -> Path:
    """A video whose frames get brighter, by 10 each, with a white left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:  # the index comes first
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        stream.time_base = Fraction(1, 25)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 10 * number % 250, np.uint8)
            pixels[:, : size[0] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def right(path: Path) -> int:
    """Brightness of the right half."""
    return int(np.asarray(Image.open(path))[:, -8:].mean().round())


def test_every_nth_frame_is_an_image_file_in_order(tmp_path):
    frames = video_frames({"a/b": film(tmp_path / "v.mp4")}, 10, tmp_path / "frames")
    assert list(frames) == ["a/b/0000000", "a/b/0000010", "a/b/0000020"]
    assert [right(path) for path in frames.values()] == pytest.approx([0, 100, 200], abs=4)
    assert all(Image.open(path).size == (64, 32) for path in frames.values())
    assert len(video_frames({"v": tmp_path / "v.mp4"}, 1, tmp_path / "frames")) == 25
    for count in (20, 21):
        assert len(video_frames({"v": film(tmp_path / "v.mp4", count)}, 10, tmp_path / "frames")) == (count + 9) // 10


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_frames_are_upright(tmp_path, rotation):
    path = film(tmp_path / "v.mp4", 1, rotation=rotation)
    (file,) = video_frames({"v": path}, 1, tmp_path / "frames").values()
    pixels = np.asarray(Image.open(file).convert("L")).astype(int)
    # Counterclockwise: left comes to lie below.
    bright = {90: pixels[-8:], -90: pixels[:8], 180: pixels[:, -8:]}[rotation]
    assert pixels.shape == ((32, 64) if rotation == 180 else (64, 32)) and bright.min() > 240


def test_frames_that_are_there_are_not_written_again_and_missing_ones_are(tmp_path):
    videos = {"v": film(tmp_path / "v.mp4")}
    frames = list(video_frames(videos, 10, tmp_path / "frames").values())
    before = [path.stat().st_mtime_ns for path in frames]
    assert list(video_frames(videos, 10, tmp_path / "frames").values()) == frames
    record = frames[0].parent / "frames.json"
    for content in (None, "", "[]", record.read_text()):  # interrupted, damaged by a crash, or the frame alone deleted
        record.write_text(content) if content is not None else record.unlink()
        frames[2].unlink()
        assert list(video_frames(videos, 10, tmp_path / "frames").values()) == frames
        assert [path.stat().st_mtime_ns for path in frames[:2]] == before[:2]
        assert right(frames[2]) == pytest.approx(200, abs=4)


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_a_folder_for_frames_that_cannot_be_made_is_one_line(tmp_path, place):
    (tmp_path / "file").touch()
    videos = {"v": film(tmp_path / "v.mp4", 2)}
    found = error_of(UserError, lambda: video_frames(videos, 1, tmp_path / place))
    assert "cannot be written (" in found and found.endswith("frames = ... in the description sets another folder")


def test_a_complete_folder_needs_no_decoder(tmp_path, monkeypatch):
    videos = {"v": film(tmp_path / "v.mp4")}
    frames = video_frames(videos, 10, tmp_path / "frames")
    monkeypatch.setitem(sys.modules, "av", None)  # cannot be imported
    assert video_frames(videos, 10, tmp_path / "frames") == frames
    assert "PyAV, which is not installed" in error_of(UserError, lambda: video_frames(videos, 5, tmp_path / "frames"))


def test_a_damaged_video_is_named_and_leaves_no_complete_folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    found = error_of(UserError, lambda: video_frames({"a": tmp_path / "a.mp4"}, 10, tmp_path / "frames"))
    assert found.startswith(f"{tmp_path}/a.mp4: cannot be decoded at its start (")
    assert not list((tmp_path / "frames").rglob("frames.json"))
    with pytest.raises(MissingFileError, match=r"c\.mp4: cannot be read \(No such file"):
        video_frames({"c": tmp_path / "c.mp4"}, 10, tmp_path / "frames")


def test_a_cut_video_gives_the_frames_that_it_has_and_a_warning(tmp_path, monkeypatch):
    warn_once.cache_clear()
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("proda"), "warning", lambda text, *args: lines.append(text % args))
    path = film(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[:1500])
    frames = video_frames({"v": path}, 10, tmp_path / "frames")
    assert 0 < len(frames) < 3
    assert len(lines) == 1 and re.fullmatch(rf"{path}: only \d+ of 25 frames could be decoded; .*", lines[0])
    warn_once.cache_clear()  # another command, which finds the frames there
    assert video_frames({"v": path}, 10, tmp_path / "frames") == frames
    assert lines == lines[:1] * 2


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi"])
def test_a_cut_video_whose_header_has_no_number_of_frames_gives_a_warning_too(suffix, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("proda.data.video_frames.warn_once", lines.append)
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if suffix == "webm" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(video_frames({"v": path}, 10, tmp_path / "whole")) == 4 and not lines
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video_frames({"v": path}, 10, tmp_path / "cut")
    assert len(lines) == 1 and re.fullmatch(rf"{path}: only \d+ of 40 frames could be decoded; .*", lines[0])


def described(folder: Path, text: str) -> Path:
    (folder / "clips.toml").write_text(text)
    return folder / "clips.toml"


def test_a_description_of_videos_opens_like_a_folder_of_images(tmp_path):
    for name in ("one", "two"):
        film(tmp_path / f"clips/{name}.mp4")
    (tmp_path / "clips/notes.txt").write_text("")
    own = read_description(described(tmp_path, '[train]\nimages = "clips/*.mp4"\nevery = 10\n'))
    data = own.open("train", benchmark_labels(19), with_labels=False)
    assert data.names == [f"{name}-{number:07}" for name in ("one", "two") for number in (0, 10, 20)]
    assert data[5].image.size == (64, 32) and data.images[0].is_relative_to(tmp_path / "clips_frames")
    shutil.copytree(tmp_path, tmp_path / "copy")
    own = read_description(tmp_path / "copy/clips.toml")
    os.utime(tmp_path / "copy/clips/one.mp4", (1, 1))  # extracted again
    assert own.open("train", benchmark_labels(19), with_labels=False).fingerprint() == data.fingerprint()


def test_frames_below_the_images_of_another_split_are_none_of_its_images(tmp_path):
    film(tmp_path / "photos/clip.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.png")
    splits = '[train]\nimages = "photos"\nevery = 10\n[val]\nimages = "photos"\n'
    for _ in range(2):
        own = read_description(described(tmp_path, 'frames = "photos/frames"\n' + splits))
        assert len(own.open("train", benchmark_labels(19), with_labels=False)) == 3
        images = own.open("val", benchmark_labels(19), with_labels=False)
        assert images.names == ["a"]
    assert any(line.startswith("frames of the videos of this description (3, ") for line in images.left_out)
    named = '[val]\nimages = "photos/frames"\n[train]\nimages = "photos"\nevery = 10\n'
    own = read_description(described(tmp_path, 'frames = "photos/frames"\n' + named))
    assert len(own.open("val", benchmark_labels(19), with_labels=False)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("every = 0", "[train] every = 0: expected 10 to use every tenth frame of videos"),
        ("every = 0.5", "[train] every = 0.5: expected 10 to use every tenth frame of videos"),
        ('every = 2\nlabels = "ids"', "[train] has every = ... and labels = ...; frames of videos have no labels"),
        ("", "v.mp4 for [train] holds videos; every = 10 in [train] takes every tenth frame"),
        ('[val]\nimages = "v.mp4"', "frames = 'x': expected a folder for the frames of videos, with every = ..."),
    ],
)
def test_a_mistake_in_a_description_of_videos_is_one_line(tmp_path, text, message):
    (tmp_path / "v.mp4").write_bytes(b"")
    frames = 'frames = "x"\n' if "frames = " in message else ""
    path = described(tmp_path, f'{frames}[train]\nimages = "v.mp4"\n{text}\n')
    found = error_of(UserError, lambda: read_description(path).open("train", benchmark_labels(19), with_labels=False))
    assert found == f"{path}: {message}"


def test_training_and_check_data_take_videos_as_their_target(tmp_path):
    film(tmp_path / "v.mp4")
    target = described(tmp_path, '[train]\nimages = "v.mp4"\nevery = 5\n')
    views = {"mean_width": 64, "crop_width": 16, "crop_height": 8}
    assert len(Data(make_config(TrainConfig, {"target": str(target), **views})).target_views()) == 5
    flags = [f"--target={target}", "--parts=train", "--num_workers=0", f"--output={tmp_path}/check"]
    flags += [f"--{name}={value}" for name, value in views.items()]
    assert main([f"{ROOT}/experiments/check_data.py", *flags]) == 0
    assert read_summary(tmp_path / "check")["train"]["sizes"] == {"64x32": 5}
