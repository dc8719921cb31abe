"""The table of what a folder, an image or a description may look like, and what every reader of it does.

Each row changes one thing of a small data set: three images with label maps (source) and three photographs (target).
Every example is read. One row of each kind also goes through ``check_data``, the opening of a training run, ``predict``
and ``evaluate``. Rows are accepted, with as many images as the row says, or refused in one line that names the file.
"""

import os
import re
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from proda.cli.launch import main
from proda.data import image_files
from proda.data.labels import benchmark_labels
from proda.data.own_data import read_description
from proda.data.samples import image_tensor
from proda.models.build import build_network
from proda.models.weights import weights_content
from proda.run.config import TrainConfig
from proda.run.data import Data
from proda.run.job import read_summary
from proda.settings.reading import make_config
from proda.utils.errors import UserError
from tests.data.test_image_files import write_16_bit_png, write_png

ROOT = Path(__file__).parents[2]
RED, BLUE = (200, 10, 10), (10, 10, 200)
VIEWS = {"mean_width": 32, "crop_width": 12, "crop_height": 6}
SIM = """classes = [{ name = "road", ids = [1] }, { name = "car", ids = [2] }]
ignore = 0
[train]
images = "sim/images"
labels = "sim/labels"
"""
PHOTOS = '[train]\nimages = "photos"\n'
COLORED_SIM = """labels_are = "colors"
classes = [{ name = "road", color = [128, 64, 128] }, { name = "car", color = [[0, 0, 142], [1, 2, 3]] }]
""" + SIM.partition("\n")[2].replace("ignore = 0", "ignore = [0, 0, 0]")
NFC, NFD = (unicodedata.normalize(form, "Straße_ü.png") for form in ("NFC", "NFD"))


class Row(NamedTuple):
    what: str
    change: Callable[[Path], object]  # of the data in this folder
    named: str = ""  # the file or folder that a refusal has to name
    refused: str = ""  # part of the line; empty: accepted
    source: bool = False  # it changes the source, not the target
    images: int = 3  # in the data set, where it is accepted
    first: tuple[int, int, int] | None = RED  # colour at the upper left of image b
    reported: str = ""  # what check_data says about it, though it is accepted
    commands: bool = False  # it also goes through the commands


