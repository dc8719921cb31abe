"""Counting classes, storing the numbers, and drawing rare classes by them."""

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data.class_statistics import (
    REFERENCE_AREA,
    ClassStatistics,
    RareClasses,
    class_probabilities,
    count_classes,
    load_or_count,
    problem_of_stored,
)
from proda.data.labelled_files import LabelledFiles
from proda.data.samples import MORE_CROPS, SampleIndex, SourceTraining
from proda.method import IGNORE
from proda.utils.errors import UserError

NAMES = ["road", "sky", "train"]
HEIGHT, WIDTH = 20, 40


@pytest.fixture
def dataset(tmp_path):
    """Four images: road everywhere, sky in the upper half of two, a train of 3 x 4 pixels in the third."""
    table = np.full(256, IGNORE, np.uint8)
    table[[7, 23, 31]] = 0, 1, 2
    images, labels = [], []
    for number in range(4):
        ids = np.full((HEIGHT, WIDTH), 7, np.uint8)
        ids[:, 0] = 0  # no class
        if number in (1, 2):
            ids[: HEIGHT // 2] = 23
        if number == 2:
            ids[12:15, 30:34] = 31
        for kind, files, pixels in (("image", images, np.zeros((HEIGHT, WIDTH, 3), np.uint8)), ("labels", labels, ids)):
            files.append(tmp_path / f"{number}_{kind}.png")
            Image.fromarray(pixels).save(files[-1])
    return LabelledFiles(images, labels, list("abcd"), table=table, num_classes=3)


def test_every_class_is_counted_in_every_image(dataset):
    for workers in (0, 2):
        statistics = count_classes(dataset, num_workers=workers)
        assert statistics.pixels.tolist() == [[780, 0, 0], [390, 400, 0], [378, 400, 12], [780, 0, 0]]
        assert statistics.areas.tolist() == [800] * 4
    assert statistics.shares == pytest.approx(np.array([2328, 800, 12]) / 3140)


def test_counting_leaves_the_random_numbers_of_the_run_alone(dataset):
    """Otherwise the weights of a run would depend on whether the numbers were stored before."""
    before = torch.get_rng_state()
    count_classes(dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_are_stored_and_used_again(dataset, tmp_path, monkeypatch):
    path = tmp_path / "statistics.npz"
    first = load_or_count(path, dataset, NAMES)
    monkeypatch.setattr("proda.data.class_statistics.count_classes", lambda *_, **__: pytest.fail("counted again"))
    again = load_or_count(path, dataset, NAMES)
    assert (again.pixels == first.pixels).all() and (again.areas == first.areas).all()
    assert problem_of_stored(path, dataset, NAMES, first.pixels) == ""


@pytest.mark.parametrize("change", ["labels", "classes", "ids"])
def test_numbers_of_other_data_are_counted_again(change, dataset, tmp_path, caplog):
    path, names = tmp_path / "statistics.npz", NAMES
    load_or_count(path, dataset, names)
    if change == "labels":
        Image.fromarray(np.full((HEIGHT, WIDTH), 31, np.uint8)).save(dataset.label_files[0])
    elif change == "classes":
        names = ["road", "sky", "bus"]
    else:
        dataset.table = dataset.table.copy()
        dataset.table[31] = IGNORE
    assert problem_of_stored(path, dataset, names, np.zeros((4, 3))) == ""  # not wrong: of other data
    with caplog.at_level("INFO", "proda"):
        found = load_or_count(path, dataset, names)
    assert "counting again" in caplog.text
    assert (found.pixels == count_classes(dataset).pixels).all()
    assert problem_of_stored(path, dataset, names, found.pixels) == ""


def test_check_data_finds_numbers_that_are_not_those_of_the_files(dataset, tmp_path):
    path = tmp_path / "statistics.npz"
    pixels = load_or_count(path, dataset, NAMES).pixels.copy()
    pixels[2, 0] += 1
    assert problem_of_stored(path, dataset, NAMES, pixels).endswith("the pixels of 1 images differ from those stored; "
                                                                    "delete the file")  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(content, dataset, tmp_path):
    path = tmp_path / "statistics.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"statistics\.npz: cannot be read .* delete the file"):
        load_or_count(path, dataset, NAMES)
    assert "cannot be read" in problem_of_stored(path, dataset, NAMES, np.zeros((4, 3)))


def test_a_file_of_something_else_is_named(dataset, tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, pixels=np.zeros(3))
    with pytest.raises(UserError, match="found no areas; expected the statistics of classes"):
        load_or_count(path, dataset, NAMES)


def test_a_file_in_the_place_of_the_folder(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* set --class_statistics=FILE"):
        load_or_count(tmp_path / "file" / "statistics.npz", dataset, NAMES)


def test_probabilities_are_a_softmax_of_one_minus_the_share():
    found = class_probabilities(np.array([0.5, 0.3, 0.2]), 0.1)
    expected = np.exp(np.array([5.0, 7.0, 8.0]))
    assert found == pytest.approx(expected / expected.sum())
    assert class_probabilities(np.array([0.9, 0.1]), 0.001)[1] == pytest.approx(1)  # no overflow


def test_classes_that_no_image_shows_enough_of_are_not_drawn():
    areas = np.full(3, REFERENCE_AREA)
    pixels = np.array([[10**6, 3000, 0], [10**6, 3001, 0], [10**6, 0, 0]])
    rare = RareClasses(ClassStatistics(pixels, areas), temperature=1.0)
    assert rare.images[1].tolist() == [1]  # more than 3000
    assert rare.probabilities[2] == 0 and rare.probabilities.sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = [rare.draw(rng) for _ in range(2000)]
    assert {number for number, _ in drawn} == {0, 1}
    assert {index for number, index in drawn if number == 1} == {1}
    assert np.mean([number == 1 for number, _ in drawn]) == pytest.approx(rare.probabilities[1], abs=0.03)
    with pytest.raises(UserError, match="--rare_class_pixels=3000: no source image"):
        RareClasses(ClassStatistics(np.zeros((3, 3), np.int64), areas))


def test_numbers_of_pixels_are_scaled_with_the_image():
    areas = np.array([REFERENCE_AREA // 4])
    assert len(RareClasses(ClassStatistics(np.array([[751]]), areas)).images[0]) == 1
    with pytest.raises(UserError):
        RareClasses(ClassStatistics(np.array([[750]]), areas))
    rare = RareClasses(ClassStatistics(np.array([[751]]), areas))
    assert rare.enough_in_crop(1501, REFERENCE_AREA) and not rare.enough_in_crop(1500, REFERENCE_AREA)
    assert rare.enough_in_crop(376, REFERENCE_AREA // 4) and not rare.enough_in_crop(375, REFERENCE_AREA // 4)


def samples(dataset, pixels, number=60):
    """Crops of half the width and height at full resolution, with the seeds of so many samples."""
    rare = RareClasses(count_classes(dataset), temperature=0.001, pixels=pixels)
    views = {"mean_width": WIDTH, "crop_width": WIDTH // 2, "crop_height": HEIGHT // 2, "jitter": 0.0}
    crops = SourceTraining(dataset, **views, rare_classes=rare)
    return [crops[SampleIndex(0, (seed,))] for seed in range(number)]


def test_crops_show_the_rare_class_wherever_one_can_be_found(dataset):
    pixels = 11 * REFERENCE_AREA // (HEIGHT * WIDTH)  # the train has twelve
    found = samples(dataset, pixels)
    assert {item["name"] for item in found} == {"c"}
    enough = [int((item["labels"] == 2).sum()) > 5 for item in found]
    uniform = samples(dataset, 0)  # crops are never drawn again, as any pixel is enough for one with the class
    by_chance = np.mean([bool((item["labels"] == 2).any()) for item in uniform if item["name"] == "c"])
    assert np.mean(enough) > 0.9 >= by_chance - 0.1


def test_an_image_is_given_up_after_so_many_crops(dataset, monkeypatch):
    calls = []
    rare = RareClasses(count_classes(dataset), pixels=0)
    monkeypatch.setattr(rare, "enough_in_crop", lambda *_: calls.append(1))
    views = {"mean_width": WIDTH, "crop_width": WIDTH // 2, "crop_height": HEIGHT // 2, "jitter": 0.0}
    item = SourceTraining(dataset, **views, rare_classes=rare)[SampleIndex(0, (1,))]
    assert len(calls) == 1 + MORE_CROPS and item["labels"].shape == (HEIGHT // 2, WIDTH // 2)


def test_a_sample_follows_from_its_seed_alone(dataset):
    views = {"mean_width": WIDTH, "crop_width": WIDTH // 2, "crop_height": HEIGHT // 2}
    crops = SourceTraining(
        dataset, **{**views, "jitter": 0.0}, rare_classes=RareClasses(count_classes(dataset), pixels=1)
    )
    one, other = crops[SampleIndex(0, (3, 4))], crops[SampleIndex(2, (3, 4))]
    assert one["name"] == other["name"] and torch.equal(one["labels"], other["labels"])
