"""Trees with leaves and without, hedges and bushes. Crowns are stamps: ragged shapes with holes."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from proda.streets.canvas import VEGETATION, Colour, Sprite, shade
from proda.streets.town.view import TownView

SIZE = 192  # pixels of a stamp


class Crown(NamedTuple):
    """Stamps of one crown, all in grey."""

    leaves: Image.Image  # mask, with holes where the sky shows through
    twigs: Image.Image  # mask of a crown without leaves
    tones: Image.Image
    leafy: Image.Image  # the region that is labeled
    bare: Image.Image


@cache
def crowns() -> list[Crown]:
    """The same crowns in every process: what differs from tree to tree is their number, size and color."""
    rng, made = np.random.default_rng(20), []
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    for _ in range(16):
        noises = [_noise(rng, cells) for cells in (4, 10, 26, 70)]
        angle = np.arctan2(axis[:, None], axis)
        radius = np.hypot(axis[:, None], axis) * (1 + 0.12 * np.sin(angle * 3 + rng.uniform(0, 6)))
        shape = 0.75 - radius + 0.22 * noises[0] + 0.12 * noises[1]
        holes = 0.55 * noises[1] + 0.5 * noises[2] + 0.5 * noises[3] - 0.95
        leaves = np.minimum(shape + 0.1 * noises[2] + 0.1 * noises[3], -holes)
        lines = np.maximum(1 - np.abs(noises[2]) * 2.2, 1 - np.abs(noises[3]) * 1.6).clip(0, 1)  # twigs cross
        twigs = (shape + 0.1 * noises[2]).clip(0, 0.3) * 2.6 * lines
        tones = 0.5 - 0.22 * axis[:, None] + 0.16 * noises[1] + 0.13 * noises[2] + 0.12 * noises[3]
        mask = _grey(leaves * 12 + 0.5)
        leafy = np.asarray(mask.filter(ImageFilter.MaxFilter(5))) > 127
        made.append(Crown(mask, _grey(twigs), _grey(tones), _grey(leafy), _grey(shape > 0)))
    return made


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    small = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values.astype(np.float32).clip(0, 1)).astype(np.uint8))


def draw_foliage(view: TownView, sprite: Sprite, middle: float, wide: float, high: float, colour: Colour, *,
                 bare: bool = False) -> None:  # fmt: skip
    """A crown or a bush around (0, ``middle``) of a sprite, ``wide`` and ``high`` metres from there to its rim."""
    kinds = crowns()
    crown = kinds[view.rng.integers(len(kinds))]
    x, y, u, v = sprite.x, sprite.y - middle * sprite.scale, wide * sprite.scale * 1.25, high * sprite.scale * 1.25
    box = (x - u, y - v, x + u, y + v)
    view.stamp(crown.twigs if bare else crown.leaves, crown.tones, colour, box, sprite.z)
    view.stamp_label(crown.bare if bare else crown.leafy, VEGETATION, box)


def draw_tree(view: TownView, x: float, z: float, *, bare: bool, height: float) -> None:
    """A tree; its crown may hang over the street."""
    rng = view.rng
    tree, trunk = Sprite(view, x, z, VEGETATION), view.pick("trunk")
    radius = height * rng.uniform(0.22, 0.42)
    thick = height * rng.uniform(0.012, 0.028)
    crown = max(height - radius * rng.uniform(0.8, 1.0), 1.9 + 1.1 * radius)  # people walk below it
    tree.polygon([(-thick * 1.2, 0), (thick * 1.2, 0), (thick * 0.7, crown), (-thick * 0.7, crown)], trunk)
    tree.polygon([(0, 0), (thick * 1.2, 0), (thick * 0.7, crown), (0, crown)], shade(trunk, 0.8), detail=True)
    if bare:
        draw_foliage(view, tree, crown, radius, radius * 1.2, shade(trunk, 1.1), bare=True)
        _branch(tree, (0.0, crown * 0.55), math.pi / 2, height * 0.26, thick * 1.3, trunk, 5, rng)
    else:
        _branch(tree, (0.0, crown * 0.6), math.pi / 2, height * 0.2, thick * 1.3, trunk, 5, rng)
        colour = view.pick("leaf")
        for _ in range(int(rng.integers(1, 4))):
            lean, rise = rng.normal(0, 0.3, 2) * radius
            draw_foliage(view, tree, crown + rise, radius * rng.uniform(0.7, 1), radius * rng.uniform(0.7, 1.1), colour)
            tree.x += lean * tree.scale
    if rng.random() < 0.25:  # ivy or a bush at its foot
        draw_foliage(view, tree, 0.5, 0.8, 0.6, view.pick("leaf"))


def _branch(
    tree: Sprite, start: tuple[float, float], angle: float, length: float, thick: float, colour: Colour,
    forks: int, rng: np.random.Generator,
) -> None:  # fmt: skip
    if not forks or length * tree.scale < 8:
        return
    end = (start[0] + length * math.cos(angle), start[1] + length * math.sin(angle))
    tree.line([start, end], colour, thick)
    for side in (-1, 1) if rng.random() < 0.6 else (-1, 0.2, 1):
        turn = angle + side * rng.uniform(0.2, 0.6)
        _branch(tree, end, turn, length * rng.uniform(0.6, 0.85), thick * 0.62, colour, forks - 1, rng)


def draw_hedge(view: TownView, side: float, x: float, near: float, far: float) -> None:
    height, colour = view.rng.uniform(0.8, 2.4), view.pick("leaf")
    view.across(x, x + side * 2, near, 0, height, shade(colour, 0.8), VEGETATION)
    view.upright(x, near, far, 0, height, shade(colour, 0.9), VEGETATION)
    z = far
    while z > max(near, 4.0):  # a ragged top and a leafy front
        top = Sprite(view, x, z, VEGETATION)
        draw_foliage(view, top, height * view.rng.uniform(0.6, 0.95), 1.1, 0.5 * height, colour)
        z -= max(1.3, z * 0.12)
