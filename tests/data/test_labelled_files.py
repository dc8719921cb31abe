import logging
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proda.data.image_files import warn_once
from proda.data.labelled_files import LabelledFiles, read_skip_list, write_skip_list
from proda.data.labels import UNKNOWN
from proda.data.listing import list_files
from proda.data.loaders import collate
from proda.data.own_data import read_description
from proda.data.samples import EvaluationSamples
from proda.method import IGNORE
from proda.utils.errors import MissingFileError, UserError

TABLE = np.array([0, 1, *[UNKNOWN] * 254], np.uint8)


def write(folder: Path, names: str = "abcd", *, unlabelled: str = "") -> Path:
    """Uncompressed images, so that other pixels do not change the size of a file."""
    for number, name in enumerate(names):
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2), (number, 9, 9)).save(folder / f"images/{name}.bmp")
        if name not in unlabelled:
            Image.new("L", (4, 2), number % 2).save(folder / f"labels/{name}.png")
    return folder


def dataset(folder: Path, **options) -> LabelledFiles:
    images, labels = list_files(folder, "images"), list_files(folder, "labels")
    return LabelledFiles(
        list(images.values()),
        [labels.get(key) for key in images],
        list(images),
        table=TABLE,
        num_classes=2,
        **options,
    )


def test_the_same_files_elsewhere_and_later_have_the_same_fingerprint(tmp_path):
    one = dataset(write(tmp_path / "one"))
    assert LabelledFiles(one.images, None, one.names, table=TABLE, num_classes=2).label_fingerprint() == ""
    two = dataset(shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two"))
    os.utime(two.images[0], (1, 1))
    assert one.fingerprint() == two.fingerprint() and len(one.fingerprint()) == 64
    assert one.label_fingerprint() == two.label_fingerprint() != one.fingerprint()


@pytest.mark.parametrize("change", ["pixels", "size", "name", "fewer", "label"])
def test_other_files_under_the_same_names_have_another_fingerprint(tmp_path, change):
    data = dataset(write(tmp_path))
    before = data.fingerprint(), data.label_fingerprint()
    path = tmp_path / "images/b.bmp"
    if change == "pixels":
        size = path.stat().st_size
        Image.new("RGB", (4, 2), (77, 9, 9)).save(path)
        assert path.stat().st_size == size
    elif change == "size":
        Image.new("RGB", (5, 2)).save(path)
    elif change == "name":
        path.rename(tmp_path / "images/bb.bmp")
    elif change == "fewer":
        path.unlink()
    else:
        Image.new("L", (4, 2), 1).save(tmp_path / "labels/a.png")
    data = dataset(tmp_path)
    assert (data.fingerprint() == before[0]) == (change == "label")  # label files have one of their own
    assert (data.label_fingerprint() == before[1]) == (change in ("pixels", "size"))


def test_the_fingerprint_of_a_large_set_sees_any_size_and_reads_16_files(tmp_path, monkeypatch):
    data, read = dataset(write(tmp_path, [f"{number:03}" for number in range(100)])), []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    before = data.fingerprint()
    assert len(read) == 16 and {data.images[0], data.images[-1]} <= set(read)
    unread = next(path for path in data.images if path not in read)
    unread.write_bytes(unread.read_bytes() + b"\0")
    assert data.fingerprint() != before
    unread.unlink()
    with pytest.raises(MissingFileError, match=rf"{unread}: not there"):
        data.fingerprint()


def test_images_on_a_list_and_images_without_labels_are_left_out(tmp_path):
    write(tmp_path, unlabelled="c")
    data = dataset(tmp_path, skip={"a", "of another set"}, labelled_only=True)
    assert data.names == ["b", "d"] and [example.image.getpixel((0, 0))[0] for example in data] == [1, 3]
    assert all(example.labels is not None for example in data)
    with pytest.raises(MissingFileError, match=r"none of 4 images is left, of which the first is .*a\.bmp"):
        dataset(tmp_path, skip="abcd")


def test_a_bad_label_map_ends_the_run_unless_labels_are_optional(tmp_path, monkeypatch):
    write(tmp_path, unlabelled="c")
    Image.new("L", (4, 2), 7).save(tmp_path / "labels/b.png")
    with pytest.raises(UserError, match=r"b\.png: unknown label id 7"):
        dataset(tmp_path)[1]
    warn_once.cache_clear()
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("proda"), "warning", lambda text, *args: lines.append(text % args))
    for _ in range(2):
        samples = list(EvaluationSamples(dataset(tmp_path, optional_labels=True)))
    assert [sample["name"] for sample in samples if (sample["labels"] != IGNORE).any()] == ["a", "d"]
    assert collate(samples)["labels"].shape == (4, 2, 4)
    assert lines == [f"ignoring these labels: {tmp_path}/labels/b.png: unknown label id 7, expected ids 0..1"]
    (tmp_path / "images/b.bmp").write_bytes(b"BM")
    with pytest.raises(UserError, match=r"b\.bmp: not a complete image"):
        dataset(tmp_path, optional_labels=True)[1]


