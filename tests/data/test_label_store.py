"""The pseudo-label store: closed forms, limits of quantisation, kills, stale folders, several processes."""

import json
import multiprocessing
import os
import pickle
import signal
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from proda.data.label_store import (
    FORMAT,
    HardLabelStore,
    Manifest,
    SoftLabelStore,
    described_store,
    open_store,
    read_manifest,
    threshold_problem,
)
from proda.method.pseudo_labels import confident_labels
from proda.utils.errors import UserError
from tests.data.test_image_files import write_png

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "pseudo_labels.npz"
MANIFEST = Manifest(
    num_classes=3,
    weights="ab" * 32,
    settings={"flip": False, "size": (8, 16)},
    images=["a", "b"],
    fingerprint="12" * 32,
    class_names=["road", "building", "sky"],
)


def street_like(K: int = 19, h: int = 65, w: int = 129, *, fine: float = 0.15) -> torch.Tensor:
    """Probabilities of smooth regions with sharp borders and small objects; ``fine`` is noise from cell to cell."""
    logits = torch.linspace(3, -6, K)[:, None, None] + fine * torch.randn(K, h, w)
    for cells, size in ((2, 6.0), (6, 4.0), (20, 1.5)):
        field = F.interpolate(torch.randn(1, K, cells, 2 * cells), size=(h, w), mode="bicubic")[0]
        logits += size * field
    for k in range(K):
        y, x = (int(torch.randint(8, size - 8, ())) for size in (h, w))
        logits[k, y - 3 : y + 3, x - 2 : x + 2] += 12
    return logits.softmax(0)


def one_hot() -> torch.Tensor:
    return F.one_hot(torch.tensor([[0, 1], [2, 0]]), 3).permute(2, 0, 1).float()


@pytest.mark.parametrize("fine", [0.0, 0.15, 1.0])
def test_soft_labels_keep_arg_max_selection_and_ratios(tmp_path, fine):
    probabilities = street_like(fine=fine)
    store = SoftLabelStore(tmp_path, 19)
    store.write("a", probabilities)
    read = store.read("a")
    assert torch.allclose(read.sum(0), torch.ones(65, 129), atol=1e-5)
    assert (read.argmax(0) == probabilities.argmax(0)).all()
    assert (read - probabilities).abs().max() < 0.002
    both = [p / p.amax(0) for p in (read, probabilities)]
    kept = both[1] > 1e-10
    assert (both[0][kept] / both[1][kept]).log().abs().max() < 0.025
    assert both[0][~kept].max() < 1.05e-10

    # What training sees: enlarged, and reweighted by something as decided as prototype weights.
    weights = F.interpolate(torch.randn(1, 19, 9, 17), size=(65, 129), mode="bilinear")[0].mul(2).softmax(0)
    for enlarge in (False, True):
        for rectify in (False, True):
            maps = [p * weights / (p * weights).sum(0) if rectify else p for p in (read, probabilities)]
            if enlarge:
                maps = [F.interpolate(p[None], size=(512, 1024), mode="bilinear", align_corners=True)[0] for p in maps]
            (confidence, labels), (exact_confidence, exact_labels) = (p.max(0) for p in maps)
            assert (labels == exact_labels).float().mean() >= 0.999
            assert ((confidence > 0.95) == (exact_confidence > 0.95)).float().mean() >= 0.999


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (one_hot, 1e-9),
        (lambda: torch.full((4, 1, 3), 0.25), 0.001),
        (lambda: torch.ones(1, 1, 1), 1e-9),
        (lambda: torch.randn(2, 1, 1).mul(8).softmax(0), 0.002),
        (lambda: torch.randn(5, 3, 7).mul(8).softmax(0), 0.002),
        (lambda: torch.randn(19, 9, 17).softmax(0).bfloat16(), 0.01),
        (lambda: torch.randn(9, 17, 5).softmax(2).permute(2, 0, 1).requires_grad_(), 0.002),  # strided
    ],
)
def test_probabilities_of_any_shape_and_precision_survive(tmp_path, make, tolerance):
    probabilities = make()
    store = SoftLabelStore(tmp_path, len(probabilities))
    store.write("a", probabilities)
    read = store.read("a")
    assert read.dtype == torch.float32 and (read > 0).all()  # positive: a product never vanishes
    assert torch.allclose(read, probabilities.float(), atol=tolerance)
    if probabilities.dtype == torch.float32:
        assert (read.argmax(0) == probabilities.argmax(0)).all()


