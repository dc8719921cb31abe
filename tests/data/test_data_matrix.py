"""The table of what a folder, an image or a description may look like, and what every reader of it does.

Each row changes one thing of a small data set: three images with label maps (source) and three photographs (target).
Columns: ``check_data``, the opening of a training run, reading every example, ``predict`` and ``evaluate``. A cell is
accepted, with as many images as the row says, or refused in one line that names the file.
"""

import os
import re
import shutil
import struct
import unicodedata
import zipfile
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
from proda.run.domains import Domains
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


class Row(NamedTuple):
    what: str
    change: Callable[[Path], Path | None]  # of the data in this folder; returns the file that a refusal has to name
    domain: str  # which of the two data sets it changes
    refused: str  # part of the line; empty: accepted
    images: int  # in the data set, where it is accepted
    first: tuple[int, int, int]  # colour at the upper left of image b
    reported: str  # what check_data says about it, though it is accepted


ROWS: list[Row] = []


def row(what, domain="target", *, refused="", images=3, first=RED, reported=""):
    def add(change):
        ROWS.append(Row(what, change, domain, refused, images, first, reported))
        return change

    return add


def picture(mode: str = "RGB") -> Image.Image:
    """Left red, right blue."""
    pixels = np.empty((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for name in "abc":
        for place in ("sim/images", "photos"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            picture().save(folder / place / f"{name}.png")
        (folder / "sim/labels").mkdir(exist_ok=True)
        Image.fromarray(np.tile(np.array([1, 2], np.uint8).repeat(16), (16, 1))).save(folder / f"sim/labels/{name}.png")
    (folder / "sim.toml").write_text(SIM)
    (folder / "photos.toml").write_text(PHOTOS)
    return folder


@pytest.fixture
def data(clean, tmp_path) -> Path:
    return shutil.copytree(clean, tmp_path / "data")


def replace(data: Path, file: str, suffix: str = ".png") -> Path:
    """A path in place of image b; ``file`` is its folder."""
    (data / file / "b.png").unlink()
    return data / file / f"b{suffix}"


def add_chunk(path: Path, kind: bytes, content: bytes) -> None:
    """Puts a chunk behind the header of a PNG."""
    png = path.read_bytes()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(png[:33] + chunk + png[33:])


def exif(orientation: int, odd: bool = False) -> bytes:
    """EXIF data of an orientation and, if asked for, of a tag that Pillow can read and not write."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    if odd:
        entries += struct.pack(">HHI4s", 0x011A, 7, 4, b"\xff\xff\xff\xff")  # XResolution as bytes, not as a fraction
    return b"MM\0\x2a" + struct.pack(">I", 8) + struct.pack(">H", 1 + odd) + entries + bytes(4)


# Images


@row("JPEG", first=None)
def _(data):
    picture().save(replace(data, "photos", ".jpg"), quality=95)


for suffix in (".JPG", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".BMP", ".PNG"):

    @row(f"image file {suffix}", first=None)
    def _(data, suffix=suffix):
        picture().save(replace(data, "photos", suffix))


for mode in ("RGBA", "L", "LA", "P", "1"):

    @row(f"PNG of mode {mode}", first=None)
    def _(data, mode=mode):
        picture(mode).save(data / "photos/b.png")


@row("JPEG of mode CMYK", first=None)
def _(data):
    picture("CMYK").save(replace(data, "photos", ".jpg"))


@row("RGB PNG with a transparent colour (tRNS)")
def _(data):
    add_chunk(data / "photos/b.png", b"tRNS", struct.pack(">3H", *BLUE))


@row("JPEG named .png", first=None)
def _(data):
    picture().save(data / "photos/b.png", "JPEG")


@row("turned JPEG", first=None)
def _(data):
    picture().save(replace(data, "photos", ".jpg"), exif=b"Exif\0\0" + exif(3), quality=100, subsampling=0)


@row("turned JPEG with an odd EXIF tag", first=None)
def _(data):
    picture().save(replace(data, "photos", ".jpg"), exif=b"Exif\0\0" + exif(3, odd=True), quality=100, subsampling=0)


@row("turned PNG (eXIf)", first=BLUE)
def _(data):
    add_chunk(data / "photos/b.png", b"eXIf", exif(3))


@row("PNG with damaged EXIF data")
def _(data):
    add_chunk(data / "photos/b.png", b"eXIf", b"nonsense")


@row("turned TIFF", first=BLUE)
def _(data):
    picture().save(replace(data, "photos", ".tif"), tiffinfo={0x0112: 3})


@row("16-bit RGB PNG", first=(200, 10, 10))
def _(data):
    write_16_bit_png(data / "photos/b.png", np.asarray(picture()).astype(np.uint16) * 257)


@row("16-bit grey PNG", first=(195, 195, 195))
def _(data):
    Image.fromarray(np.full((16, 32), 50_000, np.uint16)).save(data / "photos/b.png")


@row("12-bit grey in a 16-bit PNG", first=(187, 187, 187))
def _(data):
    Image.fromarray(np.full((16, 32), 3000, np.uint16)).save(data / "photos/b.png")


@row("10-bit grey in a 16-bit PNG that says so (sBIT)", first=(250, 250, 250))
def _(data):
    Image.fromarray(np.full((16, 32), 1000, np.uint16)).save(data / "photos/b.png")
    add_chunk(data / "photos/b.png", b"sBIT", b"\x0a")


@row("16-bit grey TIFF", first=(195, 195, 195))
def _(data):
    Image.fromarray(np.full((16, 32), 50_000, np.uint16)).save(replace(data, "photos", ".tif"))


@row("floating-point TIFF", refused="values of type float32 up to 0.5, expected an image of 8 or 16 bits")
def _(data):
    path = replace(data, "photos", ".tif")
    Image.fromarray(np.full((16, 32), 0.5, np.float32)).save(path)
    return path


@row("EPS named .png", refused="not a complete image (none of PNG")
def _(data):
    picture().save(data / "photos/b.png", "EPS")
    return data / "photos/b.png"


@row("PNG of 400 million pixels", refused="20000x20000 pixels, expected at most 178 million")
def _(data):
    write_png(data / "photos/b.png", 20_000, 20_000, 8, 2, b"")
    return data / "photos/b.png"


@row("BMP of 400 million pixels", refused="not a complete image (more than 178 million pixels)")
def _(data):
    path = replace(data, "photos", ".bmp")
    picture().save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 20_000, 20_000)
    path.write_bytes(content)
    return path


@row("truncated image", refused="not a complete image")
def _(data):
    path = data / "photos/b.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


@row("empty file", refused="not a complete image (none of PNG")
def _(data):
    (data / "photos/b.png").write_bytes(b"")
    return data / "photos/b.png"


@row("text named .png", refused="not a complete image (none of PNG")
def _(data):
    (data / "photos/b.png").write_text("hello")
    return data / "photos/b.png"


@row("image too flat for the crop", "source", refused="shrinks images of 32x4")
def _(data):
    for name in "abc":
        for place in ("images", "labels"):
            path = data / f"sim/{place}/{name}.png"
            Image.open(path).resize((32, 4)).save(path)


# Folders


@row("hidden files and those of other systems", reported="left out: hidden files (1, such as ")
def _(data):
    for name in ("._b.png", ".DS_Store", "Thumbs.db"):
        (data / "photos" / name).write_bytes(b"\0")


@row("files with other suffixes", reported="files with another suffix (2, such as ")
def _(data):
    (data / "photos/notes.txt").write_text("")
    (data / "photos/a.xmp").write_text("")


@row("link to nothing", reported="broken links and special files (1, such as ")
def _(data):
    (data / "photos/d.png").symlink_to(data / "gone.png")


@row("link to itself", reported="broken links and special files (1, such as ")
def _(data):
    (data / "photos/d.png").symlink_to(data / "photos/d.png")


@row("link to its own folder", reported="links to a folder that contains them (1, such as ")
def _(data):
    (data / "photos/again").symlink_to(data / "photos")


@row("link to a folder above", reported="links to a folder that contains them (1, such as ")
def _(data):
    (data / "photos/deeper").mkdir()
    (data / "photos/deeper/again").symlink_to(data)


@row("links to images and to a folder of images", images=5)
def _(data):
    (data / "photos/d.png").symlink_to(data / "sim/images/a.png")
    (data / "photos/b.png").rename(data / "outside.png")
    (data / "photos/b.png").symlink_to(data / "outside.png")
    (data / "elsewhere").mkdir()
    shutil.copy(data / "sim/images/a.png", data / "elsewhere/e.png")
    (data / "photos/linked").symlink_to(data / "elsewhere")


@row("named pipe with the name of an image", reported="broken links and special files (1, such as ")
def _(data):
    os.mkfifo(data / "photos/d.png")


@row("folder with the name of an image")
def _(data):
    (data / "photos/d.png").mkdir()


@row("folder that cannot be listed", refused="cannot be listed (Permission denied)")
def _(data):
    (data / "photos/secret").mkdir()
    return data / "photos/secret"


@row("file that cannot be read", refused="cannot be read (Permission denied)")
def _(data):
    (data / "photos/b.png").rename(data / "photos/secret.png")
    return data / "photos/secret.png"


def zipped(data: Path, folder: str) -> Path:
    """Moves a folder into a zip file of its name."""
    path = shutil.make_archive(str(data / folder), "zip", data / folder)
    shutil.rmtree(data / folder)
    return Path(path)


@row("photographs in a zip file")
def _(data):
    zipped(data, "photos")
    (data / "photos.toml").write_text('[train]\nimages = "photos.zip/*.png"\n')


@row("label maps in a zip file", "source")
def _(data):
    zipped(data, "sim/labels")
    (data / "sim.toml").write_text(SIM.replace("/labels", "/labels.zip"))


@row("damaged zip file", refused="not a complete zip file (")
def _(data):
    path = zipped(data, "photos")
    path.write_bytes(path.read_bytes()[:-40])
    (data / "photos.toml").write_text('[train]\nimages = "photos.zip"\n')
    return path


@row("damaged image in a zip file", refused="cannot be read from the zip file (Bad CRC-32 for file")
def _(data):
    path = data / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted((data / "photos").iterdir()):
            file.write(image, image.name)
    content = bytearray(path.read_bytes())
    content[content.index(b"b.png") + 60] ^= 255  # after its header
    path.write_bytes(content)
    (data / "photos.toml").write_text('[train]\nimages = "photos.zip"\n')
    return path / "b.png"


@row("empty folder", refused="no images photos for [train]")
def _(data):
    shutil.rmtree(data / "photos")
    (data / "photos").mkdir()
    return data / "photos.toml"


@row("folder that holds other formats only", refused="left out: files with another suffix (1, such as ")
def _(data):
    shutil.rmtree(data / "photos")
    (data / "photos").mkdir()
    (data / "photos/a.heic").write_bytes(b"\0")
    return data / "photos.toml"


@row("two images of one name", refused="have the same name 'b'")
def _(data):
    picture().save(data / "photos/b.bmp")
    return data / "photos/b.png"


@row("two images whose folders give one name", refused="two images of [train] would be called 'x-y'")
def _(data):
    (data / "photos/x").mkdir()
    picture().save(data / "photos/x/y.png")
    picture().save(data / "photos/x-y.png")
    return data / "photos.toml"


for pattern in ("*.*", "*", "**", "**/*.png", "*.PNG", "*.p*", "."):

    @row(f"pattern {pattern}")
    def _(data, pattern=pattern):
        (data / "photos.toml").write_text(f'[train]\nimages = "{data}/photos/{pattern}"\n')


@row("pattern *_left.*", images=1)
def _(data):
    (data / "photos/b.png").rename(data / "photos/b_left.png")
    (data / "photos.toml").write_text('[train]\nimages = "photos/*_left.*"\n')


@row("pattern *.jpg and files .JPG", first=None)
def _(data):
    for name in "abc":
        (data / f"photos/{name}.png").unlink()
        picture().save(data / f"photos/{name}.JPG", quality=95)
    (data / "photos.toml").write_text('[train]\nimages = "photos/*.jpg"\n')


@row("names as a Mac writes them (NFD) and as others do (NFC)", "source", images=4)
def _(data):
    shutil.copy(data / "sim/images/b.png", data / "sim/images" / unicodedata.normalize("NFD", "Straße_ü.png"))
    shutil.copy(data / "sim/labels/b.png", data / "sim/labels" / unicodedata.normalize("NFC", "Straße_ü.png"))


@row("folder in NFD, description in NFC")
def _(data):
    (data / "photos").rename(data / unicodedata.normalize("NFD", "Grün"))
    (data / "photos.toml").write_text(f'[train]\nimages = "{unicodedata.normalize("NFC", "Grün")}"\n')


# Label maps


for suffix in (".PNG", ".bmp", ".tif", ".TIFF"):

    @row(f"label map {suffix}", "source")
    def _(data, suffix=suffix):
        ids = Image.open(data / "sim/labels/b.png")
        ids.load()
        ids.save(replace(data, "sim/labels", suffix))


@row("label map with a palette", "source")
def _(data):
    ids = Image.open(data / "sim/labels/b.png")
    ids.putpalette(bytes(range(256)) * 3)
    ids.save(data / "sim/labels/b.png")


COLORED_SIM = """labels_are = "colors"
classes = [{ name = "road", color = [128, 64, 128] }, { name = "car", color = [[0, 0, 142], [1, 2, 3]] }]
""" + SIM.partition("\n")[2].replace("ignore = 0", "ignore = [0, 0, 0]")


def color_labels(data: Path, right: tuple[int, int, int]) -> None:
    pixels = np.empty((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (128, 64, 128), right
    for name in "abc":
        Image.fromarray(pixels).save(data / f"sim/labels/{name}.png")
    (data / "sim.toml").write_text(COLORED_SIM)


@row("label maps of colours", "source")
def _(data):
    color_labels(data, (1, 2, 3))


@row("label map of a colour without a class", "source", refused="unknown color #010204 (1, 2, 4) in 256 pixels;")
def _(data):
    color_labels(data, (1, 2, 3))
    pixels = np.array(Image.open(data / "sim/labels/b.png"))
    pixels[:, 16:] = (1, 2, 4)
    Image.fromarray(pixels).save(data / "sim/labels/b.png")
    return data / "sim/labels/b.png"


@row("no label map", "source", refused="no label map 'b' in sim/labels for the image")
def _(data):
    (data / "sim/labels/b.png").unlink()
    return data / "sim.toml"


def label(what, refused):
    def add(change):
        def changed(data: Path) -> Path:
            change(data / "sim/labels/b.png")
            return data / "sim/labels/b.png"

        row(what, "source", refused=refused)(changed)

    return add


@label("label map of another size", "label map of 16x16 pixels, expected 32x16 as its image")
def _(path):
    Image.new("L", (16, 16), 1).save(path)


@label("unknown id", "unknown label id 9, expected ids 0..2")
def _(path):
    Image.new("L", (32, 16), 9).save(path)


@label("id beyond a byte", "unknown label id 300 in the first channel, expected ids 0..255")
def _(path):
    Image.fromarray(np.full((16, 32), 300, np.uint16)).save(path)


@label("colour picture for a label map", "a picture of mode RGB, expected a label map")
def _(path):
    picture().save(path)


@label("JPEG for a label map", "a JPEG, which may change ids; expected a label map as PNG, BMP, TIFF")
def _(path):
    Image.new("L", (32, 16), 1).save(path, "JPEG")


@label("truncated label map", "not a complete label map")
def _(path):
    path.write_bytes(path.read_bytes()[:50])


@label("label map of 400 million pixels", "20000x20000 pixels, expected at most 178 million")
def _(path):
    write_png(path, 20_000, 20_000, 8, 0, b"")


@label("EPS for a label map", "not a complete label map (none of PNG")
def _(path):
    picture("L").save(path, "EPS")


# Descriptions


def description(what, text, refused):
    def change(data: Path) -> Path:
        (data / "photos.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return data / "photos.toml"

    row(what, refused=refused)(change)


description("size below [train]", PHOTOS + "size = [16, 8]\n", "size = ... stands below [train]; move it above")
description("deeply nested lists", "size = " + "[" * 5000, "nested too deeply")
description("no TOML", "images = photos\n", "not TOML (")
description("another encoding", PHOTOS.encode("utf-16"), "not TOML ('utf-8' codec")
description(
    "unknown key", 'sizes = [16, 8]\n[train]\nimages = "photos"\n', "unknown key 'sizes'; the nearest is 'size'"
)
description("folder that is not there", '[train]\nimages = "foto"\n', "no images foto for [train] under")
description("pattern that finds nothing", '[train]\nimages = "photos/*.tif"\n', "no images photos/*.tif for [train]")
description(
    "size beyond reason", "size = [20000, 20000]\n" + PHOTOS, "expected [width, height] in pixels, at most 178,000,000"
)
description("no split", "size = [16, 8]\n", "neither [train] nor [val]")
description("NUL in a place", '[train]\nimages = "a\\u0000b"\n', "expected a folder, a pattern, or a list of them")
description(
    "class name of two lines",
    'classes = [{ name = "a\\nb" }, { name = "c" }]\n' + PHOTOS,
    "expected a name that no other class has",
)


@row("folder in place of a description", refused="cannot be read (Is a directory)")
def _(data):
    (data / "photos.toml").unlink()
    (data / "photos.toml").mkdir()
    return data / "photos.toml"


@row("description with a byte order mark")
def _(data):
    (data / "photos.toml").write_bytes(b"\xef\xbb\xbf" + PHOTOS.encode())


@row("photographs of several sizes with a size in the description")
def _(data):
    picture().resize((48, 24)).save(data / "photos/a.png")
    (data / "photos.toml").write_text("size = [32, 16]\n" + PHOTOS)


# Columns


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


def config(data: Path) -> TrainConfig:
    return make_config(TrainConfig, {"source": f"{data}/sim.toml", "target": f"{data}/photos.toml", **VIEWS})


def refuses(row: Row, named: Path | None, lines: list[str]) -> None:
    """Exactly one line says what is wrong, and names the file."""
    assert len(lines) == 1 and row.refused in lines[0] and "\n" not in lines[0]
    assert named is None or str(named) in lines[0]


every_row = pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])


@every_row
def test_check_data(row, data, tmp_path, capsys):
    named = row.change(data)
    part = "source" if row.domain == "source" else "train"
    flags = [f"--{name}={value}" for name, value in VIEWS.items()]
    flags += [f"--source={data}/sim.toml", f"--target={data}/photos.toml", f"--parts={part}", "--num_workers=0"]
    status = main([f"{ROOT}/experiments/check_data.py", f"--output={tmp_path}/check", *flags])
    output = capsys.readouterr()
    if not row.refused:
        assert status == 0 and row.reported in output.out, output
        summary = read_summary(tmp_path / "check")[part]
        assert summary["images"] == row.images and summary["problems"] == []
    elif status == 2:
        refuses(row, named, [line for line in output.err.splitlines() if "error" in line])
    else:
        refuses(row, named, read_summary(tmp_path / "check")[part]["problems"])
        assert status == 1


@every_row
def test_training_opens_it_or_says_why_not(row, data):
    named = row.change(data)

    def opening(config: TrainConfig):
        domains = Domains(config)
        return domains.source_crops() if row.domain == "source" else domains.target_views()

    if row.refused:
        with pytest.raises(UserError) as caught:
            opening(config(data))
        refuses(row, named, [str(caught.value)])
    else:
        assert len(opening(config(data))) == row.images


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "before.pt"
    torch.save(weights_content(build_network("tiny", 2), class_names=("road", "car")), path)
    return path


def uses(command: str, row: Row, named: Path | None, data: Path, capsys, *, refused: str, said="", **flags) -> None:
    """Runs a command that uses a network: it refuses in one line, or predicts every image and reports no error."""
    values = {"source": f"{data}/sim.toml", "output": data / "run", "backbone": "tiny", "device": "cpu", **flags}
    arguments = [f"--{name}={value}" for name, value in values.items()]
    status = main([f"{ROOT}/experiments/{command}.py", "--num_workers=0", *arguments])
    captured = capsys.readouterr()
    lines = captured.err.splitlines() + captured.out.splitlines()
    named_alone = [line for line in lines if line.startswith("not predicted: ")]  # by predict, which goes on
    errors = [line for line in lines if "error" in line or "Traceback" in line or line in named_alone]
    assert status == (0 if not refused else 1 if named_alone else 2), errors
    assert any(said in line for line in lines) or not said
    if refused:
        refuses(row._replace(refused=refused), named, errors)
        if named_alone:
            assert len(list((data / "run/labels").iterdir())) == read_summary(data / "run")["images"] - 1
    else:
        assert not errors and len(list((data / "run/labels").iterdir())) == row.images


@every_row
def test_predict(row, data, weights, capsys):
    """Of the images that the description names. Label maps are not read, and crops not cut."""
    named, refused, images = row.change(data), row.refused, "photos"
    if row.domain == "source":
        refused, images = "", "sim/images"
    elif (data / "photos.toml").is_file():
        place = re.search('images = "([^"\\\\]+)"', (data / "photos.toml").read_text(errors="replace"))
        images = place[1] if place else images
    if "would be called" in refused:  # the names of the files differ
        refused, row = "", row._replace(images=5)
    if "have the same name" in refused:  # only a label map has to know which of them it belongs to
        refused, row = "", row._replace(images=4)
    if refused.startswith(("no images", "left out")):
        what = "found none" if (data / images).exists() or "*" in images else "no such file or folder"
        named, refused = None, f"--images={data / images}: {what}"
    flags = {"target": f"{data}/photos.toml", "weights": weights, "images": data / images}
    uses("predict", row, named, data, capsys, refused=refused, said=row.reported, **flags)


@every_row
def test_evaluate(row, data, weights, capsys):
    """Of the images of [train]. Crops are not cut."""
    named, refused = row.change(data), "" if "shrinks" in row.refused else row.refused
    target = data / ("photos.toml" if row.domain == "target" else "sim.toml")
    flags = {"target": target, "weights": weights, "split": "train", "predictions": data / "run/labels"}
    uses("evaluate", row, named, data, capsys, refused=refused, **flags)


def examples(row: Row, data: Path) -> list:
    source = read_description(data / "sim.toml")
    if row.domain == "source":
        return list(source.open("train", source.space, with_labels=True))
    return list(read_description(data / "photos.toml").open("train", benchmark_labels(19), with_labels=False))


@every_row
def test_reading(row, data):
    named = row.change(data)
    if row.refused and "shrinks" not in row.refused:  # of views alone
        with pytest.raises(UserError) as caught:
            examples(row, data)
        refuses(row, named, [str(caught.value)])
        return
    read = examples(row, data)
    assert len(read) == row.images or row.refused
    assert all(image.mode == "RGB" and image_tensor(image).shape[0] == 3 for image, *_ in read)
    b = next(example.image for example in read if example.name.startswith("b"))
    if not row.refused and row.first:
        assert b.getpixel((0, 0)) == row.first
    if row.what.startswith("turned"):
        assert b.getpixel((0, 0))[2] > 180
    if row.domain == "source" and not row.refused:
        assert all((labels[:, :16] == 0).all() and (labels[:, 16:] == 1).all() for _, labels, *_ in read)
