"""Counting classes, storing the numbers, and drawing rare classes by them."""

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data import class_statistics
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


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off", None])
def test_a_file_of_something_else_is_named(content, dataset, tmp_path):
    path = tmp_path / "statistics.npz"
    if content is None:
        np.savez(path, pixels=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"statistics\.npz: (cannot be read|found no areas).* delete the file") as error:
        load_or_count(path, dataset, NAMES)
    assert problem_of_stored(path, dataset, NAMES, np.zeros((4, 3))) == str(error.value)


def test_numbers_that_cannot_be_stored_are_used_all_the_same(dataset, tmp_path, caplog):
    (tmp_path / "file").write_text("")  # in the place of the folder
    with caplog.at_level("WARNING", "proda"):
        found = load_or_count(tmp_path / "file" / "statistics.npz", dataset, NAMES)
    assert (found.pixels == count_classes(dataset).pixels).all()
    assert "cannot be written" in caplog.text and "counts the classes again" in caplog.text


def test_probabilities_are_a_softmax_of_one_minus_the_share():
    found = class_probabilities(np.array([0.5, 0.3, 0.2]), 0.1)
    expected = np.exp(np.array([5.0, 7.0, 8.0]))
    assert found == pytest.approx(expected / expected.sum())
    assert class_probabilities(np.array([0.9, 0.1]), 0.001)[1] == pytest.approx(1)  # no overflow


def test_classes_that_no_image_shows_enough_of_are_not_drawn(monkeypatch):
    areas = np.full(3, REFERENCE_AREA)
    pixels = np.array([[10**6, 3000, 0], [10**6, 3001, 0], [10**6, 0, 0]])
    monkeypatch.setattr(class_statistics, "class_probabilities", lambda shares: np.array([0.6, 0.3, 0.1]))
    rare = RareClasses(ClassStatistics(pixels, areas))
    assert rare.images[1].tolist() == [1]  # more than 3000
    assert rare.probabilities == pytest.approx([2 / 3, 1 / 3, 0])
    rng = np.random.default_rng(0)
    drawn = [rare.draw(rng) for _ in range(2000)]
    assert {number for number, _ in drawn} == {0, 1}
    assert {index for number, index in drawn if number == 1} == {1}
    assert np.mean([number == 1 for number, _ in drawn]) == pytest.approx(rare.probabilities[1], abs=0.03)
    with pytest.raises(UserError, match="--rare_class_sampling: no labelled image shows 3000 pixels"):
        RareClasses(ClassStatistics(np.zeros((3, 3), np.int64), areas))


def test_numbers_of_pixels_are_scaled_with_the_image():
    areas = np.array([REFERENCE_AREA // 4])
    assert len(RareClasses(ClassStatistics(np.array([[751]]), areas)).images[0]) == 1
    with pytest.raises(UserError):
        RareClasses(ClassStatistics(np.array([[750]]), areas))
    rare = RareClasses(ClassStatistics(np.array([[751]]), areas))
    assert rare.enough_in_crop(1501, REFERENCE_AREA) and not rare.enough_in_crop(1500, REFERENCE_AREA)
    assert rare.enough_in_crop(376, REFERENCE_AREA // 4) and not rare.enough_in_crop(375, REFERENCE_AREA // 4)


VIEWS = {"mean_width": WIDTH, "crop_width": WIDTH // 2, "crop_height": HEIGHT // 2, "jitter": 0.0}


def crops(dataset, monkeypatch, enough: float) -> SourceTraining:
    """Crops of half the width and height; ``enough`` pixels of a class are enough in an image of this size."""
    monkeypatch.setattr(class_statistics, "ENOUGH", enough * REFERENCE_AREA / (HEIGHT * WIDTH))
    return SourceTraining(dataset, **VIEWS, rare_classes=RareClasses(count_classes(dataset)))


def test_crops_show_the_rare_class_wherever_one_can_be_found(dataset, monkeypatch):
    seeds, shares = [SampleIndex(0, (seed,)) for seed in range(60)], {}
    for enough, least in ((11, 5), (0, 0)):  # the train has twelve; with 0 no crop is drawn again
        samples = crops(dataset, monkeypatch, enough)
        drawn = [samples[seed] for seed in seeds]
        assert enough == 0 or {item["name"] for item in drawn} == {"c"}
        shares[enough] = np.mean([int((item["labels"] == 2).sum()) > least for item in drawn if item["name"] == "c"])
    assert shares[11] > 0.9 >= shares[0] - 0.1


def test_an_image_is_given_up_after_so_many_crops(dataset, monkeypatch):
    calls, samples = [], crops(dataset, monkeypatch, 0)
    monkeypatch.setattr(samples.rare_classes, "enough_in_crop", lambda *_: calls.append(1))
    item = samples[SampleIndex(0, (1,))]
    assert len(calls) == 1 + MORE_CROPS and item["labels"].shape == (HEIGHT // 2, WIDTH // 2)


def test_a_sample_follows_from_its_seed_alone(dataset, monkeypatch):
    samples = crops(dataset, monkeypatch, 1)
    one, other = samples[SampleIndex(0, (3, 4))], samples[SampleIndex(2, (3, 4))]
    assert one["name"] == other["name"] and torch.equal(one["labels"], other["labels"])


def test_statistics_may_follow_the_samples(dataset, monkeypatch):
    """A stage is built before its classes are counted."""
    later, seed, expected = RareClasses(), SampleIndex(0, (3,)), crops(dataset, monkeypatch, 11)
    samples = SourceTraining(dataset, **VIEWS, rare_classes=later)
    later.use(count_classes(dataset))
    assert samples[seed]["name"] == expected[seed]["name"]
    assert torch.equal(samples[seed]["labels"], expected[seed]["labels"])