def test_golden_pseudo_labels_survive(tmp_path):
    golden = np.load(GOLDEN)
    soft, hard = SoftLabelStore(tmp_path / "soft", 19), HardLabelStore(tmp_path / "hard")
    for i, probabilities in enumerate(torch.from_numpy(golden["soft_labels"])):
        soft.write(str(i), probabilities)
        assert (soft.read(str(i)).argmax(0) == probabilities.argmax(0)).all()
        assert (soft.read(str(i)) - probabilities).abs().max() < 0.002
        labels, confidence = (torch.from_numpy(golden[key][i]) for key in ("pseudo_labels", "confidence"))
        hard.write(str(i), labels, confidence)
        read_labels, read_confidence = hard.read(str(i))
        assert (read_labels == labels).all()
        for threshold in (0.2, 0.25, 0.3):
            for as_released in (False, True):
                kept = confident_labels(read_labels, read_confidence, threshold=threshold, as_released=as_released)
                expected = confident_labels(labels, confidence.float(), threshold=threshold, as_released=as_released)
                assert (kept == expected).all()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (torch.randn(3, 4, 4) * 5, "are they logits"),
        (torch.full((3, 4, 4), float("nan")), "must be finite"),
        (torch.full((4, 4, 4), 0.25), r"expected \[3, h, w\], got \[4, 4, 4\]"),
        (torch.full((1, 3, 4, 4), 0.33), r"expected \[3, h, w\], got \[1, 3, 4, 4\]"),
    ],
)
def test_what_is_no_probability_is_refused(tmp_path, probabilities, message):
    with pytest.raises(ValueError, match=message):
        SoftLabelStore(tmp_path, 3).write("a", probabilities)
    assert not list(tmp_path.rglob("*.probs"))


def test_hard_labels_are_exact_and_confidence_within_half_a_hundredth(tmp_path):
    confidence, labels = street_like().max(0)
    labels[:3] = 250
    store = HardLabelStore(tmp_path)
    store.write("a", labels, confidence)
    read_labels, read_confidence = store.read("a")
    assert read_labels.dtype == torch.uint8 and read_confidence.dtype == torch.float32
    assert (read_labels == labels).all()
    assert (read_confidence - confidence).abs().max() <= 0.005 + 1e-6


@pytest.mark.parametrize("as_released", [False, True])
def test_every_threshold_of_two_decimals_is_decided_exactly(tmp_path, as_released):
    # Around each threshold, such as the paper's 0.95: it, its neighbours in float32, those of the float16 tie above it.
    threshold = np.arange(1, 100) / 100
    half = threshold.astype(np.float16)
    tie = (half.astype(np.float32) + np.nextafter(half, np.float16(1)).astype(np.float32)) / 2
    centres = np.concatenate([threshold.astype(np.float32), half.astype(np.float32), tie])
    around = [centres, np.nextafter(centres, np.float32(0)), np.nextafter(centres, np.float32(1))]
    confidence = torch.from_numpy(np.concatenate([*around, np.array([0, 1], np.float32)]))[None]
    labels = torch.zeros_like(confidence, dtype=torch.uint8)
    store = HardLabelStore(tmp_path)
    store.write("a", labels, confidence)
    _, read = store.read("a")
    for value in threshold.tolist():
        kept, expected = (
            confident_labels(labels, c, threshold=value, as_released=as_released) for c in (read, confidence)
        )
        assert (kept == expected).all(), value