def picture(mode: str = "RGB") -> Image.Image:
    """Left red, right blue."""
    pixels = np.empty((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


def put(image: Image.Image, suffix: str = ".png", folder: str = "photos", **options) -> Callable[[Path], None]:
    """A change that puts an image in place of image b."""

    def change(data: Path) -> None:
        (data / folder / "b.png").unlink()
        image.save(data / folder / f"b{suffix}", **options)

    return change


def label(pixels, suffix: str = ".png", **options) -> Callable[[Path], None]:
    return put(Image.fromarray(np.asarray(pixels)), suffix, "sim/labels", **options)


def write(file: str, content: bytes | str) -> Callable[[Path], int]:
    return lambda data: (data / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def place(pattern: str) -> Callable[[Path], int]:
    return write("photos.toml", f'[train]\nimages = "{pattern}"\n')


def chunk(kind: bytes, content: bytes, image: Image.Image | None = None) -> Callable[[Path], None]:
    """A change that puts a chunk behind the header of the PNG b."""

    def change(data: Path) -> None:
        path = data / "photos/b.png"
        (image or picture()).save(path)
        png, checksum = path.read_bytes(), struct.pack(">I", zlib.crc32(kind + content))
        path.write_bytes(png[:33] + struct.pack(">I", len(content)) + kind + content + checksum + png[33:])

    return change


def exif(orientation: int, odd: bool = False) -> bytes:
    """EXIF data of an orientation and, if asked for, of a tag that Pillow can read and not write."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    if odd:
        entries += struct.pack(">HHI4s", 0x011A, 7, 4, b"\xff\xff\xff\xff")  # XResolution as bytes, not as a fraction
    return b"MM\0\x2a" + struct.pack(">I", 8) + struct.pack(">H", 1 + odd) + entries + bytes(4)


def cut(file: str, size: int) -> Callable[[Path], int]:
    return lambda data: (data / file).write_bytes((data / file).read_bytes()[:size])


def large_bmp(data: Path) -> None:
    put(picture(), ".bmp")(data)
    content = bytearray((data / "photos/b.bmp").read_bytes())
    content[18:26] = struct.pack("<ii", 20_000, 20_000)
    (data / "photos/b.bmp").write_bytes(content)


def flat(data: Path) -> None:
    for path in (data / "sim").glob("*/*.png"):
        Image.open(path).resize((32, 4)).save(path)


def system_files(data: Path) -> None:
    for name in ("._b.png", ".DS_Store", "Thumbs.db"):
        (data / "photos" / name).write_bytes(b"\0")


def links(data: Path) -> None:
    (data / "photos/d.png").symlink_to(data / "sim/images/a.png")
    (data / "photos/b.png").rename(data / "outside.png")
    (data / "photos/b.png").symlink_to(data / "outside.png")
    (data / "elsewhere").mkdir()
    shutil.copy(data / "sim/images/a.png", data / "elsewhere/e.png")
    (data / "photos/linked").symlink_to(data / "elsewhere")


def link_above(data: Path) -> None:
    (data / "photos/deeper").mkdir()
    (data / "photos/deeper/again").symlink_to(data)


def zipped(folder: str, description: str, text: str, size: int | None = None) -> Callable[[Path], None]:
    """A change that moves a folder into a zip file of its name, which may be cut at its end."""

    def change(data: Path) -> None:
        path = Path(shutil.make_archive(str(data / folder), "zip", data / folder))
        path.write_bytes(path.read_bytes()[:size])
        shutil.rmtree(data / folder)
        (data / description).write_text(text)

    return change


def emptied(file: str = "") -> Callable[[Path], None]:
    def change(data: Path) -> None:
        shutil.rmtree(data / "photos")
        (data / "photos").mkdir()
        if file:
            (data / "photos" / file).write_bytes(b"\0")

    return change


def one_name(data: Path) -> None:
    (data / "photos/x").mkdir()
    picture().save(data / "photos/x/y.png")
    picture().save(data / "photos/x-y.png")


def capitals(data: Path) -> None:
    for path in (data / "photos").iterdir():
        path.rename(path.with_suffix(".PNG"))
    place("photos/*.png")(data)


def unicode_names(data: Path) -> None:
    shutil.copy(data / "sim/images/b.png", data / "sim/images" / NFD)
    shutil.copy(data / "sim/labels/b.png", data / "sim/labels" / NFC)


def unicode_folder(data: Path) -> None:
    (data / "photos").rename(data / unicodedata.normalize("NFD", "Grün"))
    place(unicodedata.normalize("NFC", "Grün"))(data)


def colored_labels(data: Path) -> None:
    pixels = np.empty((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (128, 64, 128), (1, 2, 3)
    for path in (data / "sim/labels").iterdir():
        Image.fromarray(pixels).save(path)
    (data / "sim.toml").write_text(COLORED_SIM)


def palette_label(data: Path) -> None:
    ids = Image.open(data / "sim/labels/b.png")
    ids.putpalette(bytes(range(256)) * 3)
    ids.save(data / "sim/labels/b.png")


def folder_as_description(data: Path) -> None:
    (data / "photos.toml").unlink()
    (data / "photos.toml").mkdir()


def several_sizes(data: Path) -> None:
    picture().resize((48, 24)).save(data / "photos/a.png")
    (data / "photos.toml").write_text("size = [32, 16]\n" + PHOTOS)


B, BMP, TOML, LABEL = "photos/b.png", "photos/b.bmp", "photos.toml", "sim/labels/b.png"
IDS = np.tile(np.array([1, 2], np.uint8).repeat(16), (16, 1))
SHARP = {"quality": 100, "subsampling": 0}
LARGE = "20000x20000 pixels, expected at most 178 million"
GREY = (67, 67, 67)
ROWS = [
    # Images
    Row("JPEG named .png", put(picture(), format="JPEG", **SHARP)),
    *(Row(f"file {suffix}", put(picture(), suffix)) for suffix in (".JPG", ".webp", ".tif", ".tiff", ".BMP", ".PNG")),
    Row("PNG of mode RGBA", put(picture("RGBA"))),
    Row("PNG of mode P", put(picture("P")), first=(204, 0, 0)),  # of the web palette
    *(Row(f"PNG of mode {mode}", put(picture(mode)), first=GREY) for mode in ("L", "LA")),
    Row("PNG of mode 1", put(picture("1")), first=None),
    Row("JPEG of mode CMYK", put(picture("CMYK"), ".jpeg", **SHARP)),
    Row("RGB PNG with a transparent colour (tRNS)", chunk(b"tRNS", struct.pack(">3H", *BLUE))),
    Row(
        "turned JPEG", put(picture(), ".jpg", exif=b"Exif\0\0" + exif(3, odd=True), **SHARP), first=BLUE, commands=True
    ),
    Row("turned PNG (eXIf)", chunk(b"eXIf", exif(3)), first=BLUE),
    Row("PNG with damaged EXIF data", chunk(b"eXIf", b"nonsense")),
    Row("turned TIFF", put(picture(), ".tif", tiffinfo={0x0112: 3}), first=BLUE),
    Row("16-bit RGB PNG", lambda data: write_16_bit_png(data / B, np.asarray(picture()).astype(np.uint16) * 257)),
    Row("16-bit grey PNG", put(Image.fromarray(np.full((16, 32), 50_000, np.uint16))), first=(195,) * 3),
    Row("12 bits in a 16-bit PNG", put(Image.fromarray(np.full((16, 32), 3000, np.uint16))), first=(187,) * 3),
    Row(
        "10 bits in a 16-bit PNG that says so (sBIT)",
        chunk(b"sBIT", b"\x0a", Image.fromarray(np.full((16, 32), 1000, np.uint16))),
        first=(250,) * 3,
    ),
    Row("16-bit grey TIFF", put(Image.fromarray(np.full((16, 32), 50_000, np.uint16)), ".tif"), first=(195,) * 3),
    Row(
        "floating-point TIFF",
        put(Image.fromarray(np.full((16, 32), 0.5, np.float32)), ".tif"),
        "photos/b.tif",
        "float32 up to 0.5, expected an image of 8 or 16 bits",
    ),
    Row("EPS named .png", put(picture(), format="EPS"), B, "none of PNG"),
    Row("PNG of 400 million pixels", lambda data: write_png(data / B, 20_000, 20_000, 8, 2, b""), B, LARGE),
    Row("BMP of 400 million pixels", large_bmp, BMP, "more than 178 million pixels"),
    Row("truncated image", cut(B, 60), B, "not a complete image", commands=True),
    Row("empty file", cut(B, 0), B, "none of PNG"),
    Row("image too flat for the crop", flat, "", "shrinks images of 32x4", source=True, commands=True),
    # Folders
    Row("hidden and system files", system_files, reported="hidden files (1, such as ", commands=True),
    Row("other suffixes", write("photos/a.xmp", b""), reported="another suffix (1, such as ", commands=True),
    Row(
        "link to nothing",
        lambda data: (data / "photos/d.png").symlink_to(data / "gone.png"),
        reported="broken links and special files (1, such as ",
        commands=True,
    ),
    Row("link to itself", lambda data: (data / "photos/d.png").symlink_to(data / "photos/d.png")),
    Row("link to its own folder", lambda data: (data / "photos/again").symlink_to(data / "photos")),
    Row("link to a folder above", link_above, reported="a folder that contains them (1, such as ", commands=True),
    Row("links to images and to a folder of images", links, images=5, commands=True),
    Row("named pipe with the name of an image", lambda data: os.mkfifo(data / "photos/d.png")),
    Row("folder with the name of an image", lambda data: (data / "photos/d.png").mkdir()),
    Row(
        "folder that cannot be listed",
        lambda data: (data / "photos/secret").mkdir(),
        "photos/secret",
        "cannot be listed (Permission denied)",
        commands=True,
    ),
    Row(
        "file that cannot be read",
        lambda data: (data / B).rename(data / "photos/secret.png"),
        "photos/secret.png",
        "cannot be read (Permission denied)",
        commands=True,
    ),
    Row(
        "photographs in a zip file",
        zipped("photos", "photos.toml", '[train]\nimages = "photos.zip/*.png"\n'),
        commands=True,
    ),
    Row(
        "label maps in a zip file", zipped("sim/labels", "sim.toml", SIM.replace("/labels", "/labels.zip")), source=True
    ),
    Row(
        "damaged zip file",
        zipped("photos", "photos.toml", '[train]\nimages = "photos.zip"\n', size=-40),
        "photos.zip",
        "not a complete zip file (",
        commands=True,
    ),
    Row("empty folder", emptied(), TOML, "no images photos for [train]", commands=True),
    Row("other formats only", emptied("a.heic"), TOML, "files with another suffix (1, such as ", commands=True),
    Row("two images of one name", lambda data: picture().save(data / BMP), B, "the same name 'b'", commands=True),
    Row("two images whose folders give one name", one_name, TOML, "would be called 'x-y'", commands=True),
    *(Row(f"pattern {end}", place(f"photos/{end}")) for end in ("*.*", "*", "**", "**/*.png", "*.p*", ".")),
    Row("pattern *.png and files .PNG", capitals, commands=True),
    Row("names as a Mac writes them (NFD) and as others do (NFC)", unicode_names, source=True, images=4, commands=True),
    Row("folder in NFD, description in NFC", unicode_folder, commands=True),
    # Label maps
    *(Row(f"label map {suffix}", label(IDS, suffix), source=True) for suffix in (".PNG", ".bmp", ".TIFF")),
    Row("label map with a palette", palette_label, source=True),
    Row("label maps of colours", colored_labels, source=True, commands=True),
    Row(
        "no label map", lambda data: (data / LABEL).unlink(), "sim.toml", "no label map 'b'", source=True, commands=True
    ),
    Row("label map of another size", label(IDS[:, 8:24]), LABEL, "16x16 pixels, expected 32x16", source=True),
    Row("unknown id", label(IDS + 7), LABEL, "label id 8, 9, expected ids 0..2", source=True, commands=True),
    Row("id beyond a byte", label(IDS.astype(np.uint16) + 299), LABEL, "unknown label id 301", source=True),
    Row("colour picture for a label map", label(np.asarray(picture())), LABEL, "a picture of mode RGB", source=True),
    Row("JPEG for a label map", label(IDS, format="JPEG"), LABEL, "a JPEG, which may change ids", source=True),
    Row("truncated label map", cut(LABEL, 50), LABEL, "not a complete label map", source=True),
    Row("large label map", lambda data: write_png(data / LABEL, 20_000, 20_000, 8, 0, b""), LABEL, LARGE, source=True),
    Row("EPS for a label map", label(IDS, format="EPS"), LABEL, "label map (none of PNG", source=True),
    # Descriptions; test_own_data.py has more mistakes in them
    Row("no TOML", write(TOML, "images = photos\n"), TOML, "not TOML (", commands=True),
    Row("folder that is not there", place("foto"), TOML, "no images foto for [train] under", commands=True),
    Row("pattern that finds nothing", place("photos/*.tif"), TOML, "no images photos/*.tif", commands=True),
    Row("folder in place of a description", folder_as_description, TOML, "cannot be read (Is a direc", commands=True),
    Row("byte order mark and CRLF", write(TOML, b"\xef\xbb\xbf" + PHOTOS.replace("\n", "\r\n").encode())),
    Row("photographs of several sizes with a size in the description", several_sizes, commands=True),
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for name in "abc":
        for part, image in (("sim/images", picture()), ("photos", picture()), ("sim/labels", Image.fromarray(IDS))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            image.save(folder / part / f"{name}.png")
    (folder / "sim.toml").write_text(SIM)
    (folder / "photos.toml").write_text(PHOTOS)
    return folder


@pytest.fixture
def data(clean, tmp_path, row) -> Path:
    """The folder with the change of the row."""
    folder = shutil.copytree(clean, tmp_path / "data")
    row.change(folder)
    return folder


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    """What is called secret is refused by the system, which tests that run as root cannot bring about otherwise."""
    scandir, read_bytes = os.scandir, Path.read_bytes

    def guarded(real):
        def call(path):
            if not isinstance(path, int) and "secret" in os.path.basename(path):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return real(path)

        return call

    monkeypatch.setattr(os, "scandir", guarded(scandir))
    monkeypatch.setattr(Path, "read_bytes", guarded(read_bytes))
    image_files.warn_once.cache_clear()


def refuses(row: Row, data: Path, lines: list[str]) -> None:
    """Exactly one line says what is wrong, and names the file."""
    assert len(lines) == 1 and row.refused in lines[0] and "\n" not in lines[0]
    assert not row.named or str(data / row.named) in lines[0]


every_row = pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
commands = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.commands], ids=[row.what for row in ROWS if row.commands]
)


def examples(row: Row, data: Path) -> list:
    if row.source:
        source = read_description(data / "sim.toml")
        return list(source.open("train", source.space, with_labels=True))
    return list(read_description(data / "photos.toml").open("train", benchmark_labels(19), with_labels=False))


@every_row
def test_reading(row, data):
    if row.refused and "shrinks" not in row.refused:  # of views alone
        with pytest.raises(UserError) as caught:
            examples(row, data)
        refuses(row, data, [str(caught.value)])
        return
    read = examples(row, data)
    assert len(read) == row.images
    assert all(image.mode == "RGB" and image_tensor(image).shape[0] == 3 for image, *_ in read)
    b = next(example.image for example in read if example.name.startswith("b"))
    if row.first:
        assert b.getpixel((0, 0)) == pytest.approx(row.first, abs=3)  # lossy formats change colours
    if row.source:
        assert all((labels[:, :16] == 0).all() and (labels[:, 16:] == 1).all() for _, labels, *_ in read)


@commands
def test_check_data(row, data, tmp_path, capsys):
    part = "source" if row.source else "train"
    flags = [f"--{name}={value}" for name, value in VIEWS.items()]
    flags += [f"--source={data}/sim.toml", f"--target={data}/photos.toml", f"--parts={part}", "--num_workers=0"]
    status = main([f"{ROOT}/experiments/check_data.py", f"--output={tmp_path}/check", *flags])
    output = capsys.readouterr()
    if not row.refused:
        assert status == 0 and row.reported in output.out, output
        summary = read_summary(tmp_path / "check")[part]
        assert summary["images"] == row.images and summary["problems"] == []
    elif status == 2:
        refuses(row, data, [line for line in output.err.splitlines() if "error" in line])
    else:
        refuses(row, data, read_summary(tmp_path / "check")[part]["problems"])
        assert status == 1


@commands
def test_training_opens_it_or_says_why_not(row, data):
    def opening():
        flags = {"source": f"{data}/sim.toml", "target": f"{data}/photos.toml", **VIEWS}
        samples = Data(make_config(TrainConfig, flags))
        return samples.source_crops() if row.source else samples.target_views()

    if row.refused:
        with pytest.raises(UserError) as caught:
            opening()
        refuses(row, data, [str(caught.value)])
    else:
        assert len(opening()) == row.images


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "before.pt"
    torch.save(weights_content(build_network("tiny", 2), class_names=("road", "car")), path)
    return path


def uses(command: str, row: Row, data: Path, capsys, **flags) -> None:
    """Runs a command that uses a network: it refuses in one line, or predicts every image and reports no error."""
    values = {"source": f"{data}/sim.toml", "output": data / "run", "backbone": "tiny", "device": "cpu", **flags}
    arguments = [f"--{name}={value}" for name, value in values.items()]
    status = main([f"{ROOT}/experiments/{command}.py", "--num_workers=0", *arguments])
    captured = capsys.readouterr()
    lines = captured.err.splitlines() + captured.out.splitlines()
    named_alone = [line for line in lines if line.startswith("not predicted: ")]  # by predict, which goes on
    errors = [line for line in lines if "error" in line or "Traceback" in line or line in named_alone]
    assert status == (0 if not row.refused else 1 if named_alone else 2), errors
    assert command != "predict" or any(row.reported in line for line in lines)
    if row.refused:
        refuses(row, data, errors)
        if named_alone:
            assert len(list((data / "run/labels").iterdir())) == read_summary(data / "run")["images"] - 1
    else:
        assert not errors and len(list((data / "run/labels").iterdir())) == row.images


@commands
def test_predict(row, data, weights, capsys):
    """Of the images that the description names. Label maps are not read, and crops not cut."""
    images = "photos"
    if row.source:
        row, images = row._replace(refused=""), "sim/images"
    elif (data / "photos.toml").is_file():
        found = re.search('images = "([^"]+)"', (data / "photos.toml").read_text())
        images = found[1] if found else images
    if "would be called" in row.refused:  # the names of the files differ
        row = row._replace(refused="", images=5)
    if "the same name" in row.refused:  # only a label map has to know which of them it belongs to
        row = row._replace(refused="", images=4)
    if row.refused.startswith(("no images", "files with another")):
        what = "found none" if (data / images).exists() or "*" in images else "no such file or folder"
        row = row._replace(refused=f"--images={data / images}: {what}", named="")
    uses("predict", row, data, capsys, target=data / "photos.toml", weights=weights, images=data / images)


@commands
def test_evaluate(row, data, weights, capsys):
    """Of the images of [train]. Crops are not cut."""
    row = row._replace(refused="" if "shrinks" in row.refused else row.refused)
    target = data / ("sim.toml" if row.source else "photos.toml")
    flags = {"target": target, "weights": weights, "split": "train", "predictions": data / "run/labels"}
    uses("evaluate", row, data, capsys, **flags)
