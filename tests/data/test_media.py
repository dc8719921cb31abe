"""Images and videos as a user names them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data.image_files import image_size
from proda.data.media import ReadableBatches, ReadableImages, find_media, photos
from proda.utils.errors import MissingFileError


def picture(path: Path, size=(8, 4), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 100, np.uint8)).save(path, **options)
    return path


def test_places_are_files_folders_patterns_and_lists_with_commas_between_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/a.png", "one/deep/b.jpg", "two/c_left.png", "two/c_right.png", "d.png", "e,f.png"):
        picture(Path(name))
    Path("one/drive.MP4").touch()
    Path("one/notes.pdf").touch()
    Path("list.txt").write_text("\ufeff# a comment\n\nd.png\none\n", encoding="utf-8")
    found = find_media("list.txt,two/*_left.png, d.png,nowhere")
    assert list(found.images) == ["d", "a", "b", "c_left"] and found.images["b"] == Path("one/deep/b.jpg")
    assert found.videos == {"drive": Path("one/drive.MP4")}
    assert found.left_out == ["files with another suffix (1, such as one/notes.pdf)"]
    (problem,) = found.problems
    assert problem == "nowhere: no such file or folder"
    assert list(find_media("e,f.png").images) == ["e,f"]
    assert list(find_media(",".join(["d.png"] * 100)).images) == ["d"]  # longer than the name of a file may be
    for places in ("", "one/*.tif", "one/*.tif,elsewhere"):
        with pytest.raises(MissingFileError, match=r"^--images=.*found none; expected .png"):
            find_media(places)
    with pytest.raises(MissingFileError, match=r"^--images=nowhere: no such file or folder$"):
        find_media("nowhere")


def test_a_place_that_cannot_be_listed_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(Path("d.png"))
    Path("broken.zip").write_bytes(b"PK")
    found = find_media("broken.zip,d.png")
    assert list(found.images) == ["d"]
    assert found.problems == ["broken.zip: not a complete zip file (File is not a zip file)"]
    with pytest.raises(MissingFileError, match=r"^--images=broken\.zip: not a complete zip file"):
        find_media("broken.zip")


def test_names_are_no_longer_than_needed_to_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/ulm/1.png", "x/bonn/1.png", "y/ulm/1.png", "y/ulm/1.jpg"):
        picture(Path(name))
    Path("x/ulm/1.mp4").touch()  # its results are in another folder
    assert list(find_media("x/ulm").images) == list(find_media("x/ulm").videos) == ["1"]
    assert list(find_media("x").images) == ["bonn-1", "ulm-1"]
    assert list(find_media("y/ulm/1.png,y/ulm/1.jpg").images) == ["1-png", "1-jpg"]
    assert list(find_media("x/ulm/1.png,y/ulm/1.png").images) == ["x-ulm-1-png", "y-ulm-1-png"]
    for name in ("z/a-b/c.png", "z/a/b-c.png", "w/c.png"):  # joined with -, the first two are always one name
        picture(Path(name))
    assert list(find_media("z,w").images) == ["c-1", "b-c-2", "c-3"]
    for name in ("photos/one.jpg", "photos/one.webp", "photos/two.png"):
        picture(Path(name))
    assert list(find_media("photos").images) == ["one", "one.webp", "two"]


def test_batches_are_of_one_size_and_files_that_cannot_be_read_are_in_none(tmp_path):
    sizes = {"a": (8, 4), "b": (6, 6), "c": (8, 4), "e": (8, 4)}
    for name, size in sizes.items():
        picture(tmp_path / f"{name}.png", size)
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    images = ReadableImages(find_media(str(tmp_path)).images, None)
    batches = ReadableBatches(images, batch_size=3, num_workers=0)
    found = list(batches)
    assert [batch["name"] for batch in found] == [["a", "c"], ["b"], ["e"]] and batches.images == 5
    assert [list(batch["image"].shape) for batch in found] == [[2, 3, 4, 8], [1, 3, 6, 6], [1, 3, 4, 8]]
    (problem,) = batches.problems
    assert problem.startswith(f"{tmp_path}/d.png: not a complete image")
    shares = [ReadableBatches(images, batch_size=1, num_workers=0, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(name for share in shares for batch in share for name in batch["name"]) == ["a", "b", "c", "e"]
    assert sum(len(share.problems) for share in shares) == 1


def test_images_are_upright_and_resized_for_the_network_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(tmp_path / "turned.jpg", (8, 4), exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (4, 8)
    item = ReadableImages({"turned": tmp_path / "turned.jpg"}, (16, 2))[0]
    assert item["file_size"].tolist() == [8, 4] and item["image"].shape == (3, 2, 16)
    assert item["photo"].shape == (3, 8, 4)
    batch = {key: value[None] for key, value in item.items() if isinstance(value, torch.Tensor)}
    assert photos(batch)[0].shape == (8, 4, 3)
