import numpy as np
import pytest

from proda.data.labels import (
    CAMVID_CLASSES,
    CAMVID_UNLABELED,
    TRANSPARENT,
    UNKNOWN,
    camvid_table,
    class_names,
    class_subset,
    classes,
    color_code,
    color_table,
    colorize,
    hold_train_ids,
    id_table,
    palette,
)
from proda.method import IGNORE


@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_every_label_space_has_as_many_classes_as_it_says(num_classes):
    assert len(classes(num_classes)) == len(set(class_names(num_classes))) == len(palette(num_classes)) == num_classes
    assert palette(num_classes).dtype == np.uint8


def test_the_thirteen_classes_are_found_among_the_sixteen():
    assert class_subset(13, of=16) == [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert set(class_names(19)) - set(class_names(16)) == {"terrain", "truck", "train"}


def test_another_number_of_classes_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"^--num_classes must be 19, 16 or 13, got 18$"):
        class_names(18)


@pytest.mark.parametrize("dataset", ["cityscapes", "gta5", "synthia"])
@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_an_id_table_reaches_every_class_once_and_nothing_but_ignore_and_unknown_beside(dataset, num_classes):
    table = id_table(dataset, num_classes)
    assert table.dtype == np.uint8 and table.shape == (256,)
    values, counts = np.unique(table, return_counts=True)
    assert values.tolist() == [*range(num_classes), IGNORE, UNKNOWN]
    assert (counts[:num_classes] == 1).all()


def test_a_class_left_out_is_ignored_and_an_id_that_does_not_exist_is_unknown():
    assert id_table("cityscapes", 16)[22] == IGNORE  # terrain
    assert id_table("cityscapes", 16)[34] == UNKNOWN
    assert id_table("synthia", 16)[23] == UNKNOWN
    assert id_table("gta5", 19)[34] == IGNORE


def test_colorize_paints_classes_in_their_colour_and_ignored_pixels_grey():
    picture = colorize(np.array([[0, 18, IGNORE]]))
    assert colorize(np.array([[9]]), palette(16)).tolist() == [[[0, 130, 180]]]  # sky: class 9 of 16, 10 of 19
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[128, 64, 128], [119, 11, 32], [250, 250, 250]]]


def test_a_color_table_gives_train_ids_whatever_the_runs_of_colors():
    table = color_table([[(1, 2, 3), (255, 255, 255)], [(0, 0, 0)]], [(9, 9, 9)])
    known = {(1, 2, 3): 0, (255, 255, 255): 0, (0, 0, 0): 1, (9, 9, 9): IGNORE, (1, 2, 4): UNKNOWN, (3, 2, 1): UNKNOWN}
    rng = np.random.default_rng(0)
    for length in (1, 7):  # of the runs
        drawn = np.repeat(rng.integers(0, len(known), 60), length).reshape(-1, 20)
        codes = np.array([color_code(color) for color in known], np.uint32)[drawn]
        assert (table.lookup(codes) == np.array(list(known.values()), np.uint8)[drawn]).all()
    assert table.lookup(np.array([[TRANSPARENT]], np.uint32)) == IGNORE
    assert table.lookup(np.zeros((0, 4), np.uint32)).shape == (0, 4)
    with pytest.raises(ValueError, match="two meanings of the color"):
        color_table([[(1, 2, 3)], [(1, 2, 3)]], [])


def test_the_classes_of_camvid_join_each_of_the_19_once_except_the_train():
    joined = [name for c in CAMVID_CLASSES for name in c.joins]
    assert sorted(joined) == sorted(set(class_names(19)) - {"train"})
    assert len({c.color for c in CAMVID_CLASSES}) == len(CAMVID_CLASSES) == CAMVID_UNLABELED == 11


def test_the_table_of_camvid_reaches_its_ids_and_leaves_the_rest_unlabeled():
    table, names = camvid_table(), class_names(19)
    for name, expected in {"sky": 0, "wall": 1, "pole": 2, "road": 3, "sidewalk": 4, "terrain": 5}.items():
        assert table[names.index(name)] == expected
    for name, expected in {"traffic_light": 6, "fence": 7, "bus": 8, "person": 9, "bicycle": 10, "train": 11}.items():
        assert table[names.index(name)] == expected
    assert table[IGNORE] == CAMVID_UNLABELED and table.dtype == np.uint8


@pytest.mark.parametrize("dataset", ["cityscapes", "synthia"])
@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_train_ids_in_files_of_ids_are_suspected(dataset, num_classes):
    """Every id occurs as often: of the format itself, or of train ids."""
    table = id_table(dataset, num_classes)
    known = [c.synthia if dataset == "synthia" else c.cityscapes for c in classes(num_classes)]
    for ids, expected in ((range(19), True), (known, False)):
        found = table[list(ids)]
        pixels, ignored = np.bincount(found, minlength=256)[:num_classes], float((found >= num_classes).mean())
        assert hold_train_ids(table, num_classes, pixels, ignored=max(ignored, 0.3 * expected)) == expected
    assert not hold_train_ids(table, num_classes, np.zeros(num_classes, int))


def test_other_tables_are_not_suspected():
    own = np.append(np.arange(30), np.full(226, UNKNOWN)).astype(np.uint8)
    assert not hold_train_ids(own, 30, np.append(np.ones(10, int), np.zeros(20, int)))
    colors = color_table([[(1, 2, 3)], [(4, 5, 6)]], [])
    assert not hold_train_ids(colors, 2, np.array([1, 0]))