@pytest.mark.parametrize(
    ("threshold", "exact"),
    [*((value, True) for value in (-1, 0, 0.5, 0.95, 0.29, 1)), (0.968, False), (0.955, False)],
)
def test_a_threshold_between_hundredths_is_named(threshold, exact):
    problem = threshold_problem(threshold)
    assert not problem if exact else problem.startswith(f"--threshold={threshold}: expected a multiple of 0.01")


def test_hard_labels_open_in_any_viewer_with_their_colours(tmp_path):
    palette = np.array([[128, 64, 128], [0, 0, 142]], dtype=np.uint8)  # two colours: Pillow would pack eight to a byte
    labels = torch.tensor([[0, 1], [250, 1]])
    store = HardLabelStore(tmp_path, palette)
    store.write("a", labels, torch.tensor([[0.5, 1.0], [0.0, 1.0]]))
    with Image.open(tmp_path / "labels" / "a.png") as image:
        colours = np.array(image.convert("RGB"))
    assert colours.tolist() == [[[128, 64, 128], [0, 0, 142]], [[250, 250, 250], [0, 0, 142]]]
    assert (store.read("a")[0] == labels).all()


@pytest.mark.parametrize(
    ("labels", "confidence", "message"),
    [
        (torch.zeros(2, 3).long(), torch.ones(2, 2), r"one shape.*\[2, 3\] and \[2, 2\]"),
        (torch.full((2, 2), 256), torch.ones(2, 2), "integers in 0..255"),
        (torch.full((2, 2), -1), torch.ones(2, 2), "integers in 0..255"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), float("nan")), "confidence must be in 0..1"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 2.3), "confidence must be in 0..1"),  # a logit
    ],
)
def test_hard_labels_that_cannot_be_are_refused(tmp_path, labels, confidence, message):
    with pytest.raises(ValueError, match=message):
        HardLabelStore(tmp_path).write("a", labels, confidence)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", ["../a", "..", ".", "", ".a", "a/b", "/etc/a", "a\\b", "C:a", "a\0b", "a\nb", "a/", 3])
def test_a_name_never_leaves_the_folder(tmp_path, name):
    inside = tmp_path / "inside"
    for store, content in (
        (SoftLabelStore(inside, 3), (one_hot(),)),
        (HardLabelStore(inside), (torch.zeros(1, 1).long(), torch.ones(1, 1))),
    ):
        with pytest.raises(ValueError, match="cannot name a file"):
            store.write(name, *content)
        with pytest.raises(ValueError, match="cannot name a file"):
            store.read(name)
    with pytest.raises(ValueError, match="cannot name a file"):
        described_store(inside, "soft", Manifest(3, "ab", {}, [name]))
    assert not list(tmp_path.iterdir())
    for ordinary in ("aachen_000000_000019_leftImg8bit", "my photo (2).v1..png", "Straße", "2024-05-01T10:00:00"):
        described_store(inside, "soft", Manifest(3, "ab", {}, [ordinary]))


