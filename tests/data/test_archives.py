import multiprocessing
import os
import stat
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from proda.data import archives
from proda.data.archives import file_size, open_file, read_bytes
from proda.data.image_files import image_size, read_ids, read_image
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import UNKNOWN
from proda.data.listing import list_files
from proda.data.loaders import Loader
from proda.data.own_data import read_description
from proda.utils.errors import MissingFileError, UserError
from tests.data.test_image_files import error_of, photo, save

CLASSES = 'classes = [{ name = "road", ids = [3] }, { name = "car", ids = [1] }]\n'


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def pictures(folder: Path, names: str = "abcd") -> dict[str, bytes]:
    """Name -> content of images of noise that differ."""
    for number, name in enumerate(names):
        save(folder / f"{name}.png", np.random.default_rng(number).integers(0, 256, (12, 16, 3)))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_path_into_a_zip_file_is_read_like_any_other(tmp_path):
    content = pictures(tmp_path / "folder")
    zip_of(tmp_path / "a.zip", {f"x/{name}": data for name, data in content.items()})
    for name, data in content.items():
        path = tmp_path / "a.zip/x" / name
        assert read_bytes(path) == data and file_size(path) == len(data) and image_size(path) == (16, 12)
        assert (np.asarray(read_image(path)) == np.asarray(read_image(tmp_path / "folder" / name))).all()
    with open_file(tmp_path / "a.zip/x/b.png") as file:
        file.seek(1)
        assert file.read(3) == b"PNG"


@pytest.mark.parametrize("path", ["a.zip/x/c.png", "a.zip/x", "a.zip/x/a.png/b", "b.zip/x/a.png", "none/a.png"])
def test_what_is_not_in_a_zip_file_is_a_missing_file(tmp_path, path):
    zip_of(tmp_path / "a.zip", {"x/a.png": b"a"})
    for read in (read_bytes, file_size, open_file):
        with pytest.raises(FileNotFoundError) as caught:
            read(tmp_path / path)
        assert caught.value.filename == str(tmp_path / path)


def test_a_missing_or_damaged_member_is_named_in_one_line(tmp_path):
    content = pictures(tmp_path / "folder")
    path = zip_of(tmp_path / "a.zip", content, zipfile.ZIP_STORED)
    place = path.read_bytes().index(content["b.png"]) + len(content["b.png"]) // 2
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 255
    path.write_bytes(damaged)
    assert error_of(UserError, lambda: read_image(path / "b.png")) == (
        f"{path}/b.png: cannot be read from the zip file (Bad CRC-32 for file 'b.png')"
    )
    assert error_of(MissingFileError, lambda: read_ids(path / "e.png")) == (
        f"{path}/e.png: no such label map; it may have been moved or deleted"
    )


@pytest.mark.parametrize("message", ["not a complete zip file", "cannot be read", "encrypted (such as b.png)"])
def test_a_zip_file_that_cannot_be_used_is_named(tmp_path, message, monkeypatch):
    path = zip_of(tmp_path / "a.zip", {"b.png": b"b"})
    data = path.read_bytes()
    if message.startswith("encrypted"):
        directory = data.index(b"PK\1\2")
        path.write_bytes(data[: directory + 8] + b"\1" + data[directory + 9 :])
    elif message.startswith("not"):
        path.write_bytes(data[:-1])
    else:
        monkeypatch.setattr("proda.data.listing.open_archive", Mock(side_effect=PermissionError(13, "no")))
    assert error_of(UserError, lambda: list_files(tmp_path, "a.zip")).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        ("photos.zip", ["a", "night/b"]),  # of the folder photos, as an unpacked file has it
        ("photos.zip/photos", ["a", "night/b"]),
        ("photos.zip/photos/*.png", ["a"]),
        ("photos.zip/*/*/*", ["photos/night/b"]),
        ("photos.zip/**/*.PNG", ["photos/a", "photos/night/b"]),
        ("photos.zip/photos/a.png", ["a"]),
        ("photos.zip/photos/a.txt", []),
        ("photos.zip/day", []),
        ("*.zip/**", ["mixed/c", "mixed/photos/d", "photos/photos/a", "photos/photos/night/b"]),
        ("m*.zip/*.png", ["ixed/c"]),
        ("mixed.zip", ["c", "photos/d"]),
        ("deep/*/m.zip/*.png", ["x/e", "y/e"]),
        ("folder.zip", ["f"]),  # a folder of that name
        (".", ["folder.zip/f"]),  # zip files are read where they are named
        ("none.zip/*.png", []),
    ],
)
def test_zip_files_are_listed_like_folders(tmp_path, place, keys):
    members = ["photos/a.png", "photos/night/b.png", "photos/._a.png", "photos/.git/x.png", "__MACOSX/photos/._a.png"]
    zip_of(tmp_path / "photos.zip", {name: b"" for name in [*members, "photos/notes.txt", "../outside.png"]})
    zip_of(tmp_path / "mixed.zip", {"c.png": b"", "photos\\d.png": b""})
    zip_of(tmp_path / "deep/x/m.zip", {"e.png": b""}), zip_of(tmp_path / "deep/y/m.zip", {"e.png": b""})
    photo(tmp_path / "folder.zip/f.png")
    assert sorted(list_files(tmp_path, place)) == keys