def test_labels_alone_are_those_of_the_example(tmp_path):
    write(tmp_path, unlabelled="c")
    Image.fromarray(np.array([[0, 1, 0, 1], [1, 1, 0, 0]], np.uint8)).save(tmp_path / "labels/a.png")
    Image.new("L", (3, 2), 1).save(tmp_path / "labels/b.png")  # of another size than its image
    for size in (None, (8, 4)):
        images = dataset(tmp_path, size=size, optional_labels=True)
        assert np.array_equal(images.read_labels(0), images[0].labels)
        assert images.read_labels(1) is None and images.read_labels(2) is None
        assert images.indices(["d", "a"]) == [3, 0]
    with pytest.raises(UserError, match=r"b\.png: label map of 3x2 pixels, expected 4x2"):
        dataset(tmp_path).read_labels(1)


def test_a_list_of_bad_files_holds_any_name_and_tells_the_parts_apart(tmp_path):
    names = ["00001", "a b", "line\nend", "byte\udcff", '"quoted"', "ü"]
    write_skip_list(tmp_path / "bad.txt", {"source": names, "train": ["00002"]})
    assert read_skip_list(tmp_path / "bad.txt", "source") == set(names)
    assert read_skip_list(tmp_path / "bad.txt", "train") == {"00002"}
    assert read_skip_list(tmp_path / "bad.txt", "val") == set()
    (tmp_path / "mine.txt").write_text("# by hand\n\nboth\ntrain/one\n")
    assert read_skip_list(tmp_path / "mine.txt", "train") == {"both", "one"}
    with pytest.raises(MissingFileError, match=r"none\.txt: no such file"):
        read_skip_list(tmp_path / "none.txt", "train")
    (tmp_path / "wrong.txt").write_text('one\ntrain/"two\n')
    with pytest.raises(UserError, match=r'wrong\.txt, line 2: found "two, expected a name or a name in JSON'):
        read_skip_list(tmp_path / "wrong.txt", "train")


def describe(folder: Path, text: str, name: str = "own.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


CLASSES = 'classes = [{ name = "road", ids = [0] }, { name = "car", ids = [1] }]\n'
PLACES = '[train]\nimages = "images"\nlabels = "labels"\n'


def test_own_data_take_only_labelled_images_or_all_when_asked_to(tmp_path):
    own = read_description(describe(write(tmp_path, unlabelled="bc"), CLASSES + PLACES))
    with pytest.raises(MissingFileError, match=r"no label map 'b' in labels for the image .*2 of 4 images are without"):
        own.open("train", own.space, with_labels=True)
    assert own.open("train", own.space, with_labels=True, labelled_only=True).names == ["a", "d"]
    assert own.open("train", own.space, with_labels=True, skip=["b", "c"]).names == ["a", "d"]
    optional = own.open("train", own.space, with_labels=True, optional_labels=True)
    assert [(example.labels == IGNORE).all() for example in optional] == [False, True, True, False]
    bare = read_description(describe(tmp_path, '[train]\nimages = "images"\n', "bare.toml"))
    assert bare.open("train", own.space, with_labels=True, optional_labels=True)[0].labels is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("# a comment\n\n" + CLASSES.replace(", ", ",   ") + PLACES, True),
        (CLASSES + PLACES.replace('"images"', '"photographs"'), True),
        (CLASSES.replace("ids = [0]", "ids = 0, color = [1, 2, 3]") + PLACES, True),
        (CLASSES.replace("car", "bus") + PLACES, False),
        (CLASSES.replace("[0]", "[0, 2]") + PLACES, False),
        ("ignore = 5\n" + CLASSES + PLACES, False),
        ("size = [4, 2]\n" + CLASSES + PLACES, False),
        ('classes = [{ name = "car", ids = [1] }, { name = "road", ids = [0] }]\n' + PLACES, False),
        (PLACES, False),
    ],
)
def test_the_fingerprint_of_a_description_is_of_what_it_says(tmp_path, other, same):
    first = read_description(describe(tmp_path, CLASSES + PLACES)).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    assert (read_description(describe(tmp_path / "elsewhere", other)).fingerprint() == first) == same


def test_two_spellings_of_one_name_in_one_folder_are_refused(tmp_path):
    for form in ("NFC", "NFD"):
        Image.new("RGB", (2, 2)).save(tmp_path / unicodedata.normalize(form, "ü.png"))
    with pytest.raises(UserError, match="have the same name"):
        list_files(tmp_path, ".")