def test_no_damage_goes_unnoticed_and_the_file_is_named(tmp_path):
    soft, hard = SoftLabelStore(tmp_path, 19), HardLabelStore(tmp_path)
    probabilities = street_like(19, 17, 33)
    soft.write("a", probabilities)
    hard.write("a", probabilities.argmax(0), probabilities.amax(0))
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        read = (lambda: soft.read("a")) if path.suffix == ".probs" else (lambda: torch.stack(hard.read("a")))
        data, expected = path.read_bytes(), read()
        for content in (data[: len(data) * 2 // 3], b"", pickle.dumps([1])):
            path.write_bytes(content)
            with pytest.raises(UserError, match="damaged or truncated") as error:
                read()
            assert str(path) in str(error.value) and "\n" not in str(error.value)
        for position in {*range(0, len(data), 11), *range(len(data) - 100, len(data))}:  # the end is decoded last
            altered = bytearray(data)
            altered[position] ^= 4
            path.write_bytes(altered)
            try:
                assert torch.equal(read(), expected), (path, position)
            except UserError as error:
                assert str(path) in str(error)
        path.write_bytes(data)


def test_a_label_that_is_not_there_or_does_not_fit_is_named(tmp_path):
    soft, hard = SoftLabelStore(tmp_path, 3), HardLabelStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a\.probs: not there"):
        soft.read("a")
    soft.write("a", one_hot())
    with pytest.raises(ValueError, match=r"a\.probs: found 3 classes, expected 19"):
        SoftLabelStore(tmp_path, 19).read("a")
    for name, size in (("a", 4), ("b", 5)):
        hard.write(name, torch.zeros(size, 4).long(), torch.ones(size, 4))
    os.replace(tmp_path / "confidence" / "b.png", tmp_path / "confidence" / "a.png")
    with pytest.raises(ValueError, match=r"confidence/a\.png.*size"):
        hard.read("a")


def test_a_new_store_is_completed_and_then_finished(tmp_path):
    folder = tmp_path / "runs" / "labels"
    store = open_store(folder, "soft", MANIFEST)
    store.write("a", one_hot())
    again = open_store(folder, "soft", MANIFEST)
    assert again.missing(["b", "a"]) == ["b"]
    with pytest.raises(RuntimeError, match="1 of 2 pseudo labels are not written, first 'b'"):
        again.finish()
    again.write("b", one_hot())
    (folder / "probabilities" / ".b.probs.1.part").write_bytes(b"left by a killed process")
    again.finish()
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.probs", "b.probs", "manifest.json"]
    manifest = read_manifest(folder, "soft")
    assert (manifest.num_classes, manifest.weights, manifest.images) == (3, "ab" * 32, ["a", "b"])


def test_hard_labels_without_confidence_are_missing(tmp_path):
    store = open_store(tmp_path, "hard", MANIFEST)
    store.write("a", torch.zeros(2, 2).long(), torch.ones(2, 2))
    (tmp_path / "confidence" / "a.png").unlink()
    assert store.missing(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("soft", {"weights": "cd" * 32}, "weights: found SHA-256 abababababab, expected SHA-256 cdcdcdcdcdcd"),
        ("soft", {"settings": {"flip": True, "size": (8, 16)}}, "flip: found False, expected True"),
        ("soft", {"num_classes": 4, "class_names": ()}, "num_classes: found 3, expected 4"),
        ("soft", {"class_names": ["building", "road", "sky"]}, "class_names: .* 'road' and 'building'"),
        ("soft", {"fingerprint": "34" * 32}, "fingerprint: found SHA-256 121212121212, expected SHA-256 343434343434"),
        ("soft", {"images": ["a", "c"]}, "images: found 2, expected 2, first difference 'b' and 'c'"),
        ("hard", {}, "kind: found 'soft', expected 'hard'"),
    ],
)
def test_a_stale_store_is_refused_and_replaced_only_when_asked(tmp_path, kind, change, message):
    open_store(tmp_path, "soft", MANIFEST).write("a", one_hot())
    (tmp_path / "notes.txt").write_text("mine")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    manifest = Manifest(**{**vars(MANIFEST), **change})
    stale = described_store(tmp_path, kind, manifest, remedy="or --redo")
    for use in (stale.check, stale.open):
        with pytest.raises(UserError, match=message) as error:
            use()
        text = str(error.value)
        assert "manifest.json" in text and "stale" in text and text.endswith("or --redo") and "\n" not in text

    store = described_store(tmp_path, kind, manifest, overwrite=True)
    assert store.check()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    store.open()
    assert store.missing(manifest.images) == list(manifest.images)
    assert read_manifest(tmp_path, kind).weights == manifest.weights
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_described_store_writes_nothing_before_it_is_opened(tmp_path):
    store = described_store(tmp_path / "labels", "soft", MANIFEST)
    assert store.check() == "" and not list(tmp_path.iterdir())
    store.open()
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["manifest.json"]


def test_overwrite_keeps_labels_that_are_up_to_date_and_folders_of_something_else(tmp_path):
    open_store(tmp_path / "labels", "soft", MANIFEST).write("a", one_hot())
    assert open_store(tmp_path / "labels", "soft", MANIFEST, overwrite=True).missing(["a", "b"]) == ["b"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no manifest"):
            open_store(tmp_path / "thesis", "soft", MANIFEST, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "soft"}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: not"):
        open_store(tmp_path, "soft", MANIFEST)
    with pytest.raises(ValueError, match=r"manifest\.json: not"):
        read_manifest(tmp_path, "soft")


@pytest.mark.parametrize(
    ("kind", "manifest", "message"),
    [
        ("soft", {"images": ["a", "b", "a"]}, "two images are called 'a'"),
        ("both", {}, "kind must be 'soft' or 'hard', got 'both'"),
        ("soft", {"class_names": ["road", "sky"]}, "2 class names for 3 classes"),
    ],
)
def test_a_description_that_cannot_be_is_a_mistake(tmp_path, kind, manifest, message):
    with pytest.raises(ValueError, match=message):
        described_store(tmp_path, kind, replace(MANIFEST, **manifest))


def test_a_failing_disk_leaves_the_old_label_and_no_half_one(tmp_path, monkeypatch):
    store = SoftLabelStore(tmp_path, 3)
    store.write("a", one_hot())
    before = (tmp_path / "probabilities" / "a.probs").read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="No space left"):
            store.write(name, one_hot().flip(0))
    assert [path.name for path in (tmp_path / "probabilities").iterdir()] == ["a.probs"]
    assert (tmp_path / "probabilities" / "a.probs").read_bytes() == before


def _killed_half_way(folder: Path) -> None:
    store = open_store(folder, "soft", MANIFEST)
    store.write("a", one_hot())

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = half
    store.write("b", one_hot())


def _writes_for_ever(folder: Path) -> None:
    store = HardLabelStore(folder)
    confidence, labels = street_like(5, 200, 300).max(0)
    while True:
        for name in ("a", "b", "c"):
            store.write(name, labels, confidence)


def _writes_its_share(folder: Path, rank: int) -> None:
    names = [f"image{i}" for i in range(12)]
    store = open_store(folder, "soft", Manifest(3, "ab" * 32, {}, names))
    for name in names[rank::2]:
        store.write(name, one_hot().roll(rank, 0))
    store.write("image11", one_hot().roll(1, 0))  # and one that both write


def _run(function, *args) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    function(*args)


def _processes(*calls):
    context = multiprocessing.get_context("fork")  # importing torch anew takes seconds
    processes = [context.Process(target=_run, args=call) for call in calls]
    for process in processes:
        process.start()
    return processes


def test_killed_and_parallel_writers_leave_whole_files(tmp_path):
    killed, endless, shared = tmp_path / "killed", tmp_path / "endless", tmp_path / "shared"
    half, loop, *ranks = _processes(
        (_killed_half_way, killed),
        (_writes_for_ever, endless),
        (_writes_its_share, shared, 0),
        (_writes_its_share, shared, 1),
    )
    try:
        # Killed in the middle of a file: that one is missing, and the same command completes the set.
        half.join(60)
        assert half.exitcode == -signal.SIGKILL
        store = open_store(killed, "soft", MANIFEST)
        assert store.missing(MANIFEST.images) == ["b"]
        assert (store.read("a").argmax(0) == one_hot().argmax(0)).all()
        store.write("b", one_hot())
        store.finish()
        assert sorted(path.name for path in (killed / "probabilities").iterdir()) == ["a.probs", "b.probs"]

        # Two processes in one folder.
        for rank, process in enumerate(ranks):
            process.join(60)
            assert process.exitcode == 0, rank
        store = SoftLabelStore(shared, 3)
        store.finish()
        for i in range(12):
            assert (store.read(f"image{i}").argmax(0) == one_hot().roll(i % 2, 0).argmax(0)).all()

        # Killed at any moment: whatever is there can be read.
        deadline = time.monotonic() + 60
        store = HardLabelStore(endless)
        while store.missing(["a", "b"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(np.random.default_rng().uniform(0, 0.1)))
        loop.kill()
        loop.join(60)
        there = [name for name in ("a", "b", "c") if not store.missing([name])]
        assert {"a", "b"} <= set(there)
        for name in there:
            assert store.read(name)[0].shape == (200, 300)
    finally:
        for process in (half, loop, *ranks):
            process.kill()


def test_a_store_travels_to_a_worker_process(tmp_path):
    for store in (SoftLabelStore(tmp_path, 3), HardLabelStore(tmp_path, np.zeros((3, 3), np.uint8))):
        assert pickle.loads(pickle.dumps(store)).folder == tmp_path


def test_the_manifest_is_plain_json_of_this_format_and_kind(tmp_path):
    open_store(tmp_path, "hard", MANIFEST)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["kind"] == "hard" and content["settings"] == {"flip": False, "size": [8, 16]}
    assert content["format"] == FORMAT and content["class_names"] == ["road", "building", "sky"]
    with pytest.raises(UserError, match="kind: found 'hard', expected 'soft'"):
        read_manifest(tmp_path, "soft")
    for number, message in ((FORMAT - 1, "format: found 1, expected 2"), (FORMAT + 1, "written by a newer version")):
        (tmp_path / "manifest.json").write_text(json.dumps(content | {"format": number}))
        for read in (lambda: read_manifest(tmp_path, "hard"), lambda: open_store(tmp_path, "hard", MANIFEST)):
            with pytest.raises(UserError, match=message):
                read()


def soft_file(folder: Path, K: int, h: int, w: int, content: bytes) -> SoftLabelStore:
    """A soft-label file that says K, h, w and holds ``content``, with a checksum that agrees."""
    data = struct.pack("<8s3I", b"ProDAsl1", K, h, w) + zlib.compress(content, 9)
    (folder / "probabilities").mkdir(exist_ok=True)
    (folder / "probabilities/a.probs").write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    return SoftLabelStore(folder, K)


def test_soft_labels_are_decompressed_to_their_length_and_no_further(tmp_path):
    store = soft_file(tmp_path, 2, 4, 4, bytes(200_000_000))  # 200 KB on disk
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.probs: damaged or truncated \(expected 40 bytes of codes\)"):
        store.read("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    with pytest.raises(UserError, match="expected 40 bytes of codes"):
        soft_file(tmp_path, 2, 4, 4, bytes(39)).read("a")
    assert soft_file(tmp_path, 2, 4, 4, bytes(40)).read("a").shape == (2, 4, 4)
    with pytest.raises(UserError, match="it claims to be 100000x100000"):
        soft_file(tmp_path, 2, 100_000, 100_000, bytes(40)).read("a")


def test_a_hard_label_of_400_million_pixels_is_refused(tmp_path):
    store = HardLabelStore(tmp_path)
    (tmp_path / "labels").mkdir()
    write_png(tmp_path / "labels/a.png", 20_000, 20_000, 8, 0, b"")
    with pytest.raises(UserError, match=r"labels/a\.png: damaged or truncated"):
        store.read("a")


def test_labels_of_images_with_long_names_are_written_and_found(tmp_path):
    """Names of 240 bytes, and of nested folders joined by "-", which are longer than any file's."""
    names = ["图" * 80, "a" * 250, "a" * 251, "a" * 600, "a" * 600 + "b", "short"]
    manifest = replace(MANIFEST, images=names)
    stores = open_store(tmp_path / "soft", "soft", manifest), open_store(tmp_path / "hard", "hard", manifest)
    for number, name in enumerate(names):
        for store in stores:
            assert store.missing(names) == names[number:]
        stores[0].write(name, torch.full((3, 2, 2), 1 / 3))
        stores[1].write(name, torch.full((2, 2), number), torch.ones(2, 2))
    for store in stores:
        assert store.missing(names) == []
        store.finish()
    assert [int(stores[1].read(name)[0][0, 0]) for name in names] == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "hard" / "labels" / f"{'a' * 251}.png").is_file()  # as before names were shortened