def test_what_a_zip_file_holds_besides_is_counted(tmp_path):
    link = zipfile.ZipInfo("b.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    zip_of(tmp_path / "a.zip", {"a.png": b"", "._a.png": b"", "notes.txt": b"", link: b"a.png"})
    files = list_files(tmp_path, "a.zip")
    assert list(files) == ["a"] and files.left_out == [
        f"broken links and special files (1, such as {tmp_path}/a.zip/b.png)",
        f"files with another suffix (1, such as {tmp_path}/a.zip/notes.txt)",
        f"hidden files (1, such as {tmp_path}/a.zip/._a.png)",
    ]


def description(folder: Path, images: str, labels: str) -> Path:
    path = folder / "own.toml"
    path.write_text(f'{CLASSES}[train]\nimages = "{images}"\nlabels = "{labels}"\n')
    return path


def test_own_data_in_zip_files_equal_those_in_folders_fingerprint_included(tmp_path):
    content, labels = pictures(tmp_path / "images"), {}
    for name in content:
        labels[name] = save(tmp_path / "ids" / name, np.full((12, 16), 3)).read_bytes()
    zip_of(tmp_path / "images.zip", {f"images/{name}": data for name, data in content.items()})
    zip_of(tmp_path / "all.zip", {f"{part}/{name}": data for part in ("ids", "rgb") for name, data in labels.items()})
    own = read_description(description(tmp_path, "images", "ids"))
    folders = own.open("train", own.space, with_labels=True)
    own = read_description(description(tmp_path, "images.zip", "all.zip/ids"))
    zips = own.open("train", own.space, with_labels=True)
    assert zips.names == folders.names == list("abcd")
    assert zips.fingerprint() == folders.fingerprint() and zips.label_fingerprint() == folders.label_fingerprint()
    for one, other in zip(zips, folders, strict=True):
        assert (np.asarray(one.image) == np.asarray(other.image)).all() and (one.labels == other.labels).all()


def test_a_zip_file_that_is_replaced_is_listed_anew_and_has_another_fingerprint(tmp_path):
    content = pictures(tmp_path / "images")
    zip_of(tmp_path / "images.zip", content)

    def opened() -> LabelledFiles:
        files = list_files(tmp_path, "images.zip")
        table = np.full(256, UNKNOWN, np.uint8)
        return LabelledFiles(list(files.values()), None, list(files), table=table, num_classes=2)

    before = opened().fingerprint()
    changed = dict(content, **{"b.png": content["a.png"]})
    zip_of(tmp_path / "other.zip", changed).replace(tmp_path / "images.zip")
    assert opened().fingerprint() != before
    zip_of(tmp_path / "other.zip", {name: content[name] for name in ("a.png", "c.png")}).replace(
        tmp_path / "images.zip"
    )
    assert opened().names == ["a", "c"]


class Contents:
    """A data set of (name, sum of the pixels, process, archives that the process has opened)."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        time.sleep(0.001)  # so that both workers get some
        pixels = np.asarray(read_image(self.paths[index]), np.int64)
        return self.paths[index].name, int(pixels.sum()), os.getpid(), len(archives._opened)


def _as_it_is(item):
    return item


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_processes_read_one_archive_at_the_same_time(tmp_path, start):
    content = pictures(tmp_path / "images", [f"{number:03}" for number in range(60)])
    zip_of(tmp_path / "images.zip", content)
    paths = list(list_files(tmp_path, "images.zip").values())
    expected = {path.name: int(np.asarray(read_image(path), np.int64).sum()) for path in paths}
    loader = Loader(
        Contents(paths),
        batch_size=None,
        num_workers=2,
        collate_fn=_as_it_is,
        multiprocessing_context=multiprocessing.get_context(start),
    )
    read = list(loader)
    assert {name: total for name, total, *_ in read} == expected
    assert {process for *_, process, _ in read}.isdisjoint({os.getpid()}) and {opened for *_, opened in read} == {1}


def test_threads_read_one_archive_at_the_same_time(tmp_path):
    content = pictures(tmp_path / "images", [f"{number:03}" for number in range(20)])
    path = zip_of(tmp_path / "images.zip", content)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(lambda name: read_bytes(path / name), content)) == list(content.values())
