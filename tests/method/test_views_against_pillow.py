"""The default replay moves maps as Pillow moves the image: pictures of labels tell where every pixel went."""

import itertools

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from proda.method.views import Operation, warp_to_strong_view
from tests.method.test_views import NO_CUTOUT, strong_view

SCALE, HEIGHT, WIDTH = 4, 256, 448  # the shape of the paper's crops, halved
FILL = 250
MOVES = {  # the largest values that strong views draw, each rule as on the image
    Operation.SHEAR_X: 0.27,
    Operation.SHEAR_Y: -0.24,
    Operation.TRANSLATE_X: -61.0,
    Operation.TRANSLATE_Y: 38.0,
    Operation.ROTATE: 24.0,
}
SINGLE = [((operation, sign * value),) for operation, value in MOVES.items() for sign in (1, -1)]
PAIRS = list(itertools.product(list(MOVES.items())[::2], repeat=2))  # a shear, a translation and a rotation


def picture_of_labels() -> Image.Image:
    """Random blocks of 24 x 24 pixels in 19 classes: every place is told apart from its surroundings."""
    blocks = torch.randint(0, 19, (HEIGHT // 24 + 1, WIDTH // 24 + 1), dtype=torch.uint8)
    blocks = blocks.repeat_interleave(24, 0).repeat_interleave(24, 1)[:HEIGHT, :WIDTH]
    return Image.fromarray(blocks.contiguous().numpy())


def move_with_pillow(image: Image.Image, operation: Operation, value: float) -> Image.Image:
    if operation == Operation.ROTATE:
        return image.rotate(value, fillcolor=FILL)
    matrix = {
        Operation.SHEAR_X: (1, value, 0, 0, 1, 0),
        Operation.SHEAR_Y: (1, 0, 0, value, 1, 0),
        Operation.TRANSLATE_X: (1, 0, value, 0, 1, 0),
        Operation.TRANSLATE_Y: (1, 0, 0, 0, 1, value),
    }[operation]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)


def at_map_resolution(image: Image.Image) -> tuple[Tensor, Tensor]:
    """The label at the centre of every 4 x 4 cell, and which cells lie wholly inside one region of the picture.

    A map that holds one label per cell cannot say where inside a cell a region ends.
    """
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width)
    around = pixels.float()[None, None]
    highest = torch.nn.functional.max_pool2d(around, 3 * SCALE, SCALE, SCALE)
    lowest = -torch.nn.functional.max_pool2d(-around, 3 * SCALE, SCALE, SCALE)
    return pixels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE], (highest == lowest)[0, 0]


def disagreement(moves, *, flipped: bool = False, cutout=NO_CUTOUT) -> tuple[float, float]:
    """Shares of interior pixels whose label, and whose validity, differ between Pillow's picture and the warped map."""
    image = picture_of_labels()
    maps, _ = at_map_resolution(image)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation, value in moves:
        image = move_with_pillow(image, operation, value)
    if cutout[0] >= 0:
        ImageDraw.Draw(image).rectangle(cutout, fill=FILL)
    expected, interior = at_map_resolution(image)

    moved, valid = warp_to_strong_view(maps[None, None], strong_view(*moves, flipped=flipped, cutout=cutout))
    assert interior.float().mean() > 0.25
    wrong_label = (moved[0, 0] != expected)[interior].float().mean().item()
    wrong_validity = (valid[0, 0] != (expected != FILL))[interior].float().mean().item()
    return wrong_label, wrong_validity


@pytest.mark.parametrize("moves", SINGLE, ids=str)
def test_each_operation_moves_the_map_as_the_image(moves):
    assert max(disagreement(moves)) < 0.005


@pytest.mark.parametrize("moves", PAIRS, ids=str)
def test_two_operations_move_the_map_as_the_image_in_every_order_and_repeated(moves):
    assert max(disagreement(moves, flipped=True, cutout=(100, 60, 185, 145))) < 0.005


def test_flip_and_cutout_are_exact():
    assert disagreement((), flipped=True) == (0, 0)
    assert disagreement((), cutout=(100, 60, 184, 144)) == (0, 0)


@pytest.mark.parametrize("released", [False, True])
def test_translation_by_whole_cells_agrees_at_every_pixel_but_not_in_the_released_replay(released):
    image = picture_of_labels()
    expected, interior = at_map_resolution(move_with_pillow(image, Operation.TRANSLATE_X, 60))
    view = strong_view((Operation.TRANSLATE_X, 60.0))
    moved, _ = warp_to_strong_view(at_map_resolution(image)[0][None, None], view, released=released)
    if released:
        assert (moved[0, 0] != expected)[interior].float().mean() > 0.2
    else:
        assert torch.equal(moved[0, 0], expected)


def test_what_left_the_image_stays_lost():
    moves = ((Operation.TRANSLATE_X, 100.0), (Operation.TRANSLATE_X, -100.0))
    assert disagreement(moves) == (0, 0)
    _, valid = warp_to_strong_view(torch.zeros(1, 1, 64, 112), strong_view(*moves))
    assert valid[0, 0].all(0).tolist() == [False] * 25 + [True] * 87  # the 100 left pixels went out and did not return
