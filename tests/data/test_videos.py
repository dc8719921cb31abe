"""Videos are read and written with PyAV."""

import builtins
from fractions import Fraction

import numpy as np
import pytest

from proda.data.videos import VideoFile, writing_video
from proda.utils.errors import UserError

av = pytest.importorskip("av", reason="needs the extra [video]")
RATE = Fraction(30000, 1001)


def frames(count: int = 5, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A grey value of its own for each frame."""
    return [np.full((height, width, 3), 40 * number + 20, np.uint8) for number in range(count)]


def test_frames_rate_and_size_come_back(tmp_path):
    with writing_video(tmp_path / "a.mp4", RATE) as video:
        for frame in frames():
            video.write(frame)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    found = VideoFile(tmp_path / "a.mp4")
    assert found.rate == RATE and found.count == 5
    for frame, expected in zip(found, frames(), strict=True):
        assert frame.shape == expected.shape and np.abs(frame.astype(int) - expected).max() < 12
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_odd_sides_are_extended_by_a_pixel(tmp_path, monkeypatch, codec):
    monkeypatch.setattr("proda.data.videos.CODECS", ("no_such_codec", codec))
    with writing_video(tmp_path / "a.mp4", Fraction(10)) as video:
        for frame in frames(2, 49, 63):
            video.write(frame)
    assert [frame.shape for frame in VideoFile(tmp_path / "a.mp4")] == [(50, 64, 3)] * 2


def test_nothing_is_left_of_a_video_whose_writing_fails(tmp_path):
    with pytest.raises(KeyError), writing_video(tmp_path / "a.mp4", RATE) as video:
        video.write(frames()[0])
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_what_is_no_whole_video_is_one_line(tmp_path):
    with writing_video(tmp_path / "whole.mp4", RATE) as video:
        for frame in np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8):
            video.write(frame)
    whole = (tmp_path / "whole.mp4").read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        (tmp_path / "cut.mp4").write_bytes(content)
        with pytest.raises(
            UserError, match=r"cut.mp4: cannot be decoded (at its start|after frame \d+) \(.*\)$"
        ) as error:
            list(VideoFile(tmp_path / "cut.mp4"))
        assert "\n" not in str(error.value)


def test_without_pyav_the_line_says_how_to_install_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **more):
        if name == "av":
            raise ImportError
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"a.mp4: videos need PyAV, which is not installed: pip install .*video"):
        VideoFile(tmp_path / "a.mp4")
