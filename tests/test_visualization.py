import numpy as np
import pytest

from proda.data.labels import class_names
from proda.method import IGNORE
from proda.visualization import confusion_picture, example_sheet, frequency_picture, legend


def colours(picture) -> set:
    return {color for _, color in picture.getcolors(1 << 20)}


def test_a_confusion_picture_is_dark_on_the_diagonal_where_all_is_right():
    cell = 34
    perfect = np.asarray(confusion_picture(np.eye(3) * 7, ["road", "car", "sky"], cell=cell))
    margin = perfect.shape[1] - 3 * cell - 8
    corner = [
        perfect[margin + row * cell + 2, margin + column * cell + 2].tolist() for row in (0, 1) for column in (0, 1)
    ]
    assert corner == [[20, 90, 50], [255, 255, 255], [255, 255, 255], [20, 90, 50]]


def test_a_confusion_picture_normalises_rows_and_leaves_a_class_without_pixels_grey():
    few, many = (confusion_picture(np.array([[3, 1], [0, 0]]) * n, ["road", "car"]) for n in (1, 1000))
    assert (np.asarray(few) == np.asarray(many)).all() and (238, 238, 238) in colours(few)


def test_frequencies_are_bars_in_the_classes_colours_and_longer_for_more():
    colors = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    picture = frequency_picture({"a": np.array([0.9, 0.01, 0.0])}, ["x", "y", "z"], colors)
    pixels = np.asarray(picture)
    red, green, blue = ((pixels == color).all(2).sum() for color in colors)
    assert red > green > 0 == blue


def labelled(width: int, height: int, left: int, right: int):
    """A grey image whose halves have two labels."""
    labels = np.full((height, width), left, np.uint8)
    labels[:, width // 2 :] = right
    return "name", np.full((height, width, 3), 100, np.uint8), labels


def test_examples_show_the_colors_of_their_labels_over_the_image_and_stripes_where_there_is_no_class():
    colors = np.array([(200, 0, 0), (0, 0, 200)], np.uint8)
    left, right, none = (
        np.asarray(example_sheet([labelled(200, 100, *labels)], ["road", "car"], colors, columns=1, width=200))
        for labels in ((0, 1), (1, 0), (0, IGNORE))
    )
    assert left[-30, 4, 0] > 100 > left[-30, 4, 2] and left[-30, -8, 2] > 100 > left[-30, -8, 0]
    assert (right[-30, -8] == left[-30, 4]).all()
    striped = none[-90:-10, 110:190].reshape(-1, 3).tolist()
    assert set(map(tuple, striped)) == {(45, 45, 45), (185, 185, 185)}


def test_the_names_of_classes_stand_in_their_regions_and_move_with_them():
    colors = np.zeros((2, 3), np.uint8)  # so that white is text

    def white(names, left, right):
        sheet = np.asarray(example_sheet([labelled(200, 100, left, right)], names, colors, columns=1, width=200))
        text = (sheet[-100:] > 250).all(2)
        return text[:, :100].sum(), text[:, 100:200].sum()

    assert min(white(["road", "car"], 0, 1)) > 10
    assert white(["road", "i"], 0, 1)[0] > white(["road", "i"], 0, 1)[1] > 0
    assert white(["road", "i"], 1, 0)[0] < white(["road", "i"], 1, 0)[1]


def test_a_sheet_has_room_for_images_of_several_sizes():
    colors, options = np.zeros((2, 3), np.uint8), {"columns": 2, "width": 100}
    one = example_sheet([labelled(40, 20, 0, 1)], ["a", "b"], colors, **options)
    shapes = [(40, 20), (40, 60), (8, 8), (8, 8)]
    four = example_sheet([labelled(*shape, 0, 1) for shape in shapes], ["a", "b"], colors, **options)
    assert four.width == one.width and four.height > one.height + 2 * 100


@pytest.mark.parametrize("width", [64, 256, 2048])
def test_a_legend_grows_with_the_picture_and_no_name_is_cut(width):
    colors = np.full((13, 3), 200, np.uint8)
    sheet = legend(class_names(13), colors, width)
    longest = max(legend([name], colors[:1], 64).width for name in class_names(13))
    assert sheet.width == max(width, longest)
    pixels = np.asarray(sheet)
    assert (pixels[-2:] == 255).all() and (pixels[:, -2:] == 255).all()  # a white margin: all is inside
    assert (pixels == 200).all(2).sum() > 13 * 80
