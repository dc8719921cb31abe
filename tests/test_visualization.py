import numpy as np
import pytest

from proda.data.labels import class_names
from proda.visualization import confusion_picture, frequency_picture, legend


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


@pytest.mark.parametrize("width", [64, 256, 2048])
def test_a_legend_grows_with_the_picture_and_no_name_is_cut(width):
    colors = np.full((13, 3), 200, np.uint8)
    sheet = legend(class_names(13), colors, width)
    longest = max(legend([name], colors[:1], 64).width for name in class_names(13))
    assert sheet.width == max(width, longest)
    pixels = np.asarray(sheet)
    assert (pixels[-2:] == 255).all() and (pixels[:, -2:] == 255).all()  # a white margin: all is inside
    assert (pixels == 200).all(2).sum() > 13 * 80
